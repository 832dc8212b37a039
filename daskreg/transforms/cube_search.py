"""Correlation over all translations in the 24 right-angle rotations at once (48 with mirror images), on one lattice.

A right-angle rotation C permutes and reverses the axes of a lattice, so the fixed image's spectra in all of them are computed
once, and every moving image, rotated by a small angle, is transformed once for all of them:
f(x) against m(C x - s) is f(C^-1 y) against m(y - s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from daskreg.kernels.compiler.launch import on_device
from daskreg.kernels.device import host, module_of, scipy_of
from daskreg.kernels.peaks.cpu import separate_peaks
from daskreg.transforms.orientation import mixing
from daskreg.transforms.search import AXES, padded_shape, unwrapped

Matrix = NDArray[np.float64]
LEAST_HALVED = 32  # voxels of an axis of the transforms along which slow sums are computed for every other shift
ENERGY = 1e-4  # of the largest: less is where edges of one image meet nothing
GPU_BATCH = 24  # rotations at once on a GPU; one on a CPU, whose caches hold no more


def turned(array: Any, cube: Matrix) -> Any:
    """An array (..., Z, Y, X) whose axes a signed permutation matrix turns about its centre: out[C x] = array[x]."""
    axes = np.abs(cube).argmax(axis=1)
    lead = array.ndim - 3
    out = array.transpose(*range(lead), *(lead + axes))
    return out[(..., *(slice(None, None, int(cube[i, a])) for i, a in enumerate(axes)))]


@dataclass(frozen=True)
class CubePeaks:
    """The best translations for right-angle rotations.

    cube: (K,) numbers of the rotations;  score: (K,) correlations;  overlap: (K,) parts of the smaller domain;  shift: (K, 3) of
    the moving image, voxels, between the centres of both lattices, in the turned frame
    """

    cube: NDArray[np.int64]
    score: NDArray[np.float64]
    overlap: NDArray[np.float64]
    shift: NDArray[np.float64]


@dataclass(frozen=True)
class Spectra:
    """Of images: of their channels (..., 5, Z, Y, X), and on the halved lattice of the sum of their squares and of the domain
    (..., 2, Z, Y, X), complex64.
    """

    channels: Any
    halved: Any

    def conj(self) -> Spectra:
        """Complex conjugates."""
        return Spectra(self.channels.conj(), self.halved.conj())


@dataclass(frozen=True)
class Batch:
    """Right-angle rotations that are transformed together: their numbers, the shapes of the turned lattices and of the
    transforms, and the fixed image's spectra.
    """

    cubes: list[int]
    lattices: list[tuple[int, ...]]
    shape: tuple[int, ...]
    spectra: Spectra


class CubeCorrelator:
    """Correlates images with a fixed one in right-angle rotations.

    fixed: tensors' components (5, Z, Y, X);  inside: (Z, Y, X) bool, its domain;  moving_shape: voxels of every moving image;
    cubes: signed permutation matrices;  overlap: the part of the smaller domain that a translation must cover;  together: how
    many rotations are transformed at once, by default all usual ones on a GPU and one on a CPU
    """

    def __init__(
        self,
        fixed: Any,
        inside: Any,
        moving_shape: tuple[int, ...],
        cubes: Sequence[Matrix],
        overlap: float,
        together: int | None = None,
    ) -> None:
        self.overlap, self.moving_shape, self.cubes = overlap, moving_shape, cubes
        self.fixed_size = int(inside.sum())
        size = together or (GPU_BATCH if on_device(fixed) else 1)
        parts = (list(range(len(cubes)))[first : first + size] for first in range(0, len(cubes), size))
        self.batches = [self._batch(fixed, inside, numbers) for numbers in parts]

    def _batch(self, fixed: Any, inside: Any, numbers: list[int]) -> Batch:
        """In transforms that are long enough for all of them."""
        lattices = [turned(inside, self.cubes[k]).shape for k in numbers]
        longest = tuple(map(max, zip(*lattices, strict=True)))
        shape = _even(padded_shape(longest, self.moving_shape, self.overlap))
        return Batch(numbers, lattices, shape, self._fixed(fixed, inside, numbers, shape))

    def _fixed(self, fixed: Any, inside: Any, numbers: list[int], shape: tuple[int, ...]) -> Spectra:
        found, xp = [_spectra(*self._turned(fixed, inside, k), shape, middles=True) for k in numbers], module_of(fixed)
        return Spectra(xp.stack([s.channels for s in found]), xp.stack([s.halved for s in found]))

    def _turned(self, tensors: Any, inside: Any, number: int) -> tuple[Any, Any]:
        xp, cube = module_of(tensors), self.cubes[number]
        mix = xp.asarray(mixing(cube.T).astype(np.float32))
        return xp.einsum("ij,jzyx->izyx", mix, turned(tensors, cube)), turned(inside, cube)

    def best(self, moving: Any, inside: Any, peaks: int) -> CubePeaks:
        """Of every rotation the translations of the greatest positive correlation times the root of the overlap."""
        smaller = max(1, min(self.fixed_size, int(inside.sum())))
        spectra = {shape: _spectra(moving, inside, shape).conj() for shape in {batch.shape for batch in self.batches}}
        found = [self._peaks(batch, spectra[batch.shape], smaller, peaks) for batch in self.batches]
        return CubePeaks(*(np.concatenate([getattr(f, field.name) for f in found]) for field in fields(CubePeaks)))

    def _peaks(self, batch: Batch, moving: Spectra, smaller: int, peaks: int) -> CubePeaks:
        """Of every rotation of a batch."""
        weight, part = self._weights(batch, moving, smaller)
        halves = _halves(batch.shape)
        found, highest = separate_peaks(weight, peaks)
        at, values = found.reshape(3, -1), highest.ravel().astype(np.float64)
        each = np.tile(np.arange(len(weight)), peaks)
        covered = _values(part, (each, *(k // h for k, h in zip(at, halves, strict=True))))
        kept = values > 0
        cube, shift = np.asarray(batch.cubes)[each], self._shifts(at.T, batch.shape, np.asarray(batch.lattices)[each])
        return CubePeaks(cube[kept], values[kept] / np.sqrt(covered[kept]), covered[kept], shift[kept])

    def _weights(self, batch: Batch, moving: Spectra, smaller: int) -> tuple[Any, Any]:
        """Correlation times the root of the overlap (C, ...) at every shift, 0 where that is too small, and, on the halved
        lattice, the part of the smaller domain that is covered; see ``Correlator.scores``.
        """
        xp, fft, shape = module_of(moving.channels), scipy_of(moving.channels).fft, batch.shape
        halves = _halves(shape)
        weight = fft.irfftn(_summed(batch.spectra.channels, moving.channels), shape, axes=AXES)
        f, m = batch.spectra.halved, moving.halved
        small = tuple(n // h for n, h in zip(shape, halves, strict=True))
        own, other, count = (fft.irfftn(a * b, small, axes=AXES) for a, b in ((f[:, 0], m[1]), (f[:, 1], m[0]), (f[:, 1], m[1])))
        energy, part = xp.maximum(own, 0) * xp.maximum(other, 0), xp.clip(count / smaller, 0, 1)
        counts = (part >= self.overlap) & (count >= 1) & (energy > ENERGY * energy.max(axis=AXES, keepdims=True))
        factor = xp.where(counts, xp.sqrt(part / xp.where(counts, energy, 1)), 0).astype(np.float32)
        _multiply(weight, factor, halves)
        return weight, part

    def _shifts(self, at: NDArray[np.int64], shape: tuple[int, ...], lattices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Between the lattices' centres, from indices (K, 3) into correlations."""
        return np.asarray(unwrapped(at, shape, lattices) + (np.asarray(self.moving_shape) - lattices) / 2)


def _values(maps: Any, index: tuple[NDArray[np.int64], ...]) -> NDArray[np.float64]:
    """Of an array at indices, in host memory."""
    return np.asarray(host(maps.take(module_of(maps).asarray(np.ravel_multi_index(index, maps.shape)))), np.float64)


def _summed(fixed: Any, moving: Any) -> Any:
    """The sum over channels of products of spectra (C, 5, ...) and (5, ...), a channel after the other: (C, ...)."""
    found = fixed[:, 0] * moving[0]
    for channel in range(1, len(moving)):
        found += fixed[:, channel] * moving[channel]
    return found


def _multiply(weight: Any, factor: Any, halves: tuple[int, ...]) -> None:
    """Multiply arrays (C, Z, Y, X) by what is known on the halved lattice."""
    hz, hy, hx = halves
    count, nz, ny, _ = factor.shape
    rows = factor.repeat(hx, axis=3)
    blocks = weight.reshape(count, nz, hz, ny, hy, rows.shape[3])
    blocks *= rows[:, :, None, :, None, :]


def _even(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape whose long axes can be halved, and which is as fast to transform."""
    return tuple(n if n < LEAST_HALVED or n % 2 == 0 else 2 * next_fast_len(n // 2 + 1, real=True) for n in shape)


def _halves(shape: tuple[int, ...]) -> tuple[int, ...]:
    """By what each axis is divided for sums that change slowly from shift to shift."""
    return tuple(2 if n >= LEAST_HALVED and n % 2 == 0 else 1 for n in shape)


def _spectra(channels: Any, inside: Any, shape: tuple[int, ...], *, middles: bool = False) -> Spectra:
    """Of channels (C, Z, Y, X) and a domain; one of two that are multiplied has ``middles``, see ``_halved``."""
    xp, fft = module_of(channels), scipy_of(channels).fft
    slow = fft.rfftn(xp.stack([(channels**2).sum(axis=0), inside.astype(np.float32)]), shape, axes=AXES)
    return Spectra(fft.rfftn(channels, shape, axes=AXES), _halved(slow, shape, middles=middles))


def _halved(spectra: Any, shape: tuple[int, ...], *, middles: bool) -> Any:
    """The low frequencies (C, Z, Y, X); with ``middles`` of images half a voxel further along the axes that are halved."""
    xp = module_of(spectra)
    for axis, (n, half) in enumerate(zip(shape, _halves(shape), strict=True), start=1):
        if half == 1:
            continue
        kept = n // 2
        positive = kept // 2 + 1 if axis == 3 else (kept + 1) // 2
        at = np.arange(positive) if axis == 3 else np.concatenate([np.arange(positive), np.arange(-(kept // 2), 0)])
        spectra = spectra.take(xp.asarray(at % n), axis=axis)
        if middles:
            factor = 0.5 * np.exp(1j * np.pi * at / n).reshape([-1 if a == axis else 1 for a in range(4)])
            spectra = spectra * xp.asarray(factor.astype(np.complex64))
    return spectra
