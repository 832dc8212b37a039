"""What has to be known of an image before it can be scaled, where it stays in its file: as few passes over it as possible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.background import least_known, require_known
from daskreg.engine.images import Array, intensity_range, intensity_range_of_values, largest_weight
from daskreg.engine.source_images import ScaledSource
from daskreg.grid import Region, Span
from daskreg.kernels.compiler.host_launch import thread_count
from daskreg.kernels.intensity_histogram.cpu import intensity_histogram
from daskreg.planning import COUNTED_BYTES


@dataclass
class Statistics:
    """Of the planes that a rank owns, over all ranks.

    name: of the image in messages, mask_name: of its mask
    """

    source: ScaledSource
    own: Span
    comm: Communicator
    name: str
    mask_name: str = ""
    left_out: int = 0

    def measured(self, dtype: np.dtype[Any]) -> ScaledSource:
        """The source with what scales it; ``dtype``: as voxels are stored. Raises VoxelError."""
        source = self.source
        counted = dtype.kind in "biu" and dtype.itemsize <= COUNTED_BYTES
        known = self._of_counts(dtype) if counted else self._of_parts()
        top = 1.0 if source.mask is None else largest_weight(self._weights, self.mask_name, self.comm)
        return replace(source, ends=known[0], least=known[1], top=top)

    def _of_counts(self, dtype: np.dtype[Any]) -> tuple[tuple[float, float], float]:
        """In one pass: how many voxels have each value."""
        values, background = _values(dtype), self.source.background
        counts = np.zeros((thread_count(), len(values)), np.int64)
        for voxels, known in self._stored():
            stored = voxels
            if known is not None and background is not None:
                stored = np.where(known, voxels, np.float32(background.value))
                self.left_out += int(known.size - np.count_nonzero(known))
            intensity_histogram(stored.shape, counts, values[0], np.float32(1), stored)
        found = counts.sum(axis=0)
        if background is None:
            return intensity_range_of_values(values, found, self.source.config, self.comm, self.name), 0.0
        if self.left_out:
            found[np.searchsorted(values, np.float32(background.value))] -= self.left_out
        there = values[found > 0]
        least = require_known(float(there[0]) if len(there) else math.inf, self.comm, self.name)
        return intensity_range_of_values(values, found, self.source.config, self.comm, self.name), least

    def _of_parts(self) -> tuple[tuple[float, float], float]:
        """In two passes, and one before them where there is background."""
        least = 0.0 if self.source.background is None else self._least()

        def parts() -> Iterator[Array]:
            for voxels, known in self._stored():
                yield voxels if known is None else np.where(known, voxels, np.float32(least))

        return intensity_range(parts, self.source.config, self.comm, self.name, self.left_out), least

    def _least(self) -> float:
        least = math.inf
        for voxels, known in self._stored():
            assert known is not None, "an image with background"
            least = min(least, least_known(voxels, known))
            self.left_out += int(known.size - np.count_nonzero(known))
        return require_known(least, self.comm, self.name)

    def _stored(self) -> Iterator[tuple[Array, NDArray[np.bool_] | None]]:
        return (found for _, found in self.source.each(self.source.stored, self.own, "its intensities"))

    def _weights(self) -> Iterator[Array]:
        def of(region: Region) -> Array:
            known = None if self.source.background is None else self.source.stored(region)[1]
            weights = self.source.weights(region, known)
            assert weights is not None
            return weights

        return (found for _, found in self.source.each(of, self.own, "its mask"))


def _values(dtype: np.dtype[Any]) -> Array:
    """All that voxels of an integer type can have, rising."""
    if dtype.kind == "b":
        return np.arange(2, dtype=np.float32)
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1, dtype=np.float32)
