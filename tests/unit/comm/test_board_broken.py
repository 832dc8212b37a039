"""Sums over shared memory when a rank breaks off, or does not agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from daskreg.comm import Patience, local, share
from daskreg.comm.board import ROOM, SHARED

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="no memory with names")
ALONE = """
import sys
sys.path.insert(0, {root!r})
from daskreg.comm import local, share
comm = local.together(2)[0]          # the other rank never comes
print("here", flush=True)
share(comm, ["here", "here"])
"""


def on_board(function, size=3, deadline=4.0):
    def part(comm):
        share(comm, ["here"] * comm.size)
        return function(comm)

    return local.run(size, part, patience=Patience(deadline=deadline))


def test_a_rank_that_fails_is_no_silent_one():
    """Over messages the others know at once."""

    def part(comm):
        if comm.rank == 1:
            raise OSError("disk full")
        comm.gather(np.zeros(3))

    start = time.monotonic()
    with pytest.raises(OSError, match="disk full"):
        on_board(part)
    assert time.monotonic() - start < 2


def test_shapes_that_differ_are_told_where_one_has_no_room_on_the_board():
    with pytest.raises(ValueError, match="both sides must run the same plan"):
        on_board(lambda comm: comm.gather(np.zeros(ROOM // 8 + comm.rank)), 2)


def test_types_that_differ_are_told():
    with pytest.raises(ValueError, match="both sides must run the same plan"):
        on_board(lambda comm: comm.gather(np.zeros(6, (np.int64, np.float64)[comm.rank])), 2)


def test_a_rank_that_is_killed_before_all_have_the_board_leaves_no_file():
    before = set(os.listdir(SHARED))
    code = ALONE.format(root=os.getcwd())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    left = [name for name in set(os.listdir(SHARED)) - before if name.startswith("daskreg-")]
    for name in left:
        (SHARED / name).unlink()
    assert not left
