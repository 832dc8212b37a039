"""How much of a displacement folds, shrinks or grows, whoever has its planes."""

import numpy as np
import pytest

from daskreg.engine.halo import Block
from daskreg.engine.measure import folding
from daskreg.engine.planes import ArrayPlanes
from daskreg.grid import Partition
from tests.unit.engine.spread import on_ranks

SHAPE = (6, 4, 40)
# gradients along x of ten voxels each: determinants of 1, 3.5, 0.2 and -0.25, and means of two beside each other
GRADIENTS = np.repeat([0.0, 2.5, -0.8, -1.25], 10)


@pytest.mark.parametrize("ranks", [1, 3])
def test_voxels_that_fold_and_those_that_change_their_volume_are_counted(ranks):
    u = np.zeros((3, *SHAPE), np.float32)
    u[2] = np.concatenate([[0], np.cumsum(GRADIENTS)[:-1]])
    expected = 1 + np.gradient(u[2, 0, 0])
    partition = Partition.of(SHAPE[0], ranks)

    def on_rank(comm):
        held = partition.around(comm.rank, 1)
        block = Block(SHAPE, partition, comm.rank, halo=1)
        return folding(ArrayPlanes(u[:, held.start : held.stop].copy(), held.start), block, comm)

    for found in on_ranks(ranks, on_rank):
        assert found["folded_percent"] == pytest.approx(100 * (expected <= 0).mean())
        assert found["extreme_percent"] == pytest.approx(100 * ((expected < 1 / 3) | (expected > 3)).mean())
        assert (found["smallest"], found["largest"]) == pytest.approx((-0.25, 3.5))
    assert 0 < found["folded_percent"] < found["extreme_percent"] < 100
