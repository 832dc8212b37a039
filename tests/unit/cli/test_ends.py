"""How commands end: one sentence and an exit code, whatever happens and whenever a signal arrives."""

import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import daskreg
from daskreg import cli
from daskreg.errors import NotFound
from daskreg.storage import write_image


def ended(monkeypatch, capsys, error):
    """Exit code and standard error of a command that raises."""

    def app():
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr().err


def noted(error, note):
    error.add_note(note)
    return error


def test_a_deliberate_failure_is_its_sentence_and_its_notes(monkeypatch, capsys):
    code, said = ended(monkeypatch, capsys, noted(NotFound("a.nii does not exist."), "The last checkpoint is kept."))
    assert (code, said) == (2, "daskreg: a.nii does not exist.\nThe last checkpoint is kept.\n")


def test_any_other_exception_is_a_sentence_and_a_file_for_a_report(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = ended(monkeypatch, capsys, noted(ZeroDivisionError("division by\nzero"), "The last checkpoint is kept."))
    assert code == 1
    sentence, note = said.splitlines()
    assert sentence.startswith(
        "daskreg: unexpected ZeroDivisionError: division by zero. This is a mistake in daskreg; please report"
    )
    assert note == "The last checkpoint is kept."
    path = re.search(r"the file (\S+), which", sentence)[1]
    kept = Path(path).read_text()
    assert "Traceback (most recent call last)" in kept
    assert "ZeroDivisionError" in kept
    assert "numpy" in kept
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_where_no_file_can_be_written_the_traceback_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    code, said = ended(monkeypatch, capsys, KeyError("x"))
    assert code == 1
    assert "please report it" in said
    assert "Traceback (most recent call last)" in said


def test_too_little_memory_is_no_mistake_of_daskreg(monkeypatch, capsys):
    code, said = ended(monkeypatch, capsys, MemoryError("Unable to allocate 3 GiB"))
    assert (code, "out of memory" in said, "--memory" in said, "report" in said) == (1, True, True, False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_a_stopped_run_has_kept_is_said(number, code):
    """Typer replaces KeyboardInterrupt by an exit, which has no notes of its own."""
    script = """
import os, signal, sys
from daskreg import cli
from daskreg.cli.application import app

@app.command()
def wait():
    try:
        os.kill(os.getpid(), {number})
        signal.pause()
    except BaseException as error:
        error.add_note("The last checkpoint is kept: resume.")
        raise

sys.argv = ["daskreg", "wait"]
cli.main()
"""
    child = run_alone([sys.executable, "-c", script.format(number=int(number))])
    assert child.communicate(timeout=60)[1] == b"daskreg: stopped. The last checkpoint is kept: resume.\n"
    assert child.returncode == code


def run_alone(command, **options):
    """A child that Ctrl-C and a hangup reach: one ignores what was ignored where it came from, as under ``nohup``."""
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("module", ["typer", "numba", "dask"])
def test_ctrl_c_during_an_import_is_one_line(module, tmp_path):
    """The module stands in for one that is imported at that moment."""
    for name in ("a.nii", "b.nii"):  # what there is not is refused before anything slow is imported
        write_image(tmp_path / name, np.arange(512, dtype=np.float32).reshape(8, 8, 8), daskreg.Grid((8, 8, 8)))
    (tmp_path / f"{module}.py").write_text("import time\nopen('begun', 'w').close()\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', os.getcwd())}"}
    command = [sys.executable, "-m", "daskreg", "register", "a.nii", "b.nii", "-o", "r.zarr"]
    child = run_alone(command, cwd=tmp_path, env=environment)
    while not (tmp_path / "begun").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    assert child.communicate(timeout=60)[1] == b"daskreg: stopped; nothing was written.\n"
    assert child.returncode == 130


def test_a_process_that_was_told_to_ignore_a_hangup_still_does():
    shown = (
        "import signal; from daskreg.cli import signals; signals.handle_signals(); print(int(signal.getsignal(signal.SIGHUP)))"
    )
    ignored = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    found = subprocess.run([sys.executable, "-c", ignored, "-c", shown], capture_output=True, text=True, check=True)
    assert found.stdout == f"{int(signal.SIG_IGN)}\n"


SCRIPT = """
import numpy as np, daskreg
print("the script runs", flush=True)
a = np.random.default_rng(0).random((24, 24, 24), np.float32)
print(daskreg.register(a, a, [daskreg.Affine(scales=(2,), iterations=(2,))], workers=2, comm="tcp").verdict.status)
"""


def test_a_script_with_several_workers_needs_no_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout == "the script runs\nok\n"
    assert "Traceback" not in found.stderr


def test_a_script_that_is_imported_by_a_process_that_it_has_started_does_not_register_there(tmp_path, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(daskreg.ConfigError, match="would register once more: put the call below a line if __name__"):
        daskreg.register(np.zeros((9, 9, 9)), np.zeros((9, 9, 9)), "rigid", output=tmp_path / "r.zarr")
