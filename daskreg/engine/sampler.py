"""The moving image as a stage samples it, wherever its planes are (method, section 6): whole, those in reach, or in a ring.

All give the same bits: a value is the sum of two planes' parts, and each part is computed alike wherever the plane comes from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, Pending
from daskreg.engine.halo import Movement, wait_all
from daskreg.engine.reach import Reach, SamplingMap
from daskreg.grid import Partition, Span
from daskreg.kernels.compiler.launch import Shape, on_device
from daskreg.kernels.device import NO_MASK, module_of
from daskreg.kernels.sampling.cpu import (
    CENTERS,
    affine_sums,
    combine_masks,
    pull_back,
    sample,
)

Array = NDArray[np.float32]
NOTHING = Span(0, 0)
REACH_MARGIN = 4  # planes kept around those in reach, so that a reach that grows a little changes nothing


def launch_now(name: str, launches: Callable[[], None]) -> None:
    """Launch kernels at once."""
    launches()


class Sampler(ABC):
    """Values of the moving image, its mask and its gradient at p(x) = A x + t + S u(x) over a box of the block's planes."""

    stores_gradient = False  # whether ``sample`` needs a buffer for the image's gradient until ``pull_back``

    def __init__(self, planes: int, masked: bool) -> None:
        self.planes, self.masked = planes, masked
        self.run: Callable[[str, Callable[[], None]], None] = (
            launch_now  # launches what lies between two messages; a CUDA backend puts it into a graph
        )

    @property
    @abstractmethod
    def direct(self) -> Resident:
        """The part of the image that planes are sampled from without messages."""

    @abstractmethod
    def prepare(self, reach: Reach) -> bool:
        """Be ready to sample these planes; all ranks call it with the same. Whether launches now have other arrays."""

    @abstractmethod
    def sample(
        self, box: Shape, mapping: SamplingMap, u: Array | None, moved: Array, weight: Array | None, g: Array | None,
        domain: int = CENTERS,
    ) -> None:  # fmt: skip
        """``moved``, NaN out of the domain (``kernels.sampling.cpu``); ``weight``, where there is a mask, of no meaning out of
        the domain; some of ``g`` is filled where ``stores_gradient``.
        """

    @abstractmethod
    def pull_back(
        self,
        box: Shape,
        mapping: SamplingMap,
        u: Array | None,
        slope: Array,
        g: NDArray[Any],
        image_gradient: Array | None = None,
    ) -> None:
        """``g``, dC/du as it is stored, from dC/dmoved; ``image_gradient``: what ``sample`` filled, if not g; overwritten."""

    @abstractmethod
    def sums(self, box: Shape, mapping: SamplingMap, slope: Array, g: Array | None) -> Array:
        """Row sums (6, Z, Y) behind dC/dA and dC/dt, without displacement; ``g``: what ``sample`` filled."""


class Resident(Sampler):
    """``replicate``: this rank holds every plane; also what a window does with the planes it holds."""

    def __init__(self, image: Array, mask: Array | None, planes: int, origin: int = 0) -> None:
        super().__init__(planes, mask is not None)
        self.image, self.mask, self.origin = image, mask, origin

    @property
    def direct(self) -> Resident:
        """All of it."""
        return self

    def prepare(self, reach: Reach) -> bool:
        """All planes are held."""
        return False

    def bring(self, planes: Span, following: Span = NOTHING) -> None:
        """Be ready to sample these planes of the level, and soon the ``following`` ones."""

    def sample(
        self, box: Shape, mapping: SamplingMap, u: Array | None, moved: Array, weight: Array | None, g: Array | None,
        domain: int = CENTERS,
    ) -> None:  # fmt: skip
        """One kernel an image."""
        sample(box, *mapping, u, self.origin, self.planes, domain, self.image, moved)
        if self.mask is not None and weight is not None:
            ones = module_of(self.mask).empty((0, 0, 0), np.float32) if on_device(self.mask) else NO_MASK
            combine_masks(box, *mapping, u, self.origin, self.planes, ones, self.mask, weight)

    def pull_back(
        self,
        box: Shape,
        mapping: SamplingMap,
        u: Array | None,
        slope: Array,
        g: NDArray[Any],
        image_gradient: Array | None = None,
    ) -> None:
        """Samples the image again: cheaper than to store its gradient."""
        pull_back(box, *mapping, u, self.origin, self.planes, self.image, slope, g)

    def sums(self, box: Shape, mapping: SamplingMap, slope: Array, g: Array | None) -> Array:
        """In the same pass as the gradient."""
        return affine_sums(box, *mapping, None, self.origin, self.planes, self.image, slope)  # type: ignore[no-any-return]


class Window(Resident):
    """The planes that the block can reach and a margin; missing ones come from their owners when the reach leaves it."""

    def __init__(self, image: Array, mask: Array | None, shards: Partition, shard: Span, comm: Communicator) -> None:
        rank = comm.rank
        super().__init__(image[:0], None if mask is None else mask[:0], shards.planes)
        self.shard = [a[shards[rank].within(shard)] for a in (image, mask) if a is not None]
        self.shards, self.comm = shards, comm
        self.windows = [Span(0, 0)] * comm.size

    def prepare(self, reach: Reach) -> bool:
        """Move the windows of the ranks whose reach has left theirs."""
        wanted = [self._moved(old, need) for old, need in zip(self.windows, reach.needs, strict=True)]
        if wanted == self.windows:
            return False
        parts = [self._fetch(a, shard, wanted) for a, shard in zip((self.image, self.mask), self.shard, strict=False)]
        self.windows, self.origin = wanted, wanted[self.comm.rank].start
        self.image = parts[0]
        self.mask = parts[1] if len(parts) > 1 else None
        return True

    def _moved(self, window: Span, need: Span) -> Span:
        need = need & Span(0, self.planes) or window or Span(0, 1)  # kernels need a plane even if no point is inside
        return window if need & window == need else need.grow(REACH_MARGIN) & Span(0, self.planes)

    def _fetch(self, old: Array | None, shard: Array, wanted: list[Span]) -> Array:
        """The new window: what stays is copied, what lies below and above it comes from its owners."""
        assert old is not None
        rank, owned = self.comm.rank, self.shards.slabs
        mine, before = wanted[rank], self.windows[rank]
        target = module_of(shard).empty((len(mine), *shard.shape[1:]), shard.dtype)
        stays = mine & before
        target[stays.within(mine)] = old[stays.within(before)]
        pending: list[Pending] = []
        for side in (_below, _above):
            lacking = [side(new, new & was) for new, was in zip(wanted, self.windows, strict=True)]
            movement = Movement(self.comm, owned, lacking, "window")
            pending += movement.between([(shard, owned[rank].start)], [(target, mine.start)])
        wait_all(pending)
        return target  # type: ignore[no-any-return]


def _below(window: Span, stays: Span) -> Span:
    return Span(window.start, stays.start) if len(stays) else window


def _above(window: Span, stays: Span) -> Span:
    return Span(stays.stop, window.stop) if len(stays) else Span(window.stop, window.stop)
