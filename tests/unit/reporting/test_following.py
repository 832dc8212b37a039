"""Who follows a run says what happens, a line a level, in the thread that waits for it."""

import logging
import re
import threading

import pytest
from distributed.comm.core import CommClosedError

from daskreg.cli.application import global_first
from daskreg.cluster.logs import hide_normal_ends
from daskreg.engine.report import Calls, LevelReport, Observer, Place, Progress
from daskreg.errors import ConfigError
from daskreg.reporting import follow, lines, log
from daskreg.reporting.notebook import NotebookDisplay

LEVEL = LevelReport("affine", 2, (32, 38, 32), [-0.5, -0.75], 1.25, "plateau")


def told(observer: Observer) -> None:
    """A small run, as the ranks tell it."""
    observer.phase("read")
    observer.phase("search")
    observer.phase("optimise")
    observer.resumed(Place("affine", 2, 1))
    observer.compiling(1, 47)
    observer.compiling(12, 47)
    observer(Progress("affine", 2, 1, 40, -0.5))
    observer.level_ended(LEVEL)
    observer.memory(0, 512 << 20)
    observer.dashboard("http://127.0.0.1:8787/status")
    observer.phase("write")
    observer.tick()


def test_a_log_has_a_line_a_level_and_for_what_takes_time(caplog):
    with caplog.at_level(logging.INFO, "daskreg"):
        told(lines.Lines())
    assert [record.getMessage() for record in caplog.records] == [
        "reading the images",
        "searching for the pose on a coarse lattice",
        "going on from stage affine, scale 2, iteration 1",
        "compiling kernels (once on this machine), 1 of at most 47",
        "affine     scale 2      32 x 38 x 32  loss -0.50000 -> -0.75000, 2 iterations, 1.25 s",
        "writing the result",
    ]


def test_a_level_that_takes_long_has_lines_of_its_own(caplog, monkeypatch):
    monkeypatch.setattr(lines, "INTERVAL", 0.0)
    monkeypatch.setattr(lines, "COMPILING_INTERVAL", 0.0)
    with caplog.at_level(logging.INFO, "daskreg"):
        told(lines.Lines())
    assert "affine     scale 2  iteration 1 of at most 40, loss -0.50000" in caplog.messages
    assert any(re.fullmatch(r"compiling kernels \(once on this machine\), 12 of at most 47, \d s", m) for m in caplog.messages)


def test_kernels_are_counted_without_a_total_where_none_is_known(caplog, monkeypatch):
    monkeypatch.setattr(lines, "COMPILING_INTERVAL", 0.0)
    observer = lines.Lines()
    with caplog.at_level(logging.INFO, "daskreg"):
        observer.compiling(1)
        observer.compiling(2)
    first, second = caplog.messages
    assert first == "compiling kernels (once on this machine)"
    assert re.fullmatch(r"compiling kernels \(once on this machine\), 2 so far, \d s", second)


def test_messages_outside_of_a_terminal_have_the_time(capsys):
    handler = log.StandardError()
    handler.handle(logging.makeLogRecord({"msg": "reading the images", "levelname": "INFO"}))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d reading the images\n", capsys.readouterr().err)


@pytest.fixture
def unset():
    """No level, as in a script that does nothing about logging."""
    before = log.TREE.level
    log.TREE.setLevel(logging.NOTSET)
    yield
    log.TREE.setLevel(before)


@pytest.mark.usefixtures("unset")
def test_messages_are_shown_where_nobody_has_configured_logging(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with log.shown():
        log.TREE.info("seen")
    log.TREE.info("not seen")
    assert capsys.readouterr().err.splitlines()[0].endswith(" seen")
    assert (log.TREE.handlers, log.TREE.level) == ([], logging.NOTSET)


def test_whoever_has_configured_logging_decides(capsys):
    with log.shown():  # pytest has handlers of its own
        assert log.TREE.handlers == []


def test_an_unknown_log_level_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'debug'"):
        log.configure("debugg")


def test_what_is_told_in_another_thread_is_passed_on_in_order_by_the_one_that_waits():
    heard = list[tuple[str, int]]()
    inner = Calls(lambda progress: heard.append((threading.current_thread().name, progress.iteration)))
    observer = follow.InOrder(inner)
    told_by = threading.Thread(target=lambda: [observer(Progress("affine", 2, k, 3, 0.0)) for k in (1, 2, 3)])
    told_by.start()
    told_by.join()
    assert heard == []
    observer.tick()
    assert heard == [(threading.current_thread().name, k) for k in (1, 2, 3)]


def test_a_notebook_shows_curves_memory_and_the_dashboard():
    shown = list[tuple[str, str]]()
    display = NotebookDisplay(lambda html, text: shown.append((html, text)))
    told(display)
    display.end("done")
    html, text = shown[-1]
    assert "compiling kernels (once on this machine), 12 of at most 47" in html
    for part in ("<svg", "-0.50000 &rarr; -0.75000", "worker 0 512 MiB", 'href="http://127.0.0.1:8787/status"', "going on from"):
        assert part in html
    assert text.startswith("daskreg: done")
    assert "affine     scale 2  2 iterations" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["info", "a.nii", "--quiet"], ["--quiet", "info", "a.nii"]),
        (["info", "--log-level", "error", "a.nii"], ["--log-level", "error", "info", "a.nii"]),
        (["info", "--log-level=error", "--", "--quiet"], ["--log-level=error", "info", "--", "--quiet"]),
    ],
)
def test_global_options_may_stand_behind_the_command(given, expected):
    assert global_first(given) == expected


def test_a_rank_that_was_told_to_stop_is_no_error_in_dasks_log(caplog):
    worker = logging.getLogger("distributed.worker")
    hide_normal_ends()
    hide_normal_ends()
    with caplog.at_level(logging.ERROR, "distributed.worker"):
        for failure in ("Stopped('asked to')", "Cancelled('stopped')", "ValueError('no')"):
            worker.error("Compute Failed\nKey: %s\nException: %r\n", "run-0", failure)
    assert [record.args[1] for record in caplog.records] == ["ValueError('no')"]


def test_a_heartbeat_while_its_cluster_is_closed_is_no_error_in_dasks_log(caplog):
    worker = logging.getLogger("distributed.worker")
    hide_normal_ends()
    with caplog.at_level(logging.ERROR, "distributed.worker"):
        for failure in (CommClosedError("closed"), OSError("no route")):
            worker.error("Failed to communicate with scheduler during heartbeat.", exc_info=failure)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["no route"]
