"""``daskreg invert``: the inverse of a transform, written chunk by chunk, with a certificate of its error over all voxels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask

from daskreg.grid import Grid, Region
from daskreg.storage import RunStore
from daskreg.storage.transforms import TransformStore
from daskreg.transforms.composite import Link, blocks
from daskreg.transforms.inverse import LIMIT, TOLERANCE, InverseField, RoundTrip, Solved
from daskreg.workflows.blocks import EDGE
from daskreg.workflows.keep import made_by, require_room, write_transform
from daskreg.workflows.load import load_transform, place_of, stored_links
from daskreg.workflows.transform import Transform

log = logging.getLogger("daskreg")


@dataclass(frozen=True)
class Certificate:
    """How well an inverse undoes a transform.

    there_and_back: ``|phi^-1(phi(x)) - x|`` over all voxels x of the fixed grid, in its voxels, through the inverse as it is
    stored;  solved: of the fixed point, at the voxels of the inverse; None where every link is affine
    """

    there_and_back: RoundTrip
    solved: Solved | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        r, s = self.there_and_back, self.solved
        around = None if r.around is None else {"start": list(r.around.start), "stop": list(r.around.stop)}
        told: dict[str, Any] = {
            "what": "|phi^-1(phi(x)) - x| over all voxels x of the fixed grid, in voxels",
            "voxels": r.voxels, "mean": r.mean, "largest": r.largest, "worst_voxel": list(r.worst),
            "limit": LIMIT, "beyond_limit": r.failed, "beyond_limit_within": around,
        }  # fmt: skip
        if s is not None:
            told["fixed_point"] = {
                "what": "|w + u(q + w)| at the voxels q of the inverse, and the proven bound on its error, in voxels",
                "tolerance": TOLERANCE, "residual": s.residual, "bound": s.bound, "voxels": s.voxels,
                "unproven_voxels": s.unproven,
            }  # fmt: skip
        return told

    def lines(self) -> list[str]:
        """For people."""
        r, s = self.there_and_back, self.solved
        text = [
            f"there and back, over {r.voxels} voxels: mean {r.mean:.2g}, largest {r.largest:.2g} voxel at {r.worst} (z, y, x)"
        ]
        if r.around is not None:
            text.append(
                f"beyond {LIMIT:g} voxel at {r.failed} of them, all within {r.around.start} to {r.around.stop}: folds have no "
                "inverse, and a rough field needs finer voxels (--finer 2)"
            )
        if s is not None:
            text.append(
                f"fixed point: residual at most {s.residual:.2g} voxel, proven error at most {s.bound:.2g} voxel{_gap(s)}"
            )
        return text


def _gap(s: Solved) -> str:
    share = 100 * s.unproven / s.voxels
    return f", but for {share:.2g} % of voxels, where it stretches too much for a proof" if s.unproven else ""


def invert(
    run: str | Path | RunStore | Transform, output: str | Path, *, finer: int = 1, both: bool = False, overwrite: bool = False
) -> Certificate:
    """Write the inverse of a transform, from moving to fixed points, as an OME-NGFF 0.6 store, and say how exact it is.

    Each displacement d becomes v with ``v(q) = -d(q + v(q))`` on d's grid, grown to hold all x + d(x), by fixed point, block by
    block with the halo that d can reach, on the Dask client in hand.

    finer: voxels of the inverse in one of the displacement, along each axis; twice as many leave about half of the error;
    both: keep the transform beside its inverse, as one bijection that needs no other file.
    Raises InputError and OutputError in all their forms.
    """
    require_room(output, overwrite, place_of(run))
    transform = run if isinstance(run, Transform) else load_transform(run)
    inverse = transform.inverse(finer)
    certified: list[Certificate] = []

    def tell(store: TransformStore, found: list[Any]) -> dict[str, Any]:
        back = stored_links(store, inverse.links)
        trip = round_trip(transform, back)
        certified.append(Certificate(trip, Solved.merged(found) if found else None))
        return {"certificate": certified[0].as_dict()}

    made, backward = made_by("invert", place_of(run)), transform if both else None
    write_transform(inverse, output, overwrite=overwrite, fill=_solved, tell=tell, backward=backward, made=made)
    if certified[0].there_and_back.failed:
        log.warning("%s: %s", output, certified[0].lines()[1])
    return certified[0]


def round_trip(transform: Transform, back: Sequence[Link]) -> RoundTrip:
    """There and back from every voxel of the fixed grid, a task a block."""
    grid = (transform.fixed or _any_grid(transform)).to_unit(transform.unit)
    held = _Pair(transform.links, tuple(back), grid)
    one = dask.delayed(_tripped, pure=False)  # type: ignore[attr-defined]
    parts = dask.compute(*(one(held, box) for box in blocks(grid.shape, EDGE)))  # type: ignore[attr-defined, no-untyped-call]
    return RoundTrip.merged(list(parts))


def _any_grid(transform: Transform) -> Grid:
    """A bare affine has no grid: a cube about the origin serves."""
    grids = [link.grid for link in transform.links if link.grid is not None]
    return grids[0] if grids else Grid((16, 16, 16), (16.0,) * 3, (-120.0,) * 3, unit=transform.unit)


class _Pair:
    """Not a dataclass: Dask would look inside."""

    def __init__(self, links: tuple[Link, ...], back: tuple[Link, ...], grid: Grid) -> None:
        self.links, self.back, self.grid = links, back, grid


def _tripped(pair: _Pair, box: Region) -> RoundTrip:
    return RoundTrip.of(pair.links, pair.back, pair.grid, box)


def _solved(link: Link, box: Region) -> tuple[Any, Solved]:
    field: InverseField = link.displacement
    v, residual, constant = field.solve(box)
    return v, Solved.of(residual, constant)
