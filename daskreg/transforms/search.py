"""Global search: the translation at which one image fits another best, over all translations at once, for one rotation.

Masked normalised cross-correlation of one or several channels by FFT (after Padfield, *Masked object registration in the Fourier
domain*, 2012, equation 20, for channels whose local mean is zero). Arrays are NumPy's or CuPy's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len

from daskreg.kernels.device import module_of, scipy_of

PEAK_DISTANCE = 5  # voxels of the search grid: the least distance between two peaks worth trying
INNER_SIGMA, OUTER_SIGMA = 1.0, 4.0  # voxels of the search grid: the band kept is the difference of these two Gaussians
AXES = (-3, -2, -1)


@dataclass(frozen=True)
class Candidate:
    """The shift, in voxels of the search grid, with the highest correlation for one rotation.

    score: correlation;  overlap: part of the smaller domain that is covered
    """

    score: float
    overlap: float
    shift: NDArray[np.float64]

    @property
    def weight(self) -> float:
        """What candidates are ranked by: a correlation of noise falls with the root of the number of voxels."""
        return self.score * math.sqrt(self.overlap)


def band_pass(image: Any, inside: Any, edges: bool) -> Any:
    """The difference of two Gaussians of an image, 0 outside; with ``edges``, of its gradient magnitude, for two modalities."""
    xp = module_of(image)
    fine = _smooth(image, inside, INNER_SIGMA)
    if edges:
        fine = xp.sqrt(sum(xp.gradient(fine, axis=a) ** 2 for a in range(3) if fine.shape[a] > 1)).astype(np.float32)
    band = fine - _smooth(fine, inside, OUTER_SIGMA)
    return xp.where(inside, band, 0).astype(np.float32)


def _smooth(image: Any, inside: Any, sigma: float) -> Any:
    """A Gaussian over the voxels inside only, normalised by their weights."""
    xp, gaussian = module_of(image), scipy_of(image).ndimage.gaussian_filter
    weight = gaussian(inside.astype(np.float32), sigma, mode="constant")
    value = gaussian(xp.where(inside, image, 0).astype(np.float32), sigma, mode="constant")
    return (value / xp.maximum(weight, 1e-6)).astype(np.float32)


def padded_shape(fixed: tuple[int, ...], moving: tuple[int, ...], overlap: float) -> tuple[int, ...]:
    """Shape of the transforms. Shifts that cover less than half of ``overlap`` along an axis may wrap: they do not count."""
    pairs = zip(fixed, moving, strict=True)
    return tuple(next_fast_len(a + b - 1 - int(overlap * min(a, b) / 2), real=True) for a, b in pairs)


class Correlator:
    """Correlates images with a fixed one, over all translations.

    fixed: (Z, Y, X) or channels (C, Z, Y, X), local mean 0;  inside: (Z, Y, X) bool, its domain;  moving_shape: voxels of every
    moving image;  overlap: the part of the smaller domain that a translation must cover;  workers: threads of a transform.
    """

    def __init__(self, fixed: Any, inside: Any, moving_shape: tuple[int, ...], overlap: float, workers: int = 1) -> None:
        self.fixed_shape, self.overlap, self.workers = inside.shape, overlap, workers
        self.shape = padded_shape(inside.shape, moving_shape, overlap)
        self.fixed_size = int(inside.sum())
        self._fixed = self._spectra(fixed, inside)

    def _spectra(self, image: Any, inside: Any) -> Any:
        """Of the channels, of the sum of their squares and of the domain."""
        xp = module_of(image)
        channels = image if image.ndim == 4 else image[None]
        stack = xp.concatenate([channels, (channels**2).sum(axis=0)[None], inside[None].astype(np.float32)])
        return scipy_of(image).fft.rfftn(stack, self.shape, axes=AXES, **self._threads(image))

    def _threads(self, array: Any) -> dict[str, int]:
        return {"workers": self.workers} if module_of(array) is np else {}

    def scores(self, moving: Any, inside: Any) -> tuple[Any, Any]:
        """Correlation of ``moving(x - s)`` with ``fixed(x)``, and their overlap in voxels, for every shift s (wrapped)."""
        xp, f, m = module_of(moving), self._fixed, self._spectra(moving, inside).conj()
        product = f[0] * m[0]
        for a, b in zip(f[1:-2], m[1:-2], strict=True):
            product += a * b
        spectra = xp.stack([product, f[-2] * m[-1], f[-1] * m[-2], f[-1] * m[-1]])
        product, energy, other, count = scipy_of(moving).fft.irfftn(spectra, self.shape, axes=AXES, **self._threads(moving))
        energy = xp.maximum(energy, 0) * xp.maximum(other, 0)
        energy[energy < 1e-6 * energy.max()] = np.inf
        least = max(1.0, self.overlap * self._smaller(inside))
        return xp.where(count >= least, product / xp.sqrt(energy), -1).astype(np.float32), count

    def _smaller(self, inside: Any) -> int:
        return max(1, min(self.fixed_size, int(inside.sum())))

    def best(self, moving: Any, inside: Any, peaks: int) -> list[Candidate]:
        """The positive peaks of the greatest weight, in that order, no two within PEAK_DISTANCE voxels."""
        xp, (score, count) = module_of(moving), self.scores(moving, inside)
        part = xp.clip(count / self._smaller(inside), 0, 1)
        weight = xp.where(score > 0, score * xp.sqrt(part), -1)
        found = []
        for _ in range(peaks):
            at = tuple(int(k) for k in np.unravel_index(int(weight.argmax()), weight.shape))
            found.append(Candidate(float(score[at]), float(part[at]), self._unwrapped(at)))
            near = [np.arange(k - PEAK_DISTANCE, k + PEAK_DISTANCE + 1) % n for k, n in zip(at, weight.shape, strict=True)]
            weight[np.ix_(*near)] = -1
        return [c for c in found if c.score > 0]

    def _unwrapped(self, at: tuple[int, ...]) -> NDArray[np.float64]:
        return unwrapped(at, self.shape, self.fixed_shape)


def unwrapped(at: ArrayLike, shape: tuple[int, ...], fixed: ArrayLike) -> NDArray[np.float64]:
    """The shifts of indices (..., 3) into correlations of a shape, whose far part holds the negative shifts."""
    return np.where(np.asarray(at) >= np.asarray(fixed), np.asarray(at) - shape, at).astype(float)
