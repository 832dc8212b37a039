"""Fields on their way between where they are kept and the device: read a slab ahead and written behind, by a thread each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from daskreg.engine.planes import Planes
from daskreg.grid import Span
from daskreg.kernels.device import Device

SETS = 2  # of staging arrays: one is in use while the other is on its way

Reads = Mapping[str, Span]  # planes that a slab reads of each field


class Transfers:
    """Reads and writes that run beside the kernels of a sweep, whose order of slabs is known.

    reads: of every slab.  Raises what reading and writing raise, at the next call.
    """

    def __init__(self, device: Device, fields: Mapping[str, Planes], reads: Sequence[Reads]) -> None:
        self.device, self.fields, self.reads = device, fields, reads
        most = {name: max((len(r[name]) for r in reads), default=0) for name in fields}
        self.incoming = [self._arrays(most) for _ in range(SETS)]
        self.outgoing: dict[str, list[Any]] = {name: [] for name in fields}
        self._capacity = most
        self._reader, self._writer = (ThreadPoolExecutor(1, f"daskreg-{name}") for name in ("read-ahead", "write-behind"))
        self._streams = [device.xp.cuda.Stream(non_blocking=True) for _ in range(2)] if device.kind == "cuda" else [None, None]
        self._coming: deque[Future[None]] = deque()
        self._writing: dict[str, deque[Future[None]]] = {name: deque() for name in fields}
        self._next = 0

    def _arrays(self, planes: Mapping[str, int]) -> dict[str, Any]:
        return {name: self._memory(field, planes[name]) for name, field in self.fields.items()}

    def _memory(self, field: Planes, planes: int) -> Any:
        return self.device.xp.empty(field.lead * planes * math.prod(field.plane), field.dtype)

    # ---------------------------------------------------------------- reading

    def begin(self) -> None:
        """Begin with the first slab."""
        self._next = 0
        self._coming.clear()
        for k in range(min(SETS, len(self.reads))):
            self._coming.append(self._submit_read(k, None))

    def take(self, into: Callable[[str, Span], Any]) -> None:
        """Copy what the next slab reads into ``into(name, planes)``, and read on."""
        if not self._coming:
            self.begin()
        k, self._next = self._next, self._next + 1
        self._coming.popleft().result()
        for name, planes in self.reads[k].items():
            if len(planes):
                into(name, planes)[...] = self._view(self.incoming[k % SETS][name], self.fields[name], planes)
        if k + SETS < len(self.reads):
            self._coming.append(self._submit_read(k + SETS, self._event()))

    def _submit_read(self, k: int, after: Any) -> Future[None]:
        return self._reader.submit(self._read, k, after)

    def _read(self, k: int, after: Any) -> None:
        with self._on(self._streams[0], after):
            for name, planes in self.reads[k].items():
                if len(planes):
                    field = self.fields[name]
                    field.read(planes, self._view(self.incoming[k % SETS][name], field, planes))

    # ---------------------------------------------------------------- writing

    def put(self, name: str, planes: Span, source: Any) -> None:
        """Write planes of a field, which may be replaced in ``source`` from now on."""
        writing, field = self._writing[name], self.fields[name]
        while len(writing) >= SETS:
            writing.popleft().result()
        staged = self._view(self._outgoing(name, len(planes)), field, planes)
        staged[...] = source
        writing.append(self._writer.submit(self._write, field, planes, staged, self._event()))

    def _outgoing(self, name: str, planes: int) -> Any:
        """Memory that no write uses any more."""
        field, kept = self.fields[name], self.outgoing[name]
        needed = field.lead * planes * math.prod(field.plane)
        if len(kept) < SETS:
            memory = self._memory(field, max(planes, self._capacity[name]))
        else:
            memory = kept.pop(0)
            if memory.size < needed:
                memory = self._memory(field, planes)
        kept.append(memory)
        return memory

    def _write(self, field: Planes, planes: Span, staged: Any, after: Any) -> None:
        with self._on(self._streams[1], after):
            field.write(planes, staged)

    # ---------------------------------------------------------------- both

    def finish(self) -> None:
        """Wait until everything is where it is kept."""
        while self._coming:
            self._coming.popleft().result()
        for writing in self._writing.values():
            while writing:
                writing.popleft().result()

    def close(self) -> None:
        """End the threads."""
        for pool in (self._reader, self._writer):
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _view(memory: Any, field: Planes, planes: Span) -> Any:
        shape = field.lead, len(planes), *field.plane
        return memory[: math.prod(shape)].reshape(shape)

    def _event(self) -> Any:
        """At the end of what was launched, on a GPU."""
        if self.device.kind == "cpu":
            return None
        event = self.device.xp.cuda.Event(disable_timing=True)
        event.record()
        return event

    def _on(self, stream: Any, after: Any) -> AbstractContextManager[None]:
        return nullcontext() if stream is None else _OnStream(self.device, stream, after)


class _OnStream:
    """Copies on a stream of their own, behind an event of another one; done at the end."""

    def __init__(self, device: Device, stream: Any, after: Any) -> None:
        self.device, self.stream, self.after = device, stream, after

    def __enter__(self) -> None:
        self.device.xp.cuda.Device(self.device.number).use()
        if self.after is not None:
            self.stream.wait_event(self.after)
        self.stream.use()

    def __exit__(self, *error: object) -> None:
        self.stream.synchronize()
