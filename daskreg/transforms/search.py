"""Global search: where does one image fit into the other, over all translations at once, for every candidate rotation.

Masked, band-passed normalised cross-correlation by FFT (after Padfield, *Masked object registration in the Fourier domain*, 2012,
equation 20, for band-passed images whose local mean is zero).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

Array = NDArray[np.float32]
APART = 5  # voxels of the search grid between two peaks worth trying
FINE, BROAD = 1.0, 4.0  # voxels of the search grid: the band that is kept lies between these two Gaussians


@dataclass(frozen=True)
class Candidate:
    """A rotation (3, 3; world, z, y, x) and the shift in voxels of the search grid that fits best with it."""

    score: float
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    overlap: float


def band_pass(image: Array, inside: NDArray[np.bool_], edges: bool) -> Array:
    """What lies between two scales, 0 outside; with ``edges`` of the gradient magnitude, which two modalities share."""
    fine = _smooth(image, inside, FINE)
    if edges:
        fine = np.sqrt(sum(np.gradient(fine, axis=a) ** 2 for a in range(3) if fine.shape[a] > 1)).astype(np.float32)
    band = fine - _smooth(fine, inside, BROAD)
    return np.where(inside, band, 0).astype(np.float32)


def _smooth(image: Array, inside: NDArray[np.bool_], sigma: float) -> Array:
    """Gaussian over the voxels inside only."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    value = ndimage.gaussian_filter(np.where(inside, image, 0).astype(np.float32), sigma, mode="constant")
    return np.asarray(value / np.maximum(weight, 1e-6), np.float32)


class Correlator:
    """All translations of one band-passed image over another."""

    def __init__(self, fixed: Array, inside: NDArray[np.bool_], moving_shape: tuple[int, ...], overlap: float) -> None:
        self.shape = tuple(fft.next_fast_len(a + b - 1, real=True) for a, b in zip(fixed.shape, moving_shape, strict=True))
        self.fixed_size, self.overlap = int(inside.sum()), overlap
        self.extent = fixed.shape
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
        """The highest peaks, best first, no two within ``APART`` voxels."""
        score, count = self.scores(moving, inside)
        found = []
        for _ in range(peaks):
            at = np.unravel_index(int(np.argmax(score)), score.shape)
            shift = [k - n if k >= e else k for k, n, e in zip(at, self.shape, self.extent, strict=True)]
            found.append(
                Candidate(float(score[at]), rotation, np.array(shift, float), float(count[at]) / max(self.fixed_size, 1))
            )
            around = [np.arange(k - APART, k + APART + 1) % n for k, n in zip(at, score.shape, strict=True)]
            score[np.ix_(*around)] = -1
        return [c for c in found if c.score > 0]


def rotations(choice: str, flips: bool) -> list[NDArray[np.float64]]:
    """Candidate orientations: 1, the 24 of a cube, or 600 evenly spread; with mirrors twice as many."""
    if choice == "none":
        found = [np.eye(3)]
    elif choice == "right-angles":
        found = _cube()
    else:
        found = list(np.asarray(Rotation.random(600, random_state=0).as_matrix()))
    return found + [r @ np.diag([1.0, 1.0, -1.0]) for r in found] if flips else found


def _cube() -> list[NDArray[np.float64]]:
    signed = [
        np.diag(s) @ np.eye(3)[list(p)]
        for p in itertools.permutations(range(3))
        for s in itertools.product((1.0, -1.0), repeat=3)
    ]
    return sorted((m for m in signed if np.linalg.det(m) > 0), key=lambda m: -float(np.trace(m)))
