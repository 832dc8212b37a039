"""Resampling of label images: the label with the largest weight, never an interpolated number."""

from numba import float32, int32, int64

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.sampling.cpu import EXTENT, clamp, corner_values, in_domain, sampling_point

index = int64  # replaced by the launcher
ONE, ZERO = float32(1), float32(0)


@formula
def label_weight(label, v, w):
    """Sum of the weights of corners with this label, always in the same order, so that equal weights are bitwise equal."""
    total = ZERO
    for c in range(8):
        total += w[c] if v[c] == label else ZERO
    return total


@voxelwise()
def sample_label(z, y, x, first, affine, linear, u, image, moved):
    """The label with the largest sum of trilinear weights among the eight corners of p(x); the smallest one on a tie.

    Beyond the faces of the image the nearest voxel counts; points outside its extent are left unchanged.
    image, moved: three axes, one integer dtype;  other arguments as in ``sample``
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    one, n = int32(1), image.shape
    v = corner_values(image, clamp(k, n[0]), clamp(k + one, n[0]), j, i)
    vz, vy, vx = ONE - wz, ONE - wy, ONE - wx
    w = (vz * vy * vx, vz * vy * wx, vz * wy * vx, vz * wy * wx, wz * vy * vx, wz * vy * wx, wz * wy * vx, wz * wy * wx)
    best, most = v[0], label_weight(v[0], v, w)
    for c in range(1, 8):
        if v[c] != best:  # inside a structure all corners are equal
            weight = label_weight(v[c], v, w)
            if weight > most or (weight == most and v[c] < best):
                best, most = v[c], weight
    if in_domain(image, n[0], EXTENT, k, j, i, wz, wy, wx):
        moved[z, y, x] = best
