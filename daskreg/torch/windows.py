"""The weights of windows: of the local correlation along each axis, and of mutual information over its bins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch

from daskreg.errors import DaskregError
from daskreg.torch.checks import odd_windows, one_of, triple
from daskreg.torch.kernels.information import ParzenWindow, gaussian_window, spline_window

WindowKind = Literal["rectangular", "triangular", "gaussian"]


def window_weights(size: int, kind: WindowKind = "rectangular") -> tuple[float, ...]:
    """The weights of a window along one axis: ones, a triangle or a Gaussian of sigma size / 3, as MONAI has them."""
    odd_windows((size,))
    one_of("kind", kind, ("rectangular", "triangular", "gaussian"))
    half = size // 2
    if kind == "gaussian":
        return tuple(math.exp(-0.5 * (k / (size / 3)) ** 2) for k in range(-half, half + 1))
    if kind == "triangular":
        side = (size + 1) // 2
        side -= side % 2 == 0
        return tuple(max(0, side - abs(k)) / side**2 for k in range(-half, half + 1))
    return (1.0,) * size


def window_along_axes(window: int | Sequence[int], kind: WindowKind, weights: Sequence[Sequence[float]] | None) -> Any:
    """Along z, y, x; those of a cube are kept, other than for a compiler, which follows what makes them."""
    if weights is None and type(window) is int and not torch.compiler.is_compiling():
        return (_kept_weights(window, kind),) * 3
    given = weights if weights is not None else [window_weights(n, kind) for n in triple(window)]
    odd_windows([len(w) for w in given])
    wz, wy, wx = ([float(v) for v in w] for w in given)
    return wz, wy, wx


@lru_cache
def _kept_weights(window: int, kind: WindowKind) -> tuple[float, ...]:
    return tuple(map(float, window_weights(window, kind)))


def parzen_window(bins: int, kind: str, sigma_ratio: float, low: float, high: float, clip: float | None) -> ParzenWindow:
    """That of ``mutual_information``, which has the arguments. Raises DaskregError."""
    one_of("kind", kind, ("gaussian", "spline"))
    if not high > low or bins < 2 + 6 * (kind == "spline") or not 0 < sigma_ratio <= 2:
        raise DaskregError(
            f"{bins} bins from {low} to {high} with sigma_ratio {sigma_ratio} were given; at least 2 bins (8 of splines), "
            "low < high and a ratio up to 2 were expected."
        )
    if kind == "spline":
        return spline_window(bins, low, high)
    return gaussian_window(bins, sigma_ratio, low, high, low if clip is None else clip)
