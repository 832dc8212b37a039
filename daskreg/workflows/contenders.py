"""What a comparison of programs measures of each, the same for all: likeness, overlap of labels, Jacobian."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import SingleRank
from daskreg.config import Config
from daskreg.deferred import DeferredModule
from daskreg.engine.background import leave_out
from daskreg.engine.images import normalise
from daskreg.engine.measure import MUTUAL_INFORMATION_BINS
from daskreg.grid import Grid
from daskreg.lazy.resample import resampled
from daskreg.lazy.transform import LARGE, Determinant, Transform, jacobian_statistics
from daskreg.similarity import MI
from daskreg.similarity.base import Samples
from daskreg.storage import Volume
from daskreg.workflows.background import backgrounds
from daskreg.workflows.evaluate import compare_labels

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

COLUMNS = (
    *("program", "state", "seconds", "peak_bytes", "correlation", "mutual_information", "dice", "folded_percent"),
    *("jacobian_smallest", "jacobian_largest", "version", "settings", "error"),
)
SHOWN = ("program", "seconds", "peak MiB", "correlation", "MI, nats", "Dice", "folded %", "Jacobian of the map")


@dataclass(frozen=True)
class Measures:
    """What is measured of a transform.

    correlation, mutual_information (nats): of the fixed image and the moved one, over the voxels mapped into the moving image, as
    ``daskreg register`` measures them;
    folded_percent, jacobian_smallest, jacobian_largest: of the total map, at the fixed voxels;  dice: mean over labels, nan
    without any
    """

    correlation: float
    mutual_information: float
    folded_percent: float
    jacobian_smallest: float
    jacobian_largest: float
    dice: float = math.nan

    def cells(self) -> list[str]:
        """For people, as the last of SHOWN."""
        dice = "" if math.isnan(self.dice) else f"{self.dice:.4f}"
        span = f"{self.jacobian_smallest:.3f} to {self.jacobian_largest:.3f}"
        return [f"{self.correlation:.4f}", f"{self.mutual_information:.4f}", dice, f"{self.folded_percent:.4g}", span]


@dataclass(frozen=True)
class Contender:
    """One program of a comparison.

    state: start (the headers alone), recorded (a run made earlier), measured, missing or failed;  measures: None where there is
    no result;  seconds: of the process, without resampling and export;  peak_bytes: the process and its children together;
    error: a sentence
    """

    program: str
    state: str
    measures: Measures | None = None
    seconds: float = math.nan
    peak_bytes: float = math.nan
    version: str = ""
    settings: str = ""
    error: str = ""

    def cells(self) -> list[str]:
        """For people, as in SHOWN."""
        name = self.program if self.state in ("start", "measured") else f"{self.program} ({self.state})"
        seconds = "" if math.isnan(self.seconds) else f"{self.seconds:.1f}"
        peak = "" if math.isnan(self.peak_bytes) else f"{self.peak_bytes / 2**20:.0f}"
        return [name, seconds, peak, *([""] * 5 if self.measures is None else self.measures.cells())]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without what is not known."""
        tree = {k: v for k, v in asdict(self).items() if k != "measures"}
        tree |= {} if self.measures is None else asdict(self.measures)
        return {k: v for k, v in tree.items() if v != "" and not (isinstance(v, float) and math.isnan(v))}


@dataclass(frozen=True)
class Pair:
    """The images that programs are measured on, and labels of both where there are some; all in one world.

    fixed: voxels (Z, Y, X) float32, and grid its grid;  fixed and moving have the intensities of the run: see ``seen``
    """

    fixed: NDArray[np.float32]
    grid: Grid
    moving: Volume
    fixed_labels: Volume | None = None
    moving_labels: Volume | None = None

    @classmethod
    def seen(cls, config: Config, fixed: Volume, moving: Volume, *labels: Volume | None) -> Pair:
        """The images with the intensities that a run with this configuration compares: stored background has the least value,
        percentiles are 0 and 1. Raises VoxelError.
        """
        found = []
        for volume, background in zip((fixed, moving), backgrounds(config, fixed, moving), strict=True):
            voxels, left_out = volume.read(), 0
            if background is not None:
                left_out = leave_out(voxels, background.known(voxels), slice(None), SingleRank(), volume.name)
            normalise(voxels, config, SingleRank(), volume.name, left_out=left_out)
            found.append(voxels)
        return cls(found[0], fixed.grid, replace(moving, data=da.from_array(found[1], name=False), stored=None), *labels)

    def in_unit(self, unit: str | None, called: str | None) -> Pair:
        """The same numbers in another unit: programs of ITK take every world for millimetres."""

        def renamed(volume: Volume) -> Volume:
            return replace(volume, grid=replace(volume.grid.to_unit(unit), unit=called))

        labels = [None if v is None else renamed(v) for v in (self.fixed_labels, self.moving_labels)]
        return Pair(self.fixed, replace(self.grid.to_unit(unit), unit=called), renamed(self.moving), *labels)


def measured(pair: Pair, phi: Transform) -> Measures:
    """Measure a transform. Raises InputError in all its forms."""
    grid = pair.grid
    moved = resampled(pair.moving, grid, phi.links, phi.unit, "linear", fill=math.nan, domain="centers").compute()
    information = _information(pair.fixed, moved)
    jacobian = jacobian_statistics(Determinant(phi.links, grid.to_unit(phi.unit), True), grid.region, LARGE)
    ends = jacobian.folded_percent, jacobian.smallest, jacobian.largest
    return Measures(_correlation(pair.fixed, moved), information, *ends, _dice(pair, phi))


def _dice(pair: Pair, phi: Transform) -> float:
    if pair.fixed_labels is None or pair.moving_labels is None:
        return math.nan
    overlaps = compare_labels(phi, pair.fixed_labels, pair.moving_labels).values()
    return float(np.mean([o.after for o in overlaps if o.missing != "both"]))


def _correlation(fixed: NDArray[np.float32], moved: NDArray[np.float32]) -> float:
    inside = np.isfinite(moved)
    f, m = fixed[inside].astype(float), moved[inside].astype(float)
    if f.size < 2 or f.std() == 0 or m.std() == 0:
        return 0.0
    return float(np.corrcoef(f, m)[0, 1])


def _information(fixed: NDArray[np.float32], moved: NDArray[np.float32]) -> float:
    """Mutual information, nats."""
    information, none = MI(bins=MUTUAL_INFORMATION_BINS).build("cpu"), np.empty((0, 0, 0), np.float32)
    counts = information.partial(Samples(fixed.shape, 0, fixed, none, moved, none))
    return float(-information.value(counts)[0])


NOTE = (
    "correlation and MI: as 'daskreg register' prints them, from the intensities of the run; Jacobian: of the whole map, affine "
    "part included (register: of the displacement)"
)


def markdown(rows: Iterable[Contender]) -> str:
    """A table, and a line for each program that is not in it with numbers."""
    rows = list(rows)
    lines = [f"| {' | '.join(SHOWN)} |", "|" + "---|" * len(SHOWN)]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(
        [*lines, "", NOTE, *([""] if any(r.error for r in rows) else []), *(f"- {r.program}: {r.error}" for r in rows if r.error)]
    )


def aligned(rows: Iterable[Contender]) -> list[str]:
    """Lines for a terminal."""
    rows = list(rows)
    cells = [list(SHOWN), *(row.cells() for row in rows)]
    widths = [max(len(c[k]) for c in cells) for k in range(len(SHOWN))]
    lines = ["  ".join([c[0].ljust(widths[0]), *(v.rjust(w) for v, w in zip(c[1:], widths[1:], strict=True))]) for c in cells]
    return [*lines, NOTE, *(f"{r.program}: {r.error}" for r in rows if r.error)]


def table_text(rows: Iterable[Contender]) -> str:
    """CSV, all columns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        known: Mapping[str, Any] = row.as_dict()
        writer.writerow([f"{v:.9g}" if isinstance(v := known.get(c, ""), float) else v for c in COLUMNS])
    return text.getvalue()
