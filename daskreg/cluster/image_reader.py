"""Read a rank's planes of both images and their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.errors import InputError
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.device import Device, Kind
from daskreg.planning import Plan
from daskreg.storage import Volume

BATCH_PLANES = 64  # read at a time on the way to a GPU


def read_images(
    plan: Plan, fixed: Volume, moving: Volume, masks: tuple[Volume | None, Volume | None], comm: Communicator, kind: Kind
) -> tuple[Image, Image]:
    """This rank's planes of both images, scaled to [0, 1], with their masks. Raises VoxelError, and InputError for a mask."""
    device = Device(kind)

    def read(role: str, volume: Volume, mask: Volume | None, grid: Grid, partition: Partition, rim: int) -> Image:
        held, own = partition.around(comm.rank, rim), partition[comm.rank]
        voxels = _load(volume, held, device)
        normalise(voxels, plan.config, comm, f"{role} {volume.name}", own.within(held))
        image = Image(voxels, grid, partition, held, None, comm.rank, rim)
        if mask is not None:
            _require_shape(mask, volume, role)
            image.mask = check_mask(_load(mask, held, device), f"the mask {mask.name}", comm)
        return image

    return (
        read("the fixed image", fixed, masks[0], plan.fixed, plan.partition, plan.rims[0]),
        read("the moving image", moving, masks[1], plan.moving, plan.shards, plan.rims[1]),
    )


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
