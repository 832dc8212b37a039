"""A loss a few planes at a time, with a displacement that may be out of the device's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.planes import Planes, on, pieces
from daskreg.engine.reach import SamplingMap, affine_reach, displaced_reach
from daskreg.engine.residency import make_sampler
from daskreg.engine.sampler import Resident
from daskreg.engine.sums import add_up_slabs
from daskreg.grid import Partition
from daskreg.kernels.device import host
from daskreg.planning import Level
from daskreg.similarity.base import Samples


def swept_loss(
    similarity: Any, level: Level, images: tuple[Image, Image], comm: Communicator, world: NDArray[np.float64], u: Planes | None
) -> float:
    """The loss of a level at ``p(x) = W (x + u(x))``; the bits are those of an evaluation on whole fields."""
    loss, reach = similarity.build(images[0].device.kind), similarity.reach
    b = Block(level.fixed.shape, level.partition, comm.rank, reach, images[0].device)
    mapping, whole = SamplingMap.of(0, world, level.fixed, level.moving), b.partition.whole
    kept = level.images != "device"
    still = images[0].open(level.fixed_factors, b.around(reach), comm, kept=kept)
    sampler = make_sampler("window", images[1], level.moving_factors, level.shards, comm, kept=kept)
    around = affine_reach(mapping, level.partition, b.shape) if u is None else displaced_reach(u, b, mapping, comm)
    assert isinstance(sampler, Resident)
    sampler.prepare(around.beyond(reach))
    parts = []
    for planes in pieces(b.own, 12 * b.shape[1] * b.shape[2]) if len(b.own) else [b.own]:
        held = planes.grow(reach) & whole
        here = Block(b.shape, Partition(b.shape[0], (held,)), device=b.device)
        moved, weight = here.scalar(), here.scalar() if sampler.masked else None
        near = None if u is None else b.device.xp.ascontiguousarray(on(b.device, u, held))
        sampler.bring(held)
        sampler.sample(here.box(), mapping._replace(first=held.start), near, moved, weight, None)
        fixed = on(b.device, still.voxels, held)[0]
        known = None if still.mask is None else on(b.device, still.mask, held)[0]
        if weight is None:
            weight = b.device.no_mask if known is None else known
        elif known is not None:
            weight *= known
        scratch = here.vector() if similarity.scratch else b.device.xp.empty((3, 0, 0, 0), np.float32)
        box = (range(planes.start - held.start, planes.stop - held.start), *b.shape[1:])
        parts.append(host(loss.partial(Samples(box, held.start, fixed, weight, moved, scratch))))
    return float(loss.value(add_up_slabs(parts, comm, level.partition))[0])
