"""What compilation has cost: the work of a core, and what was waited for."""

import time
from pathlib import Path

import pytest

from daskreg.kernels.compiler.tally import Tally
from daskreg.workflows import progress


def test_time_in_which_nothing_is_compiled_is_a_wait():
    tally = Tally()
    count = tally.begin_count()
    tally.begin(Path("a"))
    time.sleep(0.2)  # as while the driver does not take the kernel
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    tally.end()
    assert count.kernels == 1
    assert 0.04 < count.seconds < 0.15
    assert count.waited > 0.15


def test_another_process_that_compiles_is_waited_for():
    tally = Tally()
    count = tally.begin_count()
    tally.waited(3.0)
    assert (count.kernels, count.seconds, count.waited) == (0, 0.0, 3.0)


@pytest.mark.parametrize(
    ("compiled", "said"),
    [
        (
            {"kernels": 1, "seconds": 1.9, "waited": 35.2},
            "; 1.9 of them to compile 1 kernel and 35.2 to wait for other processes",
        ),
        ({"kernels": 2, "seconds": 1.9}, "; 1.9 of them to compile 2 kernels, once on this machine)"),
        ({"kernels": 0, "seconds": 0.0, "waited": 4.0}, "; 4.0 to wait for other processes that compile, or for a core, once"),
        ({}, "4.0 s (read 4.0), 1 MiB"),
    ],
)
def test_the_summary_tells_them_apart(compiled, said):
    report = {"seconds": {"read": 4.0, "total": 4.0}, "machine": {"peak_bytes": 1 << 20, "compiled": compiled}}
    assert said in progress._times(report)
