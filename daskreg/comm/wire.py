"""Arrays as one message on a stream: a prefix of two lengths, a description as JSON, and the bytes as they lie in memory.

Nothing that is received is executed: types are names of NumPy's numbers, and objects are refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tornado.iostream import IOStream

from daskreg.comm.base import Arrays

PREFIX = struct.Struct("<IQ")  # bytes of the description, bytes of the arrays
MOST_DESCRIPTION = 1 << 20  # bytes; a message has a few arrays
PACK_BYTES = 1 << 16  # a message of fewer bytes is copied together and sent at once
READ_BYTES = 1 << 30  # read at a time: OpenSSL takes less than 2 GiB
KINDS = "biufc"  # NumPy's numbers


async def write_message(stream: IOStream, arrays: Arrays) -> None:
    """Send arrays, each C-contiguous; they may be changed once this has returned. Raises OSError."""
    description = json.dumps([[a.dtype.str, a.shape] for a in arrays]).encode()
    parts = [a.reshape(-1).view(np.uint8).data for a in arrays if a.nbytes]
    size = sum(part.nbytes for part in parts)
    head = PREFIX.pack(len(description), size) + description
    if size < PACK_BYTES:
        await stream.write(b"".join([head, *parts]))
        return
    written = [stream.write(part) for part in (memoryview(head), *parts)]
    await written[-1]  # bytes are written in order, straight from the arrays


async def read_message(stream: IOStream) -> list[NDArray[Any]]:
    """The arrays of the next message. Raises OSError, and ValueError for what is not a message."""
    length, size = PREFIX.unpack(await stream.read_bytes(PREFIX.size))
    if length > MOST_DESCRIPTION:
        raise ValueError(f"a message has a description of {length} bytes, at most {MOST_DESCRIPTION} were expected")
    found = [_described(*item) for item in json.loads(await stream.read_bytes(length))]
    if sum(dtype.itemsize * math.prod(shape) for dtype, shape in found) != size:
        raise ValueError(f"a message of {size} bytes does not have the length of the arrays that it describes")
    data = np.empty(size, np.uint8)
    for start in range(0, size, READ_BYTES):
        await stream.read_into(data[start : start + READ_BYTES].data)  # type: ignore[arg-type]  # any writable buffer
    return list(_arrays(data, found))


def _described(kind: str, shape: list[int]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """A type of numbers and a shape. Raises ValueError for any other type."""
    dtype = np.dtype(str(kind))
    if dtype.kind not in KINDS or any(not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"a message describes an array of {dtype} and shape {shape}; arrays of numbers were expected")
    return dtype, tuple(shape)


def _arrays(data: NDArray[np.uint8], found: list[tuple[np.dtype[Any], tuple[int, ...]]]) -> Iterator[NDArray[Any]]:
    """Views of the received bytes."""
    start = 0
    for dtype, shape in found:
        size = dtype.itemsize * math.prod(shape)
        yield data[start : start + size].view(dtype).reshape(shape)
        start += size
