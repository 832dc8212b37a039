"""Sums among ranks of one machine through memory that they share: a few microseconds, where messages take a hundred."""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm.base import KEEN, Communicator
from daskreg.errors import RankLost

ROOM = 1 << 16  # bytes of an array that fits into a row
HEADER = struct.Struct("<QQQQ")  # number of the sum, bytes, what kind of array, checksum
LOOKS = 20  # at a row that is not there yet, before the thread begins to sleep in between
NAPS = 2e-5, 5e-4  # seconds, the first and the longest sleep between two looks
TOKEN, NAME = 16, 64  # bytes that tell the memory from any other, and of its path


class Board:
    """A row for each rank, twice: while the rows of one sum are read those of the next may be written.

    Nobody gets two sums ahead, because a sum ends when all of its rows are there. A row counts when number and checksum are
    right, so that nothing is assumed about the order in which memory changes.
    """

    def __init__(self, memory: mmap.mmap, comm: Communicator) -> None:
        self.memory, self.comm, self.number = memory, comm, 0

    def gather(self, array: NDArray[Any]) -> NDArray[Any] | None:
        """Arrays of one shape from all ranks, stacked by rank; None where they are too large, which all ranks then know.

        Raises RankLost, and ValueError where shapes or types differ.
        """
        self.number += 1
        fits, kind = array.nbytes <= ROOM, zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
        self._write(np.ascontiguousarray(array).tobytes() if fits else b"", kind)
        rows = [self._wait(r, array, kind) for r in range(self.comm.size)]
        return np.frombuffer(b"".join(rows), array.dtype).reshape(self.comm.size, *array.shape).copy() if fits else None

    def _start(self, rank: int) -> int:
        return (self.number % 2 * self.comm.size + rank) * (HEADER.size + ROOM)

    def _write(self, data: bytes, kind: int) -> None:
        start = self._start(self.comm.rank)
        self.memory[start + HEADER.size : start + HEADER.size + len(data)] = data
        HEADER.pack_into(self.memory, start, self.number, len(data), kind, self._checksum(data, kind))

    def _checksum(self, data: bytes, kind: int) -> int:
        return zlib.crc32(data, (self.number ^ kind) & 0xFFFFFFFF)

    def _read(self, rank: int) -> tuple[bytes, int] | None:
        """A rank's row of this sum and its kind, None as long as it is not there."""
        start = self._start(rank)
        number, size, kind, checksum = HEADER.unpack_from(self.memory, start)
        if number != self.number:
            return None
        data = self.memory[start + HEADER.size : start + HEADER.size + size]
        return (data, kind) if self._checksum(data, kind) == checksum else None

    def _wait(self, rank: int, array: NDArray[Any], expected: int) -> bytes:
        if self._read(rank) is None:
            self.comm.patience.wait(lambda seconds: self._ready(rank, seconds), rank, self.comm.names[rank])
        data, kind = self._read(rank) or (b"", -1)
        if kind != expected:
            raise ValueError(
                f"rank {rank} ({self.comm.names[rank]}) gave another array than {array.dtype} {array.shape}: both sides must run "
                "the same plan and version."
            )
        return data

    def _ready(self, rank: int, seconds: float) -> bool:
        """Whether a row came within so many seconds."""
        begin, nap = time.monotonic(), NAPS[0]
        until = begin + KEEN if self.comm.keen else 0.0
        looks = 0
        while self._read(rank) is None:
            now, looks = time.monotonic(), looks + 1
            if now > begin + seconds:
                return self._still(rank)
            if looks > LOOKS and now > until:
                time.sleep(nap)
                nap = min(1.5 * nap, NAPS[1])
            else:
                os.sched_yield()  # to other processes, and threads of this one: there may be more than cores
        return True

    def _still(self, rank: int) -> bool:
        """Whether a row has come at last. Raises RankLost where the links tell that none can come any more."""
        try:
            self.comm.check(rank)
        except RankLost:
            if self._read(rank) is None:  # a rank may leave once it has written
                raise
        return self._read(rank) is not None


def share(comm: Communicator, hosts: Sequence[str]) -> None:
    """Let ranks that are all on one machine sum over a board from now on, unless one of them cannot have it; all call this."""
    if comm.size == 1 or len(set(hosts)) > 1:
        return
    size, mine = 2 * comm.size * (HEADER.size + ROOM), None
    try:
        if comm.rank == 0:
            mine = _made(size)
        place = _described(mine) if mine is not None else bytes(TOKEN + NAME)
        place = bytes(comm.broadcast(np.frombuffer(place, np.uint8)))
        memory = _mapped(place, size)
        lacking = float(comm.max(np.array([float(memory is None)]))[0])
    finally:
        if mine is not None:
            os.close(mine)  # whoever has mapped it keeps it; it is gone with the last of them, however that ends
    comm.board = None if lacking or memory is None else Board(memory, comm)


def _made(size: int) -> int | None:
    """New memory with a token behind it, None where there can be none."""
    handle = None
    with suppress(OSError, AttributeError):  # not on Linux; no room
        handle = os.memfd_create("daskreg")
        os.posix_fallocate(handle, 0, size + TOKEN)  # later, a lack of memory would kill the process
        os.pwrite(handle, os.urandom(TOKEN), size)
        return handle
    if handle is not None:
        os.close(handle)
    return None


def _described(handle: int) -> bytes:
    """Token and path, for other processes."""
    token = os.pread(handle, TOKEN, os.fstat(handle).st_size - TOKEN)
    return token + f"/proc/{os.getpid()}/fd/{handle}".encode().ljust(NAME, b"\0")


def _mapped(place: bytes, size: int) -> mmap.mmap | None:
    """The memory, None where it cannot be reached: in another container the path leads nowhere, or elsewhere."""
    with suppress(OSError, ValueError):
        handle = os.open(place[TOKEN:].rstrip(b"\0"), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if os.pread(handle, TOKEN, size) == place[:TOKEN]:
                return mmap.mmap(handle, size)
        finally:
            os.close(handle)
    return None
