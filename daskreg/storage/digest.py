"""A digest of an input: enough to tell that it was changed, from a bounded number of bytes and files.

All bytes of a small input are hashed. Of a large one, ``SAMPLES`` pieces are, evenly spread over it, and sizes and modification
times of up to ``LOOKED_AT`` of its files (``SAMPLES`` in an object store) are compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import InputError, NotFound
from daskreg.storage.formats.ome_zarr import array_at
from daskreg.storage.fs.address import Address, is_remote, join, parse_address, split_zip
from daskreg.storage.fs.errors import is_forbidden, read_errors, require_regular
from daskreg.storage.fs.files import METADATA_FILES, exists, remote_file_system
from daskreg.storage.objects import address_of_object
from daskreg.storage.registry import image_formats
from daskreg.storage.volume import Volume
from daskreg.storage.zarr.chunks import object_counts, object_key

if TYPE_CHECKING:
    import zarr
else:
    zarr = DeferredModule("zarr")

Record = dict[str, Any]  # JSON
Status = tuple[int, str]  # bytes, and something that changes when they do
SAMPLES = 64  # pieces of a large input that are hashed
PIECE = 1 << 19  # bytes of each
BUDGET = SAMPLES * PIECE  # bytes up to which everything is hashed: 32 MiB
WHOLE_FILES = 4096  # and files
LOOKED_AT = 1 << 16  # files whose size and time are compared: half a second on a local disk
THREADS = 16  # requests to an object store at a time
GOLDEN = (5**0.5 - 1) / 2
DATA_FILE = re.compile(rb"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.M | re.I)  # in a MetaImage or NRRD header
N5_ATTRIBUTES = "attributes.json"
DETACHED = (".mhd", ".nhdr")
T = TypeVar("T")
R = TypeVar("R")


def digest(source: Any, known_as: str | None = None) -> Record | None:
    """What is known of an input: an address, a Volume that has one, or a NumPy array; None for what is only computed.

    known_as: the path that a file had, where its digest is compared with one of that time. Raises NotFound and Unreadable.
    """
    if isinstance(source, np.ndarray):
        return _of_array(source)
    if isinstance(source, Volume) and source.format != "array":
        source = source.name
    source = source if isinstance(source, str | Path | Volume) else address_of_object(source)
    if not isinstance(source, str | Path):
        return None
    address = parse_address(source)
    with read_errors(address.path):
        return {"address": located(address), **_of_files(_files_at(address, known_as))}


def located(source: Address | str | Path) -> str:
    """An address that is the same from every folder, without what does not select voxels."""
    address = source if isinstance(source, Address) else parse_address(source)
    path = address.path if is_remote(address.path) else os.path.realpath(address.path)
    chosen = {k: getattr(address, k) for k in ("array", "level", "channel", "time")}
    options = ",".join(f"{k}={v}" for k, v in chosen.items() if v is not None)
    return f"{path}::{options}" if options else path


def difference(known: Mapping[str, Any], found: Record) -> str | None:
    """What tells two digests of one input apart, in words; None where nothing does."""
    if known.get("kind") != found["kind"] or known.get("metadata") != found["metadata"]:
        return "its metadata"
    if known.get("bytes") != found["bytes"]:
        return f"its size, from {known.get('bytes')} to {found['bytes']} bytes"
    if known.get("hash") != found["hash"]:
        return "its content"
    whole = known.get("whole") and found["whole"]
    return None if whole or known.get("files") == found["files"] else "the time at which files of it were written"


@dataclass(frozen=True)
class _Files:
    """Files or objects in a fixed order. key: the name of each;  remote: whether a request takes long."""

    kind: str
    count: int
    key: Callable[[int], str]
    status: Callable[[str], Status | None]
    read: Callable[[str, int, int], bytes]
    metadata: Any = None
    remote: bool = False

    def of_each(self, function: Callable[[T], R], values: Sequence[T]) -> list[R]:
        """A function of each value."""
        if not self.remote:
            return [function(v) for v in values]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(function, values))


def _of_files(files: _Files) -> Record:
    keys = [files.key(k) for k in _spread(files.count, SAMPLES if files.remote else LOOKED_AT)]
    found = dict(zip(keys, files.of_each(files.status, keys), strict=True))
    size = sum(status[0] for status in found.values() if status is not None)
    whole = len(keys) == files.count <= WHOLE_FILES and size <= BUDGET
    if not whole:
        keys = [files.key(k) for k in _spread(files.count, SAMPLES)]
    present = [(key, status[0]) for key in keys if (status := found.get(key) or files.status(key)) is not None]
    pieces = [piece for key, length in present for piece in _pieces(key, length, len(present), whole=whole)]
    content = files.of_each(lambda piece: _hashed(files.read(*piece)), pieces)
    return {
        "kind": files.kind,
        "metadata": _hash([json.dumps(files.metadata, sort_keys=True, default=str)]),
        "files": _hash(f"{key} {status}" for key, status in found.items()),
        "bytes": size,
        "hash": _hash([*(f"{key} {length}" for key, length in present), *content]),
        "whole": whole,
    }


def _pieces(key: str, length: int, files: int, *, whole: bool) -> list[tuple[str, int, int]]:
    """Ranges of bytes of one of several files that are hashed, its start and its end among them."""
    count = max(2, SAMPLES // files)
    if whole or length <= count * PIECE // (1 if files < SAMPLES else 2):
        return [(key, 0, length)]
    part = PIECE if files < SAMPLES else PIECE // 2
    return [(key, start, start + part) for start in np.linspace(0, length - part, count).astype(int).tolist()]


def _spread(count: int, most: int) -> Sequence[int]:
    """Up to ``most`` of 0 ... count - 1, evenly, and in no step with the rows of a grid."""
    if count <= most:
        return range(count)
    return sorted({int((k * GOLDEN) % 1 * count) for k in range(most)})


def _files_at(address: Address, known_as: str | None) -> _Files:
    path = address.path
    if not is_remote(path) and not os.path.isdir(path):
        return _single_file(path, known_as)
    if packed := split_zip(path)[0]:
        return _remote("object", packed, 1, lambda _: "")
    if is_remote(path) and any(f.single_file for f in image_formats.by_ending(path)):
        return _remote("object", path, 1, lambda _: "")
    try:
        return _of_zarr(array_at(address), address.node)
    except NotFound:
        attributes = join(address.node, N5_ATTRIBUTES)
        if is_remote(path) and exists(attributes):
            return _remote("n5", attributes, 1, lambda _: "")  # of a store that may not be listed
        if is_remote(path) and exists(address.node):
            return _remote("object", path, 1, lambda _: "")  # a transform
        raise
    except InputError:  # a transform, or what only another package reads
        return _remote_store(path) if is_remote(path) else _folder(path)


def _single_file(path: str, known_as: str | None) -> _Files:
    """A file, with the one of its voxels where its header names another."""
    names = [path]
    if path.lower().endswith(DETACHED):
        with open(path, "rb") as file:
            named = DATA_FILE.search(file.read(1 << 16))
        if named is not None and named.group(1).upper() != b"LOCAL":
            names.append(os.path.join(os.path.dirname(path), os.fsdecode(named.group(1))))
    real = [os.path.realpath(name) for name in names]  # the same by whatever path, as ``located`` is
    keys = real if known_as is None else [known_as, *(_beside(known_as, real[0], name) for name in real[1:])]
    return _local("file", "", len(keys), keys.__getitem__, places=dict(zip(keys, real, strict=True)))


def _beside(path: str, header: str, voxels: str) -> str:
    """The file of voxels that a header had at ``path``."""
    return os.path.normpath(os.path.join(os.path.dirname(path), os.path.relpath(voxels, os.path.dirname(header))))


def _folder(path: str) -> _Files:
    found = (os.path.relpath(os.path.join(folder, name), path) for folder, _, names in os.walk(path) for name in names)
    names = sorted(found)
    return _local("folder", path, len(names), names.__getitem__)


def _remote_store(path: str) -> _Files:
    """The metadata of a run or another transform: its folder may not be listed. A run that was made again has other metadata."""
    names = [name for name in METADATA_FILES if exists(join(path, name))]
    return _remote("store", path, len(names), names.__getitem__) if names else _remote("object", path, 1, lambda _: "")


def _of_zarr(array: zarr.Array[Any], node: str) -> _Files:
    counts = object_counts(array)
    metadata = {k: v for k, v in array.metadata.to_dict().items() if k != "attributes"}

    def key(number: int) -> str:
        return object_key(array, tuple(int(i) for i in np.unravel_index(number, counts)))

    count = int(np.prod(counts))
    if isinstance(array.store, zarr.storage.LocalStore):
        return _local("zarr", os.path.join(array.store.root, array.path), count, key, metadata)
    inside = array.path.removeprefix(node.rpartition("://")[2])
    return _remote("zarr", join(node, inside) if inside else node, count, key, metadata)


def _local(
    kind: str,
    root: str,
    count: int,
    key: Callable[[int], str],
    metadata: Any = None,
    places: Mapping[str, str] | None = None,
) -> _Files:
    """places: of the files by their keys, by default below ``root``."""

    def where(name: str) -> str:
        return os.path.join(root, name) if places is None else places[name]

    def status(name: str) -> Status | None:
        try:
            found = os.stat(where(name))
        except FileNotFoundError:
            return None
        return found.st_size, str(found.st_mtime_ns)

    def read(name: str, start: int, stop: int) -> bytes:
        require_regular(where(name))
        with open(where(name), "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    return _Files(kind, count, key, status, read, metadata)


def _remote(kind: str, root: str, count: int, key: Callable[[int], str], metadata: Any = None) -> _Files:
    system, inner = remote_file_system(root)

    def where(name: str) -> str:
        return join(inner, name) if name else inner

    def status(name: str) -> Status | None:
        try:
            found = system.info(where(name))
        except Exception as error:
            if isinstance(error, FileNotFoundError) or is_forbidden(error):  # as servers answer for what does not exist
                return None
            raise
        size = found.get("size")
        if size is None and found.get("type") == "file":  # some servers of HTTP do not say it
            size = len(system.cat_file(where(name)))
        written = next((found[k] for k in ("ETag", "etag", "LastModified", "mtime") if k in found), "")
        return int(size or 0), str(written)

    def read(name: str, start: int, stop: int) -> bytes:
        return bytes(system.cat_file(where(name), start=start, end=stop))

    return _Files(kind, count, key, status, read, metadata, remote=True)


def _of_array(array: NDArray[Any]) -> Record:
    """Of an array in memory: all of it, or planes of it."""
    whole = array.nbytes <= BUDGET
    planes = max(1, BUDGET // max(1, array.nbytes // len(array))) if len(array) else 0
    chosen = _spread(len(array), len(array) if whole else min(SAMPLES, planes))
    return {
        "kind": "array",
        "address": None,
        "metadata": f"{array.dtype.str} {array.shape}",
        "files": None,
        "bytes": array.nbytes,
        "hash": _hash(np.ascontiguousarray(array[z]).tobytes() for z in chosen),
        "whole": whole,
    }


def _hashed(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


def _hash(parts: Iterable[str | bytes]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
