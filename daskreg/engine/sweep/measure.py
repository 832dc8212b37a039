"""A loss a few planes at a time, with a displacement that may be out of the device's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.images import Image
from daskreg.engine.planes import Planes, on, pieces
from daskreg.engine.reach import Reach, SamplingMap, affine_reach, displaced_range_of, spans
from daskreg.engine.sampler import make_sampler
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
    fixed, mask = images[0].gather_level(level.fixed_factors, b.around(reach), comm)
    sampler = make_sampler("window", images[1], level.moving_factors, level.shards, comm)
    if u is None:
        around = affine_reach(mapping, level.partition, b.shape)
    else:
        ranges = comm.gather(np.array(displaced_range_of(u, b, mapping)))
        around = Reach.of_slabs(level.partition, spans(ranges))
    sampler.prepare(around.beyond(reach))
    parts = []
    for planes in pieces(b.own, 12 * b.shape[1] * b.shape[2]) if len(b.own) else [b.own]:
        held = planes.grow(reach) & whole
        here = Block(b.shape, Partition(b.shape[0], (held,)), device=b.device)
        moved, weight = here.scalar(), here.scalar() if sampler.masked else None
        near = None if u is None else b.device.xp.ascontiguousarray(on(b.device, u, held))
        sampler.sample(here.box(), mapping._replace(first=held.start), near, moved, weight, None)
        known = None if mask is None else mask[held.within(b.held)]
        if weight is None:
            weight = b.device.no_mask if known is None else known
        elif known is not None:
            weight *= known
        scratch = here.vector() if similarity.scratch else b.device.xp.empty((3, 0, 0, 0), np.float32)
        box = (range(planes.start - held.start, planes.stop - held.start), *b.shape[1:])
        parts.append(host(loss.partial(Samples(box, held.start, fixed[held.within(b.held)], weight, moved, scratch))))
    return float(loss.value(add_up_slabs(parts, comm, level.partition))[0])
