"""``daskreg invert``: the inverse of a transform, written chunk by chunk, with a certificate of its error over all voxels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daskreg.arguments import checked_arguments
from daskreg.deprecation import renamed_arguments
from daskreg.errors import counted
from daskreg.grid import Grid, Region
from daskreg.html import Printable
from daskreg.lazy.blocks import EDGE, compute_blocks
from daskreg.lazy.load import TransformLike, load_transform, path_of, stored_links
from daskreg.lazy.save import history_of, require_output, write_transform
from daskreg.lazy.transform import Determinant, Transform, jacobian_statistics
from daskreg.reporting.tasks import with_progress
from daskreg.storage.runs.transforms import TransformStore
from daskreg.transforms.accuracy import ROUND_TRIP_LIMIT, RoundTrip, SolutionAccuracy
from daskreg.transforms.inverse import SOLUTION_TOLERANCE, InverseField
from daskreg.transforms.jacobian import JacobianStatistics
from daskreg.transforms.link import Link

log = logging.getLogger("daskreg")


@dataclass(frozen=True, repr=False)
class Certificate(Printable):
    """How well an inverse undoes a transform.

    fixed_round_trip: ``|phi^-1(phi(x)) - x|`` over all voxels x of the fixed grid, in its voxels, through the inverse as it is
    stored: where space is compressed, much lies between two voxels of the inverse;  moving_round_trip:
    ``|phi(phi^-1(q)) - q|`` over the voxels q of the moving grid that come from inside the fixed one, in its voxels: what an
    image sees that is resampled through the inverse;  jacobian_statistics: of the displacement, at the voxels of the fixed grid;
    solved: the equation at the voxels of the inverse, before anything is interpolated; None where every link is affine
    """

    fixed_round_trip: RoundTrip
    moving_round_trip: RoundTrip
    jacobian_statistics: JacobianStatistics
    solved: SolutionAccuracy | None

    @property
    def folded(self) -> int:
        """Voxels of the fixed grid at which space folds: they have no inverse."""
        return round(self.jacobian_statistics.folded_percent * self.fixed_round_trip.voxels / 100)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        s = self.solved
        tree: dict[str, Any] = {
            "what": "|phi^-1(phi(x)) - x| over all voxels x of the fixed grid, in voxels",
            **_trip_dict(self.fixed_round_trip),
            "back_and_there": {
                "what": "|phi(phi^-1(q)) - q| over the voxels q of the moving grid from inside the fixed one, in voxels",
                **_trip_dict(self.moving_round_trip),
            },
            "folded_voxels": self.folded,
            "smallest_determinant": self.jacobian_statistics.smallest,
        }
        if s is not None:
            tree["fixed_point"] = {
                "what": "|w + u(q + w)| at the voxels q of the inverse, and the proven bound on its error, in voxels",
                "tolerance": SOLUTION_TOLERANCE, "residual": s.residual, "bound": s.bound, "voxels": s.voxels,
                "unproven_voxels": s.unproven, "unsolved_voxels": s.unsolved,
                "unsolved_within": [{"start": list(b.start), "stop": list(b.stop)} for b in s.unsolved_boxes],
            }  # fmt: skip
        return tree

    def lines(self) -> list[str]:
        """Human-readable summary."""
        r, q, s = self.fixed_round_trip, self.moving_round_trip, self.solved
        text = [
            f"there and back, over {r.voxels} voxels: mean {r.mean:.2g}, largest {r.largest:.2g} voxel at {r.worst} (z, y, x)",
            f"back and there, over {q.voxels} voxels of the moving image: mean {q.mean:.2g}, largest {q.largest:.2g} voxel",
        ]
        if s is not None:
            text.append(
                f"at the voxels of the inverse: residual at most {s.residual:.2g} voxel, proven error at most {s.bound:.2g}"
                f" voxel{_gap(s)}"
            )
        return text

    def warnings(self) -> list[str]:
        """What is not as an inverse should be."""
        r, s = self.fixed_round_trip, self.solved
        text = []
        if s is not None and s.unsolved:
            text.append(
                f"no solution within {SOLUTION_TOLERANCE:g} voxel at {counted(s.unsolved, 'voxel')} of the inverse: see "
                "unsolved_within"
            )
        if self.folded:
            text.append(f"the displacement folds at {counted(self.folded, 'voxel')} of the fixed image: folds have no inverse")
        if r.failed_box is not None:
            compression = 1 / max(self.jacobian_statistics.smallest, 1e-6) if self.jacobian_statistics.smallest > 0 else 0
            why = f"; space is compressed up to {compression:.2g} times" if compression >= 2 else ""
            text.append(
                f"beyond {ROUND_TRIP_LIMIT:g} voxel at {counted(r.failed, 'voxel')}, all within {r.failed_box.start} to "
                f"{r.failed_box.stop}{why}: the inverse is interpolated between its voxels, --upsampling 2 "
                "leaves half of that error"
            )
        return text


def _trip_dict(r: RoundTrip) -> dict[str, Any]:
    around = None if r.failed_box is None else {"start": list(r.failed_box.start), "stop": list(r.failed_box.stop)}
    return {
        "voxels": r.voxels, "mean": r.mean, "largest": r.largest, "worst_voxel": list(r.worst),
        "limit": ROUND_TRIP_LIMIT, "beyond_limit": r.failed, "beyond_limit_within": around,
    }  # fmt: skip


def _gap(s: SolutionAccuracy) -> str:
    share = 100 * s.unproven / s.voxels
    return f", but for {share:.2g} % of voxels, where it stretches too much for a proof" if s.unproven else ""


@renamed_arguments(run="transform", finer="upsampling")
@checked_arguments()
@with_progress("inverting")
def invert(
    transform: TransformLike, output: str | Path, *, upsampling: int = 1, both: bool = False, overwrite: bool = False
) -> Certificate:
    """Write the inverse of a transform, from moving to fixed points, as an OME-NGFF 0.6 store, and say how exact it is.

    Each displacement d becomes v with ``v(q) = -d(q + v(q))`` on d's grid, grown to hold all x + d(x), by fixed point and, where
    that does not contract, by Newton's method; block by block with the halo that d can reach, on the current Dask client.

    Parameters
    ----------
    transform
        An address, the Result of ``register`` or a Transform.
    output
        The store that is written.
    upsampling
        Voxels of the inverse per voxel of the displacement, along each axis; 2 leaves about half of the error.
    both
        Keep the transform beside its inverse, as one bijection that needs no other file.
    overwrite
        Replace an existing output, once the new one is complete.

    Raises InputError and OutputError in all their forms.
    """
    require_output(output, overwrite, path_of(transform))
    phi = load_transform(transform)
    inverse = phi.inverse(upsampling)
    certified: list[Certificate] = []

    def certify(store: TransformStore, found: list[Any]) -> dict[str, Any]:
        back = stored_links(store, inverse.links)
        grid = (phi.fixed or _any_grid(phi)).to_unit(phi.unit)
        target = (phi.moving or inverse_grid(inverse) or grid).to_unit(phi.unit)
        trips = round_trip(phi.links, back, grid), round_trip(back, phi.links, target, grid)
        certified.append(Certificate(*trips, _jacobian_statistics(phi, grid), SolutionAccuracy.merge(found) if found else None))
        return {"certificate": certified[0].as_dict()}

    made, backward = history_of("invert", path_of(transform)), phi if both else None
    write_transform(inverse, output, overwrite=overwrite, fill=_solved, describe=certify, backward=backward, made=made)
    for line in certified[0].warnings():
        log.warning("%s: %s", output, line)
    return certified[0]


def round_trip(links: Sequence[Link], back: Sequence[Link], grid: Grid, within: Grid | None = None) -> RoundTrip:
    """There through ``links`` and back from every voxel of a grid, a task a block; see ``RoundTrip.of``."""
    trip = partial(_round_trip, tuple(links), tuple(back), grid, within)
    return RoundTrip.merge(compute_blocks(trip, grid.region, EDGE))


def _round_trip(links: Sequence[Link], back: Sequence[Link], grid: Grid, within: Grid | None, box: Region) -> RoundTrip:
    return RoundTrip.of(links, back, grid, box, within)


def inverse_grid(inverse: Transform) -> Grid | None:
    """The grid of the first displacement of an inverse, None where it has none."""
    return next((link.grid for link in inverse.links if link.displacement is not None), None)


def _jacobian_statistics(transform: Transform, grid: Grid) -> JacobianStatistics:
    if transform.is_affine:
        return JacobianStatistics()
    return jacobian_statistics(Determinant(transform.links, grid, whole=False), grid.region, EDGE)


def _any_grid(transform: Transform) -> Grid:
    """A bare affine has no grid: a cube about the origin serves."""
    grids = [link.grid for link in transform.links if link.grid is not None]
    return grids[0] if grids else Grid((16, 16, 16), (16.0,) * 3, (-120.0,) * 3, unit=transform.unit)


def _solved(link: Link, box: Region) -> tuple[Any, SolutionAccuracy]:
    field: InverseField = link.displacement
    v, residual, constant = field.solve(box)
    return v, SolutionAccuracy.of(residual, constant, box)
