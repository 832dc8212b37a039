"""Exceptions of the file system, of Zarr and of codecs, translated to those of daskreg."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from daskreg.errors import DaskregError, InputError, NotFound, OutOfSpace, OutputError, Unreachable, Unreadable, nearest_name
from daskreg.storage.fs.address import is_bucket, is_remote, is_server

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

REMOTE_EXTRA = ("http", "https", "s3", "s3a")  # protocols that it brings
INSTALL_REMOTE = "pip install 'daskreg[remote]'"


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """Translate exceptions of reading ``name`` to NotFound and Unreadable."""
    try:
        yield
    except (DaskregError, MemoryError):
        raise
    except Exception as error:
        raise _translated(name, error) from error


@contextmanager
def open_errors(name: str) -> Iterator[None]:
    """As ``read_errors``, for what is small: there, too little memory means wrong metadata. Every sentence names the file."""
    try:
        with read_errors(name):
            yield
    except InputError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error
    except MemoryError as error:
        raise Unreadable(
            f"{name} claims to hold more than the memory of this process ({reason(error)}); it may be damaged: copy it again."
        ) from error


def _translated(name: str, error: Exception) -> InputError:
    """The error to raise for a failed read."""
    refusal = remote_refusal(name, error) if is_remote(name) else None
    if refusal is not None:
        return refusal
    if isinstance(error, FileNotFoundError) or _status(error) == 404:
        return not_found(name)
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return Unreadable(
            f"{name}: no file system is called {name.partition('://')[0]}; a path or a URL (https://, s3://) is read."
        )
    if isinstance(error, PermissionError):
        return Unreadable(f"{name} may not be read: {reason(error)}; ask its owner for read permission.")
    if isinstance(error, ImportError):
        extra = name.partition("://")[0] in REMOTE_EXTRA
        return Unreadable(f"{name}: {reason(error)}; {INSTALL_REMOTE if extra else 'install the missing package'}.")
    return Unreadable(f"{name} cannot be read: {reason(error)}; it may be damaged, or not what its name says.")


def remote_refusal(name: str, error: BaseException) -> Unreadable | None:
    """What a server, or the way to it, said; None where it said nothing. File systems hide it behind other exceptions."""
    for cause in _causes(error):
        status = _status(cause)
        kind = type(cause).__name__
        if status in (401, 403) or isinstance(cause, PermissionError):
            said = f"HTTP {status}" if status else reason(cause)
            return Unreadable(f"{name}: access is refused ({said}); {_credentials(name)}")
        if "Credentials" in kind:
            return Unreadable(f"{name}: no credentials were found; {_credentials(name)}")
        if status is not None and status != 404 and status >= 400:
            return Unreadable(f"{name}: the server answers HTTP {status}; try again later, or check the address.")
        if isinstance(cause, ConnectionError | TimeoutError) or "Connect" in kind or kind == "gaierror":
            return Unreachable(f"{name}: the server cannot be reached ({reason(cause)}); check the address and the network.")
        if kind == "ProfileNotFound":
            return Unreadable(f"{name}: {reason(cause)}; name one of ~/.aws/config in AWS_PROFILE, or unset that.")
        if "Invalid endpoint" in str(cause):
            return Unreadable(f"{name}: {reason(cause)}; AWS_ENDPOINT_URL begins with http:// or https://.")
    return None


def is_forbidden(error: BaseException) -> bool:
    """Whether a server refused access: S3 does so, too, for what does not exist where listing is not permitted."""
    return any(_status(cause) == 403 or isinstance(cause, PermissionError) for cause in _causes(error))


def _credentials(name: str) -> str:
    """What to do where access is refused."""
    if not name.startswith(("s3:", "s3a:")):
        return "check the address, and that it is public or that your credentials for it are set."
    return (
        "set a profile (AWS_PROFILE) or keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), or, for a public bucket, "
        "FSSPEC_S3='{\"anon\": true}'."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception of aiohttp or botocore carries."""
    response = getattr(error, "response", None)
    stated = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    status = getattr(error, "status", stated)
    return status if isinstance(status, int) else None


@contextmanager
def write_errors(name: str) -> Iterator[None]:
    """Translate errors of the operating system and of servers in writing ``name`` to OutOfSpace and OutputError."""
    try:
        yield
    except (DaskregError, MemoryError):
        raise
    except Exception as error:
        refusal = _refused_writing(name, error) if is_remote(name) else None
        if refusal is not None:
            raise OutputError(refusal) from error
        if not isinstance(error, OSError | RuntimeError):
            raise
        number = _number(error)
        if number in DISK_FULL:
            raise OutOfSpace(f"{name}: no space left to write it; free space, or write to another disk.") from error
        if number is None and not isinstance(error, OSError):
            raise
        raise OutputError(f"{name} cannot be written: {reason(error)}.") from error


def _refused_writing(name: str, error: Exception) -> str | None:
    """What a server that is written to said, or that a package for it is missing; None where it is neither."""
    if isinstance(error, ImportError):
        return str(_translated(name, error))
    if any(_status(cause) in (405, 501) for cause in _causes(error)):
        return f"{name}: the server takes no files; write to a disk or a bucket (s3://)."
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return str(_translated(name, error))
    refusal = remote_refusal(name, error)
    return None if refusal is None else str(refusal)


def not_found(path: str) -> NotFound:
    """The error for a missing path, which suggests the most similar name in its folder; for a broken link, names its target."""
    if not is_remote(path) and os.path.islink(path):
        return NotFound(f"{path} is a link to {os.readlink(path)}, which does not exist; bring that back, or change the link.")
    if is_server(path):
        return NotFound(f"{path} is a server; name what is on it, as in {path.rstrip('/')}/image.ome.zarr.")
    if is_bucket(path):
        return NotFound(f"{path} is a bucket; name what is in it, as in {path.rstrip('/')}/image.ome.zarr.")
    return NotFound(f"{path or 'an empty path'} does not exist{'' if is_remote(path) else nearest_name(path)}.")


def require_exists(path: str) -> None:
    """Raises NotFound for a missing local path, Unreadable for one without permission or that is no file and no folder."""
    if is_remote(path):
        return
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise Unreadable(f"{path} may not be read: {reason(error)}; ask its owner for read permission.") from error
    except (OSError, ValueError) as error:
        raise not_found(path) from error
    if not stat.S_ISDIR(mode):
        require_regular(path)


def require_regular(path: str) -> None:
    """Raises Unreadable for a local pipe, socket or device, whose reading may never end; not for what does not exist."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Unreadable(f"{path} is a pipe, a socket or a device; a file was expected.")


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without the path."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return str(text).strip().splitlines()[0].rstrip(".")[:200]


def _number(error: Exception) -> int | None:
    """The errno of an exception; zarrs states it in the message."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None
