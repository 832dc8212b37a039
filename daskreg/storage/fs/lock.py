"""One writer for each output: a lock file beside it that names its process."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from daskreg.errors import OutputBusy, OutputError
from daskreg.storage.fs.address import is_bucket, is_remote
from daskreg.storage.fs.errors import write_errors
from daskreg.storage.fs.files import hidden_sibling, read_text, remote_file_system
from daskreg.storage.fs.process import is_running, now, this_process

log = logging.getLogger("daskreg")
HEARTBEAT = 20.0  # seconds between two signs of life of a writer
SILENCE = 180.0  # seconds without one after which a writer on another host counts as dead: caches of NFS may be a minute old
WATCH_INTERVAL = 1.0  # seconds between two looks at a writer on another host
ATTEMPTS = 20  # to create a lock: others may be taking over the same stale one
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass
class OutputLock:
    """The right of this process to write an output; ``taken_over``: from a process that died.

    path: the output, as given;  file: the lock file;  token: says that the lock in the file is this one.
    """

    path: str
    file: LockFile
    token: str
    taken_over: bool = False
    _released: threading.Event = field(default_factory=threading.Event)

    def verify(self) -> None:
        """Raises OutputError when another process has taken the output over."""
        with write_errors(self.path):
            owner = self.file.read()
            if owner is None:  # somebody deleted it, and nobody has made another one
                self.file.create(_record(self.token))
                owner = self.file.read() or {}
        if owner.get("token") != self.token:
            raise OutputError(
                f"{self.path} was taken over by {_described(owner)}, because this process gave no sign of life for "
                f"{SILENCE:.0f} s; nothing was replaced: choose another name, or repeat when that process has ended."
            )

    def release(self) -> None:
        """Let others write the output."""
        self._released.set()
        with suppress(OSError, OutputError), write_errors(self.path):
            if (self.file.read() or {}).get("token") == self.token:
                self.file.delete()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with suppress(Exception):  # a file server may be away for a while
                if (self.file.read() or {}).get("token") == self.token:
                    self.file.touch()


@contextmanager
def only_writer(path: str) -> Iterator[OutputLock]:
    """Keep other processes, and other threads of this one, from writing an output: a file, a store or a run.

    The lock is a file ``.NAME.lock`` beside the output. A lock whose process has ended is taken over at once. Where that cannot
    be seen (another host), this waits until the lock is renewed, or has not been for ``SILENCE`` seconds.
    Raises OutputBusy, naming the process that writes; OutputError when the folder cannot be written to, or for a whole bucket.
    """
    if is_bucket(path):
        raise OutputError(f"{path} is a bucket; name a place in it, as in {path.rstrip('/')}/run.zarr.")
    lock = OutputLock(path, _lock_file(path), uuid4().hex)
    try:  # whenever a signal arrives, the lock goes
        _acquire(lock)
        threading.Thread(target=lock._beat, name="daskreg-lock", daemon=True).start()
        yield lock
    finally:
        lock.release()


def is_being_written(path: str) -> bool:
    """Whether there is a lock of an output, that of this process included."""
    return _lock_file(path).read() is not None


def _lock_file(path: str) -> LockFile:
    where = lock_path(path)
    return _RemoteLockFile(where) if is_remote(path) else _LocalLockFile(where)


def lock_path(path: str) -> str:
    """Where the lock of an output is."""
    return hidden_sibling(path.rstrip("/") if is_remote(path) else os.path.realpath(path), "lock")


def _acquire(lock: OutputLock) -> None:
    path, file, token = lock.path, lock.file, lock.token
    watched: tuple[Any, float] | None = None
    with write_errors(path):
        for _ in range(ATTEMPTS):
            silent = file.create(_record(token))
            while silent is not None and (owner := file.read()) is not None and _may_be_alive(owner, silent):
                if is_running(owner) or (watched is not None and watched[0] == owner.get("token") and silent < watched[1]):
                    raise OutputBusy(_busy(path, owner))
                watched = _watched(path, owner, silent, watched)
                silent = file.create(_record(token))
            if silent is None:
                return
            if owner is not None:  # None: released meanwhile
                file.delete_stale(owner)
                lock.taken_over = True
    raise OutputBusy(f"{path}: several processes try to write it at once; this one gives way: choose another name.")


def _watched(path: str, owner: Mapping[str, Any], silent: float, before: tuple[Any, float] | None) -> tuple[Any, float]:
    """Wait for a sign of life. Returns whose, and for how long there has been none."""
    if before is None or before[0] != owner.get("token"):
        log.info("%s: waiting up to %.0f s to see whether %s is alive", path, SILENCE - silent, _described(owner))
    time.sleep(WATCH_INTERVAL)
    return owner.get("token"), silent


def _record(token: str) -> dict[str, Any]:
    return {**this_process(), "since": now(), "token": token}


def _may_be_alive(owner: Mapping[str, Any], silent: float) -> bool:
    running = is_running(owner)
    return silent < SILENCE if running is None else running


def _described(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"


def _busy(path: str, owner: Mapping[str, Any]) -> str:
    since = f", which began {owner['since']}" if owner.get("since") else ""
    return (
        f"{path} is being written by another process ({_described(owner)}{since}); wait for it, or choose another name. "
        f"Its lock is {lock_path(path)}."
    )


@dataclass
class LockFile(ABC):
    """A file that exactly one of several processes can create."""

    path: str

    @abstractmethod
    def create(self, record: Mapping[str, Any]) -> float | None:
        """Create it with this content; None if that was done, else the seconds since its owner's last sign of life."""

    @abstractmethod
    def touch(self) -> None:
        """Give a sign of life."""

    @abstractmethod
    def delete(self) -> None:
        """Delete it."""

    @abstractmethod
    def delete_stale(self, owner: Mapping[str, Any]) -> None:
        """Delete it if it is still that of ``owner``."""

    def read(self) -> dict[str, Any] | None:
        """Its content, None if it does not exist, {} if it is not readable."""
        try:
            text = read_text(self.path)
            tree = None if text is None else json.loads(text)
        except ValueError:
            return {}
        return tree if tree is None or isinstance(tree, dict) else {}


class _LocalLockFile(LockFile):
    """On a local or network file system: created whole by a hard link, which is atomic on NFS as well."""

    def create(self, record: Mapping[str, Any]) -> float | None:
        mine = f"{self.path}.{uuid4().hex[:8]}"
        try:
            with open(mine, "w", encoding="utf-8") as file:
                json.dump(dict(record), file)
            return None if _linked(mine, self.path) else self._silent(mine)
        finally:
            with suppress(OSError):
                os.unlink(mine)

    def _silent(self, mine: str) -> float:
        """Both times are the file server's, whatever the clocks of the hosts say."""
        try:
            return os.stat(mine).st_mtime - os.stat(self.path).st_mtime
        except FileNotFoundError:
            return 0.0

    def touch(self) -> None:
        os.utime(self.path)

    def delete(self) -> None:
        os.unlink(self.path)

    def delete_stale(self, owner: Mapping[str, Any]) -> None:
        """Of several processes that find it stale, the one that locks the file deletes it."""
        with suppress(FileNotFoundError), open(self.path, encoding="utf-8") as file, _locked(file.fileno()):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)) and self.read() == owner:
                os.unlink(self.path)


def _linked(source: str, target: str) -> bool:
    """Whether ``target`` became ``source``; False where it exists."""
    try:
        os.link(source, target)
    except OSError as error:
        if os.stat(source).st_nlink == 2:  # made, but the answer of NFS was lost, and the client asked again
            return True
        if error.errno in NO_LINKS:
            return _copied(source, target)
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def _copied(source: str, target: str) -> bool:
    """As ``_linked``, on a file system without hard links."""
    try:
        with open(target, "x", encoding="utf-8") as file, open(source, encoding="utf-8") as content:
            file.write(content.read())
    except FileExistsError:
        return False
    return True


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    with suppress(OSError):  # a file system without locks: ``verify`` before anything is replaced
        fcntl.flock(handle, fcntl.LOCK_EX)
    yield  # closing the file unlocks it


class _RemoteLockFile(LockFile):
    """In an object store, through fsspec: created only where nothing is, as far as the store can do that (S3, GCS, memory)."""

    def create(self, record: Mapping[str, Any]) -> float | None:
        system, inner = remote_file_system(self.path)
        content = json.dumps({**record, "seen": time.time()}).encode()
        try:
            system.pipe_file(inner, content, mode="create")
        except FileExistsError:
            return self._silent()
        except (TypeError, NotImplementedError):  # a store that cannot create exclusively
            if system.exists(inner):
                return self._silent()
            system.pipe_file(inner, content)
        return None if (self.read() or {}).get("token") == record["token"] else self._silent()

    def _silent(self) -> float:
        return time.time() - float((self.read() or {}).get("seen", 0.0))

    def touch(self) -> None:
        system, inner = remote_file_system(self.path)
        owner = self.read()
        if owner:
            system.pipe_file(inner, json.dumps({**owner, "seen": time.time()}).encode())

    def delete(self) -> None:
        system, inner = remote_file_system(self.path)
        with suppress(FileNotFoundError):
            system.rm_file(inner)

    def delete_stale(self, owner: Mapping[str, Any]) -> None:
        if (self.read() or {}).get("token") == owner.get("token"):
            self.delete()
