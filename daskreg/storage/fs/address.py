"""Addresses of images: ``PATH_OR_URL[::key=value,key=value]``."""

from __future__ import annotations

import itertools
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path

from daskreg.arguments import ADDRESS_KEYS
from daskreg.errors import ConfigError, OutputError, suggestion
from daskreg.grid import unit_name

AXES = "zyxtcsqipreahlvm"  # in the letters of tifffile
OPTION_PREFIX = re.compile(r"[A-Za-z_]+=")
LOST_SLASH = re.compile(r"([a-z][a-z0-9+.-]+:)/(?!/)")
PACKED = re.compile(r"(.*?\.(?:ozx|zip))(?:/(.*))?", re.I | re.S)
AXES_EXPECTED = (
    "a letter for each axis of the shape that 'daskreg info' prints was expected, as in zyx or czyx: z, y and x, and t (time), "
    "c (channel), s (samples of a pixel) or q (anything else)"
)
WORD = re.compile(r"[A-Za-z_]+")
BUCKETS = ("s3", "s3a", "gs", "gcs")  # protocols of stores of objects
LETTER = re.compile(r"\s*[A-Za-z]\s*")
NUMBER = re.compile(r"\s*[\d.]+(?:e[+-]?\d+)?\s*", re.I)


@dataclass(frozen=True)
class Address:
    """The location of an image, and the part of the store that is selected.

    path: local path or fsspec URL;  level: number or dataset path;  channel: number or label;  time: number;
    spacing: world units a voxel (z, y, x);  unit: NGFF name;  array: path inside the store;
    missing: "fill" where chunks that are missing are the fill value, None where they are an error;
    axes: a letter for each axis of the array as it is stored, instead of what the file says of them.
    """

    text: str
    path: str
    level: int | str | None = None
    channel: int | str | None = None
    time: int | None = None
    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    array: str | None = None
    missing: str | None = None
    axes: str | None = None

    @property
    def node(self) -> str:
        """The path including ``array``."""
        return join(self.path, self.array) if self.array else self.path


def parse_address(source: str | Path) -> Address:
    """Parse an address.

    Raises ConfigError for an unknown key or an impossible value, UnitsError for an unknown unit.
    """
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"{reprlib.repr(source)} is no address; a path or a URL was expected.")
    text = str(source)
    if "\0" in text:
        raise ConfigError(f"the address {text!r} contains a null character, which no path does.")
    _require_two_slashes(text)
    path, options = _split(text)
    _require_one_value(text, options, "spacing", NUMBER, "x")
    _require_one_value(text, options, "axes", LETTER, "")
    values = dict(_option(part, text) for part in options)
    path, array = _clean(path), values.get("array", "").strip("/")
    packed, inner = split_zip(path)
    return Address(
        text,
        packed or path,
        _number_or_name(values.get("level")),
        _number_or_name(values.get("channel")),
        _number("time", values.get("time")),
        parse_spacing(values["spacing"]) if "spacing" in values else None,
        unit_name(values.get("unit")),
        "/".join(filter(None, (inner, array))) or None,
        _missing(values.get("missing")),
        parse_axes(values["axes"]) if "axes" in values else None,
    )


def _require_one_value(text: str, options: list[str], key: str, part_of_it: re.Pattern[str], between: str) -> None:
    """Raises ConfigError, saying what to write, for a value with commas in it, which are between keys."""
    for k, part in enumerate(options):
        more = itertools.takewhile(part_of_it.fullmatch, options[k + 1 :])
        parts = [part.removeprefix(f"{key}="), *more]
        if part.startswith(f"{key}=") and len(parts) > 1:
            raise ConfigError(
                f"{text}: unknown key {parts[1]!r} behind '::'; a comma separates keys: write {key}={between.join(parts)}."
            )


def _require_two_slashes(text: str) -> None:
    """Raises ConfigError for a URL with one slash, which pathlib makes of it, unless there is such a folder."""
    found = LOST_SLASH.match(text)
    if found and not os.path.isdir(found[1]):
        right = f"{found[1]}//{text[found.end() :]}"
        raise ConfigError(f"{text} is no URL: {right}? A pathlib.Path keeps one slash of two; give a URL as text.")


def parse_spacing(value: object) -> tuple[float, float, float]:
    """``2x1x1``, one number for all three axes, or a sequence of three: world units a voxel (z, y, x).

    Raises ConfigError for anything else.
    """
    parts = value.lower().split("x") if isinstance(value, str) else value if isinstance(value, list | tuple) else (value,)
    try:
        numbers = [float(p) for p in parts]
        z, y, x = numbers * 3 if len(numbers) == 1 else numbers
    except (TypeError, ValueError):
        raise ConfigError(f"spacing {value!r}: one number, or three as in 2x1x1 (z x y x x), was expected.") from None
    if min(z, y, x) <= 0 or not max(z, y, x) < float("inf"):
        raise ConfigError(f"spacing {value!r}: three positive numbers (z x y x x) were expected.")
    return z, y, x


def parse_axes(value: object) -> str:
    """``zyx``, ``czyx``, ..: a letter for each axis of an array, the slowest first, in lower case; or a sequence of letters.

    Raises ConfigError for anything else: z, y and x are needed, each letter once.
    """
    letters = "".join(value).lower() if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else value
    if not isinstance(letters, str):
        raise ConfigError(f"axes {value!r}: {AXES_EXPECTED}.")
    letters = letters.lower()
    fault = _fault_of_axes(letters)
    if fault:
        raise ConfigError(f"axes {value!r}: {fault}; {AXES_EXPECTED}.")
    return letters


def _fault_of_axes(letters: str) -> str:
    """What is wrong with letters of axes; empty for nothing."""
    for letter in letters:
        if letter not in AXES:
            return f"{letter!r} is no axis"
        if letters.count(letter) > 1:
            return f"{letter!r} is there {letters.count(letter)} times"
    lacking = [a for a in "zyx" if a not in letters]
    return f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not in it" if lacking else ""


def split_zip(path: str) -> tuple[str, str]:
    """The zip file that a path is in, empty without one, and the path inside."""
    found = PACKED.fullmatch(path)
    if found is None or "::" in path or (not is_remote(found[1]) and os.path.isdir(found[1])):
        return "", ""
    return found[1], (found[2] or "").strip("/")


def with_missing(source: str, choice: str) -> str:
    """An address that says what missing chunks are, fill or error, unless it says so itself."""
    return source if "missing" in _keys(source) else with_key(source, "missing", choice)


def with_key(source: str, key: str, value: object) -> str:
    """An address with one more key."""
    return f"{source}{',' if _split(source)[1] else '::'}{key}={value}"


def without_key(source: str, key: str) -> str:
    """An address without a key."""
    path, options = _split(source)
    kept = [part for part in options if part.partition("=")[0] != key]
    return f"{path}::{','.join(kept)}" if kept else path


def with_path(source: str, path: str) -> str:
    """The same part of the image at another path: of the file, or of the zip file that it is in."""
    text, options = _split(source)
    inner = split_zip(_clean(text))[1]
    place = join(path, inner) if inner and split_zip(path) == (path, "") else path
    return f"{place}::{','.join(options)}" if options else place


def _keys(source: str) -> list[str]:
    return [part.partition("=")[0] for part in _split(source)[1]]


def is_bucket(path: str) -> bool:
    """Whether a URL names a whole bucket of an object store, and nothing in it."""
    protocol, _, inner = path.partition("://")
    return protocol in BUCKETS and "/" not in inner.rstrip("/")


def is_server(path: str) -> bool:
    """Whether a URL names a server of HTTP, and nothing on it."""
    protocol, _, inner = path.partition("://")
    return protocol in ("http", "https") and "/" not in inner.rstrip("/")


def is_remote(path: str) -> bool:
    """Whether the path goes through fsspec instead of the local file system."""
    return "://" in path


def require_zarr_path(path: str) -> None:
    """Raises OutputError for a local path that no new Zarr store can have: Zarr would write to what is before the colons."""
    if "::" in path and not is_remote(path):
        raise OutputError(f"{path}: '::' in the path of a Zarr store chains file systems for Zarr; choose another name.")


def join(path: str, inner: str) -> str:
    """Append a path inside a store."""
    return f"{path.rstrip('/')}/{inner.strip('/')}"


def parent(path: str) -> str:
    """The parent folder; the path itself at the top."""
    head, _, tail = path.rstrip("/").rpartition("/")
    return path if not tail or head.endswith("/") or not head else head


def _split(text: str) -> tuple[str, list[str]]:
    """The path and its options, taken from the end: '::' also chains fsspec URLs."""
    parts = text.split("::")
    options: list[str] = []
    while len(parts) > 1 and (OPTION_PREFIX.match(parts[-1]) or WORD.fullmatch(parts[-1]) or not parts[-1]):
        options[:0] = [p for p in parts.pop().split(",") if p]
    return "::".join(parts), options


def _option(part: str, text: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if key not in ADDRESS_KEYS:
        raise ConfigError(f"{text}: unknown key {key!r} behind '::'; {suggestion(key, ADDRESS_KEYS)}")
    if not equals or not value:
        raise ConfigError(f"{text}: {key!r} has no value; write it as '::{key}=VALUE'.")
    return key, value


def _number_or_name(value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isdecimal() else value


def _number(key: str, value: str | None) -> int | None:
    if value is None or value.isdecimal():
        return None if value is None else int(value)
    raise ConfigError(f"{key} {value!r}: a whole number from 0 was expected.")


def _missing(value: str | None) -> str | None:
    if value not in (None, "error", "fill"):
        raise ConfigError(f"missing {value!r}: 'fill' (chunks that are missing are empty) or 'error' was expected.")
    return "fill" if value == "fill" else None


def _clean(path: str) -> str:
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    return path.rstrip("/") if is_remote(path) else os.path.expanduser(path.rstrip("/") or path)
