"""Read a rank's planes of both images and their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.background import Background, leave_out
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.errors import InputError
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.device import Device, Kind
from daskreg.planning import Plan
from daskreg.storage import Volume

BATCH_PLANES = 64  # read at a time on the way to a GPU


def read_images(
    plan: Plan,
    fixed: Volume,
    moving: Volume,
    masks: tuple[Volume | None, Volume | None],
    comm: Communicator,
    kind: Kind,
    backgrounds: tuple[Background | None, Background | None] = (None, None),
) -> tuple[Image, Image]:
    """This rank's planes of both images, scaled to [0, 1], with their masks, from which stored background is taken out.

    Raises VoxelError, and InputError for a mask.
    """
    device = Device(kind)

    def read(
        role: str, volume: Volume, mask: Volume | None, background: Background | None, grid: Grid, partition: Partition, rim: int
    ) -> Image:
        held, own = partition.around(comm.rank, rim), partition[comm.rank]
        name, mine = f"{role} {volume.name}", own.within(held)
        voxels, known = _load(volume, held, device), None
        left_out = 0
        if background is not None:
            known = _known(background, volume, held, voxels, device)
            left_out = leave_out(voxels, known, mine, comm, name)
        normalise(voxels, plan.config, comm, name, mine, left_out)
        image = Image(voxels, grid, partition, held, None, comm.rank, rim, left_out)
        if mask is not None:
            _require_shape(mask, volume, role)
            weights = _load(mask, held, device)
            image.mask = check_mask(weights if known is None else weights * known, f"the mask {mask.name}", comm)
        elif known is not None:
            image.mask = known.astype(np.float32)
        return image

    return (
        read("the fixed image", fixed, masks[0], backgrounds[0], plan.fixed, plan.partition, plan.rims[0]),
        read("the moving image", moving, masks[1], backgrounds[1], plan.moving, plan.shards, plan.rims[1]),
    )


def _known(background: Background, volume: Volume, held: Span, voxels: NDArray[np.float32], device: Device) -> NDArray[np.bool_]:
    """Whether each voxel of the held planes is none of the background; the planes around them that this depends on are read."""
    around = held.grow(background.margin) & Span(0, volume.shape[0])
    if around == held:
        return background.known(voxels)
    sides = (_load(volume, side, device) for side in (Span(around.start, held.start), Span(held.stop, around.stop)))
    before, after = sides
    return background.known(device.xp.concatenate([before, voxels, after]))[held.within(around)]


def _require_shape(mask: Volume, volume: Volume, role: str) -> None:
    if mask.shape != volume.shape:
        raise InputError(
            f"the mask {mask.name} has shape {mask.shape}, {role} {volume.shape}; make the mask on the image's grid."
        )


def _load(volume: Volume, planes: Span, device: Device) -> NDArray[np.float32]:
    """Planes of a volume, float32; to a GPU in batches, so that the host's memory never holds all of them."""
    if device.kind == "cpu":
        return volume.planes(planes)
    voxels: NDArray[np.float32] = device.xp.empty((len(planes), *volume.shape[1:]), np.float32)
    for batch, found in _prefetched(volume.planes, planes):
        voxels[batch.within(planes)] = device.put(found)
    return voxels


def _prefetched(read: Callable[[Span], NDArray[np.float32]], planes: Span) -> Iterator[tuple[Span, NDArray[np.float32]]]:
    """Batches of planes; the next one is read while a batch is in use."""
    batches = [Span(z, min(z + BATCH_PLANES, planes.stop)) for z in range(planes.start, planes.stop, BATCH_PLANES)]
    with ThreadPoolExecutor(1, "daskreg-input") as reader:
        pending = [reader.submit(read, batch) for batch in batches[:1]]
        for batch, following in zip_longest(batches, batches[1:]):
            found = pending.pop().result()
            pending = [reader.submit(read, following)] if following else []
            yield batch, found
