"""``register --try``: several presets on coarse images, and which of them has the best verdict."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.config import Config, Optimised, Stage
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, DaskregError, NoOverlap, RunError, VoxelError
from daskreg.grid import Grid, Index, shrink_factors
from daskreg.storage import Volume
from daskreg.storage.zarr.pyramid import lazy_block_mean
from daskreg.workflows.inputs import IMAGE_ROLES, Inputs, Request
from daskreg.workflows.presets import preset

if TYPE_CHECKING:
    import dask.array as da

    from daskreg.cluster import Client
    from daskreg.engine import verdict as verdicts
    from daskreg.engine.verdict import Verdict
else:
    da = DeferredModule("dask.array")
    verdicts = DeferredModule("daskreg.engine.verdict")

log = logging.getLogger("daskreg")
SIZE = 64  # voxels along the longest axis of both images that recipes are tried on
CLEAR = 0.05  # by how much more of the image is in place where a later recipe is preferred to an earlier one


@dataclass(frozen=True)
class Trial:
    """A preset, and what it came to on coarse images: its verdict, or the sentence it ended with."""

    name: str
    verdict: Verdict | None = None
    error: str = ""

    @property
    def rank(self) -> int:
        """Least first."""
        return len(verdicts.RANKS) if self.verdict is None else verdicts.RANKS.index(self.verdict.status)

    @property
    def in_place(self) -> float:
        """See ``Evidence``."""
        return 0.0 if self.verdict is None else float(self.verdict.evidence["in_place"])

    def line(self) -> str:
        """For the log."""
        return f"tried {self.name}: {self.error if self.verdict is None else self.verdict.line()}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        if self.verdict is None:
            return {"preset": self.name, "error": self.error}
        return {
            "preset": self.name,
            "status": self.verdict.status,
            "reasons": list(self.verdict.reasons),
            "in_place": self.in_place,
        }


def require_recipes(names: Sequence[str]) -> None:
    """Raises ConfigError for names that are no presets, none, or one twice."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ConfigError(f"recipes to try are {names!r}; different names of presets were expected, such as brain,rigid.")
    for name in names:
        preset(name)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Of least rank; of these the first that no later one surpasses clearly. Raises NoOverlap where none has a result."""
    if all(t.verdict is None for t in trials):
        raise NoOverlap(f"none of the recipes has a result: {'; '.join(t.line() for t in trials)}")
    best = trials[0]
    for other in trials[1:]:
        if (other.rank, -other.in_place) < (best.rank, -best.in_place - (CLEAR if other.rank == best.rank else 0)):
            best = other
    return best


def choose_recipe(request: Request, names: Sequence[str], client: Client | None = None, **resources: Any) -> list[Trial]:
    """Try presets on coarse images, the one to take first; a line in the log about each.

    client, resources: as for ``register``, with one worker. Raises ConfigError, NoOverlap.
    """
    require_recipes(names)
    trials = [_tried(name, replace(request, config=name), client, resources) for name in names]
    best = best_of(trials)
    for trial in trials:
        log.info("%s", trial.line())
    log.info("of %d recipes %s is taken", len(trials), best.name)
    return [best, *(t for t in trials if t is not best)]


def _tried(name: str, request: Request, client: Client | None, resources: dict[str, Any]) -> Trial:
    from daskreg.workflows.register import register  # which calls this module

    try:
        with _quiet():
            inputs = request.open()
            coarse, ratio = coarse_inputs(inputs)
            images: dict[str, Any] = dict(zip(IMAGE_ROLES, (*coarse[:2], *coarse[2]), strict=True))
            result = register(
                config=coarser(inputs.config, ratio),
                **images,
                client=client,
                checkpoint=None,
                workers=1,
                progress=False,
                **resources,
            )
        return Trial(name, result.verdict)
    except (RunError, NoOverlap, VoxelError) as error:
        return Trial(name, error=_sentence(error))


def _sentence(error: DaskregError) -> str:
    return " ".join(str(error).split())


def coarse_inputs(inputs: Inputs) -> tuple[tuple[Volume, Volume, tuple[Volume | None, ...]], float]:
    """Images of about SIZE voxels, with their masks, and by how much the fixed one is coarser.

    Means of blocks, or where the images have a background one voxel of each: a mean is no background any more.
    """
    grids = inputs.grids
    voxel = max(float(g.extent.max()) for g in grids) / SIZE
    factors = [shrink_factors(g, voxel) for g in grids]
    pick = inputs.config.fixed_background is not None or inputs.config.moving_background is not None
    fixed, moving = (_coarse(v, k, pick=pick) for v, k in zip((inputs.fixed, inputs.moving), factors, strict=True))
    masks = tuple(None if m is None else _coarse(m, k, pick=pick) for m, k in zip(inputs.masks, factors, strict=True))
    return (fixed, moving, masks), min(fixed.grid.spacing) / min(inputs.fixed.grid.spacing)


def _coarse(volume: Volume, factors: Index, *, pick: bool) -> Volume:
    grid = volume.grid.coarsen(factors)
    shape = tuple(n // k for n, k in zip(volume.grid.shape, factors, strict=True))
    if pick:
        data = volume.data[tuple(slice(k // 2, n * k, k) for n, k in zip(shape, factors, strict=True))]
    else:
        data = lazy_block_mean(volume.data.astype(np.float32), factors)
    voxels = np.asarray(data.compute(scheduler="threads"))
    smaller: Grid = replace(grid, shape=shape)  # type: ignore[arg-type]  # three numbers
    return Volume(da.from_array(voxels), smaller)


def coarser(config: Config, ratio: float) -> Config:
    """The same levels in world units, as far as images that are coarser by a ratio have them."""
    stages = tuple(_coarser(s, ratio) if isinstance(s, Optimised) else s for s in config.stages)
    return config.model_copy(update={"stages": stages, "fixed_mask": None, "moving_mask": None})


def _coarser(stage: Optimised, ratio: float) -> Stage:
    levels: dict[int, int] = {}
    for scale, iterations in zip(stage.scales, stage.iterations, strict=True):
        levels.setdefault(max(1, round(scale / ratio)), iterations)
    return stage.model_copy(update={"scales": tuple(levels), "iterations": tuple(levels.values())})


@contextmanager
def _quiet() -> Iterator[None]:
    """What daskreg says of a trial is no news about the run."""
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
