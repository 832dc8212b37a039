"""Which format a path has: built-in formats, those of other packages, and those registered by hand.

A format of another package is declared by an entry point of the group ``daskreg.formats`` that names its class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast

from daskreg.errors import InputError, OutputError, Unreadable
from daskreg.storage.conversions import conversion
from daskreg.storage.format import Format, ImageFormat, PointFormat, TransformFormat
from daskreg.storage.fs.address import is_remote, require_zarr_path
from daskreg.storage.fs.errors import open_errors, remote_refusal, require_exists

log = logging.getLogger(__name__)

ZARR = ".zarr"  # ending of the formats that are Zarr stores
ENTRY_POINT_GROUP = "daskreg.formats"
# modules are imported when a path of their kind is first asked for; of several formats that know a path, the first is taken
IMAGES = (
    "daskreg.storage.formats.nifti:NiftiImage",
    "daskreg.storage.formats.itk_image:ItkImage",
    "daskreg.storage.formats.mgh:MghImage",
    "daskreg.storage.formats.bdv:BdvImage",
    "daskreg.storage.formats.n5:N5Image",
    "daskreg.storage.formats.hdf5_image:Hdf5Image",
    "daskreg.storage.formats.tiff:TiffImage",
    "daskreg.storage.formats.imaris:ImarisImage",
    "daskreg.storage.formats.npy_image:NpyImage",
    "daskreg.storage.formats.ome_zarr:ZippedZarrImage",
    "daskreg.storage.formats.ome_zarr:ZarrImage",
)
TRANSFORMS = (
    "daskreg.storage.formats.run:Run",
    "daskreg.storage.formats.ngff_scene:NgffScene",
    "daskreg.storage.formats.nifti_field:NiftiField",
    "daskreg.storage.formats.itk_composite:ItkComposite",
    "daskreg.storage.formats.itk_linear:ItkLinear",
)
POINTS = (
    "daskreg.storage.formats.point_table:PointTable",
    "daskreg.storage.formats.point_array:PointArray",
    "daskreg.storage.formats.mesh:Mesh",
)
F = TypeVar("F", bound=Format)
R = TypeVar("R")


class FormatRegistry(Generic[F]):
    """The formats of one kind. kind: in words;  base: the class they derive from;  built_in: ``module:Class`` of each."""

    def __init__(self, kind: str, base: type[Format], built_in: Sequence[str]) -> None:
        self.kind, self._base = kind, base
        self._lines, self._registered = tuple(built_in), list[F]()
        self._built_in: tuple[F, ...] | None = None

    def register(self, format: type[Format]) -> None:
        """Make a format known to this process, in place of the same class defined before, as by a cell of a notebook.

        Raises TypeError for what is no format of this kind.
        """
        made = cast(F, _instance(format, self._base))
        self._registered = [*(f for f in self._registered if _place(type(f)) != _place(format)), made]

    def unregister(self, format: type[Format]) -> None:
        """Take back ``register``."""
        self._registered = [f for f in self._registered if type(f) is not format]

    def all(self) -> tuple[F, ...]:
        """Built-in formats, those of other packages, those registered, in this order."""
        if self._built_in is None:
            self._built_in = tuple(cast(F, _load(line, self._base)) for line in self._lines)
        installed = tuple(cast(F, f) for f in _installed() if isinstance(f, self._base))
        return (*self._built_in, *installed, *self._registered)

    def endings(self, **capabilities: Any) -> tuple[str, ...]:
        """Endings of the formats that have these capabilities, such as ``writes=True``."""
        chosen = [f for f in self.all() if all(getattr(f, k) == v for k, v in capabilities.items())]
        return tuple(dict.fromkeys(ending for f in chosen for ending in f.endings))

    def by_ending(self, path: str) -> tuple[F, ...]:
        """Formats that know the path's ending; of endings that end in one another, the longest counts."""
        name = path.rstrip("/").lower()
        lengths = {f: max((len(e) for e in f.endings if name.endswith(e)), default=0) for f in self.all()}
        longest = max(lengths.values(), default=0)
        return tuple(f for f, length in lengths.items() if length == longest > 0)

    def to_read(self, path: str) -> F:
        """The format of an existing path, by its ending, and by its content where that is not enough.

        Raises NotFound, Unreadable listing the known endings.
        """
        require_exists(path)
        candidates = self.by_ending(path)
        if len(candidates) == 1:
            return candidates[0]
        for format in candidates or self.all():
            if _sniffs(format, path):
                return format
        if candidates:
            return candidates[-1]  # whose ``open`` says what is wrong with the content
        raise Unreadable(
            conversion(path)
            or f"{path} is of no known {self.kind} format; files with the endings {', '.join(self.endings())} are read."
        )

    def read(self, path: str, open: Callable[[F], R]) -> R:
        """What ``open`` takes from the format of an existing path. Whatever it raises becomes one sentence about the file.

        Raises InputError alone.
        """
        format = self.to_read(path)
        if not format.reads_at(path):
            raise Unreadable(f"{path}: this format ({format.name}) is read from local disks only; download it first.")
        with open_errors(path):
            return open(format)

    def to_write(self, path: str) -> F:
        """The format that an output's ending asks for. Raises OutputError listing the endings that can be written."""
        named = self.by_ending(path)
        for format in named:
            if format.writes:
                if ZARR in format.endings:
                    require_zarr_path(path)
                return format
        what = (
            f"files of this format ({named[0].name}) are read, but not written"
            if named
            else f"the ending tells the format of {self.kind} files"
        )
        raise OutputError(f"{path}: {what}; choose one of the endings {self._written()}.")

    def _written(self) -> str:
        """Endings that can be written: first those for which nothing has to be installed, of them those that hold most."""
        written = sorted((f for f in self.all() if f.writes), key=lambda f: getattr(f, "single_file", False))
        ready = [f for f in written if f.library is None or find_spec(f.library) is not None]
        text = _listed(ready)
        for library in dict.fromkeys(f.library for f in written if f not in ready):
            text += f"; with {library} installed {_listed([f for f in written if f.library == library])}"
        return text + " (Fiji opens .nii.gz)" * (".nii.gz" in text and self.kind == "image")


image_formats: FormatRegistry[ImageFormat] = FormatRegistry("image", ImageFormat, IMAGES)
transform_formats: FormatRegistry[TransformFormat] = FormatRegistry("transform", TransformFormat, TRANSFORMS)
point_formats: FormatRegistry[PointFormat] = FormatRegistry("point", PointFormat, POINTS)


def register_format(format: type[Format]) -> type[Format]:
    """Make a format of any kind known to this process; usable as a decorator. Raises TypeError for what is no format."""
    for registry in (image_formats, transform_formats, point_formats):
        if isinstance(format, type) and issubclass(format, registry._base):
            registry.register(format)
            return format
    raise TypeError(f"{format!r} is no format; a subclass of ImageFormat, TransformFormat or PointFormat was expected.")


def identify(path: str) -> Format:
    """The format of an existing path, whatever its kind: a transform, points or an image. Raises NotFound, Unreadable."""
    require_exists(path)
    registries = (transform_formats, point_formats, image_formats)
    candidates = [f for registry in registries for f in registry.by_ending(path)]
    if len(candidates) == 1:
        return candidates[0]
    for format in candidates or [f for registry in registries for f in registry.all()]:
        if _sniffs(format, path):
            return format
    if candidates:
        return candidates[-1]  # whose ``open`` says what is wrong with the content
    known = dict.fromkeys(e for registry in reversed(registries) for e in registry.endings())
    raise Unreadable(conversion(path) or f"{path} is of no known format; files with the endings {', '.join(known)} are read.")


def _listed(formats: Sequence[Format]) -> str:
    return ", ".join(dict.fromkeys(ending for f in formats for ending in f.endings))


def _sniffs(format: Format, path: str) -> bool:
    """Whether a format recognises the content; also one that raises for what it does not expect says no."""
    try:
        with open_errors(path):
            return format.sniff(path)
    except InputError as error:
        if is_remote(path) and remote_refusal(path, error) is not None:
            raise  # of which no other format can know more
        return False


def _load(line: str, base: type[Format]) -> Format:
    module, _, name = line.partition(":")
    return _instance(getattr(import_module(module), name), base)


@cache
def _installed() -> tuple[Format, ...]:
    """Formats that other packages declare; one that cannot be loaded is left out with a warning."""
    found: list[Format] = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.append(_instance(entry.load(), Format))
        except Exception as error:  # noqa: BLE001  # whatever another package raises must not stop daskreg from reading other formats
            log.warning("the format %r of the entry point %s is left out: %s", entry.name, entry.value, error)
    return tuple(found)


def _place(format: type) -> tuple[str, str]:
    """Where a class is defined."""
    return format.__module__, format.__qualname__


def _instance(format: Any, base: type[Format]) -> Format:
    if not (isinstance(format, type) and issubclass(format, base)):
        raise TypeError(f"{format!r} is no format; a subclass of {base.__name__} was expected.")
    endings = getattr(format, "endings", ())
    if not endings or any(e != e.lower() or not e.startswith(".") for e in endings):
        raise TypeError(f"{format.__name__}.endings {endings!r}: lower-case endings with their dot were expected.")
    return format()
