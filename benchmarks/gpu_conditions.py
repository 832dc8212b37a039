"""Under which conditions a GPU was measured: the card, its bandwidth, the code and the packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from measure import commit

PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "numba", "numba-cuda")
EDGE = 512  # of the array that is copied; 0.5 GB


def conditions() -> dict[str, Any]:
    """Card, bandwidth of a copy (bytes read and written), commit (``measure.commit``) and versions, for a row of results."""
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {"device": device, "copy_TB_s": round(copy_rate(), 2), "commit": commit(), "versions": versions()}


def copy_rate() -> float:
    """Terabytes a second that a copy within the memory of the current device reads and writes."""
    import cupy

    source = cupy.zeros(EDGE**3, cupy.float32)
    target, found = cupy.empty_like(source), []
    for _ in range(8):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        cupy.copyto(target, source)
        stop.record()
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop))
    return float(2 * source.nbytes / min(found) / 1e9)


def versions() -> dict[str, str]:
    """Those of the installed packages that compile and launch kernels."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
