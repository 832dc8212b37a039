"""Makes the sampler of a level."""

from __future__ import annotations

from daskreg.comm import Communicator
from daskreg.engine.images import Image
from daskreg.engine.report import Trace
from daskreg.engine.ring import Ring
from daskreg.engine.sampler import Resident, Sampler, Window
from daskreg.engine.streamed import Streamed
from daskreg.grid import Index, Partition, Sigmas


def make_sampler(
    residency: str,
    moving: Image,
    factors: Index,
    shards: Partition,
    comm: Communicator,
    trace: Trace | None = None,
    half: bool = False,
    kept: bool = False,
    most: int | None = None,
    sigmas: Sigmas | None = None,
) -> Sampler:
    """The moving image at a level, held as ``residency`` says; ``half``: as the bits of float16;  kept: out of memory, where no
    more than ``most`` planes are held at once;  sigmas: of its Gaussian, see ``Image``.
    """
    if moving.out_of_memory(factors, kept, sigmas):
        level = moving.open(factors, [shards.whole] * comm.size, comm, half, kept, sigmas)
        return Streamed(level, shards.planes, moving.device, most)
    if comm.size == 1 or residency == "replicate":
        whole = [shards.whole] * comm.size
        image, mask = moving.gather_level(factors, whole, comm, half, sigmas)
        return Resident(image, mask, shards.planes)
    image, mask = moving.gather_level(factors, shards.slabs, comm, half, sigmas)
    shard = shards[comm.rank]
    return Window(image, mask, shards, shard, comm) if residency == "window" else Ring(image, mask, shards, shard, comm, trace)
