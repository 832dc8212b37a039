"""``--missing-chunks`` says of every image of a command what chunks are that it lacks."""

import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.errors import Unreadable
from tests.unit.storage.stores import simple


@pytest.fixture
def path(tmp_path):
    path = simple(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    return path


def run(*arguments):
    return CliRunner().invoke(app, arguments, catch_exceptions=True)


def test_missing_chunks_fail_by_default_and_are_filled_where_that_is_said(path, caplog):
    for choice in ((), ("--missing-chunks", "fail")):
        failed = run("info", path, "--voxels", *choice)
        assert isinstance(failed.exception, Unreadable)
        assert "the chunk c/1/1/1 is missing, and 1 of 8 chunks are" in str(failed.exception)
    assert "finite" in run("info", path, "--voxels", "--missing-chunks", "fill").output
    assert "1 of 8 chunks are missing (the first is c/1/1/1)" in caplog.text


def test_an_address_that_says_so_itself_is_followed(path):
    assert run("info", f"{path}::missing=fill", "--voxels", "--missing-chunks", "fail").exit_code == 0
    assert isinstance(run("info", f"{path}::missing=error", "--voxels", "--missing-chunks", "fill").exception, Unreadable)
