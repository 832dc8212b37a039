from __future__ import annotations

import pytest

from daskreg.comm import Timeouts
from daskreg.errors import RankLost


class Later:
    """Ready at the n-th question."""

    def __init__(self, n):
        self.left, self.asked = n, 0

    def __call__(self, seconds):
        assert seconds > 0
        self.asked += 1
        return self.asked >= self.left


class Stopped(Exception):
    pass


def test_a_result_that_is_ready_is_returned_without_a_check():
    def check():
        raise Stopped

    ready = Later(1)
    Timeouts(check=check).wait(ready, 1, "there")
    assert ready.asked == 1


def test_a_silent_rank_raises_with_its_name_after_the_deadline():
    with pytest.raises(RankLost, match=r"rank 3 \(there\) was silent"):
        Timeouts(deadline=0.0).wait(lambda seconds: False, 3, "there")


def test_a_slow_rank_is_reported_once_per_wait():
    reported = []
    timeouts = Timeouts(warn_after=0.0, on_slow=lambda rank, seconds: reported.append((rank, seconds > 0)))
    timeouts.wait(Later(9), 2, "there")
    assert reported == [(2, True)]
    timeouts.wait(Later(4), 5, "there")
    assert reported == [(2, True), (5, True)]


def test_a_rank_that_is_not_slow_yet_is_not_reported():
    reported = []
    Timeouts(warn_after=1e9, on_slow=lambda rank, seconds: reported.append(rank)).wait(Later(9), 2, "there")
    assert reported == []


def test_the_check_runs_between_two_polls_and_ends_the_wait():
    ready, calls = Later(100), []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        Timeouts(check=check).wait(ready, 1, "there")
    assert ready.asked == 4
