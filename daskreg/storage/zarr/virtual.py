"""Documents and chunk keys of images whose chunks are made when they are read: OME-Zarr 0.4 in Zarr v2, and 0.5 in v3."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskreg.storage.zarr.ngff05 import as_version_04

VERSIONS = ("0.4", "0.5")
ARRAY_DOCUMENT = {"0.4": ".zarray", "0.5": "zarr.json"}
KEY_PREFIX = {"0.4": "", "0.5": "c/"}


@dataclass(frozen=True)
class VirtualArray:
    """An array of uncompressed chunks, little endian in C order, the ones at the far edge padded to whole chunks.

    shape, chunks: voxels along all axes;  names: of the axes
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    names: tuple[str, ...]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of every chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def document(self, version: str) -> dict[str, Any]:
        """The metadata of Zarr v2 or v3."""
        if version == "0.4":
            kind = {"dtype": self.dtype.newbyteorder("<").str, "compressor": None, "filters": None, "order": "C"}
            return {"zarr_format": 2, "shape": self.shape, "chunks": self.chunks, **kind, "fill_value": 0,
                    "dimension_separator": "/"}  # fmt: skip
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {},
            "dimension_names": self.names,
        }

    def index(self, version: str, key: str) -> tuple[int, ...] | None:
        """The chunk that a key stands for, None where there is none."""
        parts = key.removeprefix(KEY_PREFIX[version]).split("/")
        if not key.startswith(KEY_PREFIX[version]) or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            return None
        index = tuple(map(int, parts))
        inside = len(index) == len(self.counts) and all(i < n for i, n in zip(index, self.counts, strict=True))
        return index if inside else None


def documents(version: str, attributes: Mapping[str, Any], arrays: Mapping[str, VirtualArray]) -> dict[str, bytes]:
    """The metadata of an image by key. attributes: of an OME-NGFF 0.5 group;  arrays: its levels by path."""
    if version == "0.4":
        group = {".zgroup": {"zarr_format": 2}, ".zattrs": as_version_04(attributes)}
    else:
        group = {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}}
    levels = {f"{path}/{ARRAY_DOCUMENT[version]}": array.document(version) for path, array in arrays.items()}
    return {key: json.dumps(tree, allow_nan=False).encode() for key, tree in {**group, **levels}.items()}
