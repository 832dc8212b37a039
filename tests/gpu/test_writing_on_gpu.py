"""A result that is converted, averaged and encoded from a GPU's memory is the one that the host writes, byte for byte."""

import numpy as np
import pytest

from daskreg.cluster.result_writer import ResultWriter, cast, to_world
from daskreg.comm import SingleRank
from daskreg.grid import Grid, Span
from daskreg.kernels.device import CPU, Device
from daskreg.storage import RunStore
from daskreg.storage.runs.layout import DISPLACEMENT, MOVED

pytestmark = pytest.mark.gpu
TURN = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, -1]])
CHUNK = 16


def grid_of(kind):
    """An odd shape whose axes are halved at different levels."""
    direction = TURN if kind == "turned" else np.eye(3)
    return Grid((70, 45, 83), (0.4, 0.4, 0.9), direction=tuple(map(tuple, direction.tolist())))


def written(path, device, grid, order, u, moved):
    """The bytes of all chunks, by name."""
    back = tuple(order.index(axis) for axis in range(3))
    run = RunStore.create(path, fixed=grid, moving=grid)
    run.create_image(DISPLACEMENT, grid, components=3, chunk=CHUNK, coarser=True)
    run.create_image(MOVED, grid, np.uint16, chunk=CHUNK, coarser=True)
    planned = grid.permute(order)
    rows = [(Span(z, min(z + CHUNK, planned.shape[0])), 0) for z in range(0, planned.shape[0], CHUNK)]
    u, moved = device.put(u.transpose(0, *(a + 1 for a in order)).copy()), device.put(moved.transpose(order).copy())
    with ResultWriter(run, back, order, rows, SingleRank()) as writer:
        for row, _ in rows:
            writer.write(DISPLACEMENT, row, u[:, row.start : row.stop], to_world(planned, device))
            writer.write(MOVED, row, moved[row.start : row.stop], lambda found: cast(found, np.dtype(np.uint16), 7))
        writer.finish()
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("c/**/*") if p.is_file()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("kind", ["straight", "turned"])
def test_the_gpu_writes_the_bytes_of_the_host(tmp_path, kind, order):
    grid, device, rng = grid_of(kind), Device("cuda"), np.random.default_rng(0)
    device.use()
    u, moved = rng.normal(0, 3, (3, *grid.shape)).astype(np.float32), rng.uniform(-9, 70000, grid.shape).astype(np.float32)
    moved[:20, :20] = np.nan
    moved[:, :, 70:] = 0
    right, found = (written(tmp_path / d.kind, d, grid, order, u, moved) for d in (CPU, device))
    assert sorted(found) == sorted(right)
    assert [name for name in right if found[name] != right[name]] == []
