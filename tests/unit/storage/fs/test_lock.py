"""An output has one writer."""

import json
import os
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest

from daskreg.errors import OutputBusy, OutputError
from daskreg.storage.fs import lock
from daskreg.storage.fs.files import replace_text
from daskreg.storage.fs.lock import lock_path, only_writer
from daskreg.storage.fs.process import is_running, this_process

GONE = 2**22 + 1  # beyond what Linux hands out


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    return str(tmp_path / "out.zarr") if request.param == "local" else f"memory://{tmp_path.name}/out.zarr"


def left_by(path, **changes):
    """A lock that another process left."""
    file = lock_path(str(path))
    replace_text(file, json.dumps({**this_process(), "since": "then", "token": uuid4().hex, **changes}))
    return file


def test_a_second_writer_is_refused_and_the_first_is_named(output):
    refused = pytest.raises(OutputBusy, match=rf"process {os.getpid()} on .*, which began 20.*wait for it")
    with only_writer(output), refused, only_writer(output):
        pass
    with only_writer(output) as again:
        assert not again.taken_over
        again.verify()


def test_a_lock_that_is_released_leaves_no_file(tmp_path):
    with only_writer(str(tmp_path / "out.zarr")):
        assert os.listdir(tmp_path) == [".out.zarr.lock"]
    assert os.listdir(tmp_path) == []


def test_a_link_and_its_target_are_one_output(tmp_path):
    (tmp_path / "link.zarr").symlink_to(tmp_path / "out.zarr")
    with only_writer(str(tmp_path / "out.zarr")), pytest.raises(OutputBusy), only_writer(str(tmp_path / "link.zarr")):
        pass


@pytest.mark.parametrize("changes", [{"pid": GONE}, {"pid_started": 1}, {"pid": -1, "pid_started": None}])
def test_the_lock_of_a_process_that_ended_is_taken_over_at_once(tmp_path, changes):
    left_by(tmp_path / "out.zarr", **changes)
    with only_writer(str(tmp_path / "out.zarr")) as mine:
        assert mine.taken_over
        mine.verify()
    assert os.listdir(tmp_path) == []


def test_a_killed_child_that_nobody_waited_for_has_ended(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = {**this_process(), "pid": child.pid, "pid_started": None}
    assert is_running(record)
    child.kill()
    deadline = time.monotonic() + 10
    while is_running(record) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_running(record) is False
    child.communicate()


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"boot": "another"}, {"pid_namespace": "pid:[1]"}])
def test_a_process_that_cannot_be_seen_counts_as_dead_after_its_last_sign_of_life(tmp_path, changes, monkeypatch, caplog):
    monkeypatch.setattr(lock, "WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    file = left_by(tmp_path / "out.zarr", **changes)
    began = time.monotonic()
    with caplog.at_level("INFO", "daskreg"), only_writer(str(tmp_path / "out.zarr")) as mine:
        assert mine.taken_over
    assert 0.3 < time.monotonic() - began < 10
    assert caplog.text.count("to see whether process") == 1
    monkeypatch.setattr(lock, "SILENCE", 10)
    os.utime(left_by(tmp_path / "out.zarr", **changes), (time.time() - 20,) * 2)
    began = time.monotonic()
    with only_writer(str(tmp_path / "out.zarr")):
        assert time.monotonic() - began < 5
    assert not os.path.exists(file)


def test_a_process_that_cannot_be_seen_is_alive_when_it_renews_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_INTERVAL", 0.01)
    file = left_by(tmp_path / "out.zarr", host="elsewhere")
    os.utime(file, (time.time() - 100,) * 2)
    timer = threading.Timer(0.2, os.utime, (file,))
    timer.start()
    with pytest.raises(OutputBusy, match="on elsewhere, which began then"), only_writer(str(tmp_path / "out.zarr")):
        pass
    timer.join()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": "x"}'])
def test_a_damaged_lock_is_judged_by_its_age(tmp_path, text, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_INTERVAL", 0.01)
    file = tmp_path / ".out.zarr.lock"
    file.write_text(text)
    os.utime(file, (time.time() - 100,) * 2)
    timer = threading.Timer(0.2, os.utime, (file,))
    timer.start()
    with pytest.raises(OutputBusy, match="unknown"), only_writer(str(tmp_path / "out.zarr")):
        pass
    timer.join()
    os.utime(file, (0, 0))
    with only_writer(str(tmp_path / "out.zarr")) as mine:
        assert mine.taken_over


def test_a_living_writer_renews_its_lock(output, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    monkeypatch.setattr(lock, "is_running", lambda record: None)  # as from another host
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    monkeypatch.setattr(lock, "WATCH_INTERVAL", 0.003)
    with only_writer(output):
        time.sleep(1.0)
        with pytest.raises(OutputBusy), only_writer(output):
            pass


def test_a_writer_whose_lock_was_taken_over_replaces_nothing(output, monkeypatch):
    monkeypatch.setattr(lock, "is_running", lambda record: None)
    with only_writer(output) as first:
        monkeypatch.setattr(lock, "SILENCE", -1e9)
        with only_writer(output) as second:
            second.verify()
            with pytest.raises(OutputError, match="was taken over by process"):
                first.verify()
        first.verify()  # the other one has ended: it is free again
    assert lock._RemoteLockFile(lock_path(output)).read() is None


def test_a_lock_that_was_deleted_by_hand_is_made_again(output):
    with only_writer(output) as mine:
        mine.file.delete()
        mine.verify()
        with pytest.raises(OutputBusy), only_writer(output):
            pass


def test_a_file_system_without_hard_links_has_locks(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", link)
    with only_writer(str(tmp_path / "out.zarr")), pytest.raises(OutputBusy), only_writer(str(tmp_path / "out.zarr")):
        pass
    assert os.listdir(tmp_path) == []


def test_a_link_that_was_made_although_nfs_says_no_is_a_lock(tmp_path, monkeypatch):
    real = os.link

    def link(source, target):
        real(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr("os.link", link)
    with only_writer(str(tmp_path / "out.zarr")) as mine:
        mine.verify()


def test_of_many_that_find_a_stale_lock_one_at_a_time_writes(tmp_path):
    inside, most, done = [], [], []

    def attempt():
        while True:
            try:
                with only_writer(str(tmp_path / "out.zarr")) as mine:
                    inside.append(1)
                    most.append(len(inside))
                    mine.verify()
                    inside.pop()
                    left_by(tmp_path / "out.zarr", pid=GONE)  # dies
                done.append(1)
                return
            except OutputBusy:
                time.sleep(0.001)

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(done) == 16
    assert max(most) == 1
