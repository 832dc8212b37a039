"""The value that a resampled image has outside of the image.

By default 0, or the smallest value at the image's corners where that is negative: air in a CT, the filling of a scanner's bore.
"""

from __future__ import annotations

import itertools
import math
import numbers
from typing import TYPE_CHECKING, Any

import numpy as np

from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError

if TYPE_CHECKING:
    import dask
    import dask.array as da
else:
    dask, da = DeferredModule("dask"), DeferredModule("dask.array")

Fill = float | str | None  # a number, "nan", or None for the default
LARGEST = 1e30


def parse_fill(value: Any) -> float | int | None:
    """A number from a number or text; ``nan`` is one. Raises ConfigError."""
    if value is None:
        return None
    try:
        given = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number: Any = value if given else _number(str(value).strip())
    except ValueError:
        raise ConfigError(f"fill is {value!r}; a number such as -1024, or nan, was expected.") from None
    if abs(number) > LARGEST:
        raise ConfigError(f"fill is {value!r}; a number from {-LARGEST:g} to {LARGEST:g}, or nan, was expected.")
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        return float(text)


def require_fill(fill: Fill, dtype: np.dtype[Any], name: str) -> None:
    """Raises ConfigError where voxels of the type of an image cannot have the value; None is always possible."""
    value = parse_fill(fill)
    if value is None:
        return
    if dtype.kind == "f":
        possible = math.isnan(value) or abs(value) <= float(np.finfo(dtype).max)
        span = f"{np.finfo(dtype).min:g} to {np.finfo(dtype).max:g}, or nan"
    else:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        possible, span = not math.isnan(value) and value == int(value) and low <= value <= high, f"{low} to {high}, whole"
    if not possible:
        raise ConfigError(f"fill is {value:g}, which {name} of type {dtype} cannot hold; a number from {span}, was expected.")


def fill_of(data: da.Array, fill: Fill) -> float | int:
    """The value asked for, or the default for voxels (.., Z, Y, X), of which the corners of the first image are read.

    Raises Unreadable.
    """
    value = parse_fill(fill)
    return value if value is not None else 0 if data.dtype.kind in "bu" else _smallest_corner(data)


def _smallest_corner(data: da.Array) -> float | int:
    first = (0,) * (data.ndim - 3)
    corners = [data[(*first, *corner)] for corner in itertools.product(*(sorted({0, n - 1}) for n in data.shape[-3:]))]
    found = np.stack(dask.compute(*corners, scheduler="synchronous"))  # type: ignore[attr-defined, no-untyped-call]  # in one graph: each chunk is read once
    if np.isnan(found).all():
        return math.nan
    low = np.nanmin(found).item()
    return min(0, low) if math.isfinite(low) else 0


def describe_fill(name: str, fill: Fill, value: float) -> str:
    """A sentence for the log."""
    why = "as chosen" if fill is not None else "the smallest value at its corners" if value else "by default"
    return f"outside of {name} voxels get {value:g} ({why}){'' if fill is not None else '; --fill (fill=) chooses another value'}"
