"""What a rank holds of a level while the deformable stage runs there, in either storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable, Stage
from daskreg.engine.halo import Block, collect
from daskreg.engine.memory import trim
from daskreg.engine.smoothing import Smoother
from daskreg.grid import Index, Span
from daskreg.kernels.adam.moments import packed, parted
from daskreg.kernels.composition.cpu import upsample
from daskreg.kernels.conversion import narrow, widen
from daskreg.kernels.device import Device, host, module_of
from daskreg.planning import Level, needs_spare

Array = NDArray[np.float32]


@dataclass
class Fields:
    """The displacement u and Adam's moments m, v of one level, with the buffers g and d: 60 bytes a voxel of the block."""

    factors: Index
    block: Block
    u: Array
    m: NDArray[Any]
    v: Array
    g: Array
    d: Array
    losses: list[float] = field(default_factory=list)  # of the iterations behind m and v; empty where Adam starts afresh
    constants: ClassVar[tuple[bool, ...]] = ()  # that tell the passes of a GPU about the storage

    @classmethod
    def zeros(cls, block: Block, factors: Index) -> Fields:
        """At rest."""
        return cls(factors, block, block.vector(), block.vector(), block.vector(), block.vector(), block.vector())

    def refined(self, finer: Callable[[], Fields], comm: Communicator) -> Fields:
        """On a finer level, whose fields ``finer`` makes: u upsampled, Adam starts afresh."""
        u, self.m, self.v, self.g, self.d = self.u, *(module_of(self.u).empty((3, 0, 0, 0), np.float32),) * 4
        trim()
        made = finer()
        refine(u, self.block, self.factors, made.block, made.factors, made.u, comm)
        return made

    def moments(self) -> dict[str, Array]:
        """Own planes of m and v as a checkpoint holds them: float32."""
        own = self.block.inner
        return {"m": self.m[:, own], "v": self.v[:, own]}

    def set_moments(self, m: Array, v: Array) -> None:
        """All planes of both, from the machine's memory."""
        self.m[...], self.v[...] = self.block.device.put(m), self.block.device.put(v)

    # ---------------------------------------------------------------- what the loop for GPUs asks for

    @property
    def gradient(self) -> NDArray[Any]:
        """dC/du as it is stored: (3, Z, Y, X)."""
        return self.g

    @property
    def around(self) -> Array:
        """Where a ring gathers the moving image's gradient, from the look to the loss: (3, Z, Y, X)."""
        return self.g

    @property
    def windows(self) -> Array:
        """What LNCC needs of all windows, between the look and the gradient: (3, Z, Y, X)."""
        return self.d

    @property
    def slope(self) -> Array:
        """dC/dmoved where moved is still read, between the look and the gradient: (Z, Y, X)."""
        plane: Array = self.d[0]
        return plane

    @property
    def scratch(self) -> Array:
        """What a filter of the composed displacement may overwrite: (3, Z, Y, X)."""
        return self.d

    def smoothed(self, filter_: Smoother, reach: int) -> NDArray[Any]:
        """The gradient smoothed axis by axis on the own planes and ``reach`` around them; d is overwritten."""
        filter_.into(self.block.box(reach), self.g, self.d, self.d)
        return self.d

    def stepped(self, gradient: NDArray[Any]) -> tuple[Any, ...]:
        """``passes.smooth_adam``'s g, m, v and d."""
        return tuple(a.reshape(-1) for a in (gradient, self.m, self.v, self.d))

    def direction(self, rates: Any, clock: Any) -> Any:
        """``passes.compose_smooth``'s d."""
        return self.d.reshape(-1)


class MixedFields(Fields):
    """On a GPU: u float32, g a buffer of float32 of which the gradient, in bfloat16, takes the first half, and in ``m`` both
    moments in words of 32 bits; neither v nor d: 36 bytes a voxel.

    u and g change roles as they do elsewhere. Between a look and the gradient g holds LNCC's factors, or in its last third the
    slope, which the gradient does not overlap. ``d`` is there where a ring or a filter too wide for shared memory needs it
    (``planning.needs_spare``), 12 bytes a voxel more.
    """

    constants: ClassVar[tuple[bool, ...]] = (True,)

    @classmethod
    def at_rest(cls, block: Block, factors: Index, spare: bool) -> MixedFields:
        """Zeros; ``spare``: with d."""
        none = block.device.xp.empty((3, 0, 0, 0), np.float32)
        d = block.vector() if spare else none
        return cls(factors, block, block.vector(), block.vector(np.uint32), none, block.vector(), d)

    def moments(self) -> dict[str, Array]:
        """As ``Fields.moments``; float32 in the machine's memory, so that a checkpoint takes none of the GPU's."""
        m, v = parted(host(self.m[:, self.block.inner]))
        return {"m": m, "v": v}

    def set_moments(self, m: Array, v: Array) -> None:
        """As ``Fields.set_moments``: what ``moments`` gave comes back bit for bit."""
        self.m[...] = self.block.device.put(packed(m, v))

    @property
    def gradient(self) -> NDArray[Any]:
        """The bits of bfloat16, uint16."""
        return _first_half(self.g)

    @property
    def around(self) -> Array:
        """The spare field: factors or slope are in g meanwhile."""
        return self.d

    @property
    def windows(self) -> Array:
        """All of g."""
        return self.g

    @property
    def slope(self) -> Array:
        """The last third of g."""
        third: Array = self.g[2]
        return third

    @property
    def scratch(self) -> Array:
        """What was composed is in g, so u is free."""
        return self.u

    def smoothed(self, filter_: Smoother, reach: int) -> NDArray[Any]:
        """As ``Fields.smoothed``, in float32; the result has 16 bits again."""
        box, smooth = self.block.box(reach), _first_half(self.d)
        widen(self.block.box(reach + filter_.reach), self.gradient, self.d)
        filter_.into(box, self.d, self.g, self.g)
        narrow(box, self.g, smooth)
        return smooth

    def stepped(self, gradient: NDArray[Any]) -> tuple[Any, ...]:
        """As ``Fields.stepped``: the global plane that comes first in place of d."""
        return gradient.reshape(-1), self.m.reshape(-1), self.v.reshape(-1), np.int32(self.block.first)

    def direction(self, rates: Any, clock: Any) -> Any:
        """It follows from the moments."""
        return self.m.reshape(-1), rates, clock


def _first_half(field_: Array) -> NDArray[np.uint16]:
    """As many numbers of 16 bits as a field has of 32, in its memory."""
    return field_.reshape(-1).view(np.uint16)[: field_.size].reshape(field_.shape)


def is_mixed(stage: Stage, device: Device) -> bool:
    """Whether a stage runs in mixed storage: a processor does all in float32."""
    return isinstance(stage, Deformable) and stage.storage == "mixed" and device.kind == "cuda"


def make_fields(stage: Deformable, level: Level, block: Block) -> Fields:
    """At rest, in the stage's storage."""
    if is_mixed(stage, block.device):
        return MixedFields.at_rest(block, level.fixed_factors, needs_spare(stage, level, len(block.partition.slabs)))
    return Fields.zeros(block, level.fixed_factors)


def refine(u: Array, coarse: Block, before: Index, fine: Block, after: Index, finer: Array, comm: Communicator) -> None:
    """Upsample a displacement from shrink factors ``before`` to ``after``, in voxels of each; own planes of ``finer``."""
    wanted = [_behind(slab, after[0], before[0], coarse.shape[0]) for slab in fine.partition.slabs]
    near, origin = (u, 0) if comm.size == 1 else (
        collect(comm, coarse.partition.slabs, wanted, u, coarse.first, "levels"), wanted[comm.rank].start)  # fmt: skip
    put = fine.device.put
    gain = put(np.asarray(before, np.float32) / np.asarray(after, np.float32))
    factors = put(np.asarray(after, np.int32)), put(np.asarray(before, np.int32))
    upsample(fine.box(), fine.first, origin, coarse.shape[0], *factors, gain, near, finer)


def _behind(slab: Span, fine: int, coarse: int, planes: int) -> Span:
    """The coarse planes between which fine ones lie."""
    if not len(slab):
        return Span(0, 0)
    low, high = ((2 * i * fine + fine - coarse) // (2 * coarse) for i in (slab.start, slab.stop - 1))
    return Span(min(max(low, 0), planes - 1), min(max(high + 1, 0), planes - 1) + 1)
