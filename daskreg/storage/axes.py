"""Axes of stored arrays: their names, kinds and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SPACE = ("z", "y", "x")
KINDS = {"t": "time", "time": "time", "c": "channel", "channel": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class Axis:
    """One axis of a stored array; kind is space, time, channel or other.

    scale, origin: of the entries along an axis that is not spatial, in its unit;  omero: how channels are named and displayed, as
    OME-Zarr keeps it beside a channel axis;  stated: False where the name is a guess from the place of the axis.
    """

    name: str
    kind: str
    unit: str | None = None
    orientation: str | None = None
    scale: float = 1.0
    origin: float = 0.0
    omero: Mapping[str, Any] | None = field(default=None, compare=False)
    stated: bool = field(default=True, compare=False)


def display(labels: Sequence[str], colors: Sequence[str], highest: int | None) -> Mapping[str, Any]:
    """The omero metadata of channels from their labels and colours, as RRGGBB (white for what is not known).

    highest: of the values that the type of the voxels has; None for floating point, which states no window.
    """
    window = {} if highest is None else {"window": {"min": 0, "max": highest, "start": 0, "end": highest}}
    known = [*colors, *["FFFFFF"] * (len(labels) - len(colors))]
    return {"channels": [{"label": n, "color": c, "active": True, **window} for n, c in zip(labels, known, strict=True)]}


def spatial(axes: Sequence[Axis]) -> tuple[int, ...] | None:
    """Array axes of z, y and x, or None when they are not exactly these three."""
    names = [a.name.lower() if a.kind == "space" else "" for a in axes]
    if sum(n != "" for n in names) != 3:
        return None
    if all(s in names for s in SPACE):
        return tuple(names.index(s) for s in SPACE)
    return tuple(i for i, n in enumerate(names) if n)  # other names: in the order stored


def leading(axes: Sequence[str | Axis]) -> tuple[Axis, ...]:
    """Leading axes from their names, or from axes with all that is known of them."""
    return tuple(a if isinstance(a, Axis) else Axis(a, KINDS.get(a, "other")) for a in axes)


def guessed_axes(names: Sequence[str | None] | None, ndim: int) -> tuple[Axis, ...]:
    """Axes of an array without metadata: by its dimension names where these are known, else t, c, z, y, x from the end."""
    known = [str(n).lower() for n in names or ()]
    stated = len(known) == ndim and set(SPACE[-min(ndim, 3) :]) <= set(known)
    if not stated:
        known = list(("t", "c", *SPACE)[-ndim:]) if ndim <= 5 else [f"axis{i}" for i in range(ndim)]
    return tuple(Axis(n, KINDS.get(n, "other"), stated=stated) for n in known)
