"""The fields of a level that a sweep reads and writes: out of the device's memory, in the machine's or on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.planes import Allocate, ArrayPlanes, Planes, pieces
from daskreg.engine.state import exchange_planes, refine_piecewise
from daskreg.grid import Index, Span
from daskreg.optimizers.base import Optimizer

Array = NDArray[np.float32]
DIRECTION = "direction"  # of the last step, kept beside the state where it does not follow from that


class SweptState:
    """u, in voxels of the level, and the optimizer's fields, each with the planes of neighbours that a sweep reads.

    losses, matched, factors, longest: see ``engine.state.StateStore``;  length: the |d|^2 that scales the last step, where the
    displacement does not have that step yet, else None: the next sweep composes with it;  kept: whether the fields are their own
    checkpoint.
    """

    kept = False
    longest: float | None = None

    def __init__(self, block: Block, factors: Index, optimizer: Optimizer, halo: int, allocate: Allocate) -> None:
        self.block, self.factors, self.optimizer = block, factors, optimizer
        self.losses, self.matched = list[float](), list[float]()
        self.length: float | None = None
        self.halo, self.held = halo, block.own.grow(halo) & block.partition.whole
        plane = block.shape[1], block.shape[2]
        self.u = allocate(3, self.held, plane, np.float32)
        zeros: Any = lambda dtype=np.float32: allocate(3, self.held, plane, dtype)  # noqa: E731  # as ``Optimizer.init`` takes it
        self.optimizer_state: dict[str, Any] = optimizer.init(zeros)
        if not optimizer.restores_direction:
            self.optimizer_state[DIRECTION] = zeros()

    @classmethod
    def of_fields(cls, block: Block, factors: Index, optimizer: Optimizer, halo: int, fields: Mapping[str, Planes]) -> SweptState:
        """Of fields that are there."""
        made = cls.__new__(cls)
        made.block, made.factors, made.optimizer, made.losses, made.matched, made.length = block, factors, optimizer, [], [], None
        made.halo, made.held = halo, block.own.grow(halo) & block.partition.whole
        made.u = fields["u"]
        made.optimizer_state = {name: planes for name, planes in fields.items() if name != "u"}
        return made

    @property
    def at_hand(self) -> bool:
        """Whether reading a field is no more than copying within the machine's memory."""
        return self.block.device.kind == "cpu" and all(isinstance(f, ArrayPlanes) for f in self.fields.values())

    @property
    def fields(self) -> dict[str, Planes]:
        """All that changes in an iteration."""
        return {"u": self.u, **self.optimizer_state}

    def exchange(self, comm: Communicator, *, displacement: bool = False) -> None:
        """Planes around the own ones from the ranks that own them;  displacement: of u alone."""
        around = replace(self.block, halo=self.halo)
        exchange_planes([self.u] if displacement else list(self.fields.values()), around, comm)

    def refined(self, finer: Callable[[], Any], comm: Communicator) -> Any:
        """On a finer level, whose state ``finer`` makes: u is upsampled, the optimizer starts afresh."""
        self.optimizer_state = {}
        made = finer()
        refine_piecewise(self.u, self.block, self.factors, made, comm)
        return made

    @property
    def displacement(self) -> Planes:
        """All planes held."""
        return self.u

    def put_displacement(self, planes: Span, u: Array) -> None:
        """Replace planes of the displacement."""
        self.u.write(planes, u)

    def saved(self, *, optimizer: bool) -> dict[str, Planes]:
        """Own planes of u and, where asked for, of the optimizer's fields, as a checkpoint holds them: float32."""
        found: dict[str, Planes] = {"u": self.u}
        if optimizer:
            found |= {name: _Saved(self, name) for name in self.optimizer.fields}
        return found

    def restore(self, read: Callable[[str, Span], Array], losses: list[float]) -> None:
        """All planes from a checkpoint, by name; the optimizer's only where it had iterated."""
        self.losses = list(losses)
        for span in pieces(self.held, self._plane_bytes):
            self.u.write(span, read("u", span))
            if losses:
                arrays: Mapping[str, Array] = {name: read(name, span) for name in self.optimizer.fields}
                state = {n: np.empty((3, len(span), *f.plane), f.dtype) for n, f in self.optimizer_state.items()}
                self.optimizer.restore(state, arrays, np.asarray)
                for name, field in self.optimizer_state.items():
                    field.write(span, state[name])

    @property
    def _plane_bytes(self) -> int:
        return 12 * self.block.shape[1] * self.block.shape[2]


class _Saved:
    """A field of the optimizer as a checkpoint holds it, of those that it keeps."""

    def __init__(self, state: SweptState, name: str) -> None:
        self.state, self.name = state, name
        self.span, self.lead, self.plane, self.dtype = state.u.span, 3, state.u.plane, np.float32

    def read(self, planes: Span, into: Any) -> None:
        """See ``Planes``."""
        s = self.state
        kept = {name: _read(field, planes) for name, field in s.optimizer_state.items()}
        into[...] = s.optimizer.saved(kept, slice(None))[self.name]

    def write(self, planes: Span, source: Any) -> None:
        """Not a field of its own."""
        raise NotImplementedError


def _read(field: Planes, planes: Span) -> Any:
    part = np.empty((field.lead, len(planes), *field.plane), field.dtype)
    field.read(planes, part)
    return part
