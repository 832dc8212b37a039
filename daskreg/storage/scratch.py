"""Fields on disk while a level runs: files that belong to one process, gone when it ends.

Planes are stored one after the other, each with all components, which begin at multiples of 4096 bytes, and go around the page
cache where the file system allows it (O_DIRECT): what a job writes does not count against its memory. Each has a checksum, kept
in memory. Arrays that ``ScratchField.staging`` makes have the layout of the file, so that nothing is copied on the way, and
planes that follow each other are one transfer: large ones keep a disk busy.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import OutOfSpace, OutputError, RunError
from daskreg.grid import Span
from daskreg.large_pages import large_pages
from daskreg.storage.fs.errors import DISK_FULL, reason

PREFIX = ".daskreg-scratch-"  # of files, which have a name only until they are open
ALIGNMENT = 4096  # of offsets, lengths and memory with O_DIRECT
STAGING_BYTES, DIRECT_BYTES = 8 << 20, 16 << 20  # of a transfer by way of memory of its own, and without
READERS, WRITERS = 6, 3  # transfers at once
RESERVE = 1.02  # free space that is asked for, of what the fields take
AnyField = TypeVar("AnyField", bound="ScratchField")
Task = tuple[Span, int]  # a transfer: planes, with all components, and which copy of them


def require_scratch(folder: Path) -> None:
    """Raises OutputError where a folder does not exist on this machine, or no file can be made there."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise OutputError(
            f"the scratch folder {folder} {what} on {socket.gethostname()}; create it first, or name another with --scratch."
        )
    try:
        with tempfile.TemporaryFile(prefix=PREFIX, dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"the scratch folder {folder} cannot be used: {reason(error)}; name another with --scratch.") from error


class ScratchFolder:
    """A folder in which one rank's fields are, in files that are unlinked as soon as they are open: nothing is left behind.

    reads: whether fields are only read that are there. Raises as ``require_scratch`` does.
    """

    def __init__(self, parent: str | Path, limit: int | None = None, *, reads: bool = False) -> None:
        self.limit, self.used, self.moved, self.seconds = limit, 0, 0, 0.0
        self.path = Path(parent)
        if not reads:
            require_scratch(self.path)
        self.staging, self._counting = threading.local(), threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, "daskreg-scratch-read")
        self._writers = ThreadPoolExecutor(WRITERS, "daskreg-scratch-write")

    def count(self, bytes_moved: int) -> None:
        """Add to ``moved``; readers and writers do so at the same time."""
        with self._counting:
            self.moved += bytes_moved

    def __enter__(self) -> ScratchFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def allocate(self, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> ScratchField:
        """Zeros (lead, planes, Y, X). Raises OutOfSpace where the disk, or the limit, has less room than they take."""
        path = self.path / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        return self.opened(ScratchField(self, path, lead, span, plane, np.dtype(dtype)))

    def opened(self, field: AnyField) -> AnyField:
        """A field, with its file. Raises as ``allocate`` does."""
        self._require_room(field.bytes)
        field.open()
        self.used += field.bytes
        return field

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < needed * RESERVE:
            raise OutOfSpace(
                f"{self.path} has {free / 2**30:.2f} GiB free and a field takes {needed / 2**30:.2f} GiB; free some, or name "
                "another folder with --scratch."
            )
        if self.limit is not None and self.used + needed > self.limit:
            raise OutOfSpace(
                f"the fields of a level take {(self.used + needed) / 2**30:.2f} GiB of scratch and --scratch-size allows "
                f"{self.limit / 2**30:.2f} GiB; allow more, or more memory."
            )

    def released(self, count: int) -> None:
        """A field was closed."""
        self.used -= count

    def run(self, work: Callable[[Task], None], tasks: list[Task], *, writes: bool) -> None:
        """All tasks at once; raises what one of them raised."""
        start = time.perf_counter()
        for _ in (self._writers if writes else self._readers).map(work, tasks):
            pass
        self.seconds += time.perf_counter() - start

    def close(self) -> None:
        """End the threads; files go with the fields."""
        self._readers.shutdown()
        self._writers.shutdown()


class ScratchField:
    """Planes of a field in a file: ``engine.planes.Planes``."""

    copies = 1  # of each plane in the file

    def __init__(
        self, folder: ScratchFolder, path: Path, lead: int, span: Span, plane: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self.folder, self.path, self.lead, self.span, self.plane, self.dtype = folder, path, lead, span, plane, dtype
        self.size = plane[0] * plane[1] * dtype.itemsize
        self.pitch = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.bytes = self.copies * self.pitch * lead * len(span)
        self._sums = np.zeros((self.copies, len(span), lead), np.uint32)
        self._written = np.zeros((self.copies, len(span)), bool)
        self._file = -1

    def open(self) -> None:
        """Make the file, which disappears with this process."""
        self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with _errors(self.path):
            os.unlink(self.path)
            os.ftruncate(self._file, self.bytes)

    def _open(self, flags: int) -> None:
        with _errors(self.path):
            try:
                self._file = os.open(self.path, flags | getattr(os, "O_DIRECT", 0), 0o600)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._file = os.open(self.path, flags, 0o600)  # a file system in memory

    def read(self, planes: Span, into: Any) -> None:
        """Copy planes into an array (lead, planes, Y, X) on any device. Raises RunError where a checksum does not match."""
        tasks = self._tasks(planes, self._current(), into)
        self.folder.run(lambda task: self._read(task, into, planes), tasks, writes=False)

    def write(self, planes: Span, source: Any) -> None:
        """Replace planes. Raises OutOfSpace and OutputError."""
        tasks = self._tasks(planes, self._next(), source)
        self.folder.run(lambda task: self._write(task, source, planes), tasks, writes=True)

    def close(self) -> None:
        """Give the space up."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.folder.released(self.bytes)

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()

    def _current(self) -> NDArray[np.uint8] | None:
        """Which copy of each plane is read, (planes,); None: the only one."""
        return None

    def _next(self) -> NDArray[np.uint8] | None:
        """Which copy is written."""
        return None

    def _tasks(self, planes: Span, copies: NDArray[np.uint8] | None, array: Any) -> list[Task]:
        """The transfers: of planes that follow each other in the file, and of a bounded size."""
        most = STAGING_BYTES if self._bytes_of(array) is None else DIRECT_BYTES
        each = max(1, most // (self.lead * self.pitch))
        runs = [(planes, 0)] if copies is None else _runs(planes, copies[planes.within(self.span)])
        return [(Span(z, min(z + each, run.stop)), copy) for run, copy in runs for z in range(run.start, run.stop, each)]

    def _read(self, task: Task, into: Any, planes: Span) -> None:
        part, copy = task
        target = into[:, part.within(planes)]
        known = self._written[copy, part.within(self.span)]
        if not known.any():
            target[...] = 0
            return
        direct = self._bytes_of(target)
        staged = self._stage(len(part)) if direct is None else direct
        with _errors(self.path):
            _transfer(os.preadv, self._file, staged, self._offset(part.start, copy))
        self.folder.count(staged.nbytes)
        self._check(staged, part, copy)
        rows = self._rows(staged)
        rows[~known] = 0
        if direct is not None:
            return
        found = rows.view(self.dtype).reshape(len(part), self.lead, *self.plane).swapaxes(0, 1)
        for one, there in zip(found, target, strict=True):  # each is contiguous, as a GPU wants it
            if hasattr(there, "set"):
                there.set(np.ascontiguousarray(one))
            else:
                there[...] = one

    def _check(self, staged: NDArray[np.uint8], part: Span, copy: int) -> None:
        """Raises RunError for a plane that is not what was written."""
        at = part.within(self.span)
        differ = (_checksums(staged, self.pitch).reshape(len(part), self.lead) != self._sums[copy, at]).any(axis=1)
        damaged = np.flatnonzero(differ & self._written[copy, at])
        if len(damaged):
            raise RunError(
                f"plane {part.start + damaged[0]} of a field in {self.folder.path} is not what was written there: the disk or "
                "its memory is damaged; continue from the last checkpoint with another folder (--resume, --scratch)."
            )

    def _write(self, task: Task, source: Any, planes: Span) -> None:
        part, copy = task
        given = source[:, part.within(planes)]
        staged = self._bytes_of(given)
        if staged is None:
            staged = self._stage(len(part))
            rows = self._rows(staged).view(self.dtype)
            for c, one in enumerate(given):
                rows[:, c] = (one.get() if hasattr(one, "get") else one).reshape(len(part), -1)
        at = part.within(self.span)
        self._sums[copy, at] = _checksums(staged, self.pitch).reshape(len(part), self.lead)
        with _errors(self.path):
            _transfer(os.pwritev, self._file, staged, self._offset(part.start, copy))
        self.folder.count(staged.nbytes)
        self._written[copy, at] = True

    def staging(self, planes: int) -> NDArray[Any]:
        """An array (lead, planes, Y, X) whose planes lie in memory as in the file, which are read and written without a copy."""
        strides = *self._strides, self.plane[1] * self.dtype.itemsize, self.dtype.itemsize
        memory = large_pages(max(self.lead * planes * self.pitch, ALIGNMENT))
        return np.ndarray((self.lead, planes, *self.plane), self.dtype, memory, strides=strides)

    @property
    def _strides(self) -> tuple[int, int]:
        """Bytes from a component, and from a plane, to the next."""
        return self.pitch, self.lead * self.pitch

    def _bytes_of(self, part: Any) -> NDArray[np.uint8] | None:
        """Planes of such an array with what pads them, None for any other."""
        memory = part
        while isinstance(memory, np.ndarray):
            memory = memory.base
        if not isinstance(memory, mmap.mmap) or part.dtype != self.dtype or part.strides[:2] != self._strides:
            return None
        whole = np.frombuffer(memory, np.uint8)
        start = part.ctypes.data - whole.ctypes.data
        return whole[start : start + part.shape[1] * self.lead * self.pitch]

    def _rows(self, staged: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(planes, lead, bytes) of a transfer, without what pads them."""
        return staged.reshape(-1, self.lead, self.pitch)[..., : self.size]

    def _offset(self, plane: int, copy: int) -> int:
        return (copy * len(self.span) + plane - self.span.start) * self.lead * self.pitch

    def _stage(self, planes: int) -> NDArray[np.uint8]:
        """Aligned memory of this thread."""
        needed = planes * self.lead * self.pitch
        own = self.folder.staging
        if len(getattr(own, "memory", b"")) < needed:
            own.memory = large_pages(needed)
        return np.frombuffer(own.memory, np.uint8, needed)


def _runs(planes: Span, copies: NDArray[np.uint8]) -> Iterator[tuple[Span, int]]:
    """Planes that follow each other with the same copy."""
    cuts = [0, *(np.flatnonzero(np.diff(copies)) + 1).tolist(), len(planes)]
    for a, b in pairwise(cuts):
        if b > a:
            yield Span(planes.start + a, planes.start + b), int(copies[a])


def _checksums(staged: NDArray[np.uint8], pitch: int) -> NDArray[np.uint32]:
    """Of each plane of a component: the CRC-32 of the sums of its sectors, at the speed of memory; other threads run meanwhile.

    A sector (``ALIGNMENT`` bytes) that is lost, old or damaged has another sum of its words of 64 bits, and sectors that have
    changed places another CRC.
    """
    sums = staged.view(np.uint64).reshape(-1, pitch // ALIGNMENT, ALIGNMENT // 8).sum(axis=2)
    return np.array([zlib.crc32(row.data) for row in sums], np.uint32)


def _transfer(call: Any, file: int, staged: NDArray[np.uint8], offset: int) -> None:
    """All of it: the system may move less at once."""
    done = 0
    while done < len(staged):
        count = call(file, [staged.data[done:]], offset + done)
        if count <= 0:
            raise OSError(errno.EIO, "the file ended early")
        done += count


class _errors:  # a context manager
    """Translate exceptions of the file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, OSError):
            return
        folder = self.path.parent
        if error.errno in DISK_FULL:
            raise OutOfSpace(f"the scratch folder {folder} is full; free some space, or name another with --scratch.") from error
        raise OutputError(f"the scratch folder {folder} cannot be used: {reason(error)}; name another with --scratch.") from error
