"""The operations written plainly in PyTorch, as sums, convolutions and ``grid_sample``: independent of daskreg's kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def smooth(shape, seed, scale=1.0, dtype=torch.float64):
    """A smooth random volume."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*shape[:2], *(max(2, n // 2) for n in shape[2:]), generator=generator, dtype=torch.float64)
    return (scale * F.interpolate(coarse, size=shape[2:], mode="trilinear", align_corners=True)).to(dtype)


def identity(shape, like: Tensor) -> Tensor:
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample_at(image: Tensor, points: Tensor, border="zeros", mode="bilinear") -> Tensor:
    """The image at points (B, 3, Z, Y, X) in voxels, by ``grid_sample``."""
    sizes = torch.tensor([max(n - 1, 1) for n in image.shape[2:]], dtype=image.dtype, device=image.device).view(1, 3, 1, 1, 1)
    grid = (2 * points / sizes - 1).permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=border, align_corners=True)


def warp(image: Tensor, u: Tensor, border="zeros") -> Tensor:
    return sample_at(image, identity(u.shape[2:], u) + u, border)


def affine_points(affine: Tensor, points: Tensor) -> Tensor:
    return torch.einsum("bij,bjzyx->bizyx", affine[:, :, :3], points) + affine[:, :, 3].reshape(-1, 3, 1, 1, 1)


def window_sum(image: Tensor, weights) -> Tensor:
    """Sums over separable windows; zeros beyond the faces."""
    b, c, *shape = image.shape
    out = image.reshape(b * c, 1, *shape)
    for axis, w in enumerate(weights):
        taps = torch.tensor(w, dtype=image.dtype, device=image.device)
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = len(w), len(w) // 2
        out = F.conv3d(out, taps.reshape(1, 1, *size), padding=pad)
    return out.reshape(image.shape)


def lncc(moved, fixed, weights, squared=True, floor=0.0, additive=0.0, epsilon=1e-5, numerator=0.0, limit=math.inf, count=False):
    """The correlation of each window."""
    one = torch.ones_like(fixed)
    n = window_sum(one, weights) if count else one * math.prod(sum(w) for w in weights)
    f, m = window_sum(fixed, weights), window_sum(moved, weights)
    a = window_sum(fixed * moved, weights) - f * m / n
    b = (window_sum(moved * moved, weights) - m * m / n).clamp(min=floor) + additive
    c = (window_sum(fixed * fixed, weights) - f * f / n).clamp(min=floor) + additive
    value = (a * a + numerator) / (b * c + epsilon) if squared else a / torch.sqrt(b * c + epsilon)
    return value.clamp(max=limit)


def mutual_information(moved, fixed, bins, ratio, numerator=1e-7, denominator=1e-7, additive=0.0):
    """Of each batch element, with Gaussian windows over all bins."""
    centers = torch.linspace(0, 1, bins, dtype=moved.dtype, device=moved.device)
    h = 0.5 / (ratio / (bins - 1)) ** 2

    def weights(image):
        w = torch.exp(-h * (image.clamp(0, 1).reshape(image.shape[0], -1, 1) - centers) ** 2)
        return w / w.sum(-1, keepdim=True)

    a, b = weights(moved), weights(fixed)
    joint = torch.bmm(a.transpose(1, 2), b) / a.shape[1]
    product = a.mean(1)[:, :, None] * b.mean(1)[:, None, :]
    return (joint * torch.log((joint + numerator) / (product + denominator) + additive)).sum((1, 2))


def exponential(v, steps, border="zeros"):
    u = v / 2**steps
    for _ in range(steps):
        u = u + warp(u, u, border)
    return u


def gradient_penalty(u, power):
    return sum(torch.diff(u, dim=k).abs().pow(power).mean() for k in (2, 3, 4)) / 3


def bending_energy(u, normalize=False):
    def shifted(*steps):
        return u[(slice(None), slice(None), *(slice(1 + s, n - 1 + s) for s, n in zip(steps, u.shape[2:])))]

    extents = torch.tensor(u.shape[2:], dtype=u.dtype).view(1, 3, 1, 1, 1)
    total = 0
    for i in range(3):
        for j in range(i, 3):
            a, b = [0, 0, 0], [0, 0, 0]
            a[i] = b[j] = 1
            plus, minus = [x + y for x, y in zip(a, b)], [x - y for x, y in zip(a, b)]
            if i == j:
                d = shifted(*a) - 2 * shifted(0, 0, 0) + shifted(*[-x for x in a])
            else:
                d = (shifted(*plus) - shifted(*minus) - shifted(*[-x for x in minus]) + shifted(*[-x for x in plus])) / 4
            d = d * (u.shape[2 + i] * u.shape[2 + j] / extents) if normalize else d
            total = total + (1 if i == j else 2) * d * d
    return total.mean()


def jacobian_determinant(u):
    rows = [torch.stack([torch.gradient(u[:, c], dim=k)[0] for k in (1, 2, 3)], -1) for c in range(3)]
    matrix = torch.stack(rows, -2) + torch.eye(3, dtype=u.dtype)
    return torch.linalg.det(matrix)[:, None]


def gaussian(image, taps, renormalize=True):
    out = window_sum(image, [taps] * 3)
    return out / window_sum(torch.ones_like(image), [taps] * 3) if renormalize else out
