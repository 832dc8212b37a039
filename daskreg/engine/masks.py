"""Refuse masks with which nothing can be registered: too few voxels for the parameters, or masks that do not meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from daskreg.comm import Communicator
from daskreg.config import Optimised, Search
from daskreg.engine.images import Image
from daskreg.engine.linear import Matrix
from daskreg.engine.planes import pieces
from daskreg.engine.sweep.linear import make_linear_loss
from daskreg.errors import NoOverlap, VoxelError, counted
from daskreg.planning import Level, Plan

PARAMETERS = {"rigid": 6, "similarity": 7, "affine": 12, "deformable": 12}  # a warp: at least what an affine map needs
VOXELS_EACH = 10  # least voxels of a mask per parameter
Images = tuple[Image, Image]


def require_voxels(plan: Plan, images: Images, comm: Communicator) -> None:
    """Raises VoxelError for a mask with fewer voxels above 0 than the stages need."""
    stages = [s for s in plan.config.stages if isinstance(s, Optimised)]
    needed = max((VOXELS_EACH * PARAMETERS[s.name] for s in stages), default=1)
    for role, found in zip(("fixed", "moving"), mask_counts(images, comm), strict=True):
        if found is not None and found < needed:
            raise VoxelError(
                f"the mask of the {role} image has {counted(found, 'voxel')} above 0; "
                f"at least {needed} are needed, {VOXELS_EACH} for each of {needed // VOXELS_EACH} parameters: give a larger mask."
            )


def require_meeting_masks(plan: Plan, images: Images, world: Matrix, comm: Communicator, *, searched: bool = False) -> None:
    """Raises NoOverlap where the masks, or a mask and the other image, share fewer voxels than there are parameters.

    world: the map that the first linear or deformable stage would start from;  searched: whether initial stages have run: before,
    a search is left to bring the masks together.
    """
    first = _first_level(plan)
    masked = any(image.mask is not None for image in images)
    if first is None or not masked or (not searched and any(isinstance(s, Search) for s in plan.config.stages)):
        return
    stage, level = first
    found, needed = _shared(stage, level, images, world, comm), PARAMETERS[stage.name]
    if found < needed:
        counts = ["no mask" if n is None else counted(n, "voxel") for n in mask_counts(images, comm)]
        where = "that was found first" if searched else "at the start"
        raise NoOverlap(
            f"the masks do not overlap: under the map {where} they share {found:.3g} voxels of the level with scale "
            f"{level.scale}, and {needed} parameters need as many (fixed image: {counts[0]}; moving image: {counts[1]}); give "
            "masks of the same structure, an --initial-transform, or a 'search' stage first."
        )


def _first_level(plan: Plan) -> tuple[Any, Level] | None:
    for stage, levels in zip(plan.config.stages, plan.levels, strict=True):
        if isinstance(stage, Optimised) and levels:
            return levels[0].in_voxels(stage), levels[0]
    return None


def _shared(stage: Any, level: Level, images: Images, world: Matrix, comm: Communicator) -> float:
    """The sum of weights at a level, over all ranks; an image of mixed storage is in 32 bits."""
    return make_linear_loss(stage, level, images, comm).shared(world)


def mask_counts(images: Images, comm: Communicator) -> list[int | None]:
    """Voxels above 0 of each image's mask, over all ranks; None without one."""
    for image in images:
        if image.positive is None:
            image.positive = sum(_positive(image))
    total = comm.sum_counts(np.array([image.positive for image in images], np.int64))
    return [None if i.mask is None else int(n) for i, n in zip(images, total, strict=True)]


def _positive(image: Image) -> Iterator[int]:
    """Of the own planes, a few at a time."""
    if image.mask is None:
        return
    for planes in pieces(image.partition[image.rank], 4 * image.grid.shape[1] * image.grid.shape[2]):
        mask: Any = image.read(planes)[1]
        yield int((mask > 0).sum())
