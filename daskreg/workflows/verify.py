"""``daskreg verify``: compare a registration on different numbers of workers, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from daskreg.arguments import checked_arguments
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ConfigError, require_known
from daskreg.html import Printable
from daskreg.lazy.load import FinishedRun
from daskreg.planning import RESIDENCIES
from daskreg.workflows.inputs import ConfigLike, ImageLike, Spacing
from daskreg.workflows.register import register
from daskreg.workflows.resources import Residency, Resources, RunKeywords
from daskreg.workflows.result import Result

if TYPE_CHECKING:
    import dask.array as da

PLANES = 64  # read at once to be compared


@dataclass(frozen=True)
class Comparison:
    """One run against the first: largest differences of the displacement (voxels), the affine and the losses."""

    workers: int
    residency: str
    seconds: float
    voxels: float
    affine: float
    losses: float
    bits: bool

    def line(self) -> str:
        """Human-readable summary."""
        found = (
            "identical" if self.bits else f"differs by {self.voxels:.3g} voxel, affine {self.affine:.3g}, loss {self.losses:.3g}"
        )
        return f"{self.workers} worker{'s' * (self.workers > 1):<1} {self.residency:<10}{self.seconds:>8.1f} s  {found}"


@dataclass(frozen=True, repr=False)
class Verification(Printable):
    """Whether runs on different numbers of workers are identical."""

    runs: tuple[Comparison, ...]

    @property
    def same(self) -> bool:
        """Whether all runs are identical, bit for bit."""
        return all(run.bits for run in self.runs)

    @property
    def voxels(self) -> float:
        """The largest difference of any displacement, in voxels."""
        return max(run.voxels for run in self.runs)

    def lines(self) -> list[str]:
        """One a run."""
        return [run.line() for run in self.runs]


@renamed_arguments(tell="echo")
@checked_arguments(RunKeywords.__annotations__, preset="config", residency="residencies")
def verify(
    fixed: ImageLike,
    moving: ImageLike,
    config: ConfigLike = "brain",
    workers: Sequence[int] = (1, 2, 3),
    residencies: Sequence[Residency] = ("auto",),
    *,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    initial_transform: str | Path | FinishedRun | None = None,
    spacing: Spacing = None,
    echo: Callable[[str], None] = lambda line: None,
    **resources: Unpack[RunKeywords],
) -> Verification:
    """Register once for each number of workers and residency, in a temporary folder, and compare with the first.

    Images, configuration and resources are those of ``register``;  echo: called with a line for each comparison.
    Raises what ``register`` raises.
    """
    options: dict[str, Any] = {"initial_transform": initial_transform, "spacing": spacing, **resources}
    options |= {"fixed_mask": fixed_mask, "moving_mask": moving_mask, "checkpoint": None}
    _require_runs(workers, residencies)
    runs: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="daskreg-verify-") as folder:
        first: Result | None = None
        for n in workers:
            for residency in residencies if n > 1 else residencies[:1]:
                path = Path(folder) / f"{n}-{residency}.zarr"
                result = register(fixed, moving, config, output=path, workers=n, residency=residency, progress=False, **options)
                first = first or result
                runs.append(compare(first, result, n, residency))
                echo(runs[-1].line())
    found = Verification(tuple(runs))
    echo(f"largest difference of the displacement: {found.voxels:g} voxel")
    return found


def _require_runs(workers: Sequence[int], residencies: Sequence[str]) -> None:
    """Raises ConfigError for what the last of several runs would be refused for."""
    if not isinstance(workers, Sequence) or isinstance(workers, str) or isinstance(residencies, str):
        raise ConfigError(
            f"workers is {workers!r} and residencies {residencies!r}; lists to compare were expected, as in workers=(1, 2, 3), "
            "residencies=('replicate', 'ring')."
        )
    if not workers or not residencies:
        raise ConfigError("nothing to compare: give numbers of workers, as in 1,2,3, and residencies, or auto.")
    for n in workers:
        Resources(workers=n)
    for residency in residencies:
        require_known("residency", residency, ("auto", *RESIDENCIES))


def compare(first: Result, other: Result, workers: int = 1, residency: str = "auto") -> Comparison:
    """How two runs of one registration differ."""
    apart, same = _difference(first.displacement, other.displacement)
    apart /= min(first.store.fixed_grid.spacing)
    losses = [[level["losses"] for level in r.report["levels"]] for r in (first, other)]
    same &= losses[0] == losses[1] and first.affine.tobytes() == other.affine.tobytes()
    flat = [np.array([v for level in levels for v in level]) for levels in losses]
    worst = float(np.abs(flat[0] - flat[1]).max(initial=0.0)) if flat[0].shape == flat[1].shape else float("nan")
    affine = float(np.abs(first.affine - other.affine).max())
    return Comparison(workers, residency, other.report["seconds"]["total"], apart, affine, worst, bool(same))


def _difference(a: da.Array | None, b: da.Array | None) -> tuple[float, bool]:
    """The largest difference of two fields (3, Z, Y, X), and whether their bits are the same; 0 where neither exists."""
    if a is None or b is None:
        return (0.0, True) if a is b else (float("inf"), False)
    largest, same = 0.0, True
    for z in range(0, a.shape[1], PLANES):
        one, other = np.asarray(a[:, z : z + PLANES]), np.asarray(b[:, z : z + PLANES])
        largest = max(largest, float(np.abs(one - other).max()))
        same &= one.tobytes() == other.tobytes()
    return largest, same
