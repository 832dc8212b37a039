"""Fields on their way between where they are kept and the device: read a slab ahead and written behind, by a thread each."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from daskreg.engine.copies import copy_planes
from daskreg.engine.planes import Planes
from daskreg.grid import Span
from daskreg.kernels.device import Device

SETS = 2, 2  # staging arrays of a field, for reading and for writing: one is in use while the other is on its way
READERS = 3  # fields that are read at once on a CPU; on a GPU a slab comes before the next one
WRITERS = 2  # fields that are written at once: the link does not rest until a thread has taken the next

Reads = Mapping[str, Sequence[Span]]  # planes that a step reads of each field


class Transfers:
    """Reads and writes that run beside kernels, whose order is known a step ahead.

    most: planes of a field in a staging array; where a step has more, they go through them one part after the other;
    sets: of these arrays, for reading and for writing. Raises what reading and writing raise, at the next call.
    """

    def __init__(self, device: Device, fields: Mapping[str, Planes], most: int, sets: tuple[int, int] = SETS) -> None:
        self.device, self.fields, self.most, on_gpu = device, fields, most, device.kind == "cuda"
        self.incoming: list[dict[str, Any]] = [{} for _ in range(sets[0])]
        self.outgoing: dict[str, list[Any]] = {name: [] for name in fields}
        self._behind = sets[1]
        self._reader = ThreadPoolExecutor(1 if on_gpu else READERS, "daskreg-read-ahead")
        self._writer = ThreadPoolExecutor(WRITERS, "daskreg-write-behind")
        self._own = threading.local()  # the stream of each of these threads
        self._due: deque[dict[str, Span]] = deque()
        self.waited, self.moved = 0.0, 0  # seconds, and bytes read and written
        self._parts: deque[int] = deque()  # of every step that was not taken
        self._coming: deque[tuple[int, dict[str, Span], list[Future[None]]]] = deque()
        self._writing: dict[str, deque[tuple[Span, Future[None]]]] = {name: deque() for name in fields}
        self._free: deque[tuple[int, Any]] = deque((k, None) for k in range(sets[0]))  # sets, and the event behind which they are

    def _memory(self, field: Planes, planes: int) -> Any:
        """A staging array: on a CPU of the field's own kind where it has one: files read and write it without a copy."""
        if self.device.kind == "cpu" and hasattr(field, "staging"):
            return field.staging(planes)
        return self.device.xp.empty(field.lead * planes * math.prod(field.plane), field.dtype)

    # ---------------------------------------------------------------- reading

    def expect(self, reads: Sequence[Reads]) -> None:
        """What the next steps read, behind what is expected already."""
        for step in reads:
            parts = _parts(step, self.most)
            self._due.extend(parts)
            self._parts.append(len(parts))
        self._submit()

    def expect_written(self, reads: Reads) -> None:
        """As ``expect``, of one step, where some of it may be on its way to where it is kept."""
        for name, spans in reads.items():
            for planes, pending in self._writing[name]:
                if any(len(planes & span) for span in spans):
                    self._wait(pending)
        self.expect([reads])

    def take(self, into: Callable[[str, Span], Any]) -> None:
        """Copy what the next step reads into ``into(name, planes)``, and read on."""
        for _ in range(self._parts.popleft()):
            k, part, pending = self._coming.popleft()
            for one in pending:
                self._wait(one)
            for name, planes in part.items():
                copy_planes(self._view(self.incoming[k][name], self.fields[name], planes), into(name, planes))
            self._free.append((k, self._event()))
            self._submit()

    def _submit(self) -> None:
        while self._due and self._free:
            part, (k, after) = self._due.popleft(), self._free.popleft()
            made = [self._make_room(self.incoming[k], name, len(planes)) for name, planes in part.items()]
            if any(made):  # CuPy's pool hands out memory that was freed while launched kernels still use it
                after = self._event()
            self.moved += sum(self._view(self.incoming[k][n], self.fields[n], planes).nbytes for n, planes in part.items())
            together = [part] if self.device.kind == "cuda" else [{name: span} for name, span in part.items()]
            self._coming.append((k, part, [self._reader.submit(self._read, k, some, after) for some in together]))

    def _make_room(self, arrays: dict[str, Any], name: str, planes: int) -> bool:
        """Whether that took new memory."""
        if name in arrays and self._has_room(arrays[name], self.fields[name], planes):
            return False
        arrays[name] = self._memory(self.fields[name], planes)
        return True

    def _read(self, k: int, part: Mapping[str, Span], after: Any) -> None:
        with self._behind_event(after):
            for name, planes in part.items():
                self.fields[name].read(planes, self._view(self.incoming[k][name], self.fields[name], planes))

    # ---------------------------------------------------------------- writing

    def put(self, name: str, planes: Span, source: Any) -> None:
        """Write planes of a field, which may be replaced in ``source`` from now on."""
        for part in _cut(planes, self.most):
            self._put(name, part, source[:, part.within(planes)])

    def _put(self, name: str, planes: Span, source: Any) -> None:
        writing, field = self._writing[name], self.fields[name]
        while len(writing) >= self._behind:
            self._wait(writing.popleft()[1])
        staged = self._view(self._outgoing(name, len(planes)), field, planes)
        copy_planes(source, staged)
        self.moved += staged.nbytes
        writing.append((planes, self._writer.submit(self._write, field, planes, staged, self._event())))

    def _outgoing(self, name: str, planes: int) -> Any:
        """Memory that no write uses any more."""
        field, kept = self.fields[name], self.outgoing[name]
        if len(kept) < self._behind:
            memory = self._memory(field, planes)
        else:
            memory = kept.pop(0)
            if not self._has_room(memory, field, planes):
                memory = self._memory(field, planes)
        kept.append(memory)
        return memory

    def _write(self, field: Planes, planes: Span, staged: Any, after: Any) -> None:
        with self._behind_event(after):
            field.write(planes, staged)

    # ---------------------------------------------------------------- both

    def settle(self) -> None:
        """Wait until everything that was written is where it is kept."""
        for writing in self._writing.values():
            while writing:
                self._wait(writing.popleft()[1])

    def finish(self) -> None:
        """As ``settle``; nothing is expected any more."""
        self._due.clear()
        self._parts.clear()
        while self._coming:
            k, _, pending = self._coming.popleft()
            for one in pending:
                one.result()
            self._free.append((k, self._event()))
        self.settle()

    def close(self) -> None:
        """End the threads."""
        for pool in (self._reader, self._writer):
            pool.shutdown(cancel_futures=True)

    def _wait(self, pending: Future[None]) -> None:
        start = time.perf_counter()
        pending.result()
        self.waited += time.perf_counter() - start

    @staticmethod
    def _has_room(memory: Any, field: Planes, planes: int) -> bool:
        return bool(memory.size >= field.lead * planes * math.prod(field.plane))

    @staticmethod
    def _view(memory: Any, field: Planes, planes: Span) -> Any:
        if memory.ndim > 1:
            return memory[:, : len(planes)]
        shape = field.lead, len(planes), *field.plane
        return memory[: math.prod(shape)].reshape(shape)

    def _event(self) -> Any:
        """At the end of what was launched, on a GPU."""
        if self.device.kind == "cpu":
            return None
        event = self.device.xp.cuda.Event(disable_timing=True)
        event.record()
        return event

    def _behind_event(self, after: Any) -> AbstractContextManager[None]:
        """On the stream of this thread, behind an event of another one."""
        if self.device.kind == "cpu":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            with self.device.xp.cuda.Device(self.device.number):
                self._own.stream = self.device.xp.cuda.Stream(non_blocking=True)
        return _OnStream(self.device, self._own.stream, after)


def _cut(planes: Span, most: int) -> list[Span]:
    return [Span(z, min(z + most, planes.stop)) for z in range(planes.start, planes.stop, most)]


def _parts(reads: Reads, most: int) -> list[dict[str, Span]]:
    """A step in parts of at most so many planes of each field."""
    cut = {name: [part for planes in spans for part in _cut(planes, most)] for name, spans in reads.items()}
    count = max(map(len, cut.values()), default=0)
    return [{name: parts[k] for name, parts in cut.items() if k < len(parts)} for k in range(count)]


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
