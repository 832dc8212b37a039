"""Fields on disk that are their own checkpoint: a process that is killed loses the sweep that it was in, and no more.

Every plane has two places in its file. A sweep reads one and writes the other, so what the last commit named stays as it was
until the next. A commit waits for the disk, then writes a small file that names the copy and the checksum of every plane, under
a temporary name first. The last two commits of a rank are kept: a rank that was killed may be a commit behind the others.

    FOLDER/ATTEMPT/rank-R-{even,odd}.zip    the commits of a rank
    FOLDER/ATTEMPT/rank-R-N.field           its fields
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import OutputError
from daskreg.grid import Span
from daskreg.storage.fs.errors import reason, write_errors
from daskreg.storage.scratch import PREFIX, ScratchField, ScratchFolder

MANIFEST = "rank-{}-{}.zip"
PARITY = "even", "odd"
READABLE = 3  # format of the commits
IDENTITY = re.compile(r"[0-9a-f]{32}")  # of a run, and of an attempt
FIELD = re.compile(r"rank-\d+-\d+\.field")
COMMIT = re.compile(r"rank-\d+-(even|odd)\.zip")
FILES = re.compile(rf"{FIELD.pattern}|{COMMIT.pattern}|rank-\d+-(even|odd)\.part")


def kept_folder(scratch: str | Path, identity: str) -> Path:
    """Where the fields of a run are in a scratch folder. Raises ValueError for what is no identity."""
    if not IDENTITY.fullmatch(identity):
        raise ValueError(f"{identity!r} names no fields: 32 hexadecimal digits were expected.")
    return Path(scratch) / f"{PREFIX}kept-{identity}"


def remove_kept(folder: Path) -> None:
    """Delete all fields and commits of a run, and nothing else, where they are on this machine."""
    for attempt in _folders(folder):
        remove_attempt(attempt)
    with suppress(OSError):
        folder.rmdir()


def remove_attempt(path: Path) -> None:
    """Delete what one attempt has left."""
    with suppress(OSError):
        for name in os.listdir(path):
            if FILES.fullmatch(name):
                (path / name).unlink()
        path.rmdir()


class KeptField(ScratchField):
    """Planes of a field in a file that outlives the process: ``engine.planes.Planes``."""

    copies = 2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # the copy of each plane that the last commit names, and the planes that have been written since then
        self._places = np.zeros(len(self.span), np.uint8), np.zeros(len(self.span), bool)

    def open(self) -> None:
        """Make the file."""
        with write_errors(str(self.path.parent)):
            self.path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with write_errors(str(self.path)):
            os.ftruncate(self._file, self.bytes)

    def open_again(self, known: Mapping[str, NDArray[Any]]) -> None:
        """The file of another process, as its commit names it. Raises OutputError where it is not that."""
        self.require_own()
        self._open(os.O_RDWR | os.O_NOFOLLOW)
        self._places = known["copy"], np.zeros(known["copy"].shape, bool)
        self._sums, self._written = known["sums"], known["written"]

    def require_own(self) -> None:
        """Raises OutputError unless the file is one that this user's daskreg has made."""
        try:
            found = os.lstat(self.path)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {reason(error)}; continue with another --scratch.") from error
        plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
        if not plain or found.st_size != self.bytes:
            raise OutputError(f"{self.path} is not the field that was kept there; continue with another --scratch.")

    def close(self) -> None:
        """Close the file, which stays: see ``KeptFields.tidy``."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _current(self) -> NDArray[np.uint8]:
        committed, changed = self._places  # at once: a thread may be reading while another commits
        return committed ^ changed

    def _next(self) -> NDArray[np.uint8]:
        return self._places[0] ^ np.uint8(1)

    def write(self, planes: Span, source: Any) -> None:
        """Replace planes, for the next commit. Raises OutOfSpace and OutputError."""
        super().write(planes, source)
        self._places[1][planes.within(self.span)] = True

    def settle(self) -> None:
        """Wait until everything that was written is on the disk."""
        with write_errors(str(self.path)):
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has none

    def commit(self) -> dict[str, NDArray[Any]]:
        """What was written counts from now on; what ``open_again`` needs of it."""
        found = self._current()
        self._places = found, np.zeros(found.shape, bool)
        return {"copy": found, "sums": self._sums, "written": self._written}

    def as_dict(self) -> dict[str, Any]:
        """What it is, as JSON."""
        span, kind = [self.span.start, self.span.stop], self.dtype.str
        return {"file": self.path.name, "lead": self.lead, "span": span, "plane": list(self.plane), "dtype": kind}


class KeptFields:
    """The fields of one rank, and its commits.

    folder: ``kept_folder`` of the run;  attempt: names what this process writes.
    """

    def __init__(self, scratch: ScratchFolder, folder: Path, attempt: str, rank: int, ranks: int) -> None:
        self.scratch, self.folder, self.path, self.rank, self.ranks = scratch, folder, folder / attempt, rank, ranks
        self.files: dict[Path, int] = {}  # with their bytes
        self.made = 0

    def allocate(self, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> KeptField:
        """Zeros (lead, planes, Y, X). Raises as ``ScratchFolder.allocate`` does."""
        self.made += 1
        path = self.path / f"rank-{self.rank}-{self.made}.field"
        made = self.scratch.opened(KeptField(self.scratch, path, lead, span, plane, np.dtype(dtype)))
        self.files[path] = made.bytes
        return made

    def commit(self, number: int, state: Mapping[str, Any], own: Span, fields: Mapping[str, KeptField]) -> None:
        """Make what was written the checkpoint of this number; it counts once all ranks have. Raises OutOfSpace, OutputError."""
        for kept in fields.values():
            kept.settle()
        write_commit(self.path, self.rank, self.ranks, number, state, own, fields)

    def tidy(self, needed: Collection[KeptField]) -> None:
        """Delete the files of fields that neither the last two commits nor this process need."""
        left = {kept.path for kept in needed}
        for path in [path for path in self.files if path not in left]:
            path.unlink(missing_ok=True)
            self.scratch.released(self.files.pop(path))

    def remove_others(self) -> None:
        """Delete what other attempts have left."""
        for other in self.folder.iterdir():
            if other != self.path:
                remove_attempt(other)


def write_commit(
    path: Path, rank: int, ranks: int, number: int, state: Mapping[str, Any], own: Span, fields: Mapping[str, KeptField]
) -> None:
    """The file of a commit, whole or not at all. Raises OutOfSpace, OutputError."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, kept in fields.items():
        arrays |= {f"{name}.{key}": value for key, value in kept.commit().items()}
    about = {"format": READABLE, "rank": rank, "ranks": ranks, "number": number, "own": [own.start, own.stop]}
    about |= {"state": state, "fields": {name: kept.as_dict() for name, kept in fields.items()}}
    target = path / MANIFEST.format(rank, PARITY[number % 2])
    temporary = target.with_suffix(".part")
    with write_errors(str(target)):
        with temporary.open("wb") as file:
            _write_arrays(file, about, arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(path)


def _write_arrays(file: BinaryIO, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Members ``about``, JSON with the types and shapes of the arrays, and their bytes.

    Not ``numpy.savez``: NumPy parses its headers as Python, which fails now and then where threads do so at once (CPython before
    3.11.8, "AST constructor recursion depth mismatch").
    """
    kinds = {name: [value.dtype.str, value.shape] for name, value in arrays.items()}
    with ZipFile(file, "w") as into:
        into.writestr("about", json.dumps({**about, "arrays": kinds}))
        for name, value in arrays.items():
            into.writestr(name, value.tobytes())


def _read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with ZipFile(path) as found:
        about = json.loads(found.read("about"))
        kinds = about.pop("arrays").items()
        return about, {name: np.frombuffer(found.read(name), kind).reshape(shape) for name, (kind, shape) in kinds}


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Commit:
    """One rank's part of a checkpoint."""

    path: Path
    about: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Commit | None:
        """None where the file is not whole, or of another version."""
        try:
            about, arrays = _read_arrays(path)
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None
        files = [about_field.get("file", "") for about_field in about.get("fields", {}).values()]
        return cls(path, about, arrays) if about.get("format") == READABLE and all(map(FIELD.fullmatch, files)) else None

    @property
    def own(self) -> Span:
        """The rank's planes."""
        return Span(*self.about["own"])

    def open(self, scratch: ScratchFolder) -> dict[str, KeptField]:
        """The fields by name. Raises OutputError where a file is gone."""
        found = {name: self.field(name, scratch) for name in self.about["fields"]}
        for name, kept in found.items():
            kept.open_again({key: self.arrays[f"{name}.{key}"].copy() for key in ("copy", "sums", "written")})
        return found

    def field(self, name: str, scratch: ScratchFolder) -> KeptField:
        """A field that is not open."""
        about = self.about["fields"][name]
        path, span = self.path.parent / about["file"], Span(*about["span"])
        return KeptField(scratch, path, about["lead"], span, tuple(about["plane"]), np.dtype(about["dtype"]))


@dataclass(frozen=True)
class KeptCheckpoint:
    """The last checkpoint that all ranks of an attempt have committed."""

    commits: tuple[Commit, ...]

    @classmethod
    def latest(cls, folder: Path, progress: Callable[[Mapping[str, Any]], Any]) -> KeptCheckpoint | None:
        """Of all attempts the one that is furthest on; None without one."""
        found = [cls(commits) for attempt in _folders(folder) if (commits := _complete(attempt))]
        return max(found, key=lambda one: progress(one.state), default=None)

    @property
    def state(self) -> dict[str, Any]:
        """As it was committed."""
        state: dict[str, Any] = self.commits[0].about["state"]
        return state

    def require_files(self, scratch: ScratchFolder) -> None:
        """Raises OutputError where a field is gone, or is another file."""
        for commit in self.commits:
            for name in commit.about["fields"]:
                commit.field(name, scratch).require_own()


def _folders(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        found = [path for path in folder.iterdir() if IDENTITY.fullmatch(path.name)]
        yield from sorted(path for path in found if _is_own(path))


def _is_own(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def what_is_kept(folder: Path) -> Literal["nothing", "unreadable", "fields"]:
    """Whether a folder is on this machine, and has commits that this version reads."""
    return "unreadable" if folder.exists() and of_other_version(folder) else "fields" if folder.exists() else "nothing"


def of_other_version(folder: Path) -> bool:
    """Whether commits are in a folder, and none that this version reads."""
    named = [path for attempt in _folders(folder) for path in attempt.iterdir() if COMMIT.fullmatch(path.name)]
    return bool(named) and not any(map(Commit.read, named))


def _complete(attempt: Path) -> tuple[Commit, ...]:
    """The commits of all ranks with the highest number that all have; empty without one."""
    named = [path for path in attempt.iterdir() if COMMIT.fullmatch(path.name)]
    by_number: dict[int, dict[int, Commit]] = {}
    for commit in filter(None, map(Commit.read, named)):
        by_number.setdefault(commit.about["number"], {})[commit.about["rank"]] = commit
    for number in sorted(by_number, reverse=True):
        ranks = by_number[number]
        if set(ranks) == set(range(next(iter(ranks.values())).about["ranks"])):
            return tuple(ranks[rank] for rank in sorted(ranks))
    return ()
