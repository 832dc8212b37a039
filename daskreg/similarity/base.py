"""What a similarity implements: its value, its gradient with respect to the moved image, and what is summed over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.kernels.weights import FIXED_POINT_SCALE

if TYPE_CHECKING:
    from daskreg.kernels.compiler.launch import Shape

Voxels = NDArray[np.float32]
# first plane, A and t, S, displacement, first plane of the image, planes of the whole image, image
Sampling = tuple[int, Any, Any, Any, int, int, Any]


@dataclass(frozen=True)
class Samples:
    """What a similarity compares on one rank; NumPy or CuPy arrays (Z, Y, X) of the same shape.

    box: planes, rows and columns that are this rank's; the arrays hold ``reach`` planes more around them, as far as the grid
    goes; origin: plane of the level that the arrays begin with;  fixed: scaled to [0, 1], on a GPU perhaps the bits of float16;
    weight: mask, or an empty array for 1 everywhere;  moved: NaN where a point is outside of the moving image;
    scratch: (3, Z, Y, X) float32, kept from ``partial`` to ``finish``; without planes where ``SimilarityParameters.scratch`` is
    0.
    """

    box: Shape
    origin: int
    fixed: Voxels
    weight: Voxels
    moved: Voxels
    scratch: Voxels


class FusedKernel(Protocol):
    """A launch over a box that samples the moving image itself."""

    def __call__(self, box: Shape, sampling: Sampling, gradient: Any) -> None:
        """``gradient``: where dC/du goes."""


class LossContext(Protocol):
    """One evaluation in a deformable stage, as ``Similarity.evaluate`` sees it: arrays, and steps that involve other parts.

    Every launch of a kernel goes through ``run``, which may record it for a CUDA graph.
    """

    samples: Samples
    slope: Voxels  # (Z, Y, X): where dC/dmoved can be kept while neighbours still read ``samples.moved``
    totals: Any  # (2,) int64 on a GPU, 0 before: weighted sum of the loss and sum of weights, in units of 1 / COUNT
    loss: Any  # (2,) float64 on a GPU: what ``Similarity.evaluate`` found

    @property
    def masked(self) -> bool:
        """Whether the moving image has a mask, which is sampled too."""

    def sample(self) -> None:
        """Fill ``samples.moved`` and the weights, with the planes of neighbours within the similarity's reach."""

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """Launch kernels that use no other ranks' data than is there; ``name`` is unique within an evaluation."""

    def total(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """The sum of all ranks' ``Similarity.partial``; waits for the device."""

    def sum_counts(self, counts: Any) -> None:
        """Replace integer counts on a device by their sum over all ranks."""

    def pull_back(self, slope: Any) -> None:
        """dC/du from dC/dmoved (both times N)."""

    def pull_back_fused(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """dC/dmoved and ``pull_back`` in one pass over planes that read one part of the moving image.

        fused: given a box and the image, samples, compares and writes dC/du;  compare: replaces ``samples.moved`` by dC/dmoved in
        a box, where a ring brings the image in parts.
        """

    def sample_and_pull_back(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """``sample`` too in that pass, which also adds to ``totals``."""

    def finished(self, loss: float) -> None:
        """The loss, where the host knows it."""


class Similarity(ABC):
    """A loss between fixed and moved in two steps with a sum over the ranks between them, on one kind of device.

    Subclasses implement ``partial``, ``value`` and ``finish`` with kernels that run where the arrays are. ``evaluate`` is for
    those that have a faster way on a GPU: one that never waits for the device, so that iterations can be replayed from a graph.
    """

    reach: int = 0  # voxels around x that the value at x reads
    asynchronous: bool = False  # whether ``evaluate`` never waits for a GPU
    matched: bool = False  # whether linear stages call ``moments`` and ``match`` on the voxels they compare
    matched_levels: bool = False  # whether deformable stages do too, at the start of every level
    differences: bool = False  # whether it compares differences of neighbours: of two planes both have to be known
    separable: bool = False  # whether dC/dmoved at a voxel needs no sums over all of them: then slabs are compared one by one
    loss_sign: int = 0  # 0: the loss is in ``LossContext.loss``; else it is this times ``LossContext.totals[0] / totals[1]``

    def moments(self, s: Samples) -> NDArray[np.generic]:
        """What ``match`` is made of, summed as ``partial`` is; leaves the samples unchanged."""
        raise NotImplementedError

    def match(self, total: NDArray[np.generic]) -> None:
        """Adapt to the intensities of the voxels compared."""
        raise NotImplementedError

    @abstractmethod
    def partial(self, s: Samples) -> NDArray[np.generic]:
        """This rank's part of the sums: float32 rows (k, planes, Y), summed by plane and then over planes, or integer counts.

        May leave intermediates in ``s.scratch`` and change ``s.moved``.
        """

    @abstractmethod
    def value(self, total: NDArray[np.generic]) -> tuple[float, float]:
        """Loss and N, the sum of weights, from the sums over all ranks."""

    @abstractmethod
    def finish(self, s: Samples, total: NDArray[np.generic]) -> None:
        """Replace ``s.moved`` by N dC/dmoved."""

    def evaluate(self, on: LossContext) -> None:
        """Loss and N dC/du in a deformable stage."""
        on.sample()
        total = on.total(self.partial(on.samples))
        self.finish(on.samples, total)
        on.pull_back(on.samples.moved)
        on.finished(self.value(total)[0])

    # ---------------------------------------------------------------- slab by slab, where it is not separable

    def between(self, total: NDArray[np.generic], on: LossContext) -> tuple[Any, float]:
        """Between two passes over all slabs, from the sum of ``partial``: what ``differentiate`` takes, and the loss."""
        return total, self.value(total)[0]

    def differentiate(self, on: LossContext, between: Any) -> None:
        """N dC/du of a slab, in the second pass."""
        self.finish(on.samples, between)
        on.pull_back(on.samples.moved)


def ratio(total: NDArray[np.generic]) -> tuple[float, float]:
    """First over second sum, and the second, whether they are sums or counted in units of 1 / COUNT."""
    unit = FIXED_POINT_SCALE if np.issubdtype(total.dtype, np.integer) else 1
    return float(total[0]) / max(float(total[1]), 1e-30), float(total[1]) / unit
