"""Datasets of N5: attributes and blocks, read from folders and URLs."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.storage.formats.lazy import Box
from daskreg.storage.fs.address import join
from daskreg.storage.fs.claims import require_memory
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.fs.files import read_bytes
from daskreg.storage.zarr.nodes import check_dtype

if TYPE_CHECKING:
    import numcodecs
else:
    numcodecs = DeferredModule("numcodecs")

ATTRIBUTES = "attributes.json"
DEFAULT_MODE = 0  # of a block: its own size, and voxels; 1 adds a number of elements
CODECS = ("raw", "gzip", "bzip2", "xz", "blosc", "zstd")


@dataclass(frozen=True)
class N5Dataset:
    """A dataset. shape, block: z, y, x (N5 keeps x first);  compression: type and parameters;  fill: read missing blocks as 0."""

    path: str
    shape: tuple[int, ...]
    block: tuple[int, ...]
    dtype: np.dtype[Any]
    compression: Mapping[str, Any]
    fill: bool = False

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box. Raises Unreadable where a block is damaged or missing."""
        found = np.zeros([s.stop - s.start for s in box], self.dtype)
        ranges = [range(s.start // n, -(-s.stop // n)) for s, n in zip(box, self.block, strict=True)]
        for index in itertools.product(*ranges) if found.size else ():
            starts = [k * n for k, n in zip(index, self.block, strict=True)]
            ends = [min(a + n, m) for a, n, m in zip(starts, self.block, self.shape, strict=True)]
            voxels = self._block(index, [b - a for a, b in zip(starts, ends, strict=True)])
            if voxels is None:
                continue
            spans = [(max(a, s.start), min(b, s.stop)) for a, b, s in zip(starts, ends, box, strict=True)]
            inside = tuple(slice(lo - a, hi - a) for (lo, hi), a in zip(spans, starts, strict=True))
            there = tuple(slice(lo - s.start, hi - s.start) for (lo, hi), s in zip(spans, box, strict=True))
            found[there] = voxels[inside]
        return found

    def _block(self, index: tuple[int, ...], wanted: list[int]) -> NDArray[Any] | None:
        key = "/".join(str(k) for k in reversed(index))
        with read_errors(self.path):
            content = read_bytes(join(self.path, key))
        if content is None:
            if self.fill:
                return None
            raise Unreadable(
                f"{self.path}: the block {key} is missing; it would be read as 0. Restore it or, if the store was written "
                "without its empty blocks, say so behind its address: '::missing=fill'."
            )
        try:
            return _decoded(content, self.dtype, self.compression)[tuple(slice(n) for n in wanted)]
        except Exception as error:
            raise Unreadable(f"{self.path}: the block {key} is damaged: {error}; restore it.") from error


def _decoded(content: bytes, dtype: np.dtype[Any], compression: Mapping[str, Any]) -> NDArray[Any]:
    mode, ndim = struct.unpack_from(">HH", content)
    size = struct.unpack_from(f">{ndim}I", content, 4)
    start = 4 + 4 * ndim + 4 * (mode != DEFAULT_MODE)
    voxels = np.frombuffer(_unpacked(content[start:], compression), dtype.newbyteorder(">"))
    return voxels[: math.prod(size)].reshape(size[::-1]).astype(dtype)


def _unpacked(content: bytes, compression: Mapping[str, Any]) -> Any:
    kind = compression.get("type", "raw")
    if kind == "raw":
        return content
    if kind == "gzip":
        return (numcodecs.Zlib() if compression.get("useZlib") else numcodecs.GZip()).decode(content)
    codec = {"bzip2": "bz2", "xz": "lzma"}.get(kind, kind)
    return numcodecs.get_codec({"id": codec}).decode(content)


def node_attributes(path: str) -> dict[str, Any]:
    """Those of a group or dataset, empty where there are none. Raises Unreadable."""
    with read_errors(path):
        content = read_bytes(join(path, ATTRIBUTES))
        found = {} if content is None else json.loads(content)
    if not isinstance(found, dict):
        raise Unreadable(f"{path}/{ATTRIBUTES} holds no attributes; repair it.")
    return found


def dataset_at(path: str, *, fill: bool = False) -> N5Dataset | None:
    """The dataset at a path, None where there is none. Raises Unreadable for one that is not read."""
    tree = node_attributes(path)
    if "dimensions" not in tree or "dataType" not in tree:
        return None
    shape, block = _counts(path, tree, "dimensions"), _counts(path, tree, "blockSize")
    if len(shape) != len(block):
        raise Unreadable(f"{path} has {len(shape)} dimensions and blocks of {len(block)}; the same number was expected.")
    compression = tree.get("compression", {"type": tree.get("compressionType", "raw")})
    if not isinstance(compression, Mapping) or compression.get("type", "raw") not in CODECS:
        raise Unreadable(
            f"{path} is compressed as {compression}; {', '.join(CODECS)} are read: convert it with n5-copy, or to OME-Zarr."
        )
    try:
        dtype = np.dtype(str(tree["dataType"]))
    except TypeError:
        raise Unreadable(f"{path} holds {tree['dataType']!r}; real numbers were expected: convert it first.") from None
    check_dtype(dtype, path)
    require_memory(path, math.prod(block) * dtype.itemsize)
    return N5Dataset(path, tuple(shape[::-1]), tuple(block[::-1]), dtype, compression, fill)


def _counts(path: str, tree: Mapping[str, Any], key: str) -> list[int]:
    found = tree.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(n, int) and 0 < n < 1 << 48 for n in found):
        raise Unreadable(f"{path}: its {key} are {found!r}; positive numbers were expected: repair {ATTRIBUTES}.")
    return found
