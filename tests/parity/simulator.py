"""What Numba's CUDA simulator lacks for the kernels of daskreg, and blocks of threads that do not poll."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

SWITCH = 0.5  # seconds after which a thread has to let another run: those of a block wait for each other soon enough


def prepare_simulator() -> None:
    """Let this process, whose compiler is off, simulate every kernel."""
    sys.setswitchinterval(SWITCH)
    _cast_at_once()
    _know_atomics_everywhere()
    _align_shared_arrays()
    _synchronise_without_polling()


def _cast_at_once() -> None:
    """``float32(x)`` and its like first look for a signature, which took most of the time of a kernel."""
    from numba.core import types

    made = {str(t): getattr(np, str(t)) for t in (*types.integer_domain, *types.real_domain)}
    values = {int, float, bool, np.bool_, *made.values()}

    plain = types.Type.__call__

    def call(kind: Any, *given: Any) -> Any:
        return made[kind.name](*given) if len(given) == 1 and type(given[0]) in values else plain(kind, *given)

    types.Integer.__call__ = types.Float.__call__ = call


def _know_atomics_everywhere() -> None:
    """The simulator puts its atomics into the module that a kernel sees, but not into those of the functions it calls."""
    from numba import cuda
    from numba.cuda.simulator.kernelapi import FakeCUDAAtomic

    cuda.atomic = FakeCUDAAtomic()


def _align_shared_arrays() -> None:
    """The simulator knows no alignment of shared arrays."""
    from numba.core import types
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np import numpy_support

    lock, plain = threading.Lock(), FakeCUDAShared.array

    def array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        if alignment is None and shape == 0:
            return plain(self, shape, dtype)
        line = sys._getframe(1).f_lineno  # one array a line of the kernel
        with lock:
            if line not in self._allocations:
                self._allocations[line] = np.empty(
                    shape, numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype
                )
            return self._allocations[line]

    FakeCUDAShared.array = array


def _synchronise_without_polling() -> None:
    """The thread that comes last wakes the others of its block: polling, as the simulator does, takes three times as long."""
    from numba.cuda.simulator.kernel import BlockManager, BlockThread

    plain = BlockThread.run

    def run_block(block: Any, grid_point: Any, *arguments: Any) -> None:
        points = list(np.ndindex(*block._block_dim))
        block.lock, block.waiting, block.live = threading.Lock(), [], len(points)
        threads = [BlockThread(lambda: block._f(*arguments), block, grid_point, point, block._debug) for point in points]
        for thread in threads:
            thread.gate = threading.Lock()
            thread.gate.acquire()
            thread.start()
        for thread in threads:
            thread.join()
        for thread in threads:
            if thread.exception:
                raise thread.exception[0].with_traceback(thread.exception[1])

    def run_thread(thread: Any) -> None:
        plain(thread)
        with thread._manager.lock:
            thread._manager.live -= 1
            wake(thread._manager)

    def synchronise(thread: Any) -> None:
        with thread._manager.lock:
            thread._manager.waiting.append(thread)
            wake(thread._manager)
        thread.gate.acquire()

    def wake(block: Any) -> None:
        if len(block.waiting) == block.live:
            waiting, block.waiting = block.waiting, []
            for thread in waiting:
                thread.gate.release()

    BlockManager.run, BlockThread.run, BlockThread.syncthreads = run_block, run_thread, synchronise
