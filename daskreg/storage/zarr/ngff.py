"""OME-NGFF metadata of any version that is read: 0.1 to 0.6."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.storage.zarr import ngff03, ngff05, ngff06_parse
from daskreg.storage.zarr.multiscale import Multiscale, channel_labels, display_metadata, require_agreement, stored_grid

log = logging.getLogger(__name__)

VERSIONS = re.compile(r"0\.[1-6](?!\d)")  # also 0.6.dev1 and the like


def holds_image(attrs: Mapping[str, Any]) -> bool:
    """Whether a group's attributes are those of a multiscale image."""
    return bool(_images(attrs))


def _images(attrs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    ome = attrs.get("ome", attrs)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    return images if isinstance(images, list) and images and all(isinstance(image, Mapping) for image in images) else []


def parse(name: str, attrs: Mapping[str, Any], level: int | str | None = None) -> Multiscale | None:
    """The multiscale image of a group's attributes, None when there is none.

    level: of several images, the one that has a level of this path is taken; else the first, with a warning, as NGFF asks.
    Raises Unreadable for metadata that no voxel can be placed with.
    """
    images = _images(attrs)
    if not images:
        return None
    image = next((i for i in images if level in _paths(i)), None)
    if image is None:
        image = images[0]
        if len(images) > 1:
            _warn_of_others(name, "; ".join(f"{i.get('name', 'without a name')}: {', '.join(_paths(i))}" for i in images))
    ome = attrs.get("ome", attrs)
    version = _version(name, ome, image, "ome" in attrs)
    grid = stored_grid(attrs, name) if image is images[0] else None
    found = replace(_parsed(name, version, image, channel_labels(ome), grid), omero=display_metadata(ome))
    require_agreement(name, found)
    return found


def _parsed(name: str, version: str, image: Mapping[str, Any], channels: tuple[str, ...], grid: Grid | None) -> Multiscale:
    if version[:3] in ("0.1", "0.2", "0.3"):
        return ngff03.parse_image(name, version[:3], image, channels)
    parse_image = ngff06_parse.parse_image if version.startswith("0.6") else ngff05.parse_image
    return parse_image(name, version, image, channels, grid)


def _paths(image: Mapping[str, Any]) -> list[str]:
    datasets = image.get("datasets")
    return [str(d["path"]) for d in datasets if isinstance(d, Mapping) and "path" in d] if isinstance(datasets, list) else []


def _version(name: str, ome: Mapping[str, Any], image: Mapping[str, Any], nested: bool) -> str:
    """As stated; 0.4 where an image says none, which that version alone permits. Raises Unreadable."""
    stated = ome.get("version") or image.get("version")
    if stated is None and not nested:
        _warn_of_missing_version(name)
        return "0.4"
    if not isinstance(stated, str) or not VERSIONS.match(stated):
        found = f"is OME-Zarr {stated!r}" if stated else "does not state its version of OME-Zarr"
        raise Unreadable(f"{name} {found}; the strings '0.1' to '0.6' are versions that are read: repair its metadata.")
    return stated


@cache  # once a store
def _warn_of_missing_version(name: str) -> None:
    log.warning("%s: its multiscales metadata states no version; it is read as OME-Zarr 0.4.", name)


@cache
def _warn_of_others(name: str, images: str) -> None:
    log.warning(
        "%s holds several multiscale images (%s); the first is taken. Choose another one by the path of a level: '::level=PATH'.",
        name,
        images,
    )
