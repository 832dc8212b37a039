"""CUDA's driver in a process that was forked: usable where the one that has forked it had not initialised it."""

from __future__ import annotations

import ctypes
import logging
import sys

from daskreg.cluster import timeouts
from daskreg.fork_server import ForkedProcess

log = logging.getLogger("daskreg")


def initialised() -> bool:
    """Whether this process has initialised the driver, without which it answers nothing."""
    driver = _driver()
    return driver is not None and not driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))


def initialise() -> None:
    """End this process, with 0 where it can use a GPU."""
    driver = _driver()
    sys.exit(int(driver is None or driver.cuInit(0) != 0 or not initialised()))


def usable_when_forked() -> bool:
    """Whether a process that the fork server has forked can use a GPU; tried in one, which uses no memory of it."""
    process = ForkedProcess(target=initialise, daemon=True)
    try:
        process.start()
    except Exception as problem:  # noqa: BLE001  # the start of the workers says what is wrong
        log.info("no process was forked (%r); workers are started afresh.", problem)
        return False
    process.join(timeouts.QUESTION_TIMEOUT)
    if process.exitcode == 0:
        return True
    process.kill()
    log.info("a forked process cannot use a GPU; workers are started afresh.")
    return False


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
