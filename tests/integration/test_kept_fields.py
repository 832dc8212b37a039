"""A command with its fields on disk that is killed in the middle of a level goes on from its last iteration."""

import numpy as np
import psutil
import pytest

from daskreg.cluster.kept_checkpointer import progress
from daskreg.config import Affine, Config, Deformable
from daskreg.similarity import LNCC
from daskreg.storage import RunStore
from daskreg.storage.kept_fields import KeptCheckpoint
from daskreg.workflows.demo import demo_pair
from tests.integration.command import Command

PAIR = demo_pair(2)
STAGES = Affine(scales=(8,)), Deformable(similarity=LNCC(gradient="center"), scales=(2, 1), iterations=(10, 24), tolerance=0)


def committed(scratch):
    """Level and iterations of the last commit."""
    found = [KeptCheckpoint.latest(folder, progress) for folder in scratch.glob(".daskreg-scratch-kept-*")]
    return progress(found[0].state)[1:] if found and found[0] else (0, 0)


def displacement(path):
    return RunStore.open(str(path)).displacement().compute()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_killed_command_loses_no_more_than_an_iteration(tmp_path, before, after):
    recipe, scratch = tmp_path / "recipe.yaml", tmp_path / "scratch"
    scratch.mkdir()
    recipe.write_text(Config(stages=STAGES).dump())
    options = "--config", recipe, "--state", "disk", "--scratch", scratch, "--checkpoint-every", 0
    with Command(*PAIR, tmp_path / "killed.zarr", *options, "--workers", before) as command:
        command.wait_until(lambda: committed(scratch) > (1, 2))
        for process in [*psutil.Process(command.process.pid).children(recursive=True), command.process]:
            process.kill()
    last = committed(scratch)[1]
    with Command(*PAIR, tmp_path / "killed.zarr", "--resume", "--workers", after, "--scratch", scratch) as command:
        code, said, _ = command.ended(240)
    assert code == 0, said
    assert f"going on from stage deformable, scale 1, iteration {last}\n" in said
    assert not list(scratch.glob(".*"))
    with Command(*PAIR, tmp_path / "whole.zarr", "--config", recipe) as command:
        assert command.ended(240)[0] == 0
    np.testing.assert_array_equal(displacement(tmp_path / "killed.zarr"), displacement(tmp_path / "whole.zarr"))


@pytest.mark.slow
def test_a_run_that_is_replaced_leaves_no_fields(tmp_path):
    recipe, scratch = tmp_path / "recipe.yaml", tmp_path / "scratch"
    scratch.mkdir()
    recipe.write_text(Config(stages=STAGES).dump())
    options = "--config", recipe, "--state", "disk", "--scratch", scratch, "--checkpoint-every", 0
    with Command(*PAIR, tmp_path / "run.zarr", *options) as command:
        command.wait_until(lambda: (tmp_path / "run.zarr/checkpoint/kept.json").exists())
        command.process.kill()
        command.process.wait()
    assert list(scratch.glob(".*"))
    with Command(*PAIR, tmp_path / "run.zarr", "--config", recipe, "--overwrite", "--scratch", scratch) as command:
        assert command.ended(240)[0] == 0
    assert not list(scratch.glob(".*"))
