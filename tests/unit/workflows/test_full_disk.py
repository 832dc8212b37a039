"""A run that stops because the disk is full, while its last checkpoint is on it."""

import errno

import pytest

import daskreg
from daskreg import MSE, Deformable
from daskreg.engine.report import Progress
from daskreg.errors import OutOfSpace
from daskreg.storage import CheckpointStore
from daskreg.storage.runs import run as runs
from tests.phantoms import known_warp_pair


def test_a_checkpoint_is_told_of_although_the_run_cannot_be_marked(tmp_path, monkeypatch):
    fixed, moving, _ = known_warp_pair((16, 16, 16), 1.0, 0)
    stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(20,), tolerance=0)]
    path = tmp_path / "run.zarr"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def watch(progress: Progress):
        if progress.iteration >= 10:  # not every iteration is reported; the last one always is
            monkeypatch.setattr(runs, "set_root", full)
            full()

    with pytest.raises((OutOfSpace, OSError)) as caught:
        daskreg.register(fixed, moving, stages, output=path, checkpoint=0.0, progress=watch)
    assert f"--resume -o {path}" in str(caught.value.__notes__)
    assert CheckpointStore(str(path)).latest() is not None
