"""OME-NGFF 0.1, 0.2 and 0.3 metadata: levels without a voxel size, whose factors follow from their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from daskreg.errors import Unreadable
from daskreg.storage.axes import KINDS, Axis
from daskreg.storage.zarr.multiscale import Dataset, Multiscale

AXES = ("t", "c", "z", "y", "x")  # of 0.1 and 0.2, always


def parse_image(name: str, version: str, image: Mapping[str, Any], channels: tuple[str, ...]) -> Multiscale:
    """The multiscales metadata of an image, before its levels are ``measured``. Raises Unreadable for what has no levels."""
    stated = image.get("axes") if version == "0.3" else list(AXES)
    datasets = image.get("datasets")
    paths = [d.get("path") for d in datasets if isinstance(d, Mapping)] if isinstance(datasets, list) else []
    if not paths or not all(isinstance(p, str) for p in paths):
        raise Unreadable(f"{name}: its metadata is invalid at multiscales[0].datasets: a list of paths was expected; repair it.")
    named = isinstance(stated, list) and bool(stated) and all(isinstance(a, str) for a in stated)
    if not isinstance(stated, list) or not named or len(set(stated)) < len(stated):
        raise Unreadable(f"{name}: its metadata is invalid at multiscales[0].axes ({stated!r}): names were expected; repair it.")
    axes = tuple(Axis(a, KINDS.get(a.lower(), "other")) for a in stated)
    ones, zeros = (1.0,) * len(axes), (0.0,) * len(axes)
    return Multiscale(version, axes, tuple(Dataset(str(p), ones, zeros) for p in paths), channels, sized=False)


def measured(image: Multiscale, shapes: Sequence[Sequence[int]]) -> Multiscale:
    """The image with the scales of its levels, in voxels of the first; a level's voxels are averages of blocks.

    shapes: of the arrays of the levels
    """
    datasets = [_against(d, image.axes, shapes[0], shape) for d, shape in zip(image.datasets, shapes, strict=True)]
    return replace(image, datasets=tuple(datasets))


def _against(dataset: Dataset, axes: Sequence[Axis], first: Sequence[int], shape: Sequence[int]) -> Dataset:
    if not len(axes) == len(first) == len(shape):
        return dataset  # whoever reads the level says so
    scale = [
        float(max(1, round(n / max(1, m)))) if a.kind == "space" else 1.0 for a, n, m in zip(axes, first, shape, strict=True)
    ]
    return replace(dataset, scale=tuple(scale), translation=tuple((s - 1) / 2 for s in scale))
