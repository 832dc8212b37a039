"""How a level of the deformable stage runs on a device: launching kernels, and when the host knows a loss. Here: a CPU, at
once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.engine.halo import Block
from daskreg.engine.report import Trace, Watch
from daskreg.kernels.compiler.launch import Shape
from daskreg.optimizers.base import Optimizer

LAG = 6  # iterations that are under way on a GPU when the host decides: enough to keep it busy
Iteration = Callable[[int], str | None]  # runs iteration t = 1, 2, ..; why the level ends with it, None while it goes on


class Backend(ABC):
    """Launches kernels, keeps the losses, and agrees with the other ranks on the length of a step.

    block: this rank's planes;  losses: of the level's iterations before this process took it up;  iterations: at most;
    longest: (1,) float32 on the device, the largest |d|^2;  coefficients, clock: the optimizer's scalars of every step, and
    which step is next.
    """

    trace: Trace | None = None  # is given when launches began and ended, where that is recorded
    lag: int = 0  # iterations whose losses the host may not know yet
    longest: Any
    coefficients: Any
    clock: Any
    totals: Any = None
    loss: Any = None

    def __init__(self, block: Block, comm: Communicator, watch: Watch, losses: list[float], iterations: int) -> None:
        self.block, self.comm, self.watch, self.iterations = block, comm, watch, iterations
        self.done, self.past = len(losses), list(losses)
        self.asked = 0.0  # what any rank asks for: SAVE, STOP or 0

    def prepare(self, optimizer: Optimizer, gradient_scale: float, loss_sign: int, asynchronous: bool) -> None:
        """Everything that iterations need on the device.

        loss_sign, asynchronous: see ``Similarity``, of the similarity and the optimizer together.
        """
        rows = [optimizer.coefficients(k + 1, gradient_scale) for k in range(max(self.iterations, 1))]
        put = self.block.device.put
        self.coefficients = put(np.array(rows, np.float32).reshape(len(rows), -1))
        self.clock = put(np.array([self.done], np.int32))

    def run(self, name: str, launches: Callable[[], Any], *, reads_moving: bool = False) -> None:
        """Launch kernels without messages between them. Each ``name`` occurs once in an iteration.

        reads_moving: whether they have the moving image's arrays among their arguments, which a window replaces when it moves.
        """
        launches()

    def launch(
        self, name: str, kernel: Callable[[Shape], Any], reach: int, whole: bool = False, *, reads_moving: bool = False
    ) -> Any:
        """Run a kernel on the own planes, first on those within ``reach`` of a neighbour; the event behind these, None without
        one.
        """
        kernel(self.block.box())

    @abstractmethod
    def advance(self, iteration: Iteration, k: int) -> tuple[int, str | None]:
        """Start iteration k = 0, 1, .. or some from it on; how many have a loss, and why the level ends with them."""

    @abstractmethod
    def known(self, k: int) -> list[float] | None:
        """Before iteration k: the losses by which the level is judged, or None where it is not judged now."""

    @abstractmethod
    def losses(self, k: int) -> list[float]:
        """Those of the first k iterations; waits for them."""

    @abstractmethod
    def record(self, loss: float) -> None:
        """The loss of the iteration at hand, where the host knows it first."""

    @abstractmethod
    def agree(self, t: int) -> Any:
        """Make ``longest`` that of all ranks in iteration t; what ``settle`` then takes."""

    @abstractmethod
    def settle(self, agreed: Any) -> None:
        """End an iteration: the loss counts, sums and clock are ready for the next."""

    @abstractmethod
    def later(self, array: Any) -> Callable[[], NDArray[Any]]:
        """What gives the host an array that was launched, however much is launched after it."""

    @abstractmethod
    def moving_changed(self) -> None:
        """The arrays of the moving image are others than before."""

    @abstractmethod
    def close(self) -> None:
        """Nothing is launched any more."""

    def listens(self, t: int) -> bool:
        """Whether what ``watch`` asks for in iteration t is acted upon: whoever asks forgets that it did."""
        return t < self.iterations


class CpuBackend(Backend):
    """Every launch is finished when it returns."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.longest: NDArray[np.float32] = np.zeros(1, np.float32)

    def advance(self, iteration: Iteration, k: int) -> tuple[int, str | None]:
        """One iteration."""
        return 1, iteration(k + 1)

    def known(self, k: int) -> list[float] | None:
        """All of them."""
        return self.past

    def losses(self, k: int) -> list[float]:
        """All of them."""
        return list(self.past)

    def record(self, loss: float) -> None:
        """See ``Backend.record``."""
        self.past.append(loss)

    def agree(self, t: int) -> Any:
        """With what the ranks ask for."""
        asked = self.watch.asked() if self.listens(t) else 0.0
        table = self.comm.gather(np.array([float(self.longest[0]), asked]))
        self.longest[0], self.asked = table[:, 0].max(), float(table[:, 1].max())

    def settle(self, agreed: Any) -> None:
        """The clock."""
        self.longest[0] = 0
        self.clock[0] += 1

    def later(self, array: Any) -> Callable[[], NDArray[Any]]:
        """The array."""
        return lambda: np.asarray(array)

    def moving_changed(self) -> None:
        """Launches look it up."""

    def close(self) -> None:
        """Nothing is held."""
