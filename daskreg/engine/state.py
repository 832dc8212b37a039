"""What a rank holds of a level while the deformable stage runs there, and where: displacement, optimizer state and buffers.

The loop asks for arrays by what they are used for, so that two uses can share memory, or live elsewhere than on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Deformable, Stage
from daskreg.engine.halo import Block, Movement, gather_planes, receive, send, wait_all
from daskreg.engine.memory import trim
from daskreg.engine.planes import ArrayPlanes, Planes, on, pieces
from daskreg.grid import Index, Span
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.composition.cpu import upsample
from daskreg.kernels.conversion import decode_bfloat16, encode_bfloat16
from daskreg.kernels.device import CPU, Device, module_of
from daskreg.optimizers.base import Filter, Optimizer
from daskreg.planning import Level, needs_spare
from daskreg.planning.traffic import VALUE

Array = NDArray[np.float32]


class Store(Protocol):
    """The displacement and the optimizer's state of a level, wherever they are."""

    block: Block
    factors: Index
    optimizer: Optimizer
    losses: list[float]
    matched: list[float]
    longest: float | None

    @property
    def displacement(self) -> Planes:
        """Own planes at least."""

    def put_displacement(self, planes: Span, u: Array) -> None:
        """Replace planes of the displacement."""

    def refined(self, finer: Callable[[], Store], comm: Communicator) -> Store:
        """On a finer level, whose store ``finer`` makes: u is upsampled, the optimizer starts afresh."""

    def saved(self, *, optimizer: bool) -> Mapping[str, Planes]:
        """U and, where asked for, the optimizer's fields, as a checkpoint holds them: float32."""

    def restore(self, read: Callable[[str, Span], Array], losses: list[float]) -> None:
        """All planes from a checkpoint, by name; the optimizer's only where it had iterated."""


class StateStore:
    """Fields of one level in float32, on the block's device: (3, planes held, Y, X) each.

    u: displacement, voxels of the level;  optimizer_state: its fields by name;  g, d: buffers;  losses: of the iterations behind
    the optimizer's state, empty where it is fresh;  matched: the sums that the similarity was matched by at the start of the
    level, empty before that, and where it is not;  factors: the level's shrink factors;  longest: the |d|^2 that scales the step
    of the iteration that the level is taken up with, where a group of iterations shares it (``engine.groups``).
    """

    def __init__(self, block: Block, factors: Index, optimizer: Optimizer, spare: bool = True) -> None:
        self.block, self.factors, self.optimizer = block, factors, optimizer
        self.losses, self.matched = list[float](), list[float]()
        self.longest: float | None = None
        self.u, self.g = block.vector(), block.vector()
        self.d = block.vector() if spare else block.device.xp.empty((3, 0, 0, 0), np.float32)
        self.optimizer_state = optimizer.init(block.vector)

    def refined(self, finer: Callable[[], Store], comm: Communicator) -> Store:
        """On a finer level, whose store ``finer`` makes: u is upsampled, the optimizer starts afresh."""
        u, empty = self.u, module_of(self.u).empty((3, 0, 0, 0), np.float32)
        self.u = self.g = self.d = empty
        self.optimizer_state = {}
        trim()
        made = finer()
        if isinstance(made, StateStore):
            refine(u, self.block, self.factors, made.block, made.factors, made.u, comm)
        else:
            refine_piecewise(ArrayPlanes(u, self.block.first), self.block, self.factors, made, comm)
        return made

    @property
    def displacement(self) -> Planes:
        """All planes held."""
        return ArrayPlanes(self.u, self.block.first)

    def put_displacement(self, planes: Span, u: Array) -> None:
        """Replace planes of the displacement."""
        self.displacement.write(planes, u)

    def saved(self, *, optimizer: bool) -> dict[str, Planes]:
        """See ``Store``: own planes."""
        own, kept = self.block.inner, {"u": self.u[:, self.block.inner]}
        if optimizer:
            kept |= self.optimizer.saved(self.optimizer_state, own)
        return {name: ArrayPlanes(array, self.block.own.start) for name, array in kept.items()}

    def restore(self, read: Callable[[str, Span], Array], losses: list[float]) -> None:
        """See ``Store``."""
        put, held = self.block.device.put, self.block.held
        self.u[...] = put(read("u", held))
        self.losses = list(losses)
        if losses:  # with the halo: it is computed by both sides alike
            arrays: Mapping[str, Array] = {name: read(name, held) for name in self.optimizer.fields}
            self.optimizer.restore(self.optimizer_state, arrays, put)

    # ---------------------------------------------------------------- arrays by their use within an iteration

    @property
    def gradient(self) -> NDArray[Any]:
        """dC/du as it is stored: (3, Z, Y, X)."""
        return self.g

    @property
    def image_gradient(self) -> Array:
        """Where a ring accumulates the moving image's gradient, from sampling to the loss: (3, Z, Y, X)."""
        return self.g

    @property
    def similarity_scratch(self) -> Array:
        """What a similarity keeps from its value to its gradient: (3, Z, Y, X)."""
        return self.d

    @property
    def slope(self) -> Array:
        """dC/dmoved where moved is still read, between sampling and the gradient: (Z, Y, X)."""
        plane: Array = self.d[0]
        return plane

    @property
    def filter_scratch(self) -> Array:
        """What a filter of the composed displacement may overwrite: (3, Z, Y, X)."""
        return self.d

    @property
    def filtered(self) -> Array:
        """Where a filter writes the new displacement: (3, Z, Y, X)."""
        return self.u

    def smoothed(self, filter_: Filter, reach: int) -> NDArray[Any]:
        """The gradient smoothed axis by axis on the own planes and ``reach`` around them; d is overwritten."""
        filter_.into(self.block.box(reach), self.g, self.d, self.d)
        return self.d


class MixedStateStore(StateStore):
    """On a GPU: u float32, g a buffer of float32 of which the gradient, in bfloat16, takes the first half, and the optimizer's
    state as it packs it: 36 bytes a voxel with Adam.

    u and g are exchanged as elsewhere. Between sampling and the gradient g holds the similarity's scratch, or in its last third
    the slope, which the gradient does not overlap. ``d`` has planes where a ring or a filter too wide for shared memory needs
    them (``planning.needs_spare``), 12 bytes a voxel more.
    """

    @property
    def gradient(self) -> NDArray[Any]:
        """The bits of bfloat16, uint16."""
        return _first_half(self.g)

    @property
    def image_gradient(self) -> Array:
        """The spare field: scratch or slope are in g meanwhile."""
        return self.d

    @property
    def similarity_scratch(self) -> Array:
        """All of g."""
        return self.g

    @property
    def slope(self) -> Array:
        """The last third of g."""
        third: Array = self.g[2]
        return third

    @property
    def filter_scratch(self) -> Array:
        """What was composed is in g, so u is free."""
        return self.u

    def smoothed(self, filter_: Filter, reach: int) -> NDArray[Any]:
        """As ``StateStore.smoothed``, in float32; the result has 16 bits again."""
        box, around = self.block.box(reach), self.block.box(reach + filter_.reach)
        return smooth_half(box, around, filter_, self.gradient, self.d, self.g)


def smooth_half(box: Shape, around: Shape, filter_: Filter, gradient: NDArray[Any], d: Array, g: Array) -> NDArray[np.uint16]:
    """The bits of bfloat16 of the smoothed gradient, in the memory of ``d``; ``g`` is overwritten."""
    smooth = _first_half(d)
    decode_bfloat16(around, gradient, d)
    filter_.into(box, d, g, g)
    encode_bfloat16(box, g, smooth)
    return smooth


def _first_half(field_: Array) -> NDArray[np.uint16]:
    """As many numbers of 16 bits as a field has of 32, in its memory."""
    return field_.reshape(-1).view(np.uint16)[: field_.size].reshape(field_.shape)


def is_mixed(stage: Stage, device: Device) -> bool:
    """Whether a stage runs in mixed storage: a CPU runs everything in float32."""
    return isinstance(stage, Deformable) and stage.storage == "mixed" and device.kind == "cuda"


def make_state(stage: Deformable, level: Level, block: Block) -> StateStore:
    """Zeros, in the stage's storage."""
    kind = block.device.kind
    if not is_mixed(stage, block.device):
        return StateStore(block, level.fixed_factors, stage.optimizer.build(stage.storage, kind))
    spare = needs_spare(stage, level, len(block.partition.slabs))
    return MixedStateStore(block, level.fixed_factors, stage.optimizer.build("mixed", kind), spare)


def refine(u: Array, coarse: Block, before: Index, fine: Block, after: Index, finer: Array, comm: Communicator) -> None:
    """Upsample a displacement from shrink factors ``before`` to ``after``, in voxels of each; own planes of ``finer``."""
    wanted = [between_planes(slab, after[0], before[0], coarse.shape[0]) for slab in fine.partition.slabs]
    near, origin = (u, 0) if comm.size == 1 else (
        gather_planes(comm, coarse.partition.slabs, wanted, u, coarse.first, "levels"), wanted[comm.rank].start)  # fmt: skip
    put = fine.device.put
    gain = put(np.asarray(before, np.float32) / np.asarray(after, np.float32))
    factors = put(np.asarray(after, np.int32)), put(np.asarray(before, np.int32))
    upsample(fine.box(), fine.first, origin, coarse.shape[0], *factors, gain, near, finer)


class Receiver(Protocol):
    """What takes the upsampled displacement of a level."""

    @property
    def block(self) -> Block:
        """The fine level's."""

    @property
    def factors(self) -> Index:
        """Its shrink factors."""

    def put_displacement(self, planes: Span, u: Array) -> None:
        """Replace planes of it."""


@dataclass(frozen=True)
class FullResolution:
    """Takes the displacement at full resolution."""

    block: Block
    planes: Planes
    factors: Index = (1, 1, 1)

    def put_displacement(self, planes: Span, u: Array) -> None:
        """See ``Receiver``."""
        self.planes.write(planes, u)


def exchange_planes(fields: Sequence[Planes], block: Block, comm: Communicator) -> None:
    """Planes within a block's halo from the ranks that own them, in fields that may be out of the device's memory."""
    if comm.size == 1:
        return
    movement = Movement(comm, block.partition.slabs, block.around(block.halo))
    for field in fields:
        coming = [np.empty((field.lead, len(span), *field.plane), field.dtype) for _, span in movement.incoming]
        pending = [receive(comm, rank, list(part)) for (rank, _), part in zip(movement.incoming, coming, strict=True)]
        pending += [send(comm, rank, list(on(CPU, field, span)), movement.purpose) for rank, span in movement.outgoing]
        wait_all(pending)
        for (_, span), part in zip(movement.incoming, coming, strict=True):
            field.write(span, part)


def refine_piecewise(u: Planes, coarse: Block, before: Index, made: Receiver, comm: Communicator) -> None:
    """``refine`` a few planes at a time, with either field out of the device's memory; the fine level's own planes."""
    fine, after, own = made.block, made.factors, coarse.own
    wanted = [between_planes(slab, after[0], before[0], coarse.shape[0]) for slab in fine.partition.slabs]
    near: Planes = u
    if comm.size > 1:
        mine = on(fine.device, u, own)
        near = ArrayPlanes(
            gather_planes(comm, coarse.partition.slabs, wanted, mine, own.start, "levels"), wanted[comm.rank].start
        )
    put = fine.device.put
    gain = put(np.asarray(before, np.float32) / np.asarray(after, np.float32))
    factors = put(np.asarray(after, np.int32)), put(np.asarray(before, np.int32))
    for planes in pieces(fine.own, 3 * VALUE * fine.shape[1] * fine.shape[2]):
        read = between_planes(planes, after[0], before[0], coarse.shape[0])
        finer = fine.device.xp.empty((3, len(planes), *fine.shape[1:]), np.float32)
        source = module_of(finer).ascontiguousarray(on(fine.device, near, read))
        upsample(finer.shape[1:], planes.start, read.start, coarse.shape[0], *factors, gain, source, finer)
        made.put_displacement(planes, finer)


def between_planes(slab: Span, fine: int, coarse: int, planes: int) -> Span:
    """The coarse planes between which fine ones lie."""
    if not len(slab):
        return Span(0, 0)
    low, high = ((2 * i * fine + fine - coarse) // (2 * coarse) for i in (slab.start, slab.stop - 1))
    return Span(min(max(low, 0), planes - 1), min(max(high + 1, 0), planes - 1) + 1)
