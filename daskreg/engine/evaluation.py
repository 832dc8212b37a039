"""The loss of one level on one rank: what a similarity compares, and where its gradient goes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.backend import Backend
from daskreg.engine.halo import Block, Movement, wait_all
from daskreg.engine.reach import SamplingMap
from daskreg.engine.ring import Ring
from daskreg.engine.sampler import Sampler
from daskreg.engine.state import StateStore
from daskreg.engine.sums import add_up
from daskreg.engine.weights import Weights
from daskreg.kernels.compiler.launch import Shape
from daskreg.kernels.device import host
from daskreg.similarity.base import FusedKernel, Samples, Similarity

Array = NDArray[np.float32]


class LossEvaluation:
    """What a level needs to evaluate its similarity at a displacement (method, section 5, step 1).

    gradient_reach: planes around its own of which a rank needs the gradient of its neighbours.
    """

    def __init__(
        self,
        similarity: Similarity,
        block: Block,
        fixed: Array,
        mask: Array | None,
        sampler: Sampler,
        mapping: SamplingMap,
        comm: Communicator,
        gradient_reach: int,
    ) -> None:
        self.similarity, self.block, self.fixed, self.sampler, self.mapping = similarity, block, fixed, sampler, mapping
        self.comm, self.gradient_reach = comm, gradient_reach
        self.weights, self.moved = Weights(mask, sampler.masked, block), block.scalar()
        self.window_halo = Movement(comm, block.partition.slabs, block.around(similarity.reach))
        self.gradient_event: Any = None  # behind the planes of the gradient that neighbours wait for

    def gradient(self, state: StateStore, backend: Backend) -> None:
        """Evaluate at ``state.u``: the loss goes to the backend, N dC/du into ``state.gradient``."""
        self._look_at(state, backend)
        self.gradient_event = None
        self.similarity.evaluate(self)

    def match(self, state: StateStore, backend: Backend) -> None:
        """Adapt the similarity to the voxels compared at ``state.u``, or, in a level that goes on, as it was at its start."""
        if not self.similarity.matched_levels:
            return
        if not state.matched:
            self._look_at(state, backend)
            self.sample()
            state.matched = [float(v) for v in self.total(self.similarity.moments(self.samples))]
        self.similarity.match(np.array(state.matched))

    def _look_at(self, state: StateStore, backend: Backend) -> None:
        self.state, self.backend, self.sampler.run = state, backend, partial(backend.run, reads_moving=True)
        self.totals, self.loss, self.slope = backend.totals, backend.loss, state.slope
        scratch, weight = state.similarity_scratch, self.weights.array
        self.samples = Samples(self.block.box(), self.block.first, self.fixed, weight, self.moved, scratch)

    # ---------------------------------------------------------------- what ``similarity.base.LossContext`` promises

    @property
    def masked(self) -> bool:
        """Whether the moving image has a mask."""
        return self.weights.moving is not None

    def sample(self) -> None:
        """See ``similarity.base.LossContext``."""
        s, f, seen = self.sampler, self.state, self.weights.moving
        sample = partial(s.sample, mapping=self.mapping, u=f.u, moved=self.moved, weight=seen, g=f.image_gradient)
        event = None
        if s.stores_gradient:
            sample(self.block.box())  # with messages between its launches
        else:
            event = self.backend.launch("sample", sample, self.similarity.reach, seen is not None, reads_moving=True)
        self.run("weights", self.weights.combine)
        if self.similarity.reach:
            arrays = [self.moved] if seen is None else [self.moved, seen]
            wait_all(self.window_halo.start(*((a, self.block.first) for a in arrays), after=event))

    def run(self, name: str, launches: Callable[[], Any]) -> None:
        """See ``Backend.run``."""
        self.backend.run(name, launches)

    def total(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """See ``sums.add_up``."""
        return add_up(part, self.comm, self.block.partition)

    def sum_counts(self, counts: Any) -> None:
        """See ``similarity.base.LossContext``."""
        if self.comm.stream_ordered is not None:
            self.comm.stream_ordered.combine(sums=counts)
        elif self.comm.size > 1:
            counts.set(self.comm.sum_counts(host(counts)))

    def pull_back(self, slope: Any) -> None:
        """See ``similarity.base.LossContext``."""
        self._launch_gradient("pull back", self._pull(slope))

    def pull_back_fused(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """See ``similarity.base.LossContext``."""
        s, kernel = self.sampler, self._on_image(fused)
        if isinstance(s, Ring):
            self.backend.run("slope", partial(self._compare_outer, s, compare), reads_moving=True)
            kernel = self._pull(self.moved, fused=kernel)
        self._launch_gradient("pull back", kernel)

    def sample_and_pull_back(self, fused: FusedKernel, compare: Callable[[Shape], None]) -> None:
        """See ``similarity.base.LossContext``."""
        s, f, kernel = self.sampler, self.state, self._on_image(fused)
        if not isinstance(s, Ring):
            self._launch_gradient("difference", kernel)
            return
        s.sample(self.block.box(), self.mapping, f.u, self.moved, None, f.image_gradient, fused=kernel)
        self.backend.run("difference", partial(self._compare_outer, s, compare), reads_moving=True)
        outer = partial(s.pull_back_outer, mapping=self.mapping, slope=self.moved, g=f.gradient, image_gradient=f.image_gradient)
        self._launch_gradient("pull back", outer)

    def finished(self, loss: float) -> None:
        """See ``similarity.base.LossContext``."""
        self.backend.record(loss)

    def _pull(self, slope: Any, **given: Any) -> Callable[[Shape], None]:
        """The sampler's ``pull_back``, of a box."""
        f = self.state
        return partial(
            self.sampler.pull_back,
            mapping=self.mapping,
            u=f.u,
            slope=slope,
            g=f.gradient,
            image_gradient=f.image_gradient,
            **given,
        )

    def _on_image(self, fused: FusedKernel) -> Callable[[Shape], None]:
        """A launch on the part of the image that planes are sampled from without messages."""
        image = self.sampler.direct
        sampling = *self.mapping, self.state.u, image.origin, image.planes, image.image
        return partial(fused, sampling=sampling, gradient=self.state.gradient)

    def _compare_outer(self, ring: Ring, compare: Callable[[Shape], None]) -> None:
        for box in ring.outer(self.block.box(), self.mapping):
            compare(box)

    def _launch_gradient(self, name: str, kernel: Callable[[Shape], Any]) -> None:
        self.gradient_event = self.backend.launch(name, kernel, self.gradient_reach, reads_moving=True)
