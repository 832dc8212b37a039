"""Groups that hold several images: plates, their wells, series of a converted file. Read from metadata, without listing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.storage.zarr.ngff import holds_image
from daskreg.storage.zarr.nodes import attributes

if TYPE_CHECKING:
    import zarr
    from zarr.core import buffer, sync
else:
    zarr = DeferredModule("zarr")
    buffer, sync = DeferredModule("zarr.core.buffer"), DeferredModule("zarr.core.sync")

SHOWN = 12  # names in a sentence
LAYOUT = "bioformats2raw.layout"


@dataclass(frozen=True)
class ImageCollection:
    """The images below a group.

    kind: in words;  members: what it consists of, by its name, such as ``{"wells": ("A/1", ..), "fields of A/1": ("0", ..)}``;
    paths: of images, below the group; of a plate those of its first well;  titles: names of the images, where they have one
    """

    kind: str
    members: Mapping[str, tuple[str, ...]]
    paths: tuple[str, ...]
    titles: tuple[str, ...] = ()

    def sentence(self, name: str, array: str | None = None) -> str:
        """What is there, and how to choose one. array: where the group is in its store."""
        listed = "; ".join(f"{len(v)} {k}: {_short(v)}" for k, v in self.titled().items())
        first = "/".join(filter(None, (array, *self.paths[:1])))
        choose = f"choose an image with '::array={first}'" if self.paths else "none of them has an image"
        return f"{name} is {self.kind} ({listed}); {choose}."

    def titled(self) -> dict[str, tuple[str, ...]]:
        """The members, with the titles of images behind their names."""
        if not self.titles:
            return dict(self.members)
        return {
            kind: tuple(f"{n} ({t})" if t else n for n, t in zip(names, self.titles, strict=True))
            for kind, names in self.members.items()
        }


class SeveralImages(Unreadable):
    """A group of several images, where one was expected."""

    def __init__(self, text: str, images: ImageCollection) -> None:
        super().__init__(text)
        self.images = images


def images_below(group: zarr.Group) -> ImageCollection | None:
    """The images of a plate, a well or a converted file, None for another group."""
    tree = attributes(group)
    ome = tree.get("ome", tree)
    if not isinstance(ome, Mapping):
        return None
    if isinstance(ome.get("plate"), Mapping):
        return _of_plate(group, ome["plate"])
    if isinstance(ome.get("well"), Mapping):
        fields = _paths(ome["well"], "images")
        return ImageCollection("a well of a plate", {"fields": fields}, fields)
    return _of_series(group) if LAYOUT in ome else None


def _of_plate(group: zarr.Group, plate: Mapping[str, Any]) -> ImageCollection:
    wells = _paths(plate, "wells")
    fields = _fields(group, wells[0]) if wells else ()
    members = {"wells": wells, **({f"fields of {wells[0]}": fields} if fields else {})}
    return ImageCollection("a plate", members, tuple(f"{wells[0]}/{f}" for f in fields))


def _fields(group: zarr.Group, well: str) -> tuple[str, ...]:
    tree = _attributes_of(group, well)
    found = tree.get("ome", tree)
    return _paths(found["well"], "images") if isinstance(found, Mapping) and isinstance(found.get("well"), Mapping) else ()


def _of_series(group: zarr.Group) -> ImageCollection:
    """As bioformats2raw writes it: listed in ``OME``, else numbered from 0."""
    listed = _attributes_of(group, "OME")
    listed = listed.get("ome", listed)
    series = listed.get("series") if isinstance(listed, Mapping) else None
    if not isinstance(series, list):
        series = list(takewhile(lambda name: holds_image(_attributes_of(group, name)), map(str, count())))
    paths = tuple(str(s) for s in series)
    titles = _titles(group)
    return ImageCollection(
        "a converted file of several series", {"series": paths}, paths, titles if len(titles) == len(paths) else ()
    )


def _titles(group: zarr.Group) -> tuple[str, ...]:
    """Names of the images in the file's OME-XML, which need not be there."""
    key = f"{group.path}/OME/METADATA.ome.xml".lstrip("/")
    try:
        found = sync.sync(group.store.get(key, buffer.default_buffer_prototype()))
        root = None if found is None else ElementTree.fromstring(found.to_bytes())
    except (OSError, ElementTree.ParseError, ValueError):
        return ()
    return () if root is None else tuple(e.get("Name") or "" for e in root if e.tag.rpartition("}")[2] == "Image")


def _attributes_of(group: zarr.Group, path: str) -> Mapping[str, Any]:
    """Those of a member, empty without one."""
    try:
        return attributes(group[path])
    except (KeyError, OSError, ValueError):
        return {}


def _paths(tree: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = tree.get(key)
    members = found if isinstance(found, list) else []
    return tuple(str(m["path"]) for m in members if isinstance(m, Mapping) and "path" in m)


def _short(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
