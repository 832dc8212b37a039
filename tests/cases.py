"""Arguments for every kernel, on volumes awkward enough to matter: odd sizes, halo planes, far indices, points out of the image.

``CASES[name]()`` is ``(shape, *arguments)``, made afresh because kernels write to their arguments; a name is the kernel's, or
that, a space and what is special. ``COOPERATIVE_CASES[name]()`` is the same for a cooperative kernel, with what it must agree
with. The parity tests and the check that all kernels compile for a GPU go through these tables, so a kernel without a case
fails both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.adam import coherent
from daskreg.kernels.adam import cpu as adam_cpu
from daskreg.kernels.adam import cuda as adam_cuda
from daskreg.kernels.adam.moments import pack_moments, unpack_moments
from daskreg.kernels.compiler.cooperative import COOPERATIVE_KERNELS, CooperativeKernel
from daskreg.kernels.compiler.launch import KERNELS, Kernel, extent
from daskreg.kernels.compiler.launch import box as whole_box
from daskreg.kernels.compiler.registry import import_kernels
from daskreg.kernels.composition import cpu as composition_cpu
from daskreg.kernels.composition import cuda as composition_cuda
from daskreg.kernels.intensity_histogram import cpu as intensity_cpu
from daskreg.kernels.intensity_histogram import cuda as intensity_cuda
from daskreg.kernels.intrinsics.half import from_float16_bits, to_float16_bits
from daskreg.kernels.peaks import cpu as peaks_cpu
from daskreg.kernels.peaks import cuda as peaks_cuda
from daskreg.kernels.sampling import cpu as sampling_cpu
from daskreg.kernels.sampling import cuda as sampling_cuda
from daskreg.kernels.smoothing import cpu as smoothing_cpu
from daskreg.kernels.smoothing.cpu import gaussian_radius, gaussian_table, gaussian_weights
from daskreg.kernels.smoothing.downsampling import downsample_table
from daskreg.kernels.weights import FIXED_POINT_SCALE
from daskreg.optimizers.sgd import SGD
from daskreg.similarity.lncc import cpu as lncc_cpu
from daskreg.similarity.lncc.cuda import gradient as lncc_gradient_cuda
from daskreg.similarity.lncc.cuda import windows as lncc_windows
from daskreg.similarity.mse import cpu as mse_cpu
from daskreg.similarity.mse import cuda as mse_cuda
from daskreg.similarity.mutual_information import cpu as mi_cpu
from daskreg.similarity.mutual_information.cuda import columns, histogram
from daskreg.similarity.mutual_information.cuda import gradient as mi_gradient
from daskreg.similarity.ngf import cpu as ngf_cpu
from daskreg.similarity.ngf import cuda as ngf_cuda
from daskreg.transforms.linear import linear_part, to_fixed_point

Array = NDArray[np.float32]
Case = tuple[Any, ...]

SHAPE = (7, 8, 9)
OTHER = (6, 9, 8)  # the moving image's
HALO = 2  # planes before and behind the block
TALL = (SHAPE[0] + 2 * HALO, *SHAPE[1:])
INNER = (range(HALO, HALO + SHAPE[0]), *SHAPE[1:])  # the block's planes in arrays of the shape TALL
SHARD = range(2, 5)  # planes of the moving image that another rank sends
RELATION = np.array([1.25, -0.1], np.float32)  # gain and offset of intensities
TERMS = np.float32(2), np.float32(0.7)  # of the product and of the square of normalised gradients
FIRST = 30_000  # global plane of the block's first, where the sampler must still be exact
BINS = 16
EPSILON = np.float32(1e-5)
VARIANCES = np.float32(0.08), np.float32(0.05)  # least and noise of local correlation; noise has 1/12, so some windows are flat
# no point falls on a plane of voxels, where the gradient jumps
MATRIX = np.array(
    [[0.9137, 0.1071, -0.2113, 0.8171], [0.1533, 1.1019, 0.0517, -1.3391], [-0.1097, 0.2039, 0.8513, 0.4177], [0, 0, 0, 1]]
)

CASES: dict[str, Callable[[], Case]] = {}


class CooperativeCase(NamedTuple):
    """How to launch a cooperative kernel, and what it must agree with."""

    constants: tuple[Any, ...]
    blocks: tuple[int, int, int]
    threads: int | tuple[int, int, int]
    arguments: tuple[Any, ...]
    plain: Callable[[], list[NDArray[Any]]]  # what the plain kernels give
    found: Callable[[], list[NDArray[Any]]]  # the same, out of the arguments after the launch
    shared: int = 0
    double: bool = False  # whether it may use float64


COOPERATIVE_CASES: dict[str, Callable[[], CooperativeCase]] = {}


def cooperative_kernels() -> dict[str, CooperativeKernel]:
    """Every cooperative kernel of the package, by name."""
    kernels()
    return dict(COOPERATIVE_KERNELS)


def cooperative_case(function: Callable[[], CooperativeCase]) -> Callable[[], CooperativeCase]:
    """Register the case of the cooperative kernel that has the function's name."""
    COOPERATIVE_CASES[function.__name__] = function
    return function


def kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by name: importing the modules registers them. Examples of the documentation register more."""
    import_kernels()
    return {name: kernel for name, kernel in KERNELS.items() if kernel.body.__module__.startswith("daskreg.")}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    """Enter the case of the kernel that has the function's name."""
    CASES[function.__name__] = function
    return function


def image(*shape: int, seed: int = 0) -> Array:
    """Intensities in [0, 1)."""
    return np.random.default_rng(seed).random(shape, np.float32)


def moved(*shape: int) -> Array:
    """Intensities, one voxel in eight out of domain."""
    values = image(*shape, seed=1)
    values[image(*shape, seed=2) < 0.125] = np.nan
    return values


def weights(*shape: int) -> Array:
    """A soft mask, a quarter of it zero."""
    return np.clip(image(*shape, seed=3) * 4 / 3 - 1 / 3, 0, 1)


def vectors(*shape: int, size: float = 1.0, seed: int = 4) -> Array:
    """A field (3, Z, Y, X) with components within ``size``."""
    return (image(3, *shape, seed=seed) * 2 - 1) * np.float32(size)


def empty(*shape: int) -> Array:
    """An output."""
    return np.zeros(shape, np.float32)


def rates(t: int, epsilon: float = 1e-8, chance: float = 0.0) -> Array:
    """Adam's decays 0.9 and 0.99, their bias corrections in step t, epsilon, and the chance level of m^2/v."""
    return np.array([0.9, 0.99, 1 / (1 - 0.9**t), 1 / (1 - 0.99**t), epsilon, chance], np.float32)


def adam_row(gated: bool) -> Array:
    """``rates`` of step 3."""
    return rates(3, chance=0.2 if gated else 0.0)


def kernel_of(name: str) -> Kernel:
    """The kernel that a case is for."""
    return kernels()[name.partition(" ")[0]]


def sampling_map(halo: int = 0) -> tuple[Any, ...]:
    """first, affine, linear of a block far up the z axis, whose points still meet the image; its arrays begin with a halo."""
    matrix = MATRIX.copy()
    matrix[:3, 3] -= matrix[:3, 0] * FIRST
    return FIRST - halo, to_fixed_point(matrix), linear_part(matrix)


def tall() -> tuple[Any, ...]:
    """The same points with the block's first plane behind a halo; displacements that are NaN where nothing may read them."""
    u = vectors(*TALL, size=3)
    u[:, :HALO] = u[:, -HALO:] = np.nan
    return *sampling_map(HALO), u


def shard(whole: NDArray[Any]) -> tuple[int, NDArray[Any]]:
    """Number of the first plane and the planes of a part of the moving image."""
    return SHARD.start, np.ascontiguousarray(whole[SHARD.start : SHARD.stop])


def located_shard() -> tuple[int, int, Array]:
    """Number of the first plane of a part of the moving image, planes of the whole, the part's planes."""
    origin, planes = shard(image(*OTHER))
    return origin, OTHER[0], planes


# --- sampling ---------------------------------------------------------------------------------------------------------


@case
def sample() -> Case:
    return INNER, *tall(), 0, OTHER[0], 0, image(*OTHER), empty(*TALL)


@case
def sample_stack() -> Case:
    images = np.stack([image(*OTHER, seed=k) for k in range(3)])
    return INNER, *tall(), 0, OTHER[0], 0, images, empty(3, *TALL)


@case
def sample_nearest() -> Case:
    return SHAPE, *sampling_map(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_label() -> Case:
    labels = (image(*OTHER) * 4).astype(np.uint16)
    return SHAPE, *sampling_map(), vectors(*SHAPE, size=3), labels, np.zeros(SHAPE, np.uint16)


@case
def combine_masks() -> Case:
    return INNER, *tall(), 0, OTHER[0], weights(*TALL), weights(*OTHER), empty(*TALL)


@case
def pull_back() -> Case:
    return INNER, *tall(), 0, OTHER[0], image(*OTHER), image(*TALL, seed=5) - np.float32(0.5), empty(3, *TALL)


@case
def affine_sums() -> Case:
    return INNER, *tall(), 0, OTHER[0], image(*OTHER), image(*TALL, seed=5) - np.float32(0.5)


@case
def mark_domain() -> Case:
    return INNER, *tall(), OTHER[0], 0, image(*OTHER), empty(*TALL)


@case
def add_value() -> Case:
    return INNER, *tall(), *located_shard(), moved(*TALL)


@case
def sample_cells() -> Case:
    """A box of the moving image: of its planes 1 to 5, of its rows 2 to 7, of its columns all but the first."""
    box = np.ascontiguousarray(image(*OTHER)[1:5, 2:7, 1:])
    cells, corner, extent = (tuple(map(np.int32, some)) for some in ((1, 4, 2, 6), (1, 2, 1), OTHER))
    return INNER, *tall(), cells, corner, extent, 0, box, moved(*TALL)


@case
def lower_weight() -> Case:
    return INNER, *tall(), *located_shard(), weights(*TALL)


@case
def add_value_and_gradient() -> Case:
    return INNER, *tall(), *located_shard(), moved(*TALL), vectors(*TALL, seed=10)


@case
def apply_jacobian_transpose() -> Case:
    return INNER, linear_part(MATRIX), image(*TALL, seed=5) - np.float32(0.5), vectors(*TALL)


@case
def gradient_sums() -> Case:
    return INNER, image(*TALL, seed=5) - np.float32(0.5), vectors(*TALL)


@case
def plane_range() -> Case:
    return INNER, *tall()


def at_rest(name: str, u: int = 4) -> Callable[[], Case]:
    """The case of a sampling kernel without displacement: None at argument ``u``."""
    return lambda: (lambda made: (*made[:u], None, *made[u + 1 :]))(CASES[name]())


RESTING = (
    "sample",
    "combine_masks",
    "affine_sums",
    "mark_domain",
    "lower_weight",
    "add_value",
    "add_value_and_gradient",
    "sample_cells",
    "plane_range",
)
CASES |= {f"{name} at rest": at_rest(name) for name in RESTING}


def sample_window() -> Case:
    """Points at planes 2.05 to 3.85 of the moving image, of which three planes are here."""
    matrix = MATRIX.copy()
    matrix[0] = 0.3, 0, 0, 2.05 - 0.3 * HALO
    origin, near = shard(image(*OTHER))
    return INNER, 0, to_fixed_point(matrix), linear_part(matrix), None, origin, OTHER[0], 0, near, empty(*TALL)


CASES["sample of a window"] = sample_window


# --- whole transforms -------------------------------------------------------------------------------------------------


@case
def sample_cubic() -> Case:
    return SHAPE, *sampling_map(), vectors(*SHAPE, size=3), image(*OTHER), empty(*SHAPE)


@case
def sample_field() -> Case:
    return SHAPE, to_fixed_point(MATRIX), linear_part(MATRIX), vectors(*SHAPE, size=3), vectors(*OTHER, seed=6), empty(3, *SHAPE)


@case
def invert() -> Case:
    """The block's first voxel lies before the field's grid, and its last one beyond it."""
    u = vectors(*SHAPE, size=0.2)
    at, first, size = (np.array(v, np.int32) for v in ((-3, 9, 6), (0, 0, 0), SHAPE))
    return SHAPE, at, first, size, np.array([0], np.float32), 30, 2, u, empty(3, *SHAPE), empty(*SHAPE)


# --- similarities -----------------------------------------------------------------------------------------------------


@case
def squared_difference() -> Case:
    return INNER, *RELATION, image(*TALL), weights(*TALL), moved(*TALL)


@case
def intensity_moments() -> Case:
    return INNER, image(*TALL), weights(*TALL), moved(*TALL)


@case
def lncc_factors() -> Case:
    return INNER, 2, EPSILON, VARIANCES, image(*TALL), weights(*TALL), moved(*TALL), empty(3, *TALL)


@case
def lncc_gradient() -> Case:
    return INNER, 2, vectors(*TALL), image(*TALL), weights(*TALL), moved(*TALL)


@case
def ngf_factors() -> Case:
    """With two planes around the block, of which the one next to it is asked for too."""
    around = (range(HALO - 1, HALO + SHAPE[0] + 1), *SHAPE[1:])
    return around, 1, np.float32(4e-4), *TERMS, image(*TALL), weights(*TALL), moved(*TALL), empty(3, *TALL)


@case
def ngf_slope() -> Case:
    return INNER, 2, vectors(*TALL), moved(*TALL)


def ngf_factors_at_ends() -> Case:
    """All planes of the arrays, so that differences are one-sided on both faces."""
    return TALL, 1, np.float32(4e-4), *TERMS, image(*TALL), weights(*TALL), moved(*TALL), empty(3, *TALL)


@case
def ngf_smoothed_factors() -> Case:
    return ngf_factors()


@case
def ngf_smoothed_slope() -> Case:
    return ngf_slope()


CASES["ngf_factors at all ends"] = CASES["ngf_smoothed_factors at all ends"] = ngf_factors_at_ends
CASES["ngf_slope at all ends"] = CASES["ngf_smoothed_slope at all ends"] = lambda: (TALL, 2, vectors(*TALL), moved(*TALL))


@case
def pose_sums() -> Case:
    """Two maps; SHAPE's planes and rows are one axis, and some voxels of both images do not count.

    The second one maps no voxel to within 0.002 of a voxel's centre or border, where rounding would choose the side of a step.
    """
    turn = np.array([[0.825, 0.118, -0.177, 1.311], [-0.08, 0.887, 0.193, 0.397], [0.215, -0.074, 0.823, -0.592]])
    maps = [np.r_[m[:, :3].ravel(), m[:, 3], 2, 3, 4, 1.1].astype(np.float32) for m in (np.eye(3, 4), turn)]
    fixed, moving = (np.concatenate([vectors(*SHAPE) - 0.5, (image(*SHAPE, seed=k) > 0.2)[None]]) for k in (7, 8))
    return (2, SHAPE[0] * SHAPE[1], SHAPE[2]), np.array(maps), *(a.astype(np.float32) for a in (fixed, moving))


@case
def tensor_sums() -> Case:
    box, maps, *_ = pose_sums()
    fixed, moving = (np.concatenate([vectors(*SHAPE, seed=k) - 0.5 for k in (s, s + 1)] + [np.ones((1, *SHAPE))]) for s in (1, 3))
    return box, maps, *(a.astype(np.float32) for a in (fixed, moving))


@case
def joint_histogram() -> Case:
    return INNER, np.zeros((1, BINS, BINS), np.int64), image(*TALL), weights(*TALL), moved(*TALL)


@case
def information_gradient() -> Case:
    return INNER, image(BINS, BINS, seed=6) - np.float32(0.5), image(*TALL), weights(*TALL), moved(*TALL)


@case
def intensity_histogram() -> Case:
    return SHAPE, np.zeros((1, BINS), np.int64), np.float32(0.1), np.float32(0.8 / BINS), image(*SHAPE)


# --- filters ----------------------------------------------------------------------------------------------------------


@case
def smooth_z() -> Case:
    return INNER, gaussian_table(20, 1.0)[-TALL[0] :], gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


@case
def smooth_y() -> Case:
    return INNER, gaussian_table(SHAPE[1], 1.0), gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


@case
def smooth_x() -> Case:
    return INNER, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), vectors(*TALL), empty(3, *TALL)


@case
def downsample_z() -> Case:
    return (4, 8, 9), 0, *downsample_table(7, 2), image(*SHAPE), empty(4, 8, 9)


@case
def downsample_y() -> Case:
    return (7, 4, 9), *downsample_table(8, 2), image(*SHAPE), empty(7, 4, 9)


@case
def downsample_x() -> Case:
    return (7, 8, 5), *downsample_table(9, 2), image(*SHAPE), empty(7, 8, 5)


@case
def add_four_planes() -> Case:
    return (8, 3, 9), image(3, 4, 1)[..., 0].copy(), image(4, 8, 9), image(3, 8, 9)


@case
def add_plane() -> Case:
    return (8, 3, 9), image(3, 1, 1)[:, 0, 0].copy(), image(8, 9, 1)[..., 0].copy(), image(3, 8, 9)


@case
def add_rows() -> Case:
    first, table = downsample_table(8, 2)
    low = np.maximum(-first, 0).astype(np.int32)
    high = np.minimum(8 - first, table.shape[1]).astype(np.int32)
    return (7, 4, 9), low, high, first, table, image(*SHAPE), image(7, 4, 9)


# --- the deformable step ----------------------------------------------------------------------------------------------


@case
def adam() -> Case:
    moments = vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))
    return (INNER, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), adam_row(True), vectors(*TALL), *moments,
            empty(3, *TALL))  # fmt: skip


@case
def momentum_step() -> Case:
    optimizer = SGD().build("float32", "cpu")
    rows = np.stack([optimizer.coefficients(t, 0.1) for t in (1, 2, 3)])
    return INNER, rows, np.array([1], np.int32), vectors(*TALL, seed=7), vectors(*TALL)


@case
def packed_adam() -> Case:
    """The same with both moments in a word."""
    words = pack_moments(vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8)))
    return (INNER, 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), adam_row(True), 4, 17, vectors(*TALL), words,
            empty(3, *TALL))  # fmt: skip


@case
def packed_adam_direction() -> Case:
    """Of the same words."""
    words = pack_moments(vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8)))
    return INNER, adam_row(True), words, empty(3, *TALL)


@case
def adam_direction() -> Case:
    moments = vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))
    return INNER, np.stack([rates(t) for t in (1, 2, 3)]), np.array([1], np.int32), *moments, empty(3, *TALL)


def coherent_rows() -> Array:
    """Rates of three steps, with a coherence of 0.5."""
    return np.stack([rates(t, 0.1, 0.5) for t in (1, 2, 3)])


def shares(shape: tuple[int, ...]) -> list[Array]:
    """By axis, of a Gaussian of one voxel."""
    return [smoothing_cpu.gaussian_shares(n, 1.0) for n in shape]


@case
def squared_length() -> Case:
    return INNER, vectors(*TALL), empty(3, *TALL)


@case
def mean_along_z() -> Case:
    return INNER, gaussian_table(TALL[0], 1.0), gaussian_weights(1.0), vectors(*TALL)


@case
def mean_along_y() -> Case:
    return INNER, gaussian_table(SHAPE[1], 1.0), gaussian_weights(1.0), vectors(*TALL)


@case
def update_chance() -> Case:
    filter_ = 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), *shares(TALL)
    return INNER, *filter_, coherent_rows()[2], np.square(vectors(*TALL)), np.square(vectors(*TALL, seed=8))


@case
def update_packed_chance() -> Case:
    filter_ = 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0), *shares(TALL)
    return INNER, *filter_, coherent_rows()[2], 4, 17, np.square(vectors(*TALL)), words()


@case
def coherent_adam() -> Case:
    moments = vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))
    filter_ = 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0)
    return INNER, *filter_, coherent_rows()[2], vectors(*TALL), *moments, empty(3, *TALL)


@case
def packed_coherent_adam() -> Case:
    filter_ = 2, gaussian_table(SHAPE[2], 1.0), gaussian_weights(1.0)
    return INNER, *filter_, coherent_rows()[2], vectors(*TALL), words(), empty(3, *TALL)


@case
def coherent_direction() -> Case:
    moments = vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))
    return INNER, coherent_rows(), np.array([1], np.int32), *moments, empty(3, *TALL)


@case
def packed_coherent_direction() -> Case:
    return INNER, coherent_rows()[2], words(), empty(3, *TALL)


@case
def momentum_direction() -> Case:
    optimizer = SGD().build("float32", "cpu")
    rows = np.stack([optimizer.coefficients(t, 0.1) for t in (1, 2, 3)])
    return INNER, rows, np.array([1], np.int32), vectors(*TALL, seed=7), empty(3, *TALL)


@case
def compose() -> Case:
    """Planes 4 to 10, the last, of a grid, with two planes before them and none behind."""
    shape = (HALO + SHAPE[0], *SHAPE[1:])
    u, d = vectors(*shape, size=4), vectors(*shape, seed=9)
    return INNER, 2, 11, np.array([0.9], np.float32), d, u, empty(3, *shape)


@case
def compose_shortened() -> Case:
    """As ``compose``, with a third of the vectors longer than 0.5."""
    shape = (HALO + SHAPE[0], *SHAPE[1:])
    u, d = vectors(*shape, size=4), vectors(*shape, seed=9)
    return INNER, 2, 11, np.array([0.6, 0.5], np.float32), d, u, empty(3, *shape)


@case
def upsample() -> Case:
    """Planes 7 to 13, the last, of a grid whose coarse one has 7, of which the last four are here."""
    fine, coarse = np.array([1, 2, 1], np.int32), np.array([2, 3, 1], np.int32)
    return INNER, 5, 3, 7, fine, coarse, np.array([2, 1.5, 1], np.float32), vectors(4, 6, 9), empty(3, *TALL)


@case
def jacobian() -> Case:
    return SHAPE, HALO, vectors(*TALL, size=0.4), empty(*SHAPE)


# --- 16 bits ----------------------------------------------------------------------------------------------------------


def bfloats(values: Array) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, as NumPy has it."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def floats(bits: NDArray[np.uint16]) -> Array:
    """The float32 of such bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def stored(voxels: Array, half: bool) -> tuple[NDArray[Any], Array]:
    """An image as a kernel gets it, and the values that gives: float32, or rounded to float16."""
    return (to_float16_bits(voxels), from_float16_bits(to_float16_bits(voxels))) if half else (voxels, voxels)


@case
def decode_bfloat16() -> Case:
    return INNER, bfloats(vectors(*TALL)), empty(3, *TALL)


@case
def encode_bfloat16() -> Case:
    return INNER, vectors(*TALL), np.zeros((3, *TALL), np.uint16)


@case
def to_float32() -> Case:
    nz, ny, nx = SHAPE
    return SHAPE, 1, 2, np.arange(nz * ny * nx, dtype=np.uint16).reshape(SHAPE), empty(nz + 1, ny + 2, nx)


# --- cooperative kernels ----------------------------------------------------------------------------------------------


def sizes(depth: int) -> list[np.int32]:
    """first, planes, ny, nx, held, origin and depth of INNER in arrays of the shape TALL."""
    return [np.int32(v) for v in (HALO, *SHAPE, TALL[0], FIRST - HALO, depth)]


def flat(*fields: NDArray[Any]) -> list[NDArray[Any]]:
    """Scalar fields as cooperative kernels take them."""
    return [f.reshape(-1) for f in fields]


def inner(field: NDArray[Any], plane: tuple[int, ...] = SHAPE[1:]) -> NDArray[Any]:
    """The block's planes of a flat field, (N,) or (3, N)."""
    return field.reshape(*field.shape[:-1], TALL[0], *plane)[..., HALO : HALO + SHAPE[0], :, :].copy()


def counted_in_units(totals: NDArray[np.int64]) -> Array:
    """Sums from what was counted."""
    return (totals / FIXED_POINT_SCALE).astype(np.float32)


def windows(radius: int, masked: bool, exact: bool, half: bool = False, scale: float = 1) -> CooperativeCase:
    """``lncc_center_tiled`` or ``lncc_factors_tiled``; windows reach no further than the halo.  scale: of the mask."""
    (kept, fixed), weight, there = stored(image(*TALL), half), weights(*TALL) if masked else empty(0, 0, 0), moved(*TALL)
    weight *= np.float32(scale)
    out = empty(3, fixed.size) if exact else empty(fixed.size)
    blocks = lncc_windows.window_blocks(radius, *SHAPE, depth=4)
    totals, own = np.zeros(2, np.int64), (np.int32(HALO), np.int32(HALO + SHAPE[0]))

    def plain() -> list[NDArray[Any]]:
        dkc, slope = empty(3, *TALL), there.copy()
        rows = lncc_cpu.lncc_factors(INNER, radius, EPSILON, VARIANCES, fixed, weight, there, dkc)
        lncc_cpu.lncc_gradient(INNER, 0, dkc, fixed, weight, slope)
        return [inner(dkc.reshape(3, -1) if exact else slope.reshape(-1)), rows.sum(axis=(1, 2))]

    arguments = *sizes(4), own, EPSILON, VARIANCES, *flat(kept, weight, there), out, totals
    return CooperativeCase((radius, masked, half), blocks, lncc_windows.window_threads(radius), arguments, plain,
                 lambda: [inner(out), counted_in_units(totals)])  # fmt: skip


@cooperative_case
def lncc_center_tiled() -> CooperativeCase:
    return windows(2, True, exact=False)


@cooperative_case
def lncc_factors_tiled() -> CooperativeCase:
    return windows(2, True, exact=True)


COOPERATIVE_CASES["lncc_factors_tiled of subnormal weights"] = lambda: windows(1, True, exact=True, scale=1e-41)
COOPERATIVE_CASES["lncc_center_tiled without a mask"] = lambda: windows(2, False, exact=False)
COOPERATIVE_CASES["lncc_center_tiled of radius 3"] = lambda: windows(3, False, exact=False)
COOPERATIVE_CASES["lncc_center_tiled of half"] = lambda: windows(3, False, exact=False, half=True)
COOPERATIVE_CASES["lncc_factors_tiled of half"] = lambda: windows(2, True, exact=True, half=True)
COOPERATIVE_CASES["lncc_factors_tiled of radius 1"] = lambda: windows(1, False, exact=True)
COOPERATIVE_CASES["lncc_factors_tiled of radius 3"] = lambda: windows(3, False, exact=True)
COOPERATIVE_CASES["lncc_factors_tiled of radius 4"] = lambda: windows(4, False, exact=True)


@cooperative_case
def lncc_gradient_tiled() -> CooperativeCase:
    return window_slope(2, masked=True)


def window_slope(radius: int, masked: bool, half: bool = False) -> CooperativeCase:
    """``lncc_gradient_tiled``, which replaces ``moved``."""
    dkc, weight, there = vectors(*TALL), weights(*TALL) if masked else empty(0, 0, 0), moved(*TALL)
    kept, fixed = stored(image(*TALL), half)
    out = there.reshape(-1).copy()

    def plain() -> list[NDArray[Any]]:
        lncc_cpu.lncc_gradient(INNER, radius, dkc, fixed, weight, there)
        return [inner(there.reshape(-1))]

    arguments = *sizes(4), dkc.reshape(3, -1), *flat(kept, weight), out
    blocks = lncc_gradient_cuda.gradient_blocks(*SHAPE, depth=4)
    return CooperativeCase(
        (radius, masked, half), blocks, lncc_gradient_cuda.GRADIENT_THREADS, arguments, plain, lambda: [inner(out)]
    )


COOPERATIVE_CASES["lncc_gradient_tiled of radius 1"] = lambda: window_slope(1, masked=False)
COOPERATIVE_CASES["lncc_gradient_tiled of radius 3"] = lambda: window_slope(3, masked=False)
COOPERATIVE_CASES["lncc_gradient_tiled of half"] = lambda: window_slope(2, masked=True, half=True)


@cooperative_case
def ngf_counted() -> CooperativeCase:
    return gradient_fields(masked=True)


def gradient_fields(masked: bool, half: bool = False, smoothed: bool = False) -> CooperativeCase:
    """``ngf_counted`` with a plane on each side of those that count."""
    (kept, fixed), weight, there = stored(image(*TALL), half), weights(*TALL) if masked else empty(0, 0, 0), moved(*TALL)
    factors, totals, eta_squared = empty(3, *TALL), np.zeros(2, np.int64), np.float32(4e-4)
    around = (range(HALO - 1, HALO + SHAPE[0] + 1), *SHAPE[1:])

    def plain() -> list[NDArray[Any]]:
        made = empty(3, *TALL)
        write = ngf_cpu.ngf_smoothed_factors if smoothed else ngf_cpu.ngf_factors
        rows = write(around, 1, eta_squared, *TERMS, fixed, weight, there, made)
        return [made, rows[:, 1:-1].sum(axis=(1, 2))]

    own = np.uint32(HALO), np.uint32(HALO + SHAPE[0])
    arguments = extent(around), own, eta_squared, *TERMS, kept, weight, there, factors, totals
    blocks = -(-SHAPE[2] // ngf_cuda.THREADS), SHAPE[1], SHAPE[0] + 2
    return CooperativeCase((smoothed,), blocks, ngf_cuda.THREADS, arguments, plain, lambda: [factors, counted_in_units(totals)])


COOPERATIVE_CASES["ngf_counted without a mask"] = lambda: gradient_fields(masked=False)
COOPERATIVE_CASES["ngf_counted by smoothed differences"] = lambda: gradient_fields(masked=True, smoothed=True)
COOPERATIVE_CASES["ngf_counted of half"] = lambda: gradient_fields(masked=True, half=True)


@cooperative_case
def joint_histogram_shared() -> CooperativeCase:
    return counted(BINS, masked=True)


def counted(bins: int, masked: bool, half: bool = False) -> CooperativeCase:
    """``joint_histogram_shared``."""
    (kept, fixed), weight, there = stored(image(*TALL), half), weights(*TALL) if masked else empty(0, 0, 0), moved(*TALL)
    totals = np.zeros(bins * bins, np.int64)

    def plain() -> list[NDArray[Any]]:
        counts = np.zeros((1, bins, bins), np.int64)
        mi_cpu.joint_histogram(INNER, counts, fixed, weight, there)
        return [counts.reshape(-1)]

    arguments = *voxels(), *flat(kept, weight, there), totals
    return CooperativeCase((bins, masked, half), (2, 1, 1), histogram.THREADS, arguments, plain, lambda: [totals],
                 shared=histogram.histogram_bytes(bins))  # fmt: skip


def voxels() -> list[np.uint64]:
    """The first voxel of INNER in a flat field, and that behind the last."""
    floor = SHAPE[1] * SHAPE[2]
    return [np.uint64(HALO * floor), np.uint64((HALO + SHAPE[0]) * floor)]


COOPERATIVE_CASES["joint_histogram_shared of 32 bins"] = lambda: counted(32, masked=False)
COOPERATIVE_CASES["joint_histogram_shared of half"] = lambda: counted(BINS, masked=True, half=True)


@cooperative_case
def information_table() -> CooperativeCase:
    totals = (image(BINS, BINS, seed=6) * 1e6).astype(np.int64).reshape(-1)
    totals[:40] = 0
    table, value = empty(BINS * BINS), np.zeros(2)

    def plain() -> list[NDArray[Any]]:
        p = (totals / totals.sum()).reshape(BINS, BINS)
        both = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
        ratio = np.log(np.where(p > 0, p, 1) / np.where(p > 0, both, 1))
        return [ratio.reshape(-1), np.array([-(p * ratio).sum(), totals.sum() / mi_cpu.FIXED_POINT])]

    return CooperativeCase((BINS,), (1, 1, 1), histogram.TABLE_THREADS, (totals, table, value), plain, lambda: [table, value],
                 double=True)  # fmt: skip


@cooperative_case
def information_gradient_shared() -> CooperativeCase:
    return looked_up(half=False)


def looked_up(half: bool) -> CooperativeCase:
    """``information_gradient_shared``."""
    table, weight, there = image(BINS, BINS, seed=6) - np.float32(0.5), weights(*TALL), moved(*TALL)
    kept, fixed = stored(image(*TALL), half)
    out = empty(fixed.size)

    def plain() -> list[NDArray[Any]]:
        mi_cpu.information_gradient(INNER, table, fixed, weight, there)
        return [inner(there.reshape(-1))]

    arguments = *voxels(), *flat(table, kept, weight, there.copy()), out
    return CooperativeCase((BINS, True, 2, half), (2, 1, 1), mi_gradient.GRADIENT_THREADS, arguments, plain, lambda: [inner(out)],
                 shared=mi_gradient.table_bytes(BINS, 2))  # fmt: skip


COOPERATIVE_CASES["information_gradient_shared of half"] = lambda: looked_up(half=True)


@cooperative_case
def intensity_histogram_shared() -> CooperativeCase:
    volume, totals, ends = image(*TALL), np.zeros(BINS, np.int64), (np.float32(0.1), np.float32(0.8 / BINS))

    def plain() -> list[NDArray[Any]]:
        counts = np.zeros((1, BINS), np.int64)
        intensity_cpu.intensity_histogram(INNER, counts, *ends, volume)
        return [counts.reshape(-1)]

    arguments = *voxels(), *ends, volume.reshape(-1), totals
    return CooperativeCase((), (2, 1, 1), intensity_cuda.THREADS, arguments, plain, lambda: [totals])


# --- cooperative sampling ---------------------------------------------------------------------------------------------

EXTENT = tuple(np.uint32(v) for v in whole_box(INNER))


def sampled(
    constants: tuple[Any, ...], fields: tuple[NDArray[Any], ...], totals: NDArray[Any], *results: Any, half: bool = False
) -> CooperativeCase:
    """Arguments of a sampling kernel at the points of ``tall``, over the whole moving image."""
    first, affine, linear, u = tall()
    depth, blocks, threads = sampling_cuda.launch_grid(EXTENT)
    size = tuple(np.int32(v) for v in (OTHER[0], 0, *OTHER, 0))
    arguments = depth, EXTENT, np.int32(first), affine, linear, u.reshape(3, -1), size, whole_moving(half)[0].reshape(-1), fields
    arguments = *arguments, totals
    return CooperativeCase(constants, blocks, threads, arguments, *results)


def whole_moving(half: bool) -> tuple[NDArray[Any], Array]:
    """The moving image as a kernel gets it, and its values."""
    return stored(image(*OTHER), half)


def gradient(mixed: bool) -> tuple[NDArray[Any], Callable[[], NDArray[Any]]]:
    """Where a gradient goes, and what is there then, as float32."""
    g = np.zeros((3, *TALL), np.uint16 if mixed else np.float32)
    return g, lambda: inner((floats(g) if mixed else g).reshape(3, -1))


@cooperative_case
def sample_columns() -> CooperativeCase:
    return values(half=False)


def values(half: bool) -> CooperativeCase:
    """``sample_columns``."""
    out = empty(*TALL)

    def plain() -> list[NDArray[Any]]:
        sampling_cpu.sample(INNER, *tall(), 0, OTHER[0], 0, whole_moving(half)[1], out)
        return [inner(out.reshape(-1))]

    return sampled((True,), (out.reshape(-1),), empty(2), plain, lambda: [inner(out.reshape(-1))], half=half)


COOPERATIVE_CASES["sample_columns of half"] = lambda: values(half=True)


@cooperative_case
def mse_columns() -> CooperativeCase:
    return differences(mixed=False)


def differences(mixed: bool) -> CooperativeCase:
    """``mse_columns``."""
    (kept, fixed), weight, totals = stored(image(*TALL), mixed), weights(*TALL), np.zeros(2, np.int64)
    g, found = gradient(mixed)

    def plain() -> list[NDArray[Any]]:
        there, made = empty(*TALL), empty(3, *TALL)
        sampling_cpu.sample(INNER, *tall(), 0, OTHER[0], 0, whole_moving(mixed)[1], there)
        rows = mse_cpu.squared_difference(INNER, np.float32(1), np.float32(0), fixed, weight, there)
        sampling_cpu.pull_back(INNER, *tall(), 0, OTHER[0], whole_moving(mixed)[1], there, made)
        return [inner(made.reshape(3, -1)), rows.sum(axis=(1, 2))]

    fields, constants = (*flat(kept, weight), g.reshape(3, -1)), (True,) if mixed else ()
    return sampled(constants, fields, totals, plain, lambda: [found(), counted_in_units(totals)], half=mixed)


COOPERATIVE_CASES["mse_columns mixed"] = lambda: differences(mixed=True)


@cooperative_case
def pull_back_columns() -> CooperativeCase:
    return pulled(mixed=False)


def pulled(mixed: bool) -> CooperativeCase:
    """``pull_back_columns``."""
    slope, (g, found) = image(*TALL, seed=5) - np.float32(0.5), gradient(mixed)

    def plain() -> list[NDArray[Any]]:
        made = empty(3, *TALL)
        sampling_cpu.pull_back(INNER, *tall(), 0, OTHER[0], whole_moving(mixed)[1], slope, made)
        return [inner(made.reshape(3, -1))]

    fields = (slope.reshape(-1), g.reshape(3, -1))
    return sampled((True, mixed), fields, empty(2), plain, lambda: [found()], half=mixed)


COOPERATIVE_CASES["pull_back_columns mixed"] = lambda: pulled(mixed=True)


@cooperative_case
def information_gradient_columns() -> CooperativeCase:
    return informed(masked=True, mixed=False)


def informed(masked: bool, mixed: bool) -> CooperativeCase:
    """``information_gradient_columns``, some of whose points lie outside of the image."""
    (kept, fixed), weight = stored(image(*TALL), mixed), weights(*TALL) if masked else empty(0, 0, 0)
    table, (g, found) = image(BINS, BINS, seed=6) - np.float32(0.5), gradient(mixed)

    def plain() -> list[NDArray[Any]]:
        there, made = empty(*TALL), empty(3, *TALL)
        sampling_cpu.sample(INNER, *tall(), 0, OTHER[0], 0, whole_moving(mixed)[1], there)
        mi_cpu.information_gradient(INNER, table, fixed, weight, there)
        sampling_cpu.pull_back(INNER, *tall(), 0, OTHER[0], whole_moving(mixed)[1], there, made)
        return [inner(made.reshape(3, -1))]

    first, affine, linear, u = tall()
    size = tuple(np.int32(v) for v in (OTHER[0], 0, *OTHER, 0))
    fields = *flat(table, kept, weight), g.reshape(3, -1)
    arguments = np.uint32(3), EXTENT, np.int32(first), affine, linear, u.reshape(3, -1), size, whole_moving(mixed)[0].reshape(-1)
    shared = mi_gradient.table_bytes(BINS, histogram.histogram_copies(BINS))
    blocks, threads, arguments = (2, 1, 1), (*columns.TILE[::-1], 1), (*arguments, fields)
    return CooperativeCase((BINS, masked, mixed), blocks, threads, arguments, plain, lambda: [found()], shared=shared)


COOPERATIVE_CASES["information_gradient_columns without a mask"] = lambda: informed(masked=False, mixed=False)
COOPERATIVE_CASES["information_gradient_columns mixed"] = lambda: informed(masked=True, mixed=True)


@cooperative_case
def mse_of_values() -> CooperativeCase:
    return differences_of(half=False)


def differences_of(half: bool) -> CooperativeCase:
    """``mse_of_values``."""
    (kept, fixed), weight, there = stored(image(*TALL), half), weights(*TALL), moved(*TALL)
    totals = np.zeros(2, np.int64)
    count = int(np.prod(SHAPE))

    def plain() -> list[NDArray[Any]]:
        rows = mse_cpu.squared_difference(INNER, *RELATION, fixed, weight, there)
        return [inner(there.reshape(-1)), rows.sum(axis=(1, 2))]

    arguments = *voxels(), *flat(kept, weight, there), RELATION.copy(), totals
    return CooperativeCase((), (-(-count // mse_cuda.THREADS), 1, 1), mse_cuda.THREADS, arguments, plain,
                 lambda: [inner(there.reshape(-1)), counted_in_units(totals)])  # fmt: skip


COOPERATIVE_CASES["mse_of_values of half"] = lambda: differences_of(half=True)


# --- cooperative smoothing --------------------------------------------------------------------------------------------


def filtered(sigma: float, planes: int, first: int, plane: tuple[int, ...] = SHAPE[1:]) -> tuple[Any, ...]:
    """n, planes of the arrays, weights and norms of TALL arrays that begin with plane ``first`` of a grid of ``planes``."""
    norms = [smoothing_cpu.gaussian_norms(n, sigma) for n in (planes, *plane)]
    return (
        (*EXTENT[:2], *(np.uint32(v) for v in plane)),
        np.uint32(TALL[0]),
        gaussian_weights(sigma),
        norms[0][first : first + TALL[0]].copy(),
        *norms[1:],
    )


def smoothed(sigma: float, planes: int, first: int, field: Array) -> Array:
    """The plain kernels' Gaussian of INNER, or of as many planes of another size."""
    scratch, out, w = np.zeros_like(field), np.zeros_like(field), gaussian_weights(sigma)
    tables = [gaussian_table(n, sigma) for n in (planes, *field.shape[2:])]
    block = INNER[0], *field.shape[2:]
    smoothing_cpu.smooth_z(block, tables[0][first : first + TALL[0]], w, field, scratch)
    smoothing_cpu.smooth_y(block, tables[1], w, scratch, field)
    smoothing_cpu.smooth_x(block, len(w) // 2, tables[2], w, field, out)
    return out


@cooperative_case
def smooth_adam() -> CooperativeCase:
    """Planes 4 to 14, the last, of a grid of 15."""
    return adam_step(gated=False)


def adam_step(gated: bool) -> CooperativeCase:
    """``smooth_adam``."""
    g, m, v, d = vectors(*TALL), vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8)), empty(3, *TALL)
    longest, clock, table = empty(1), np.array([1], np.int32), np.stack([rates(2), adam_row(gated)])
    fields = m, v, d

    def plain() -> list[NDArray[Any]]:
        smooth = smoothed(1.0, 15, 4, g)
        one = np.float32(1)
        top = adam_cpu.adam(INNER, 0, gaussian_table(SHAPE[2], 0), (one,), table[1], smooth, m, v, d)
        return [*(inner(f.reshape(3, -1)) for f in fields), top.max().reshape(1)]

    constants = (2, False, True) if gated else (2,)
    length, blocks, threads = adam_cuda.launch_grid(EXTENT, *constants)
    arguments = length, *filtered(1.0, 15, 4), *shares(TALL), table, clock, *(f.reshape(-1) for f in (g, *fields)), longest
    return CooperativeCase(constants, blocks, threads, arguments, plain,
                 lambda: [*(inner(f.reshape(3, -1)) for f in fields), longest])  # fmt: skip


COOPERATIVE_CASES["smooth_adam gated"] = lambda: adam_step(gated=True)


def coherent_step(mixed: bool) -> CooperativeCase:
    """``smooth_adam`` with ``coherent``: v by what the gradient's voxels have, then m and the direction."""
    g, (m, v), kept = vectors(*TALL), (vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8))), words()
    given, d, longest, table = bfloats(g) if mixed else g, empty(3, *TALL), empty(1), coherent_rows()
    m, v = unpack_moments(kept) if mixed else (m, v)

    def plain() -> list[NDArray[Any]]:
        used, w = floats(given) if mixed else given, gaussian_weights(1.0)
        tables = [gaussian_table(n, 1.0) for n in (15, *SHAPE[1:])]
        squares, one = empty(3, *TALL), np.float32(1)
        first, second = m.copy(), v.copy()
        coherent.squared_length(TALL, used, squares)
        coherent.mean_along_z(INNER, tables[0][4 : 4 + TALL[0]], w, squares)
        coherent.mean_along_y(INNER, tables[1], w, squares)
        coherent.update_chance(INNER, 2, tables[2], w, *held_shares, table[1], squares, second)
        smooth, flat_filter = smoothed(1.0, 15, 4, used), (0, gaussian_table(SHAPE[2], 0), (one,))  # overwrites the gradient
        top = coherent.coherent_adam(INNER, *flat_filter, table[1], smooth, first, second, d_there)
        parts = [first, second[:1]] if mixed else [first, second, d_there]
        return [*(inner(f.reshape(len(f), -1)) for f in parts), top.max().reshape(1)]

    def found() -> list[NDArray[Any]]:
        first, second = unpack_moments(kept) if mixed else (m_out, v_out)
        parts = [first, second[:1]] if mixed else [first, second, d]
        return [*(inner(f.reshape(len(f), -1)) for f in parts), longest]

    d_there, m_out, v_out = empty(3, *TALL), m.copy(), v.copy()
    held_shares = shares((15, *SHAPE[1:]))
    held_shares[0] = held_shares[0][4 : 4 + TALL[0]].copy()
    constants = (2, mixed, False, True)
    length, blocks, threads = adam_cuda.launch_grid(EXTENT, *constants)
    state = (kept.reshape(-1), empty(0), np.int32(4)) if mixed else tuple(f.reshape(-1) for f in (m_out, v_out, d))
    arguments = length, *filtered(1.0, 15, 4), *held_shares, table, np.array([1], np.int32), given.reshape(-1), *state, longest
    return CooperativeCase(constants, blocks, threads, arguments, plain, found)


COOPERATIVE_CASES["smooth_adam coherent"] = lambda: coherent_step(mixed=False)
COOPERATIVE_CASES["smooth_adam coherent mixed"] = lambda: coherent_step(mixed=True)


def words() -> NDArray[np.uint32]:
    """Moments of mixed storage."""
    return pack_moments(vectors(*TALL, seed=7), np.square(vectors(*TALL, seed=8)))


def adam_step_mixed(gated: bool) -> CooperativeCase:
    """The same as ``smooth_adam``; what is stored is at most a unit of a bfloat16 away from what is not rounded."""
    g, kept, longest = bfloats(vectors(*TALL)), words(), empty(1)
    clock, table = np.array([1], np.int32), np.stack([rates(2), adam_row(gated)])

    def plain() -> list[NDArray[Any]]:
        smooth, (m, v), d = smoothed(1.0, 15, 4, floats(g)), unpack_moments(kept), empty(3, *TALL)
        one = np.float32(1)
        top = adam_cpu.adam(INNER, 0, gaussian_table(SHAPE[2], 0), (one,), table[1], smooth, m, v, d)
        return [*(inner(f.reshape(3, -1)) for f in (m, v)), top.max().reshape(1)]

    constants = (2, True, True) if gated else (2, True)
    length, blocks, threads = adam_cuda.launch_grid(EXTENT, *constants)
    state = g.reshape(-1), kept.reshape(-1), empty(0), np.int32(4)
    arguments = length, *filtered(1.0, 15, 4), *shares(TALL), table, clock, *state, longest
    return CooperativeCase(constants, blocks, threads, arguments, plain,
                 lambda: [*(inner(f.reshape(3, -1)) for f in unpack_moments(kept)), longest])  # fmt: skip


COOPERATIVE_CASES["smooth_adam mixed"] = lambda: adam_step_mixed(gated=False)
COOPERATIVE_CASES["smooth_adam gated mixed"] = lambda: adam_step_mixed(gated=True)


@cooperative_case
def compose_smooth() -> CooperativeCase:
    """Planes 0 to 10 of a grid of 12, a plane of which is not here."""
    return composition(mixed=False)


def composition(
    mixed: bool, gated: bool = False, coherently: bool = False, shortened: bool = False, sigma: float = 0.5,
    plane: tuple[int, ...] = SHAPE[1:]
) -> CooperativeCase:  # fmt: skip
    """``compose_smooth``;  shortened: of directions that are up to three times as long as what scales them."""
    radius, whole = gaussian_radius(sigma), 12 if sigma < 1 else 11
    tall = TALL[0], *plane
    u, d, out, longest = vectors(*tall, size=4), vectors(*tall, seed=9), empty(3, *tall), np.array([2.25], np.float32)
    given: Any = d.reshape(-1)
    if mixed:
        (m, v), table = unpack_moments(words()), np.stack([rates(2, 0.1), rates(3, 0.1, 0.2 if gated else 0.0)])
        first, second = m * table[1, 2], v * table[1, 3]
        d = -first / (np.sqrt(second) + table[1, 4]) * (1 - np.minimum(1, table[1, 5] * second / first**2))
        if coherently:
            table = coherent_rows()
            coherent.packed_coherent_direction(TALL, table[1], words(), d)
        longest[0], given = (d * d).sum(axis=0).max(), (words().reshape(-1), table, np.array([1], np.int32))
    if shortened:
        longest /= np.float32(9)

    def plain() -> list[NDArray[Any]]:
        composed = empty(3, *tall)
        step = np.array([0.5 / max(1, float(np.sqrt(longest[0])))], np.float32)
        around = (range(HALO - radius, HALO + SHAPE[0] + radius), *plane)
        if shortened:
            composition_cpu.compose_shortened(around, 0, whole, np.append(step, np.float32(0.5)), d, u, composed)
        else:
            composition_cpu.compose(around, 0, whole, step, d, u, composed)
        return [inner(smoothed(sigma, whole, 0, composed).reshape(3, -1), plane)]

    extent = (*EXTENT[:2], *(np.uint32(v) for v in plane))
    length, blocks, threads = composition_cuda.launch_grid(extent, radius)
    place = np.int32(0), np.int32(whole), np.float32(0.5), longest
    arguments = length, *filtered(sigma, whole, 0, plane), *place, given, *(f.reshape(-1) for f in (u, out))
    constants = (radius, mixed, gated, True) if coherently else (radius, mixed, True) if gated else (radius, mixed)
    constants = (radius, mixed, gated, coherently, True) if shortened else constants
    return CooperativeCase(constants, blocks, threads, arguments, plain, lambda: [inner(out.reshape(3, -1), plane)])


COOPERATIVE_CASES["compose_smooth mixed"] = lambda: composition(mixed=True)
COOPERATIVE_CASES["compose_smooth unfiltered"] = lambda: composition(mixed=False, sigma=0)
COOPERATIVE_CASES["compose_smooth with inner tiles"] = lambda: composition(mixed=False, plane=(11, 30))
COOPERATIVE_CASES["compose_smooth wide"] = lambda: composition(mixed=False, sigma=1)
COOPERATIVE_CASES["compose_smooth wide mixed"] = lambda: composition(mixed=True, sigma=1)
COOPERATIVE_CASES["compose_smooth shortened"] = lambda: composition(mixed=False, shortened=True)
COOPERATIVE_CASES["compose_smooth shortened mixed"] = lambda: composition(mixed=True, shortened=True)
COOPERATIVE_CASES["compose_smooth gated mixed"] = lambda: composition(mixed=True, gated=True)
COOPERATIVE_CASES["compose_smooth coherent mixed"] = lambda: composition(mixed=True, coherently=True)


@cooperative_case
def finish_iteration() -> CooperativeCase:
    clock, totals, longest = np.array([1], np.int32), np.array([3 << 27, 3 << 28], np.int64), np.array([2.0], np.float32)
    loss, losses = np.array([7.0, 0.0]), np.zeros(3)
    arguments = clock, totals, longest, loss, losses
    ends = [np.array([2], np.int32), np.zeros(2, np.int64), empty(1), np.array([0, -0.5, 0])]
    return CooperativeCase((-1,), (1, 1, 1), 1, arguments, lambda: ends, lambda: [clock, totals, longest, losses], double=True)


@cooperative_case
def hold_longest() -> CooperativeCase:
    """The first of the second group of three: what was kept counts, and that of this iteration does not yet."""
    held = np.array([2.0, 3.0], np.float32)
    arguments = np.int32(3), np.array([3], np.int32), np.array([4.0], np.float32), held
    return CooperativeCase((), (1, 1, 1), 1, arguments, lambda: [np.array([3.0, 3.0], np.float32)], lambda: [held])


@cooperative_case
def separate_peaks_of_maps() -> CooperativeCase:
    """Two maps, of which the second one has equal values; a peak takes more than a whole axis, and crosses the ends of others."""
    shape, count = (6, 9, 11), 3
    maps = np.stack([image(*shape, seed=5), np.float32(np.round(image(*shape, seed=6), 1))])
    at, values, highest = np.empty((count, 2), np.int32), empty(count, 2), empty(2, shape[0] * shape[1])
    sizes = map(np.int32, shape)
    flat = maps.reshape(2, -1).copy()

    def plain() -> list[NDArray[Any]]:
        index, found = peaks_cpu.separate_peaks(maps, count)
        return [np.ravel_multi_index(tuple(index), shape), found, maps.reshape(2, -1)]

    arguments = *sizes, flat, highest, at, values
    return CooperativeCase((), (2, 1, 1), peaks_cuda.THREADS, arguments, plain, lambda: [at, values, flat])
