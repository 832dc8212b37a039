"""Read a rank's planes of both images and their masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.cluster.source_reader import SourceReader
from daskreg.cluster.stored_reader import StoredReader
from daskreg.cluster.upload import upload
from daskreg.comm import Communicator
from daskreg.engine.background import Background, leave_out
from daskreg.engine.images import Image, check_mask, normalise
from daskreg.engine.planes import Allocate
from daskreg.engine.state import is_mixed
from daskreg.errors import InputError
from daskreg.grid import Grid, Partition, Span
from daskreg.kernels.device import Device, Kind
from daskreg.planning import SOURCE, Plan
from daskreg.planning.memory import batch_planes
from daskreg.storage import Volume
from daskreg.storage.batches import batches, prefetched


def read_images(
    plan: Plan,
    fixed: Volume,
    moving: Volume,
    masks: tuple[Volume | None, Volume | None],
    comm: Communicator,
    kind: Kind,
    backgrounds: tuple[Background | None, Background | None] = (None, None),
    allocate: Allocate | None = None,
) -> tuple[Image, Image]:
    """This rank's planes of both images, scaled to [0, 1], with their masks, from which stored background is taken out.

    allocate: makes room for images that the plan has out of the device's memory. Raises VoxelError, and InputError for a mask.
    """
    device = Device(kind)
    if plan.images == SOURCE:
        return _in_files(plan, fixed, moving, masks, comm, backgrounds, allocate)
    half = any(is_mixed(stage, device) for stage in plan.config.stages)
    grids = (plan.fixed, plan.partition, plan.rims[0]), (plan.moving, plan.shards, plan.rims[1])
    found = []
    for k, (volume, mask, background, where) in enumerate(zip((fixed, moving), masks, backgrounds, grids, strict=True)):
        given = _named(k, volume, mask), volume, mask, background
        if plan.images == "device":
            found.append(_in_memory(plan, comm, device, *given, *where))
            continue
        assert allocate is not None, "images out of memory need room elsewhere"
        grid, partition, rim = where
        reader = StoredReader(plan.config, comm, device, allocate, half, batch_planes(plan))
        found.append(reader.read(*given, grid, partition, partition.around(comm.rank, rim)))
    return found[0], found[1]


def _named(role: int, volume: Volume, mask: Volume | None) -> str:
    """An image's name in messages. Raises InputError where its mask has another shape."""
    name = f"the {('fixed', 'moving')[role]} image"
    if mask is not None:
        _require_shape(mask, volume, name)
    return f"{name} {volume.name}"


def _in_files(
    plan: Plan, fixed: Volume, moving: Volume, masks: tuple[Volume | None, Volume | None], comm: Communicator,
    backgrounds: tuple[Background | None, Background | None], allocate: Allocate | None,
) -> tuple[Image, Image]:  # fmt: skip
    """Images of which the levels of the stages alone are kept."""
    reader, found = SourceReader(plan, comm, allocate), []
    grids = (plan.fixed, plan.partition), (plan.moving, plan.shards)
    for k, (volume, mask, background, where) in enumerate(zip((fixed, moving), masks, backgrounds, grids, strict=True)):
        found.append(reader.read(k, _named(k, volume, mask), volume, mask, background, *where))
    reader.prepare((found[0], found[1]))
    return found[0], found[1]


def _in_memory(
    plan: Plan, comm: Communicator, device: Device, name: str, volume: Volume, mask: Volume | None,
    background: Background | None, grid: Grid, partition: Partition, rim: int,
) -> Image:  # fmt: skip
    held, own = partition.around(comm.rank, rim), partition[comm.rank]
    mine = own.within(held)
    voxels, known, left_out = _load(volume, held, device), None, 0
    if background is not None:
        known = _known(background, volume, held, voxels, device)
        left_out = leave_out(voxels, known, mine, comm, name)
    normalise(voxels, plan.config, comm, name, mine, left_out)
    image = Image(voxels, grid, partition, held, None, comm.rank, rim, left_out)
    if mask is not None:
        weights = _load(mask, held, device)
        image.mask = check_mask(weights if known is None else weights * known, f"the mask {mask.name}", comm)
    elif known is not None:
        image.mask = known.astype(np.float32)
    return image


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
    if volume.reads_stored() and voxels.size:
        upload(volume, planes, voxels)
        return voxels
    for batch, found in prefetched(volume.planes, batches(planes)):
        voxels[batch.within(planes)] = device.put(found)
    return voxels
