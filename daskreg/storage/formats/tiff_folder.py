"""A folder of TIFF files, each of which is a plane of one image, in the order of the numbers in their names."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import ConfigError, Unreadable
from daskreg.storage.axes import Axis
from daskreg.storage.formats.lazy import Box, lazy_voxels, slab_chunks
from daskreg.storage.fs.address import Address
from daskreg.storage.fs.claims import require_memory
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.fs.files import METADATA_FILES
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.zarr.nodes import check_dtype

ENDINGS = (".tif", ".tiff")
NUMBER = re.compile(r"(\d+)(?!.*\d)")  # the last one of a name
AXES = (Axis("z", "space"), Axis("y", "space"), Axis("x", "space"))


def is_folder(path: str) -> bool:
    """Whether there are TIFF files in a folder, and no Zarr store."""
    if not os.path.isdir(path):
        return False
    names = os.listdir(path)
    return any(n.lower().endswith(ENDINGS) for n in names) and not any(n in METADATA_FILES for n in names)


def open_folder(address: Address, tifffile: Any) -> ImageRecord:
    """The planes, read one by one. They state no distance: ``::spacing=``. Raises Unreadable where a number is missing."""
    path = address.path
    if address.level is not None or address.array is not None:
        raise ConfigError(f"{address.text}: a folder of planes has no levels and no images inside; leave the key out.")
    planes = _planes(address)
    first = next(p for p in planes if p is not None)
    with read_errors(os.path.join(path, first)), tifffile.TiffFile(os.path.join(path, first)) as file:
        page = file.series[0]
        shape, dtype = tuple(page.shape), np.dtype(page.dtype).newbyteorder("=")
    if len(shape) != 2:
        raise Unreadable(
            f"{path}: {first} has the shape {shape}; planes of two axes were expected: open one of the files itself."
        )
    check_dtype(dtype, path)
    require_memory(path, int(np.prod(shape)) * dtype.itemsize)
    whole = (len(planes), *shape)
    chunks = slab_chunks(whole, dtype.itemsize)
    read = partial(_read, os.path.abspath(path), tuple(planes), shape, dtype)
    voxels = lazy_voxels(read, whole, dtype, chunks, (1, *shape))
    return ImageRecord(address.text, "TIFF, a file a plane", voxels, AXES, None, (1, *shape))


def _planes(address: Address) -> list[str | None]:
    """Names of the files in order, None for those that are missing."""
    path = address.path
    names = [n for n in os.listdir(path) if n.lower().endswith(ENDINGS) and not n.startswith(".")]
    numbers = [NUMBER.search(os.path.splitext(n)[0]) for n in names]
    if not all(numbers):
        return [*sorted(names)]
    by_number = {int(found[1]): name for found, name in zip(numbers, names, strict=True) if found}
    if len(by_number) < len(names):
        raise Unreadable(
            f"{path}: two of its {len(names)} files have the same number; put the planes of one image into a folder."
        )
    first, last = min(by_number), max(by_number)
    step = min((b - a for a, b in itertools.pairwise(sorted(by_number))), default=1)
    wanted = range(first, last + 1, step)
    lost = [k for k in wanted if k not in by_number]
    if (lost or set(by_number) - set(wanted)) and address.missing != "fill":
        where = f"number {lost[0]} is missing" if lost else "the steps between their numbers differ"
        raise Unreadable(
            f"{path} has {len(names)} planes, of which {where}; copy all of them, or read what is missing as 0: '::missing=fill'."
        )
    return [by_number.get(k) for k in wanted]


def _read(path: str, planes: Sequence[str | None], shape: tuple[int, int], dtype: np.dtype[Any], box: Box) -> NDArray[Any]:
    import tifffile

    z, *inner = box
    found = np.zeros([s.stop - s.start for s in box], dtype)
    for k, name in enumerate(planes[z]):
        if name is None:
            continue
        place = os.path.join(path, name)
        with read_errors(place):
            voxels = tifffile.imread(place)
        if voxels.shape != shape or voxels.dtype.newbyteorder("=") != dtype:
            raise Unreadable(
                f"{place} has {voxels.dtype} voxels of shape {voxels.shape}; {dtype} of {shape}, as the first has, were expected."
            )
        found[k] = voxels[tuple(inner)]
    return found
