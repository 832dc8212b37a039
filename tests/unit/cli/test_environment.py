"""Variables of the environment that libraries would warn of."""

import os
import subprocess
import sys

from daskreg.cli.environment import leave_out_unreadable


def test_options_that_are_not_json_are_left_out_in_a_sentence_without_their_value():
    """They may hold keys."""
    kept = {"FSSPEC_FTP": '{"block_size": 5}', "FSSPEC_S3_KEY": "secret", "FSSPEC": "x", "HOME": "/home"}
    environment = {"FSSPEC_S3": "{secret: 1}", "FSSPEC_GS": "[1]", **kept}
    said = list(leave_out_unreadable(environment))
    assert environment == kept
    assert [s.partition(" is left out: it is no JSON object")[0] for s in said] == [
        "the variable FSSPEC_S3",
        "the variable FSSPEC_GS",
    ]
    assert "secret" not in " ".join(said)


def test_nothing_else_is_said_of_them(tmp_path):
    command, environment = (
        [sys.executable, "-m", "daskreg", "info", "memory://nosuch.zarr"],
        {**os.environ, "FSSPEC_S3": "{anon: true}"},
    )
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert [" ".join(line.split()[:4]) for line in done.stderr.splitlines()] == [
        "daskreg: the variable FSSPEC_S3", "daskreg: memory://nosuch.zarr does not"
    ]  # fmt: skip
