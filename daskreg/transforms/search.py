"""Global search: the translation at which one image fits another best, over all translations at once, for one rotation.

Masked, band-passed normalised cross-correlation by FFT (after Padfield, *Masked object registration in the Fourier domain*, 2012,
equation 20, for band-passed images whose local mean is zero).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Array = NDArray[np.float32]
PEAK_DISTANCE = 5  # voxels of the search grid: the least distance between two peaks worth trying
INNER_SIGMA, OUTER_SIGMA = 1.0, 4.0  # voxels of the search grid: the band kept is the difference of these two Gaussians


@dataclass(frozen=True)
class Candidate:
    """A rotation (3, 3; world, z, y, x) and the shift, in voxels of the search grid, with the highest correlation."""

    score: float
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    overlap: float


def band_pass(image: Array, inside: NDArray[np.bool_], edges: bool) -> Array:
    """The difference of two Gaussians of an image, 0 outside; with ``edges``, of its gradient magnitude, for two modalities."""
    fine = _smooth(image, inside, INNER_SIGMA)
    if edges:
        fine = np.sqrt(sum(np.gradient(fine, axis=a) ** 2 for a in range(3) if fine.shape[a] > 1)).astype(np.float32)
    band = fine - _smooth(fine, inside, OUTER_SIGMA)
    return np.where(inside, band, 0).astype(np.float32)


def _smooth(image: Array, inside: NDArray[np.bool_], sigma: float) -> Array:
    """A Gaussian over the voxels inside only, normalised by their weights."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    value = ndimage.gaussian_filter(np.where(inside, image, 0).astype(np.float32), sigma, mode="constant")
    return np.asarray(value / np.maximum(weight, 1e-6), np.float32)


class Correlator:
    """Correlates band-passed images with a fixed one, over all translations.

    fixed, inside: (Z, Y, X), the image and its domain;  moving_shape: the shape of every moving image;  overlap: the fraction of
    the smaller domain that a translation must cover.
    """

    def __init__(self, fixed: Array, inside: NDArray[np.bool_], moving_shape: tuple[int, ...], overlap: float) -> None:
        self.shape = tuple(fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed.shape, moving_shape, strict=True))
        self.fixed_size, self.overlap = int(inside.sum()), overlap
        self.fixed_shape = fixed.shape
        self._fixed = [self._forward(a) for a in (fixed, fixed**2, inside.astype(np.float32))]

    def _forward(self, a: Array) -> NDArray[np.complex64]:
        return np.asarray(fft.rfftn(a, self.shape, workers=-1))

    def _correlate(self, a: NDArray[np.complex64], b: NDArray[np.complex64]) -> Array:
        return np.asarray(fft.irfftn(a * b.conj(), self.shape, workers=-1), np.float32)

    def scores(self, moving: Array, inside: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Correlation of ``moving(x - s)`` with ``fixed(x)``, and their overlap in voxels, for every shift s (wrapped)."""
        f, ff, fi = self._fixed
        m, mm, mi = (self._forward(a) for a in (moving, moving**2, inside.astype(np.float32)))
        count = self._correlate(fi, mi)
        least = max(1.0, self.overlap * min(self.fixed_size, int(inside.sum())))
        energy = np.maximum(self._correlate(ff, mi), 0) * np.maximum(self._correlate(fi, mm), 0)
        energy[energy < 1e-6 * energy.max()] = np.inf
        return np.where(count >= least, self._correlate(f, m) / np.sqrt(energy), -1).astype(np.float32), count

    def best(self, moving: Array, inside: NDArray[np.bool_], rotation: NDArray[np.float64], peaks: int) -> list[Candidate]:
        """The highest positive peaks, best first, no two within PEAK_DISTANCE voxels."""
        score, count = self.scores(moving, inside)
        found = []
        for _ in range(peaks):
            at = np.unravel_index(int(np.argmax(score)), score.shape)
            overlap = float(count[at]) / max(self.fixed_size, 1)
            found.append(Candidate(float(score[at]), rotation, self._unwrapped(at), overlap))
            near = [np.arange(k - PEAK_DISTANCE, k + PEAK_DISTANCE + 1) % n for k, n in zip(at, score.shape, strict=True)]
            score[np.ix_(*near)] = -1
        return [c for c in found if c.score > 0]

    def _unwrapped(self, at: tuple[np.intp, ...]) -> NDArray[np.float64]:
        """The shift of an index into ``scores``, whose far half holds the negative shifts."""
        return np.array([k - n if k >= e else k for k, n, e in zip(at, self.shape, self.fixed_shape, strict=True)], float)
