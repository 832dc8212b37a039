"""A run in one thread is ended, or sent to its next level, by calls from another."""

import threading

import numpy as np
import pytest

import daskreg
from daskreg.errors import ConfigError, Stopped
from daskreg.storage.runs.checkpoint import CheckpointStore

ENDLESS = 100_000
STAGES = [
    daskreg.Affine(scales=2, iterations=ENDLESS, tolerance=0),
    daskreg.Deformable(scales=(2, 1), iterations=(ENDLESS, ENDLESS), tolerance=0),
]


def pair():
    z, y, x = np.mgrid[:16, :16, :16].astype(np.float32) - 8
    fixed = np.exp(-(z**2 + y**2 + x**2) / 20) + np.random.default_rng(0).random((16, 16, 16), np.float32)
    return fixed, np.roll(fixed, 2, axis=0)


class Then:
    """Calls a function in a thread at the third iteration of every level."""

    def __init__(self, function):
        self.function, self.seen = function, set()

    def __call__(self, now):
        if now.iteration >= 3 and (now.stage, now.scale) not in self.seen:
            self.seen.add((now.stage, now.scale))
            threading.Thread(target=self.function).start()


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_level_is_left_for_the_next_one_and_the_last_for_the_result(tmp_path, workers):
    found = daskreg.register(
        *pair(), STAGES, output=tmp_path / "run.zarr", workers=workers, minimum_planes=1, progress=Then(daskreg.next_level)
    )
    deformable = [level for level in found.report["levels"] if level["stage"] == "deformable"]
    assert [level["stopped"] for level in deformable] == ["skipped", "skipped"]
    assert all(3 <= len(level["losses"]) < ENDLESS for level in deformable)
    assert found.store.complete


def test_a_run_that_is_stopped_keeps_a_checkpoint(tmp_path):
    with pytest.raises(Stopped) as error:
        daskreg.register(*pair(), STAGES[1:], output=tmp_path / "run.zarr", checkpoint=1e6, progress=Then(daskreg.stop))
    assert "resume=True" in "".join(error.value.__notes__)
    _, state = CheckpointStore(str(tmp_path / "run.zarr")).latest()
    assert len(state["losses"]) >= 3


def test_without_a_run_there_is_nothing_to_stop():
    with pytest.raises(ConfigError, match="no registration runs"):
        daskreg.stop()
