"""Cubic convolution: smoother than trilinear interpolation, exact at voxels, with a support of two voxels on each side."""

import math

from numba import float32, int32

from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.sampling.cpu import EXTENT, clamp, in_domain, sampling_point

ONE, ZERO, HALF, TWO = float32(1), float32(0), float32(0.5), float32(2)
ONE_AND_A_HALF, TWO_AND_A_HALF = float32(1.5), float32(2.5)
NAN = float32(math.nan)


@formula
def keys_weights(w):
    """Weights of the four voxels around k + w (R. Keys, *Cubic convolution interpolation*, 1981, a = -1/2)."""
    return (
        ((TWO - w) * w - ONE) * w * HALF,
        (ONE_AND_A_HALF * w - TWO_AND_A_HALF) * w * w + ONE,
        ((TWO - ONE_AND_A_HALF * w) * w + HALF) * w,
        (w - ONE) * w * w * HALF,
    )


@formula
def tricubic(image, k, j, i, wz, wy, wx):
    """Value at the voxel (k, j, i) plus the fraction w, from 64 voxels; beyond the image's faces the nearest one counts."""
    vz, vy, vx = keys_weights(wz), keys_weights(wy), keys_weights(wx)
    total = ZERO
    for a in range(4):
        ka = clamp(k + int32(a) - int32(1), image.shape[0])
        plane = ZERO
        for b in range(4):
            jb = clamp(j + int32(b) - int32(1), image.shape[1])
            row = ZERO
            for c in range(4):
                row += vx[c] * image[ka, jb, clamp(i + int32(c) - int32(1), image.shape[2])]
            plane += vy[b] * row
        total += vz[a] * plane
    return total


@voxelwise()
def sample_cubic(z, y, x, first, affine, linear, u, image, moved):
    """``moved(x) = image(A x + t + S u(x))`` by cubic convolution, NaN outside the image's extent.

    Arguments as in ``sample_nearest``.
    """
    k, j, i, wz, wy, wx = sampling_point(z, y, x, first, affine, linear, u)
    inside = in_domain(image, image.shape[0], EXTENT, k, j, i, wz, wy, wx)
    moved[z, y, x] = tricubic(image, k, j, i, wz, wy, wx) if inside else NAN
