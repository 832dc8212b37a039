"""The lines that end a registration."""

import subprocess
import sys

import pytest

from daskreg.workflows.progress import lines_of, summary
from daskreg.workflows.register import require_run_place


def report(before, after):
    """Of a run without levels; correlation and mutual information."""
    measures = [dict(zip(("ncc", "mi"), values, strict=True)) for values in (before, after)]
    return {
        "levels": [],
        "metrics": {"before": measures[0], "after": measures[1]},
        "seconds": {"total": 1.0},
        "machine": {"peak_bytes": 0},
    }


@pytest.mark.parametrize(
    ("after", "worse"),
    [((0.8, 0.7), True), ((0.8, 1.0), False), ((0.95, 0.7), False), ((-0.95, 0.7), False), ((0.9, 0.9), False)],
)
def test_that_both_measures_became_worse_is_said(after, worse):
    line = lines_of(report((0.9, 0.9), after))[0]
    assert line.startswith("correlation 0.900 -> ")
    assert line.endswith("(both lower than at the start)") == worse


def test_what_the_log_has_in_the_same_file_is_not_printed_again():
    """As in the file of a job: its levels and its verdict stood there twice."""
    verdict = {"status": "ok", "reasons": ["good"], "evidence": {}}
    level = {"stage": "rigid", "scale": 2, "shape": (3, 4, 5), "losses": [2.0, 1.0], "seconds": 1.0}
    found = {**report((0.9, 0.9), (0.9, 0.9)), "verdict": verdict, "levels": [level]}
    whole, rest = summary("r.zarr", found), summary("r.zarr", found, logged=True)
    assert [line.split()[0] for line in whole] == ["rigid", *(line.split()[0] for line in rest[:-1]), "verdict:", "result:"]
    assert rest[-1] == "result: r.zarr"


@pytest.mark.parametrize(
    ("errors", "level", "expected"), [("same", "info", True), ("other", "info", False), ("same", "warning", False)]
)
def test_whether_standard_output_and_the_log_go_to_one_file(errors, level, expected, tmp_path):
    code = "from daskreg.cli.application import logged_beside; from daskreg.reporting.log import configure;"
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        command = [sys.executable, "-c", f"{code} configure({level!r}); print(logged_beside())"]
        subprocess.run(command, stdout=out, stderr=out if errors == "same" else err, check=True)
    assert (tmp_path / "out").read_text() == f"{expected}\n"


def test_that_a_run_is_a_folder_is_said_where_its_name_does_not(tmp_path, caplog):
    caplog.set_level("INFO", "daskreg")
    require_run_place(tmp_path / "run.zarr")
    assert caplog.messages == []
    require_run_place(tmp_path / "run")
    assert caplog.messages == [
        f"{tmp_path / 'run'} becomes a folder, a Zarr store; with the ending .zarr its name says so, also to viewers"
    ]
