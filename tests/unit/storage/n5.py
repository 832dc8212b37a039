"""Writes N5, which no library of the tests does: blocks with a header, big-endian, x first."""

import bz2
import gzip
import json
import struct
import zlib

import numpy as np

PACK = {"raw": bytes, "gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress}


def write(path, array, block=(4, 4, 4), kind="gzip", **attributes):
    compression = {"type": "gzip", "useZlib": True} if kind == "zlib" else {"type": kind}
    tree = {"dimensions": array.shape[::-1], "blockSize": block[::-1], "dataType": array.dtype.name, "compression": compression}
    path.mkdir(parents=True, exist_ok=True)
    (path / "attributes.json").write_text(json.dumps(tree | attributes))
    for index in np.ndindex(*(-(-n // b) for n, b in zip(array.shape, block))):
        part = array[tuple(slice(k * b, (k + 1) * b) for k, b in zip(index, block))]
        place = path.joinpath(*map(str, index[::-1]))
        place.parent.mkdir(parents=True, exist_ok=True)
        header = struct.pack(">HH", 0, part.ndim) + struct.pack(f">{part.ndim}I", *part.shape[::-1])
        place.write_bytes(header + PACK[kind](part.astype(part.dtype.newbyteorder(">")).tobytes()))
    return path


def group(path, **attributes):
    path.mkdir(parents=True, exist_ok=True)
    (path / "attributes.json").write_text(json.dumps(attributes))
    return path
