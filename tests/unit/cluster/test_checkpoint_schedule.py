"""When checkpoints are due, by a clock that the test sets."""

import pytest

from daskreg.cluster.checkpoint_schedule import COMPUTE_PER_WRITE, CheckpointSchedule


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def share_of_writing(interval, write_seconds, iteration=0.01, checkpoints=20):
    """Part of the time that goes into checkpoints."""
    clock = Clock()
    schedule, written = CheckpointSchedule(interval, clock), 0
    while written < checkpoints:
        clock.now += iteration
        if schedule.due():
            clock.now += write_seconds
            schedule.written(write_seconds)
            written += 1
    return checkpoints * write_seconds / (clock.now - 100.0)


@pytest.mark.parametrize("write_seconds", [0.5, 1.9, 2.1, 30.0])
def test_a_slow_disk_leaves_most_of_the_time_to_computing(write_seconds):
    """Where intervals counted from the beginning of a checkpoint, writing for longer than one would leave none."""
    assert share_of_writing(2.0, write_seconds) < 1 / COMPUTE_PER_WRITE


def test_the_interval_is_kept_where_writing_is_quick():
    assert share_of_writing(2.0, 0.1) == pytest.approx(0.1 / 2.1, rel=0.02)


def test_an_interval_of_zero_asks_in_every_iteration():
    schedule = CheckpointSchedule(0.0, Clock())
    for _ in range(3):
        assert schedule.due()
        assert not schedule.written(5.0)


def test_none_asks_never():
    assert not CheckpointSchedule(None, Clock()).due(level_end=True)


def test_it_asks_once_until_the_checkpoint_is_written():
    clock = Clock()
    schedule = CheckpointSchedule(2.0, clock)
    clock.now += 3
    assert [schedule.due(), schedule.due()] == [True, False]
    assert schedule.due(level_end=True)  # a stage that writes none within a level was asked
    assert schedule.written(10.0)  # prolongs the interval
    assert not schedule.written(9.0)
    clock.now += 30
    assert not schedule.due()
    clock.now += 7
    assert schedule.due()


def test_the_end_of_a_level_is_due_when_the_last_checkpoint_is_ten_seconds_old():
    clock = Clock()
    schedule = CheckpointSchedule(180.0, clock)
    clock.now += 9
    assert not schedule.due(level_end=True)
    clock.now += 2
    assert not schedule.due()
    assert schedule.due(level_end=True)
