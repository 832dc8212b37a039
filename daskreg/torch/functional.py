"""Functions on tensors (B, C, Z, Y, X), in place on their device.

Displacements are (B, 3, Z, Y, X) with components z, y, x in voxels, and lead from the output grid to the image: the moved image
at x is the image at x + u(x). Inputs may be float16, bfloat16 or float32 (float64 on a CPU), in any memory layout; everything
is computed in float32 (or float64), and results have that type, other than those of the samplers, which have the image's. All
functions have first derivatives with respect to all floating-point tensors, unless they say otherwise. Errors are
``DaskregError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from daskreg.errors import DaskregError
from daskreg.torch import operators, warped
from daskreg.torch.checks import (
    affine_map,
    computed,
    displacement,
    five_dimensional,
    many,
    needs_gradient,
    one_of,
    same_shape,
    some,
    triple,
)
from daskreg.torch.compute.correlation import Windows
from daskreg.torch.compute.fields import gaussian_taps
from daskreg.torch.direct_launch import MOST_LAUNCHES
from daskreg.torch.kernels.sampling import (
    AFFINE,
    AFFINE_ALONE,
    AFFINE_FIRST,
    BORDER,
    DISPLACEMENT,
    GRID,
    REFLECT_CENTERS,
    ZEROS,
)
from daskreg.torch.operators.prepared import direct, keep, prepared
from daskreg.torch.windows import WindowKind, parzen_window, window_along_axes

Border = Literal["zeros", "border", "reflection"]
Reduction = Literal["mean", "sum", "none", "volume"]
BORDERS = {"zeros": ZEROS, "border": BORDER, "reflection": REFLECT_CENTERS}
SMALL = 2**23  # voxels of a volume whose sampling takes a GPU less time than a call from Python takes the CPU
MODES = "bilinear", "nearest"  # in the order of PyTorch's numbers for them, as BORDERS
REDUCTIONS = ("mean", "sum", "none", "volume")


# ---------------------------------------------------------------- similarities


def mse(moved: Tensor, fixed: Tensor) -> Tensor:
    """The mean squared difference, ()."""
    key = ("mse", moved.shape, fixed.shape, moved.get_device()) if direct(moved, fixed) else None
    if key is not None and (kept := prepared(key)) is not None:
        return kept(fixed, moved)
    same_shape(moved, fixed)
    many(moved)
    some(moved)
    if key is not None and (made := operators.prepare_squared_difference(moved)) is not None:
        return keep(key, made)(fixed, moved)
    a, b = computed(fixed, moved)
    return operators.squared_difference(a, b)


def lncc(
    moved: Tensor,
    fixed: Tensor,
    window: int | Sequence[int] = 9,
    *,
    kind: WindowKind = "rectangular",
    weights: Sequence[Sequence[float]] | None = None,
    squared: bool = True,
    floor: float = 0.0,
    additive: float = 0.0,
    epsilon: float = 1e-5,
    numerator: float = 0.0,
    limit: float = math.inf,
    border: Literal["zeros", "count"] = "zeros",
    reduction: Reduction = "mean",
) -> Tensor:
    """Minus the local normalised cross-correlation.

    For each window with weights w, A = sum w FM - sum wF sum wM / sum w is its covariance, B and C are likewise its variances,
    raised to ``floor``, plus ``additive``; the correlation is (A^2 + numerator) / (B C + epsilon), or without ``squared`` A /
    sqrt(B C + epsilon), at most ``limit``. The defaults are VoxelMorph's.

    window: voxels along all axes, or along z, y, x, odd;  kind: of ``window_weights``;  weights: instead, along z, y, x;
    border: "zeros": voxels beyond the faces are zeros; "count": they do not count;
    reduction: "mean" or "sum" of all windows, (); "volume": the mean of each, (B, C); "none": of each window, (B, C, Z, Y, X)
    """
    constants = float(floor), float(additive), float(epsilon), float(numerator), float(limit)
    wants, key = (needs_gradient(fixed), needs_gradient(moved)), None
    if weights is None and type(window) is int and reduction != "none" and direct(moved, fixed):
        key = ("lncc", moved.shape, fixed.shape, moved.get_device(), wants, window, kind, bool(squared), constants, border,
               reduction)  # fmt: skip
        if (kept := prepared(key)) is not None:
            return kept(fixed, moved)
    same_shape(moved, fixed)
    five_dimensional(moved)
    some(moved)
    one_of("reduction", reduction, REDUCTIONS)
    one_of("border", border, ("zeros", "count"))
    wz, wy, wx = window_along_axes(window, kind, weights)
    counted, per_volume, kinds = border == "count", reduction == "volume", (0, 3, 5)[sum(wants)]
    voxels = moved.numel() // (moved.shape[0] * moved.shape[1]) if per_volume else moved.numel()
    scale = -1.0 if reduction in ("sum", "none") else -1.0 / max(1, voxels)
    # the correlation is symmetric, and the derivative with respect to the second image needs less memory
    swapped = wants == (True, False)
    if key is not None:
        windows = Windows(wz, wy, wx, *constants, bool(squared), counted)
        return keep(key, operators.prepare_correlation(windows, kinds, moved, per_volume, scale, swapped))(fixed, moved)
    f, m = computed(moved, fixed) if swapped else computed(fixed, moved)
    value, found, _ = operators.correlate(
        f, m, wz, wy, wx, constants, squared, counted, per_volume, reduction == "none", kinds, scale
    )
    return -found if reduction == "none" else value


def mutual_information(
    moved: Tensor,
    fixed: Tensor,
    bins: int = 32,
    *,
    kind: Literal["gaussian", "spline"] = "gaussian",
    sigma_ratio: float = 0.5,
    low: float = 0.0,
    high: float = 1.0,
    clip: float | None = None,
    numerator: float = 1e-7,
    denominator: float = 1e-7,
    additive: float = 0.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Minus the mutual information in nats, of all channels of each batch element together.

    With p(i, j) the mean product of the Parzen weights, it is sum p log((p + numerator) / (p_i p_j + denominator) + additive).

    kind: "gaussian": bins centred from ``low`` to ``high``, sigma ``sigma_ratio`` bins, normalised; "spline": cubic B-splines
    with two more bins at each end (Mattes);  clip: intensities are clamped to clip .. high, by default to low .. high; clamped
    ones have no derivative;  reduction: "mean" or "sum" over the batch, (), or "none", (B,)
    """
    smoothing, key = (float(numerator), float(denominator), float(additive)), None
    range_of = float(sigma_ratio), float(low), float(high), None if clip is None else float(clip)
    if direct(moved, fixed):
        key = "mi", moved.shape, fixed.shape, moved.get_device(), int(bins), kind, range_of, smoothing, reduction
        if (kept := prepared(key)) is not None:
            return kept(fixed, moved)
    same_shape(moved, fixed)
    many(moved)
    some(moved)
    one_of("reduction", reduction, ("mean", "sum", "none"))
    window = parzen_window(bins, kind, *range_of)
    scale = -1.0 / moved.shape[0] if reduction == "mean" else -1.0
    if key is not None:
        return keep(key, operators.prepare_information(window, smoothing, scale, reduction != "none", moved))(fixed, moved)
    f, m = computed(fixed, moved)
    value, _, _ = operators.inform(f, m, window[:4], window[4:], smoothing, scale, reduction != "none")
    return value


# ---------------------------------------------------------------- sampling


def warp(image: Tensor, displacement_field: Tensor, border: Border = "zeros", interpolation: str = "bilinear") -> Tensor:
    """The image at x + u(x): (B, C, Z, Y, X) of the displacement's grid.

    border: beyond the faces "zeros", the nearest voxel ("border"), or "reflection" at the outermost voxels' centres
    interpolation: "bilinear" (trilinear) or "nearest", which has no derivative with respect to the displacement
    """
    displacement(image, displacement_field)
    return _sample(image, displacement_field, None, DISPLACEMENT, border, interpolation, True)


def grid_sample(
    image: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: Border = "zeros", align_corners: bool = False
) -> Tensor:
    """``torch.nn.functional.grid_sample`` of volumes: grid (B, Z, Y, X, 3), components x, y, z from -1 to 1.

    Small volumes on a GPU are left to PyTorch's function, whose calls take less time of the CPU.
    """
    if image.is_cuda and not torch.compiler.is_compiling() and image.dtype is grid.dtype is torch.float32:
        left = _left_to_pytorch(image.shape, grid.shape, mode, padding_mode)
        if left is not None:
            return torch.grid_sampler(image, grid, *left, align_corners)
    five_dimensional(image)
    if grid.ndim != 5 or grid.shape[0] != image.shape[0] or grid.shape[-1] != 3:
        raise DaskregError(
            f"the grid has the shape {tuple(grid.shape)}; ({image.shape[0]}, Z, Y, X, 3) was expected, as of the image."
        )
    one_of("padding_mode", padding_mode, tuple(BORDERS))
    one_of("mode", mode, MODES)
    if image.is_cuda and not torch.compiler.is_compiling():
        left = _left_to_pytorch(image.shape, grid.shape, mode, padding_mode)
        if left is not None:
            return torch.grid_sampler(*computed(image, grid), *left, align_corners).to(image.dtype)
    return _sample(image, grid, None, GRID, padding_mode, mode, align_corners)


@lru_cache(MOST_LAUNCHES)
def _left_to_pytorch(image: torch.Size, grid: torch.Size, mode: str, padding_mode: str) -> tuple[int, int] | None:
    """The mode and border of PyTorch's sampler where it is left volumes of some shapes; None also for what is not sampled."""
    if len(image) != 5 or len(grid) != 5 or (grid[0], grid[-1]) != (image[0], 3):
        return None
    if mode not in MODES or padding_mode not in BORDERS:
        return None
    if max(math.prod(image[2:]), math.prod(grid[1:4])) > SMALL:
        return None
    return MODES.index(mode), list(BORDERS).index(padding_mode)


def affine_warp(
    image: Tensor,
    affine: Tensor,
    displacement_field: Tensor | None = None,
    *,
    size: Sequence[int] | None = None,
    order: Literal["displacement_first", "affine_first"] = "displacement_first",
    border: Border = "zeros",
    interpolation: str = "bilinear",
) -> Tensor:
    """The image at A (x + u(x)) + t in one pass, without a grid; with "affine_first" at A x + t + u(x).

    affine: (B, 3, 4) or (1, 3, 4), rows (A t), from voxels of the output to voxels of the image, axes z, y, x
    displacement_field: (B, 3, Z, Y, X), or None;  size: voxels Z, Y, X of the output without a displacement, by default the
    image's
    """
    five_dimensional(image)
    affine = affine_map(image, affine)
    one_of("order", order, ("displacement_first", "affine_first"))
    if displacement_field is None:
        return _sample(image, image.new_empty(0), affine, AFFINE_ALONE, border, interpolation, True, size or image.shape[2:])
    displacement(image, displacement_field)
    mode = AFFINE if order == "displacement_first" else AFFINE_FIRST
    return _sample(image, displacement_field, affine, mode, border, interpolation, True)


def _sample(
    image: Tensor,
    field: Tensor,
    affine: Tensor | None,
    mode: int,
    border: str,
    interpolation: str,
    align: bool,
    size: Sequence[int] = (),
    plus: bool = False,
) -> Tensor:
    _refuse_nondeterminism(image)
    key = None
    if affine is None and direct(image, field):
        key = "sample", image.shape, field.shape, image.get_device(), mode, border, interpolation, align, plus
        if (kept := prepared(key)) is not None:
            return kept(image, field)
    one_of("border", border, tuple(BORDERS))
    one_of("interpolation", interpolation, MODES)
    if key is not None:
        rule = mode, BORDERS[border], interpolation == "nearest", plus, align
        if (made := operators.prepare_sampling(image, field, *rule)) is not None:
            return keep(key, made)(image, field)
    a, b, *map_of = computed(image, field) if affine is None else computed(image, field, affine)
    c = map_of[0] if map_of else b  # any tensor, which is not read
    found = operators.sample(a, b, c, mode, BORDERS[border], interpolation == "nearest", plus, align, list(size))
    return found if found.dtype == image.dtype else found.to(image.dtype)


def _refuse_nondeterminism(image: Tensor) -> None:
    if image.is_cuda and needs_gradient(image) and torch.are_deterministic_algorithms_enabled():
        raise DaskregError(
            "deterministic algorithms were asked for, and the derivative of sampling with respect to an image adds up in any "
            "order on a GPU; detach the image, or use a CPU."
        )


# ---------------------------------------------------------------- losses of maps, without the moved image


def warped_loss(
    image: Tensor,
    fixed: Tensor,
    displacement_field: Tensor,
    loss: Literal["mse", "lncc", "mi"] = "lncc",
    *,
    affine: Tensor | None = None,
    border: Border = "zeros",
    window: int | Sequence[int] = 9,
    kind: WindowKind = "rectangular",
    squared: bool = True,
    floor: float = 0.0,
    additive: float = 0.0,
    epsilon: float = 1e-5,
    numerator: float = 0.0,
    limit: float = math.inf,
    bins: int = 32,
    sigma_ratio: float = 0.5,
    smoothing: float = 1e-7,
) -> Tensor:
    """``mse``, ``lncc`` or ``mutual_information`` of ``warp`` (``affine_warp``) and ``fixed``, without storing the moved image.

    Memory does not grow with the channels. Derivatives are with respect to image and displacement. Arguments are those of the
    losses;  border: of the sampler; voxels beyond the faces count as zeros in the windows
    """
    displacement(image, displacement_field)
    one_of("loss", loss, tuple(warped.LOSSES))
    one_of("border", border, tuple(BORDERS))
    if fixed.shape != (*image.shape[:2], *displacement_field.shape[2:]):
        raise DaskregError(
            f"the fixed image has the shape {tuple(fixed.shape)}; {(*image.shape[:2], *displacement_field.shape[2:])} was "
            "expected, the image's channels on the displacement's grid."
        )
    some(fixed)
    _refuse_nondeterminism(image)
    mode, matrix = DISPLACEMENT, image.new_empty((1, 3, 4))
    if affine is not None:
        mode, matrix = AFFINE, affine_map(image, affine)
    f, a, u, m = computed(fixed, image, displacement_field, matrix)
    wz, wy, wx = window_along_axes(window, kind, None)
    integers, numbers = [int(squared), 0], [float(v) for v in (floor, additive, epsilon, numerator, limit)]
    if loss == "mi":
        of = parzen_window(bins, "gaussian", sigma_ratio, 0.0, 1.0, None)
        integers, numbers = list(of[:4]), [*of[4:], float(smoothing), float(smoothing), 0.0]
    value, _, _ = warped.warped(
        f,
        a,
        u,
        m,
        mode,
        BORDERS[border],
        warped.LOSSES[loss],
        integers,
        numbers,
        wz,
        wy,
        wx,
        needs_gradient(a),
        needs_gradient(u),
    )
    return value


# ---------------------------------------------------------------- displacements


def compose(outer: Tensor, inner: Tensor, border: Border = "border") -> Tensor:
    """The displacement of (Id + outer) o (Id + inner): inner(x) + outer(x + inner(x))."""
    displacement(outer, inner)
    if outer.shape[1] != 3:
        raise DaskregError(f"the outer displacement has {outer.shape[1]} components; 3 were expected.")
    return _sample(outer, inner, None, DISPLACEMENT, border, "bilinear", True, (), True)


def exponential(velocity: Tensor, steps: int = 7, border: Border = "zeros") -> Tensor:
    """The displacement exp(v) - Id of a stationary velocity, by ``steps`` squarings of Id + v / 2^steps.

    No field is kept for the derivative but the velocity: the backward pass computes the steps again.
    """
    displacement(velocity, velocity)
    one_of("border", border, tuple(BORDERS))
    if not 0 <= steps <= 30:
        raise DaskregError(f"{steps} steps were given; 0 to 30 were expected.")
    _refuse_nondeterminism(velocity)
    (v,) = computed(velocity)
    return operators.exponential(v, steps, BORDERS[border]).to(velocity.dtype)


def gaussian(
    image: Tensor,
    sigma: float | Sequence[float],
    *,
    truncate: float = 3.0,
    border: Literal["renormalize", "zeros"] = "renormalize",
) -> Tensor:
    """Every channel filtered by a Gaussian along z, y, x.

    sigma: in voxels, for all axes or each;  truncate: sigmas up to which there are weights;  border: divide by the sum of the
    weights inside, or take zeros beyond the faces. Its derivative has derivatives too.
    """
    five_dimensional(image)
    one_of("border", border, ("renormalize", "zeros"))
    if min(triple(sigma)) < 0:
        raise DaskregError(f"sigma is {sigma}; 0 or more was expected.")
    wz, wy, wx = (list(gaussian_taps(float(s), truncate)) for s in triple(sigma))
    (source,) = computed(image)
    return operators.filtered(source, wz, wy, wx, border == "renormalize", False).to(image.dtype)


def gradient_penalty(field: Tensor, penalty: Literal["l1", "l2"] = "l2") -> Tensor:
    """The mean absolute or squared forward difference along each axis, and then over the axes: ()."""
    five_dimensional(field)
    some(field)
    one_of("penalty", penalty, ("l1", "l2"))
    (u,) = computed(field)
    return operators.penalize(u, int(penalty == "l2"))


def bending_energy(field: Tensor, normalize: bool = False) -> Tensor:
    """The mean over components and interior voxels of all squared second differences, mixed ones twice: ().

    normalize: positions and displacements in fractions of the extents, as in MONAI; then the field is (B, 3, Z, Y, X)
    """
    five_dimensional(field)
    if min(field.shape[2:]) < 3 or (normalize and field.shape[1] != 3):
        raise DaskregError(f"the field has the shape {tuple(field.shape)}; (B, 3, Z, Y, X) of at least 3 voxels was expected.")
    some(field)
    (u,) = computed(field)
    return operators.penalize(u, 2 + int(normalize))


def jacobian_determinant(displacement_field: Tensor) -> Tensor:
    """det(I + Du) by central differences, one-sided at the faces: (B, 1, Z, Y, X); not positive where the map folds."""
    displacement(displacement_field, displacement_field)
    (u,) = computed(displacement_field)
    return operators.determinant(u)
