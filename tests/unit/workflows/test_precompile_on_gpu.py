"""On a machine with a GPU, registrations run on it, so that everything they use is kept."""

import importlib
import subprocess
from types import SimpleNamespace

import pytest

from daskreg.errors import RunError
from daskreg.kernels.compiler import offline
from daskreg.workflows.presets import PRESETS

module = importlib.import_module("daskreg.workflows.precompile")


@pytest.fixture
def started(monkeypatch):
    """The environment of each process that was started; one end of it all is scripted."""
    found = SimpleNamespace(environments=[], presets=[], code=0)

    def run(command, env, **options):
        assert command[-3:-1] == ["daskreg.workflows.warm_up", "cuda"]
        found.presets.append(command[-1])
        found.environments.append(env)
        return SimpleNamespace(returncode=found.code, stderr="a\nout of memory\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(offline, "compile_for", lambda architectures, base=None, **options: base)
    monkeypatch.setattr(module, "_architecture", lambda: "sm_90")
    return found


def test_kernels_that_a_run_adds_go_to_the_folder(started, tmp_path):
    module.precompile(["sm_80", "sm_90"], tmp_path)
    assert sorted(started.presets) == sorted(PRESETS)
    assert {environment["NUMBA_CACHE_DIR"] for environment in started.environments} == {str(tmp_path)}
    assert str(tmp_path) not in {environment["CUPY_CACHE_DIR"] for environment in started.environments}


def test_a_gpu_of_another_architecture_is_left_alone(started, tmp_path):
    module.precompile(["sm_80"], tmp_path)
    assert started.environments == []


def test_the_last_word_of_a_failed_run_is_told(started, tmp_path):
    started.code = 1
    with pytest.raises(RunError, match="out of memory"):
        module.precompile(["sm_90"], tmp_path)
