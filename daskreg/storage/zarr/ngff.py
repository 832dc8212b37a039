"""OME-NGFF metadata of any version that is read: 0.4, 0.5 and 0.6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskreg.storage.zarr import ngff05, ngff06
from daskreg.storage.zarr.multiscale import Multiscale, channel_labels, stored_grid


def holds_image(attrs: Mapping[str, Any]) -> bool:
    """Whether a group's attributes are those of a multiscale image."""
    ome = attrs.get("ome", attrs)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    return isinstance(images, list) and bool(images) and isinstance(images[0], Mapping)


def parse(name: str, attrs: Mapping[str, Any]) -> Multiscale | None:
    """The first multiscale image of a group's attributes, None when there is none.

    Raises Unreadable for metadata that no voxel can be placed with.
    """
    if not holds_image(attrs):
        return None
    ome = attrs.get("ome", attrs)
    image = ome["multiscales"][0]
    version = str(ome.get("version") or image.get("version") or ("0.5" if "ome" in attrs else "0.4"))
    if version.startswith("0.6"):
        return ngff06.parse_image(name, image, channel_labels(ome), stored_grid(attrs))
    return ngff05.parse_image(name, version, image, channel_labels(ome), stored_grid(attrs))
