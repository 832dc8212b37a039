"""How a worker's process ends."""

import gc
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from daskreg import machine
from daskreg.cluster import closing
from daskreg.transforms.execution import run_on_cpu

PROGRAM = """
import atexit, sys
from types import SimpleNamespace
from daskreg.cluster.closing import end_soon

class Kept:
    def __del__(self):
        print("collected")

kept = Kept()
kept.itself = kept
atexit.register(print, "exit")
end_soon(SimpleNamespace(nanny=sys.argv[1]))
end_soon(SimpleNamespace(nanny=sys.argv[1]))
del kept
"""


@pytest.mark.parametrize(("nanny", "said"), [("tcp://127.0.0.1:1", ["exit"]), ("", ["exit", "collected"])])
def test_a_process_whose_nanny_waits_ends_without_a_last_collection(tmp_path, nanny, said):
    """It took a second of a core; on busy ones the nanny killed it after four, with a warning in the user's notebook."""
    (tmp_path / "program.py").write_text(PROGRAM)
    root = str(Path(closing.__file__).parents[2])
    command = [sys.executable, "program.py", nanny]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == said
    assert not done.stderr


def test_a_worker_that_has_only_resampled_ends_as_soon(monkeypatch):
    """``apply`` and its like run kernels in tasks of Dask, on workers that know nothing of daskreg before."""
    registered, ran = [], []
    monkeypatch.setattr(machine.atexit, "register", registered.append)
    machine.leave_garbage.cache_clear()
    run_on_cpu(lambda *given: ran.append(given), (1, 1, 1), 5)
    assert not registered
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "Dask Worker process (from Nanny)")
    for _ in range(2):
        run_on_cpu(lambda *given: ran.append(given), (1, 1, 1), 5)
    assert registered == [gc.freeze]
    assert ran == [((1, 1, 1), 5)] * 3
    machine.leave_garbage.cache_clear()
