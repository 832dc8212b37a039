"""Allgather among ranks of one machine through shared memory: a few microseconds, where messages take a hundred."""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm.base import Communicator
from daskreg.comm.timeouts import SPIN_TIME
from daskreg.errors import RankLost

SLOT_BYTES = 1 << 16  # largest array that shared memory takes
HEADER = struct.Struct("<QQQQ")  # number of the gather, bytes, signature of shape and dtype, checksum
SPINS = 20  # reads of a slot that is not written yet, before the thread starts to sleep in between
BACKOFF = 2e-5, 5e-4  # seconds, the first and the longest sleep between two reads
TOKEN_BYTES, PATH_BYTES = 16, 64  # a random token that identifies the memory, and its path


class SharedMemoryAllgather:
    """A slot for each rank, twice: while the slots of one gather are read, those of the next may be written.

    No rank is two gathers ahead, because a gather ends when all of its slots are written. A slot is valid when its number and
    checksum match, so nothing is assumed about the order in which writes become visible.
    """

    def __init__(self, memory: mmap.mmap, comm: Communicator) -> None:
        self.memory, self.comm, self.number = memory, comm, 0

    def gather(self, array: NDArray[Any]) -> NDArray[Any] | None:
        """Arrays of one shape from all ranks, stacked by rank; None on every rank where they are too large for a slot.

        Raises RankLost, and ValueError where shapes or dtypes differ.
        """
        self.number += 1
        fits, signature = array.nbytes <= SLOT_BYTES, zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
        self._write(np.ascontiguousarray(array).tobytes() if fits else b"", signature)
        slots = [self._wait(r, array, signature) for r in range(self.comm.size)]
        return np.frombuffer(b"".join(slots), array.dtype).reshape(self.comm.size, *array.shape).copy() if fits else None

    def _offset(self, rank: int) -> int:
        return (self.number % 2 * self.comm.size + rank) * (HEADER.size + SLOT_BYTES)

    def _write(self, data: bytes, signature: int) -> None:
        offset = self._offset(self.comm.rank)
        self.memory[offset + HEADER.size : offset + HEADER.size + len(data)] = data
        HEADER.pack_into(self.memory, offset, self.number, len(data), signature, self._checksum(data, signature))

    def _checksum(self, data: bytes, signature: int) -> int:
        return zlib.crc32(data, (self.number ^ signature) & 0xFFFFFFFF)

    def _read(self, rank: int) -> tuple[bytes, int] | None:
        """Data and signature of a rank's slot of this gather, None until it is written."""
        offset = self._offset(rank)
        number, size, signature, checksum = HEADER.unpack_from(self.memory, offset)
        if number != self.number:
            return None
        data = self.memory[offset + HEADER.size : offset + HEADER.size + size]
        return (data, signature) if self._checksum(data, signature) == checksum else None

    def _wait(self, rank: int, array: NDArray[Any], expected: int) -> bytes:
        if self._read(rank) is None:
            self.comm.timeouts.wait(lambda seconds: self._ready(rank, seconds), rank, self.comm.names[rank])
        data, signature = self._read(rank) or (b"", -1)
        if signature != expected:
            raise ValueError(
                f"rank {rank} ({self.comm.names[rank]}) gave another array than {array.dtype} {array.shape}: both sides must run "
                "the same plan and version."
            )
        return data

    def _ready(self, rank: int, seconds: float) -> bool:
        """Whether a slot was written within so many seconds."""
        start, pause = time.monotonic(), BACKOFF[0]
        spin_until = start + SPIN_TIME if self.comm.busy_wait else 0.0
        reads = 0
        while self._read(rank) is None:
            now, reads = time.monotonic(), reads + 1
            if now > start + seconds:
                return self._ready_or_lost(rank)
            if reads > SPINS and now > spin_until:
                time.sleep(pause)
                pause = min(1.5 * pause, BACKOFF[1])
            else:
                os.sched_yield()  # to other processes and threads: there may be more of them than cores
        return True

    def _ready_or_lost(self, rank: int) -> bool:
        """Whether a slot is written. Raises RankLost where the connection to its rank is lost."""
        try:
            self.comm.check(rank)
        except RankLost:
            if self._read(rank) is None:  # a rank may leave once it has written
                raise
        return self._read(rank) is not None


def memory_identity() -> str:
    """Equal where processes can share memory: one kernel, one user, the same processes and the same /dev/shm in view.

    Two containers of one machine differ. Empty where that cannot be told, as on macOS.
    """
    try:
        spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid", "user")]
        shm = os.stat("/dev/shm")
        return " ".join([Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *spaces, f"{shm.st_dev}:{shm.st_ino}",
                         str(os.geteuid())])  # fmt: skip
    except OSError:
        return ""


def use_shared_memory(comm: Communicator, hosts: Sequence[str]) -> None:
    """Gather through shared memory from now on, if all ranks run on one machine and can map it; all ranks call this."""
    if comm.size == 1 or len(set(hosts)) > 1:
        return
    size, handle = 2 * comm.size * (HEADER.size + SLOT_BYTES), None
    try:
        if comm.rank == 0:
            handle = _create(size)
        description = _describe(handle) if handle is not None else bytes(TOKEN_BYTES + PATH_BYTES)
        description = bytes(comm.broadcast(np.frombuffer(description, np.uint8)))
        memory = _map(description, size)
        missing = float(comm.max(np.array([float(memory is None)]))[0])
    finally:
        if handle is not None:
            os.close(handle)  # the mappings keep the memory; it is freed with the last of them, however that process ends
    comm.shared_gather = None if missing or memory is None else SharedMemoryAllgather(memory, comm).gather


def _create(size: int) -> int | None:
    """File descriptor of new memory with a token behind it, None where there can be none."""
    handle = None
    with suppress(OSError, AttributeError):  # not on Linux; not enough memory
        handle = os.memfd_create("daskreg")
        os.posix_fallocate(handle, 0, size + TOKEN_BYTES)  # later, a lack of memory would kill the process
        os.pwrite(handle, os.urandom(TOKEN_BYTES), size)
        return handle
    if handle is not None:
        os.close(handle)
    return None


def _describe(handle: int) -> bytes:
    """Token and path of the memory, for other processes."""
    token = os.pread(handle, TOKEN_BYTES, os.fstat(handle).st_size - TOKEN_BYTES)
    return token + f"/proc/{os.getpid()}/fd/{handle}".encode().ljust(PATH_BYTES, b"\0")


def _map(description: bytes, size: int) -> mmap.mmap | None:
    """The memory, None where it cannot be reached: in another container the path does not exist, or names another file."""
    with suppress(OSError, ValueError):
        handle = os.open(description[TOKEN_BYTES:].rstrip(b"\0"), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if os.pread(handle, TOKEN_BYTES, size) == description[:TOKEN_BYTES]:
                return mmap.mmap(handle, size)
        finally:
            os.close(handle)
    return None
