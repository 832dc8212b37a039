"""A chain of transforms applied on a real CUDA device, from the threads of Dask."""

import numpy as np
import pytest

from daskreg import Grid, Transform

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic", "label"])
def test_the_device_changes_nothing_but_rounding(interpolation, dtype):
    grid, rng = Grid((150, 140, 130), (1.2, 1.0, 0.9), unit="mm"), np.random.default_rng(0)
    d = rng.normal(0, 0.4, (3, *grid.shape)).astype(np.float32)
    first = Transform.of(np.eye(4) + 0.02 * rng.normal(size=(4, 4)) * np.array([[1], [1], [1], [0]]), grid, d, grid)
    chain, image = first.then(first), (rng.random(grid.shape) * 5).astype(dtype)
    cpu, cuda = (np.asarray(chain.apply(image, interpolation=interpolation, device=d).compute(), float) for d in ("cpu", "cuda"))
    assert len(np.unique(cpu)) > 3
    assert (np.abs(cpu - cuda) > 1e-4).mean() < 2e-3  # a number, or a place, rounded the other way
