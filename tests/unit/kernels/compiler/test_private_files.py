"""Files of compiled kernels: only what nobody else can have written is read."""

import os
import pickle
import stat

import pytest

from daskreg.kernels.compiler import private_files
from daskreg.kernels.compiler.cache import KernelCache
from daskreg.kernels.compiler.private_files import MAGIC, NotPrivate, prepare, read, write

STRANGER = 54321


@pytest.fixture(autouse=True)
def said_before():
    """Warnings are given once in a process."""
    private_files._warn.cache_clear()


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "cache" / "a.kernel"
    write(place, b"content", 9)
    return place


@pytest.fixture
def give_away(monkeypatch):
    """Make a file or folder one of another user, or this process one of another user."""

    def given(path):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER)
        else:
            monkeypatch.setattr(private_files.os, "geteuid", lambda: STRANGER)

    return given


def test_a_file_comes_back_and_nobody_else_can_open_it(path):
    assert read(path) == b"content"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["folder", "file"])
def test_nothing_of_another_user_is_read(path, give_away, caplog, place):
    give_away(path if place == "file" else path.parent)
    for _ in range(2):
        with pytest.raises(NotPrivate):
            read(path)
    assert len(caplog.records) == 1
    assert "it is not used, and kernels are compiled again; remove it, or set NUMBA_CACHE_DIR" in caplog.text


def test_nothing_is_written_to_a_folder_of_another_user(path, give_away):
    give_away(path.parent)
    with pytest.raises(NotPrivate):
        write(path.with_name("b.kernel"), b"more", 9)
    assert KernelCache("a", "1")._wait(path) is False
    assert [p.name for p in path.parent.iterdir()] == ["a.kernel"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_to_is_not_read(path, mode):
    path.chmod(mode)
    with pytest.raises(NotPrivate, match="other users can change"):
        read(path)


@pytest.mark.parametrize("mode", [0o775, 0o777])
def test_an_own_folder_is_closed_to_others(path, mode):
    """As umask 002 made it."""
    path.parent.chmod(mode)
    assert read(path) == b"content"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_links_are_not_followed(path, tmp_path):
    path.with_name("link.kernel").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        read(path.with_name("link.kernel"))
    (tmp_path / "elsewhere").symlink_to(path.parent)
    with pytest.raises(OSError, match="Not a directory"):
        prepare(tmp_path / "elsewhere")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    path.with_suffix(".lock").symlink_to(kept)
    assert KernelCache("a", "1")._wait(path) is False
    assert kept.read_text() == "mine"


def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path.with_name("pipe.kernel"), 0o600)
    with pytest.raises(NotPrivate):
        read(path.with_name("pipe.kernel"))


@pytest.mark.parametrize("change", ["renamed", "changed", "shortened", "of an earlier version"])
def test_a_damaged_or_renamed_file_is_refused_before_anything_interprets_it(path, change):
    content = path.read_bytes()
    if change == "renamed":
        path = path.rename(path.with_name("b.kernel"))
    elif change == "of an earlier version":
        path.write_bytes(pickle.dumps(1))
    else:
        path.write_bytes(content[:-1] + (b"" if change == "shortened" else b"x"))
    with pytest.raises(ValueError, match="damaged"):
        read(path)
    assert content.startswith(MAGIC)


def test_files_of_earlier_versions_go_as_they_grow_old(path):
    for age in range(3):
        old = path.with_name(f"{age}.pickle")
        old.write_bytes(b"")
        os.utime(old, (age, age))
    write(path.with_name("b.kernel"), b"more", 3)
    assert sorted(p.name for p in path.parent.iterdir()) == ["2.pickle", "a.kernel", "b.kernel"]
