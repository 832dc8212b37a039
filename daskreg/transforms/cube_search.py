"""Correlation over all translations in the 24 right-angle rotations at once (48 with mirror images), on one lattice.

A right-angle rotation C permutes and reverses the axes of a lattice, so the fixed image's spectra in all of them are computed
once, and every moving image, rotated by a small angle, is transformed once for all of them:
f(x) against m(C x - s) is f(C^-1 y) against m(y - s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import host, module_of, scipy_of
from daskreg.transforms.orientation import mixing
from daskreg.transforms.search import AXES, padded_shape, unwrapped

Matrix = NDArray[np.float64]
PEAK_DISTANCE = 3  # voxels: the least distance between two peaks of a rotation
GPU_BATCH = 24  # rotations at once on a GPU; one on a CPU, whose caches hold no more


def turned(array: Any, cube: Matrix) -> Any:
    """An array (..., Z, Y, X) whose axes a signed permutation matrix turns about its centre: out[C x] = array[x]."""
    axes = np.abs(cube).argmax(axis=1)
    lead = array.ndim - 3
    out = array.transpose(*range(lead), *(lead + axes))
    return out[(..., *(slice(None, None, int(cube[i, a])) for i, a in enumerate(axes)))]


@dataclass(frozen=True)
class CubePeak:
    """The best translation for one right-angle rotation.

    cube: its number;  score: correlation;  overlap: part of the smaller domain;  shift: of the moving image, (3,) voxels, between
    the centres of both lattices, in the turned frame
    """

    cube: int
    score: float
    overlap: float
    shift: NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Right-angle rotations whose turned lattices are alike: their numbers, the shape of that lattice and of the transforms, and
    the fixed image's spectra (C, 7, ...).
    """

    cubes: list[int]
    lattice: tuple[int, ...]
    shape: tuple[int, ...]
    spectra: Any


class CubeCorrelator:
    """Correlates images with a fixed one in right-angle rotations.

    fixed: tensors' components (5, Z, Y, X);  inside: (Z, Y, X) bool, its domain;  moving_shape: voxels of every moving image;
    cubes: signed permutation matrices;  overlap: the part of the smaller domain that a translation must cover
    """

    def __init__(self, fixed: Any, inside: Any, moving_shape: tuple[int, ...], cubes: Sequence[Matrix], overlap: float) -> None:
        self.overlap, self.moving_shape, self.cubes = overlap, moving_shape, cubes
        self.fixed_size = int(inside.sum())
        self.batches = [batch for numbers in _alike(inside, cubes) for batch in self._batched(fixed, inside, numbers)]

    def _batched(self, fixed: Any, inside: Any, numbers: list[int]) -> list[Batch]:
        size = GPU_BATCH if on_device(fixed) else 1
        lattice = turned(inside, self.cubes[numbers[0]]).shape
        shape = padded_shape(lattice, self.moving_shape, self.overlap)
        return [
            Batch(some, lattice, shape, module_of(fixed).stack([_spectra(*self._turned(fixed, inside, k), shape) for k in some]))
            for some in (numbers[first : first + size] for first in range(0, len(numbers), size))
        ]

    def _turned(self, tensors: Any, inside: Any, number: int) -> tuple[Any, Any]:
        xp, cube = module_of(tensors), self.cubes[number]
        mix = xp.asarray(mixing(cube.T).astype(np.float32))
        return xp.einsum("ij,jzyx->izyx", mix, turned(tensors, cube)), turned(inside, cube)

    def best(self, moving: Any, inside: Any, peaks: int) -> list[CubePeak]:
        """Of every rotation the translations of the greatest positive correlation times the root of the overlap."""
        smaller = max(1, min(self.fixed_size, int(inside.sum())))
        spectra = {shape: _spectra(moving, inside, shape).conj() for shape in {batch.shape for batch in self.batches}}
        return [peak for batch in self.batches for peak in self._peaks(batch, spectra[batch.shape], smaller, peaks)]

    def _peaks(self, batch: Batch, moving: Any, smaller: int, peaks: int) -> list[CubePeak]:
        """Of every rotation of a batch."""
        xp = module_of(moving)
        score, part = self._scores(batch, moving, smaller)
        weight = xp.where(part >= self.overlap, score * xp.sqrt(part), -1)
        found = []
        for _ in range(peaks):
            at = weight.reshape(len(weight), -1).argmax(axis=1)
            where = (xp.arange(len(at)), *xp.unravel_index(at, batch.shape))
            values, places = host(xp.stack([weight[where], score[where], part[where]], axis=1)), host(xp.stack(where[1:], axis=1))
            found += [
                CubePeak(cube, float(s), float(o), self._shift(tuple(map(int, place)), batch))
                for cube, (w, s, o), place in zip(batch.cubes, values, places, strict=True)
                if w > 0
            ]
            _clear(weight, where)
        return found

    def _scores(self, batch: Batch, moving: Any, smaller: int) -> tuple[Any, Any]:
        """Correlation (C, ...) at every shift, and the part of the smaller domain that is covered; see ``Correlator.scores``."""
        xp, f, m = module_of(moving), batch.spectra, moving
        joint = (f[:, :-2] * m[:-2]).sum(axis=1)
        parts = xp.stack([joint, f[:, -2] * m[-1], f[:, -1] * m[-2], f[:, -1] * m[-1]], axis=1)
        maps = scipy_of(moving).fft.irfftn(parts, batch.shape, axes=AXES)
        energy = xp.maximum(maps[:, 1], 0) * xp.maximum(maps[:, 2], 0)
        energy = xp.where(energy <= 1e-6 * energy.max(axis=AXES, keepdims=True), np.inf, energy)
        return maps[:, 0] / xp.sqrt(energy), xp.where(maps[:, 3] < 1, 0, xp.clip(maps[:, 3] / smaller, 0, 1))

    def _shift(self, where: tuple[int, ...], batch: Batch) -> NDArray[np.float64]:
        """Between the lattices' centres, from an index into the scores."""
        sizes = np.asarray(self.moving_shape) - np.asarray(batch.lattice)
        return np.asarray(unwrapped(where, batch.shape, batch.lattice) + sizes / 2)


def _alike(inside: Any, cubes: Sequence[Matrix]) -> list[list[int]]:
    """Numbers of the rotations that turn a lattice into one of the same shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, cube in enumerate(cubes):
        groups.setdefault(turned(inside, cube).shape, []).append(number)
    return list(groups.values())


def _clear(weight: Any, where: tuple[Any, ...]) -> None:
    """Take a peak of every map (C, Z, Y, X), at indices of arrays (C,), and what is around it out; indices wrap."""
    near = module_of(weight).arange(-PEAK_DISTANCE, PEAK_DISTANCE + 1)
    z, y, x = ((at[:, None] + near) % n for at, n in zip(where[1:], weight.shape[1:], strict=True))
    weight[where[0][:, None, None, None], z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]] = -1


def _spectra(channels: Any, inside: Any, shape: tuple[int, ...]) -> Any:
    """Of the channels, of the sum of their squares and of the domain."""
    xp = module_of(channels)
    stack = xp.concatenate([channels, (channels**2).sum(axis=0)[None], inside[None].astype(np.float32)])
    return scipy_of(channels).fft.rfftn(stack, shape, axes=AXES)
