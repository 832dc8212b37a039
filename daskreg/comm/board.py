"""Sums among ranks of one machine through memory that they share: a few microseconds, where messages take a hundred."""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm.base import KEEN, Communicator

SHARED = Path("/dev/shm")  # memory with names, on Linux; a file there is only its owner's
ROOM = 1 << 16  # bytes of an array that fits into a row
HEADER = struct.Struct("<QQQ")  # number of the sum, bytes, checksum
LOOKS = 200  # at a row that is not there yet, before the thread begins to sleep in between
NAPS = 2e-5, 5e-4  # seconds, the first and the longest sleep between two looks
NAME = 256  # bytes of a path


class Board:
    """A row for each rank, twice: while the rows of one sum are read those of the next may be written.

    Nobody gets two sums ahead, because a sum ends when all of its rows are there. A row counts when number and checksum are
    right, so that nothing is assumed about the order in which memory changes.
    """

    room = ROOM

    def __init__(self, memory: mmap.mmap, comm: Communicator) -> None:
        self.memory, self.comm, self.number = memory, comm, 0

    def gather(self, array: NDArray[Any]) -> NDArray[Any]:
        """Arrays of one shape from all ranks, stacked by rank. Raises RankLost, and ValueError where shapes differ."""
        self.number += 1
        mine = np.ascontiguousarray(array).tobytes()
        self._write(mine)
        rows = [mine if r == self.comm.rank else self._wait(r, len(mine)) for r in range(self.comm.size)]
        return np.frombuffer(b"".join(rows), array.dtype).reshape(self.comm.size, *array.shape).copy()

    def _start(self, rank: int) -> int:
        return (self.number % 2 * self.comm.size + rank) * (HEADER.size + ROOM)

    def _write(self, data: bytes) -> None:
        start = self._start(self.comm.rank)
        self.memory[start + HEADER.size : start + HEADER.size + len(data)] = data
        HEADER.pack_into(self.memory, start, self.number, len(data), zlib.crc32(data, self.number & 0xFFFFFFFF))

    def _read(self, rank: int) -> bytes | None:
        """A rank's row of this sum, None as long as it is not there."""
        start = self._start(rank)
        number, size, checksum = HEADER.unpack_from(self.memory, start)
        if number != self.number:
            return None
        data = self.memory[start + HEADER.size : start + HEADER.size + size]
        return data if zlib.crc32(data, number & 0xFFFFFFFF) == checksum else None

    def _wait(self, rank: int, size: int) -> bytes:
        found = self._read(rank)
        if found is None:
            self.comm.patience.wait(lambda seconds: self._ready(rank, seconds), rank, self.comm.names[rank])
            found = self._read(rank) or b""
        if len(found) != size:
            raise ValueError(
                f"rank {rank} ({self.comm.names[rank]}) gave {len(found)} bytes where {size} were expected: "
                "both sides must run the same plan and version."
            )
        return found

    def _ready(self, rank: int, seconds: float) -> bool:
        """Whether a row came within so many seconds."""
        begin, nap = time.monotonic(), NAPS[0]
        until = begin + KEEN if self.comm.keen else 0.0
        looks = 0
        while self._read(rank) is None:
            now, looks = time.monotonic(), looks + 1
            if now > begin + seconds:
                return False
            if looks > LOOKS and now > until:
                time.sleep(nap)
                nap = min(1.5 * nap, NAPS[1])
        return True


def share(comm: Communicator, hosts: Sequence[str]) -> None:
    """Let ranks that are all on one machine sum over a board from now on, unless one of them cannot have it; all call this."""
    if comm.size == 1 or len(set(hosts)) > 1:
        return
    path = _made(2 * comm.size * (HEADER.size + ROOM)) if comm.rank == 0 else b""
    try:
        path = bytes(comm.broadcast(np.frombuffer(path.ljust(NAME, b"\0"), np.uint8))).rstrip(b"\0")
        memory = _mapped(path)
        lacking = float(comm.max(np.array([float(memory is None)]))[0])
    finally:
        if comm.rank == 0 and path:
            os.unlink(path)  # who has it keeps it, and nothing is left when the last one ends
    comm.board = None if lacking or memory is None else Board(memory, comm)


def _made(size: int) -> bytes:
    """The path of a new file in memory, empty where there can be none."""
    with suppress(OSError):
        handle, path = mkstemp(prefix="daskreg-", dir=SHARED)
        try:
            os.posix_fallocate(handle, 0, size)  # later, a lack of memory would kill the process
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(handle)
        return path.encode() if len(path) <= NAME else b""
    return b""


def _mapped(path: bytes) -> mmap.mmap | None:
    """The file's memory, None where it cannot be reached: another container on the same machine."""
    with suppress(OSError, ValueError):
        handle = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(handle, 0)
        finally:
            os.close(handle)
    return None
