"""What Dask computes outside of a registration tells how far it is."""

import logging
import re
from pathlib import Path

import dask.array as da
import numpy as np

from daskreg.kernels.compiler.tally import TALLY
from daskreg.reporting import tasks
from daskreg.steps import step
from daskreg.storage.formats.streaming import slabs


def shares(monkeypatch, caplog, function):
    """What is shown while a function runs."""
    shown = list[tuple[str, float]]()
    monkeypatch.setattr(tasks, "DELAY", 0.0)
    monkeypatch.setattr(tasks, "INTERVAL", 0.0)
    monkeypatch.setattr(tasks, "_Lines", lambda: lambda text, share: shown.append((text, share)))
    with caplog.at_level(logging.INFO, "daskreg"):
        tasks.with_progress("resampling")(function)()
    return shown


def test_tasks_of_dask_are_counted(monkeypatch, caplog):
    shown = shares(monkeypatch, caplog, lambda: da.ones((8, 8), chunks=(1, 8)).sum().compute(scheduler="threads"))
    found = [share for _, share in shown]
    assert found == sorted(found)
    assert found[-1] == 1.0
    assert shown[-1][0].startswith("resampling: 100 %")


def test_slabs_are_steps_and_their_tasks_parts_of_them(monkeypatch, caplog):
    lazy = da.ones((4, 2, 2), chunks=(1, 2, 2), dtype=np.float32)
    monkeypatch.setattr("daskreg.storage.formats.streaming.SLAB_BYTES", 1)
    found = [share for _, share in shares(monkeypatch, caplog, lambda: list(slabs(lazy)))]
    assert found == sorted(found)
    assert {0.0, 0.25, 0.5, 0.75, 1.0} <= {*found}


def test_nothing_is_shown_where_nobody_wants_it(monkeypatch, caplog):
    monkeypatch.setattr(tasks, "_Lines", lambda: None)
    with caplog.at_level(logging.WARNING, "daskreg"):
        assert tasks.with_progress("resampling")(lambda: step(0, 1))() is None


def test_a_function_that_calls_another_shows_one(monkeypatch, caplog):
    shown = shares(monkeypatch, caplog, lambda: tasks.with_progress("inner")(lambda: step(1, 2))())
    assert [text.partition(":")[0] for text, _ in shown] == ["resampling"]


def test_what_has_progress_of_its_own_can_tell_the_log_of_tasks(monkeypatch, caplog):
    monkeypatch.setattr(tasks, "DELAY", 0.0)
    monkeypatch.setattr(tasks, "INTERVAL", 0.0)
    monkeypatch.setattr(tasks, "LINES", 0.0)
    with caplog.at_level(logging.INFO, "daskreg"), tasks.logged("making levels"):
        da.ones((8, 8), chunks=(1, 8)).sum().compute(scheduler="threads")
    assert "making levels: 100 %" in caplog.text


def test_kernels_that_are_compiled_meanwhile_are_told(monkeypatch, caplog):
    """They take most of a first call, and nothing else ends meanwhile."""

    def compile_two():
        for name in ("invert", "jacobian"):
            TALLY.begin(Path(name))
            step(0, 2)
            TALLY.end()
            step(1, 2)

    shown = [text for text, _ in shares(monkeypatch, caplog, compile_two)]
    assert ["compiling" in text for text in shown] == [True, False, True, False]
    assert caplog.messages[0] == "resampling: compiling kernels (once on this machine)"
    assert re.fullmatch(r"resampling: \d+ s, \d+ of them to compile 2 kernels \(once on this machine\)", caplog.messages[1])
    assert TALLY.listeners == []
