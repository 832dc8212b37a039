"""These tests need PyTorch: without it they are not collected, and ``pytest tests/torch`` fails because there are none."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

_found = find_spec("torch")
collect_ignore_glob = [] if _found is not None and _found.origin is not None else ["*.py"]


@pytest.fixture(scope="session", autouse=True)
def simulation(request, tmp_path_factory):
    """The process that simulates CUDA kernels, from the first test on, where one of them asks for it; None where none does."""
    if not any(item.path.name == "test_simulated.py" for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("simulation")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    with (folder / "errors").open("w") as errors:
        command = [sys.executable, "-m", "tests.torch.simulated", str(folder / "results.npz")]
        process = subprocess.Popen(command, env=environment, stderr=errors)
        try:
            yield SimpleNamespace(process=process, results=folder / "results.npz", errors=folder / "errors")
        finally:
            process.kill()
            process.wait()
