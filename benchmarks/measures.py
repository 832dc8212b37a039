"""Processor time a voxel of the measures of a result on one core: the joint histogram and the sums of the correlation.

    python benchmarks/measures.py

Of 32 x 256 x 256 voxels: planes of the bundled heads, and noise. Each beside what defines it, with the same bits: the histogram's
body voxel by voxel, and NumPy's sums of float64. ``ns``: the least of five, of one thread; it hardly depends on what else the
machine does. Prints one JSON line each and writes ``measures.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.measure import MUTUAL_INFORMATION_BINS, moments
from daskreg.kernels.compiler.host_launch import set_thread_count
from daskreg.kernels.device import NO_MASK
from daskreg.similarity.base import Samples
from daskreg.similarity.mutual_information import MI
from daskreg.similarity.mutual_information.cpu import joint_histogram
from daskreg.storage import open_volume
from daskreg.workflows.demo import demo_pair

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "measures.json"
SHAPE = 32, 256, 256
Array = NDArray[np.float32]


def heads() -> tuple[Array, Array]:
    """Planes through the middle of the bundled pair, scaled to [0, 1], repeated."""
    found = []
    for path in demo_pair(2):
        voxels = np.asarray(open_volume(path).data, np.float32)
        middle = voxels[len(voxels) // 2 - 16 : len(voxels) // 2 + 16]
        found.append(np.ascontiguousarray(np.resize(middle / voxels.max(), SHAPE)))
    found[1][:, :20] = np.nan  # out of its domain
    return found[0], found[1]


def noise() -> tuple[Array, Array]:
    """Uniform in [0, 1)."""
    random = np.random.default_rng(0)
    return random.random(SHAPE, np.float32), random.random(SHAPE, np.float32)


def numpy_moments(fixed: Array, moved: Array) -> NDArray[np.float64]:
    """What ``engine.measure.moments`` gives, plane by plane, for a plane stays in the cache."""
    found = []
    for f, m in zip(fixed, moved, strict=True):
        inside = np.isfinite(m)
        n, f, m = (np.where(inside, v, 0).ravel().astype(np.float64) for v in (1, f, m))
        found.append([v.sum() for v in (n, f, m, f * f, m * m, f * m)])
    return np.array(found).T


def voxelwise(fixed: Array, moved: Array) -> NDArray[np.int64]:
    """Counts by the kernel's body."""
    counts = np.zeros((1, MUTUAL_INFORMATION_BINS, MUTUAL_INFORMATION_BINS), np.int64)
    joint_histogram(fixed.shape, counts, fixed, NO_MASK, moved)
    return counts[0]


def in_rows(fixed: Array, moved: Array) -> NDArray[Any]:
    """Counts as a result is measured."""
    return MI(bins=MUTUAL_INFORMATION_BINS).build("cpu").partial(Samples(fixed.shape, 0, fixed, NO_MASK, moved, moved))


def timed(function: Callable[[Array, Array], Any], pair: tuple[Array, Array]) -> tuple[float, Any]:
    """Nanoseconds of a voxel, and what it gives."""
    made, least = function(*pair), float("inf")
    for _ in range(5):
        begun = time.thread_time()
        function(*pair)
        least = min(least, time.thread_time() - begun)
    return round(1e9 * least / pair[0].size, 2), made


def row(name: str, images: str, pair: tuple[Array, Array], *functions: Callable[[Array, Array], Any]) -> dict[str, Any]:
    """A measure beside its definition. Raises AssertionError where their bits differ."""
    (ns, made), (before, expected) = (timed(function, pair) for function in functions)
    assert np.asarray(made).tobytes() == np.asarray(expected).tobytes(), f"{name}: other bits"
    return {
        "case": name,
        "images": images,
        "ns": ns,
        "definition_ns": before,
        "times": round(before / ns, 1),
        "cores": os.cpu_count(),
    }


def main() -> None:
    set_thread_count(1)
    rows = []
    for images, pair in (("heads", heads()), ("noise", noise())):
        rows += [row("joint histogram", images, pair, in_rows, voxelwise), row("moments", images, pair, moments, numpy_moments)]
    for found in rows:
        print(json.dumps(found))
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
