"""Checkpoints of an unfinished run, which survive a kill, a power cut and a full disk."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.deferred import DeferredModule
from daskreg.errors import OutputError, Unreadable
from daskreg.grid.partition import Span
from daskreg.storage.axes import SPACE
from daskreg.storage.fs.address import is_remote, join
from daskreg.storage.fs.errors import read_errors, reason, write_errors
from daskreg.storage.fs.files import exists, list_names, read_text, remove, replace_text, sync
from daskreg.storage.kept_fields import IDENTITY

if TYPE_CHECKING:
    import zarr
    import zarr.codecs
else:
    zarr = DeferredModule("zarr")

CHECKPOINT_FOLDER = "checkpoint"
LATEST = "latest.json"
KEPT = "kept.json"  # which fields on disk are their own checkpoint
IO_THREADS = 4  # planes read or written at once: each takes about twice its bytes beside the caller's array
REPEAT = "repeat the run with --overwrite"


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints of one run: arrays in ``RUN.zarr/checkpoint/<number>``, of which ``latest.json`` names the valid one.

    Rank 0 calls ``begin``, each owner of planes ``write``, and after all have written, rank 0 ``commit``. Its one rename makes
    the new checkpoint valid; until then the previous one stays valid.
    """

    run_path: str
    _arrays: dict[tuple[int, str], zarr.Array[Any]] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[CheckpointStore], tuple[str]]:
        """Pickled without the opened arrays."""
        return CheckpointStore, (self.run_path,)

    @property
    def path(self) -> str:
        """The folder of all checkpoints."""
        return join(self.run_path, CHECKPOINT_FOLDER)

    def begin(self, number: int, fields: Mapping[str, tuple[int, ...]]) -> None:
        """Empty float32 arrays (C, Z, Y, X), a chunk per plane; incomplete checkpoints are deleted.

        Raises ValueError unless ``number`` is above the committed one, OutOfSpace, OutputError.
        """
        last = self.latest()
        if last is not None and number <= last[0]:
            raise ValueError(f"checkpoint {number} was asked for after {last[0]}; numbers must grow.")
        with write_errors(self.path):
            self._delete_others(last[0] if last else None)
            group = zarr.open_group(self.path, mode="a", zarr_format=3).create_group(str(number))
            for name, shape in fields.items():
                self._cache(number, name, _new(group, name, shape))
            if not is_remote(self.path):
                _sync_tree(self.path, str(number))

    def write(self, number: int, name: str, first: int, planes: NDArray[np.float32]) -> None:
        """Planes ``first <= z < first + n`` of a field, (C, n, Y, X), synced to disk. Each plane has one writer.

        Raises ValueError for another shape or type or planes outside, OutOfSpace, OutputError.
        """
        where = self._where(number, name)
        with write_errors(where):
            array = self._array(number, name)
            _require_planes(where, array, Span(first, first + planes.shape[1]))
            _require_shape(where, array, planes)
            _in_threads(planes.shape[1], lambda k: _write_plane(array, where, first + k, planes[:, k : k + 1]))
            if not is_remote(where):
                sync(where)

    def commit(self, number: int, state: Mapping[str, Any]) -> None:
        """Make checkpoint ``number`` the valid one and delete the others.

        state: JSON, and NumPy scalars and arrays, which are read back as numbers and lists. Floats are exact.
        Raises OutputError when a plane has not been written, and OutOfSpace; the previous checkpoint then stays valid.
        """
        plain = json.loads(json.dumps(state, default=_to_json))
        with write_errors(self.path):
            self._require_complete(number)
            replace_text(join(self.path, LATEST), _json({"number": number, "crc32": _checksum(plain), "state": plain}))
            self._delete_others(number)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """Number and state of the valid checkpoint, None without one. Raises Unreadable."""
        path = join(self.path, LATEST)
        with read_errors(path):
            text = read_text(path)
        return None if text is None else _parse(path, text)

    def read(self, number: int, name: str, span: Span) -> NDArray[np.float32]:
        """Planes of a field, (C, len(span), Y, X). Raises Unreadable, naming the chunk, and ValueError for planes outside."""
        where = self._where(number, name)
        try:
            with read_errors(where):
                array = self._array(number, name)
        except Exception as error:
            raise Unreadable(f"{where} cannot be opened: {reason(error)}; {REPEAT}.") from error
        _require_planes(where, array, span)
        for z in _missing(array, where, span):
            raise Unreadable(f"{where}: chunk {_key(array, z)} is missing; {REPEAT}.")
        planes = np.empty((array.shape[0], len(span), *array.shape[2:]), np.float32)
        _in_threads(len(span), lambda k: _read_plane(array, where, span.start + k, planes[:, k]))
        return planes

    def keep(self, identity: str) -> None:
        """Name fields on disk that are their own checkpoint (``storage.kept_fields``)."""
        path = join(self.path, KEPT)
        with write_errors(path):
            replace_text(path, _json({"identity": identity}))

    def kept(self) -> str | None:
        """The identity of such fields, None where there are none."""
        path = join(self.path, KEPT)
        with suppress(ValueError, KeyError, TypeError, Unreadable), read_errors(path):
            text = read_text(path)
            found = None if text is None else json.loads(text)["identity"]
            return found if isinstance(found, str) and IDENTITY.fullmatch(found) else None
        return None

    def remove(self) -> None:
        """Delete all checkpoints, ``latest.json`` first. Raises OutputError."""
        with write_errors(self.path):
            remove(join(self.path, LATEST))
            remove(self.path)
        self._arrays.clear()

    def _where(self, number: int, name: str) -> str:
        return join(self.path, f"{number}/{name}")

    def _array(self, number: int, name: str) -> zarr.Array[Any]:
        """Opened once per process."""
        if (number, name) not in self._arrays:
            self._cache(number, name, zarr.open_array(self._where(number, name), mode="r+"))
        return self._arrays[number, name]

    def _cache(self, number: int, name: str, array: zarr.Array[Any]) -> None:
        for key in [k for k in self._arrays if k[0] != number]:
            del self._arrays[key]
        # planes of zeros are written too: a missing chunk is always an error
        self._arrays[number, name] = array.with_config({"write_empty_chunks": True})

    def _require_complete(self, number: int) -> None:
        group = zarr.open_group(join(self.path, str(number)), mode="r")
        for name, array in group.arrays():
            missing = _missing(array, self._where(number, name), Span(0, array.shape[1]))
            if missing:
                raise OutputError(
                    f"{self.path}: checkpoint {number} lacks {len(missing)} of {array.shape[1]} planes of {name}, the first is "
                    f"z = {missing[0]}; all owners must write before it is committed, so it was not."
                )

    def _delete_others(self, number: int | None) -> None:
        """Delete everything but checkpoint ``number`` and the metadata."""
        for name in list_names(self.path):
            if name not in ("zarr.json", LATEST, KEPT, str(number)):
                remove(join(self.path, name))


def _new(group: zarr.Group, name: str, shape: tuple[int, ...]) -> zarr.Array[Any]:
    return group.create_array(
        name,
        shape=shape,
        chunks=(shape[0], 1, *shape[2:]),  # blocks end between planes, so each chunk has one writer
        dtype=np.float32,
        compressors=zarr.codecs.Crc32cCodec(),
        fill_value=0,
        dimension_names=("c", *SPACE),
        chunk_key_encoding={"name": "default", "separator": "."},  # one folder to sync instead of four per chunk
    )


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    """``work(0) ... work(count - 1)``, in several threads."""
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for _ in pool.map(work, range(count)):
            pass


def _write_plane(array: zarr.Array[Any], where: str, z: int, plane: NDArray[np.float32]) -> None:
    array[:, z : z + 1] = plane
    if not is_remote(where):
        sync(join(where, _key(array, z)))


def _read_plane(array: zarr.Array[Any], where: str, z: int, out: NDArray[np.float32]) -> None:
    try:
        out[:] = array[:, z]
    except MemoryError:
        raise
    except Exception as error:
        raise Unreadable(f"{where}: chunk {_key(array, z)} is damaged: {reason(error)}; {REPEAT}.") from error


def _key(array: zarr.Array[Any], z: int) -> str:
    """The key of the chunk of plane z."""
    return str(array.metadata.encode_chunk_key((0, z, 0, 0)))


def _missing(array: zarr.Array[Any], where: str, span: Span) -> list[int]:
    """Planes without a chunk, which Zarr would read as zeros."""
    listed = set(list_names(where))
    # the listing of a network file system may be out of date: ask for each missing chunk by name
    return [z for z in range(span.start, span.stop) if (k := _key(array, z)) not in listed and not exists(join(where, k))]


def _require_planes(where: str, array: zarr.Array[Any], span: Span) -> None:
    if not 0 <= span.start <= span.stop <= array.shape[1]:
        raise ValueError(f"{where}: planes {span.start}:{span.stop} are not inside 0:{array.shape[1]}.")


def _require_shape(where: str, array: zarr.Array[Any], planes: NDArray[Any]) -> None:
    expected = (array.shape[0], planes.shape[1], *array.shape[2:])
    if planes.shape != expected or planes.dtype != np.float32:
        raise ValueError(f"{where}: {planes.dtype} {planes.shape} was given; float32 {expected} was expected.")


def _sync_tree(path: str, below: str) -> None:
    """Sync metadata and folder entries before anything refers to them."""
    for folder, _, files in os.walk(join(path, below)):
        for entry in [*(os.path.join(folder, name) for name in files), folder]:
            sync(entry)
    for entry in (join(path, "zarr.json"), path, os.path.dirname(path)):
        sync(entry)


def _json(value: dict[str, Any]) -> str:
    """Deterministic JSON: exact floats, sorted keys."""
    return json.dumps(value, sort_keys=True)


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"the state of a checkpoint holds a {type(value).__name__}; numbers, text, lists and dicts are kept.")


def _checksum(state: dict[str, Any]) -> int:
    return zlib.crc32(_json(state).encode())


def _parse(path: str, text: str) -> tuple[int, dict[str, Any]]:
    try:
        tree = json.loads(text)
        number, crc, state = int(tree["number"]), tree["crc32"], dict(tree["state"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{path} is damaged: {reason(error)}; the run cannot be continued: {REPEAT}.") from error
    if _checksum(state) != crc:
        raise Unreadable(f"{path} is damaged: its checksum does not match; the run cannot be continued: {REPEAT}.")
    return number, state
