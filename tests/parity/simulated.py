"""The deformable loop for a GPU under Numba's simulator: ``python -m tests.parity.simulated {cpu,cuda} FOLDER NAME...``.

Arrays of "the device" are NumPy's, of a class that says it is on one, and a module with CuPy's names makes them.
"""

from __future__ import annotations

import sys
from threading import Lock
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator
from daskreg.config import Config, Deformable
from daskreg.engine import reach
from daskreg.kernels.compiler.cooperative import CooperativeKernel
from daskreg.kernels.compiler.launch import Kernel
from daskreg.optimizers.adam import Adam
from daskreg.optimizers.sgd import SGD
from daskreg.similarity import LNCC, MI, MSE, NGF
from tests.parity.background import serve
from tests.parity.simulator import prepare_simulator
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration

LOSSES: dict[str, Any] = {"mse": MSE(), "lncc": LNCC(radius=1), "mi": MI(bins=8), "ngf": NGF()}
OTHERS: dict[str, dict[str, Any]] = {
    "sgd": {"similarity": MSE(), "optimizer": SGD()},
    "gated": {"similarity": MSE(), "optimizer": Adam(significance=1)},
    "coherent": {"similarity": MSE(), "optimizer": Adam(coherence=0.5)},
    "grouped": {"similarity": MSE(), "iterations_per_sweep": 2},
}
# in mixed storage on the device: each loss, LNCC's other gradient, and filters that go axis by axis
MIXED: dict[str, dict[str, Any]] = {
    **{name: {"similarity": loss} for name, loss in LOSSES.items()},
    "center": {"similarity": LNCC(radius=1, gradient="center")},
    "gated": {"similarity": MSE(), "optimizer": Adam(significance=1)},
    "coherent": {"similarity": MSE(), "optimizer": Adam(coherence=0.5)},
    "wide warp": {"similarity": MSE(), "smooth_warp": 1.1},
    "wide gradient": {"similarity": MSE(), "smooth_gradient": 4.6},
}
SHAPE = (6, 7, 8)
LAUNCH = Lock()
LONG = (30, 3, 4)  # on two ranks most planes read the own shard alone
RINGS: dict[str, dict[str, Any]] = {  # on as many planes, in a ring; steps and filters so short that little is in doubt
    "ring of mse": {"similarity": MSE()},
    "mixed ring of mse": {"similarity": MSE(), "storage": "mixed"},
    "ring of lncc": {"similarity": LNCC(radius=1)},
    "ring of mi": {"similarity": MI(bins=8)},
    "mixed ring of center": {"similarity": LNCC(radius=1, gradient="center"), "storage": "mixed"},
}
TWICE = {
    "mse": "window",
    "mi": "window",
    "mixed center": "window",
    "mixed mse": "ring",
    "ngf": "ring",
    "sgd": "window",
} | dict.fromkeys(RINGS, "ring")  # also on two ranks
ON_TWO = " on two ranks"
IN_ORDER = "mse", "mixed mse", "ngf", "ring of mse"  # of these the messages between ranks are ordered on a stream


def stages() -> dict[str, Deformable]:
    """One stage a case: each loss, ``MIXED`` and ``RINGS``."""
    short: dict[str, Any] = {"scales": (1,), "iterations": (2,), "tolerance": 0}
    return {
        **{name: Deformable(similarity=loss, **short) for name, loss in LOSSES.items()},
        **{name: Deformable(**short, **given) for name, given in OTHERS.items()},
        **{f"mixed {name}": Deformable(storage="mixed", **short, **given) for name, given in MIXED.items()},
        **{name: Deformable(step=0.2, smooth_warp=0, **short, **given) for name, given in RINGS.items()},
    }


NAMES = [name + ranks for name in stages() for ranks in (["", ON_TWO] if name in TWICE else [""])]


class Array(np.ndarray):
    """An array that takes itself for one of a GPU."""

    device = SimpleNamespace(id=0)
    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))  # type: ignore[assignment]
    __cuda_array_interface__ = property(lambda self: self.__array_interface__)

    def get(self, stream: Any = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """To the host."""
        if out is None:
            return np.array(self)
        out[...] = np.asarray(self)
        return out

    def set(self, values: NDArray[Any]) -> None:
        """From the host."""
        self[...] = values


def asarray(values: Any, *rest: Any) -> Array:
    """There already, or copied there."""
    host = values.copy_to_host() if hasattr(values, "copy_to_host") else values
    return host if isinstance(host, Array) else np.array(host, *rest).view(Array)


class Stream:
    """Nothing is asynchronous."""

    def __init__(self, **_: Any) -> None:
        self.ptr = 0

    record = synchronize = lambda self: None


def install() -> None:
    """Let ``import cupy`` find what daskreg uses of it."""
    cupy, stream = ModuleType("cupy"), Stream()
    cupy.empty, cupy.zeros = (lambda *a: np.empty(*a).view(Array)), (lambda *a: np.zeros(*a).view(Array))  # type: ignore[attr-defined]
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    pool = SimpleNamespace(total_bytes=lambda: 0, free_all_blocks=lambda: None)
    cuda = SimpleNamespace(Event=Stream, Stream=Stream, get_current_stream=lambda: stream, runtime=runtime)
    vars(cupy).update(asarray=asarray, cuda=cuda, get_default_memory_pool=lambda: pool)
    sys.modules["cupy"] = cupy
    for kind, call in ((CooperativeKernel, "__call__"), (Kernel, "on_cuda")):
        setattr(kind, call, one_at_a_time(getattr(kind, call)))


def one_at_a_time(plain: Any) -> Any:
    """The simulator runs one kernel, whoever asks: ranks are threads."""

    def locked(*arguments: Any, **options: Any) -> Any:
        with LAUNCH:
            return plain(*arguments, **options)

    return locked


class InOrder:
    """Messages of GPUs that are ordered on a stream (``comm.StreamOrdered``), where nothing is asynchronous."""

    def __init__(self, comm: Communicator) -> None:
        self.comm, self.closed = comm, False

    def exchange(self, outgoing: Any, incoming: Any, purpose: str, after: Any = None) -> Any:
        """At once."""
        self.comm.exchange(outgoing, incoming, purpose)
        return SimpleNamespace(wait=lambda: None)

    def combine(self, sums: Any = None, largest: Any = None) -> None:
        """Over messages of the host."""
        if sums is not None:
            sums[...] = self.comm.gather(np.array(sums)).sum(axis=0)
        if largest is not None:
            largest[...] = self.comm.gather(np.array(largest)).max(axis=0)

    def wait(self, event: Any) -> None:
        """It has happened."""

    recorder = None
    check = close = lambda self: None


class OnDevice(Registration):
    """The same registration with its images on the device."""

    ordered = False

    def rank(self, comm: Any, *given: Any) -> Any:
        """With the link that is wanted."""
        if self.ordered and comm.size > 1:
            comm.stream_ordered = InOrder(comm)
        return super().rank(comm, *given)

    def images(self, plan: Any, comm: Any) -> Any:
        for image in super().images(plan, comm):
            image.voxels = asarray(image.voxels)
            yield image


def found(name: str, device: str) -> dict[str, NDArray[Any]]:
    """Losses and displacement of one of ``NAMES``."""
    stage = name.removesuffix(ON_TWO)
    ranks, shape = 2 if name.endswith(ON_TWO) else 1, LONG if stage in RINGS else SHAPE
    kind = OnDevice if device == "cuda" else Registration
    case = kind(blobs(shape, 1), blobs(shape, 2), Config(stages=(stages()[stage],)))
    case.ordered = stage in IN_ORDER
    run = case.run(ranks, TWICE.get(stage, "replicate"))
    return {"losses": np.array(run.losses[-1]), "u": np.array(run.displacement)}


if __name__ == "__main__":
    if sys.argv[1] == "cuda":
        prepare_simulator()
        install()
    reach.REACH_INTERVAL = 1  # so that what two iterations see is measured between them
    serve(found)
