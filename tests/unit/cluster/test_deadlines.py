"""Every wait between client, scheduler and workers ends, and says so: with short deadlines, and others that never answer."""

import asyncio
import logging
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from distributed.core import Status

from daskreg.cluster import bring_up, closing, processes, supervision, timeouts
from daskreg.cluster import run as cluster_run
from daskreg.cluster.interrupts import shielded
from daskreg.cluster.rank_group import RankGroup
from daskreg.cluster.worker_calls import ask_workers, call_each, call_ranks, within, workers_of
from daskreg.engine.report import Observer
from daskreg.errors import RankLost, RunError, Stopped

LONG = 60.0  # seconds that others would take
SOON = 2.0  # seconds within which everything here must have ended
NAMES = [name for name in vars(timeouts) if name.isupper()]
GROUP = RankGroup("run", ("tcp://a", "tcp://b"), ("here", "here"), (1, 1), "tcp", 0.2)


@pytest.fixture(autouse=True)
def short(monkeypatch, caplog):
    """All of them a tenth of a second or less; the time that a test may take."""
    caplog.set_level(logging.INFO, "daskreg")
    for name in NAMES:
        monkeypatch.setattr(timeouts, name, min(getattr(timeouts, name), 0.1))
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < SOON


class Workers:
    """A client whose workers answer after so many seconds, or raise; the scheduler knows them, and answers after a while too."""

    def __init__(self, *, scheduler=0.0, **answers):
        self.answers = {f"tcp://{name}": answer for name, answer in answers.items()}
        self.wait = scheduler
        self.scheduler = SimpleNamespace(identity=self.identity)

    def sync(self, function, callback_timeout=None):
        return asyncio.run(asyncio.wait_for(function(), callback_timeout))

    async def identity(self, n_workers):
        await asyncio.sleep(self.wait)
        return {"workers": {worker: {"host": "here"} for worker in self.answers}}

    async def run(self, function, *arguments, workers, on_error):
        answer = self.answers[workers[0]]
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        return {workers[0]: answer}

    async def cancel(self, futures, force):
        await asyncio.sleep(self.wait)

    async def processing(self):
        return {"tcp://a": ["run-0"]}


def test_a_call_ends_at_its_deadline():
    with pytest.raises(TimeoutError):
        within(Workers(), 0.1, lambda: asyncio.sleep(LONG))
    assert within(Workers(), 0.1, lambda: asyncio.sleep(0, "answer")) == "answer"


def test_a_silent_scheduler_is_an_error():
    with pytest.raises(RunError, match=r"scheduler does not answer: .*--resume"):
        workers_of(Workers(scheduler=LONG, a=0.0))


def test_a_silent_worker_does_not_hold_the_others_up():
    answers = call_each(Workers(a="yes", b=LONG), ["tcp://a", "tcp://b"], len, seconds=0.2)
    assert answers["tcp://a"] == "yes"
    assert isinstance(answers["tcp://b"], TimeoutError)


def test_a_silent_rank_is_reported_and_then_lost(caplog):
    with pytest.raises(RankLost, match=r"rank 1 \(here, worker tcp://b\) was lost while the ranks were brought up: no answer"):
        call_ranks(Workers(a="yes", b=LONG), GROUP, len)
    assert "rank 1 (here, worker tcp://b) has not answered" in caplog.text


def test_a_lost_rank_ends_the_wait_for_one_that_waits_for_it():
    """The deadline would be a minute: rank 0 tries to connect for as long."""
    group = RankGroup("run", GROUP.addresses, GROUP.hosts, GROUP.cores, "tcp", LONG)
    with pytest.raises(RankLost, match=r"rank 1 .* was lost while the ranks were brought up: refused"):
        call_ranks(Workers(a=LONG, b=OSError("refused")), group, len)


def test_the_rank_that_is_named_is_the_cause_and_not_one_that_lost_it():
    with pytest.raises(RankLost, match=r"rank 1 .*: gone"):
        call_ranks(Workers(a=RankLost("rank 1 was lost"), b=OSError("gone")), GROUP, len)


@pytest.mark.parametrize(("answer", "reason"), [(LONG, "no answer"), (OSError("closed"), "closed")])
def test_a_worker_that_does_not_say_what_it_has_is_an_error(caplog, answer, reason):
    with pytest.raises(RunError, match=f"worker tcp://b was lost before it said how many GPUs it has: {reason}; run again"):
        ask_workers(Workers(a=1, b=answer), len, "how many GPUs it has")


def test_a_run_goes_on_with_fewer_where_no_worker_takes_the_place_of_a_lost_one():
    assert cluster_run.remaining_workers(Workers(a=1), ["tcp://a", "tcp://b"]) == ["tcp://a"]
    assert cluster_run.remaining_workers(Workers(a=1, c=1), ["tcp://a", "tcp://b"]) == ["tcp://a", "tcp://c"]


def test_a_lost_worker_is_not_asked_to_take_interrupts_again():
    asked, client = [], Workers(a=None, b=None)
    run = client.run

    async def noted(function, *arguments, workers, on_error):
        asked.append(workers[0])
        return await run(function, *arguments, workers=workers, on_error=on_error)

    client.run = noted
    with shielded(client, GROUP.addresses):
        del client.answers["tcp://b"], asked[:]
    assert asked == ["tcp://a"]  # an answer of the other one would be waited for as long as a deadline


def test_a_silent_worker_is_left_out():
    assert cluster_run.remaining_workers(Workers(a=1, b=LONG), ["tcp://a", "tcp://b"]) == ["tcp://a"]


def test_ranks_that_do_not_notice_that_they_are_cancelled_are_left():
    bring_up.cancel(Workers(a=1), GROUP, [Future(done=False)])
    bring_up.cancel(Workers(a=1, scheduler=LONG), GROUP, [Future(done=False)])


def test_dask_does_not_warn_of_arrays_that_a_job_holds():
    """It would speak of a graph that is none of the user's."""

    class Client:
        def submit(self, *_, **__):
            return dask.config.get("distributed.admin.large-graph-warning-threshold")

    before = Client().submit()
    assert bring_up.submit(Client(), GROUP, "job") == [bring_up.MOST_BYTES] * 2
    assert Client().submit() == before


class Future:
    """Of a rank."""

    def __init__(self, *, done, error=None):
        self.finished, self.error = done, error
        self.status = "error" if error else "finished" if done else "pending"

    def done(self):
        return self.finished

    def exception(self):
        return self.error

    def result(self, timeout):
        raise TimeoutError


def test_a_report_that_does_not_arrive_is_a_lost_rank():
    with pytest.raises(RankLost, match=r"rank 0 \(here, worker tcp://a\) has finished and did not answer"):
        supervision.reports(Workers(a=1, b=1), GROUP, [Future(done=True)], Observer())


def test_a_checkpoint_that_is_not_written_in_time_is_told(caplog):
    supervision.stop_with_checkpoint(Workers(a=1, b=1), GROUP, [Future(done=True), Future(done=False)])
    assert "no checkpoint within 0 s: rank 1 (here, worker tcp://b) is" in caplog.text


def test_the_reason_why_no_checkpoint_is_possible_is_told(caplog):
    search = Stopped("a search is not saved half-way")
    supervision.stop_with_checkpoint(Workers(a=1, b=1), GROUP, [Future(done=True, error=search)] * 2)
    assert caplog.messages == ["asked to stop: the ranks write a checkpoint first", "a search is not saved half-way"]


def test_ranks_that_had_ended_before_they_were_asked_have_no_new_checkpoint(caplog):
    supervision.stop_with_checkpoint(Workers(a=1, b=1), GROUP, [Future(done=True)] * 2)
    assert caplog.messages[-1] == "a rank had passed its last level before it was asked: there is no new checkpoint"


class SilentLock:
    """Of a scheduler that does not answer."""

    def acquire(self, timeout):
        raise TimeoutError


class BusyLock:
    """Of a worker that another run has for a while."""

    def __init__(self):
        self.waits = []

    def acquire(self, timeout):
        self.waits.append(timeout)
        return len(self.waits) > 3


def test_a_lock_is_reported_again_and_again_and_a_silent_scheduler_is_an_error(caplog):
    busy = BusyLock()
    cluster_run._acquire(busy, "tcp://a")
    assert len(busy.waits) == 4
    assert caplog.text.count("worker tcp://a is busy with another registration; waiting for it") == 3
    with pytest.raises(RunError, match="scheduler did not answer"):
        cluster_run._acquire(SilentLock(), "tcp://a")


# --- starting and closing -------------------------------------------------------------------------------------------------


class Process:
    """Of a worker that does not end by itself."""

    pid, name = 7, "Dask Worker process (from Nanny)"

    def __init__(self):
        self.killed = threading.Event()

    def is_alive(self):
        return not self.killed.is_set()

    def kill(self):
        self.killed.set()


class Cluster:
    """Closes once its worker has ended; where ``stuck``, never."""

    def __init__(self, process, *, stuck=False):
        self.workers, self.status = {0: SimpleNamespace(pid=process.pid)}, Status.running
        self.waits = threading.Event() if stuck else process.killed

    def close(self):
        self.waits.wait()
        self.status = Status.closed


@pytest.mark.parametrize("stuck", [False, True])
def test_a_cluster_that_does_not_close_has_its_workers_killed_and_is_left(monkeypatch, caplog, stuck):
    own, other = Process(), Process()
    other.pid = 8
    monkeypatch.setattr(closing, "worker_processes", lambda: {own, other})
    cluster = Cluster(own, stuck=stuck)
    closing.close_cluster(cluster)
    assert own.killed.is_set()
    assert not other.killed.is_set()  # of another cluster in this process
    assert cluster.status == Status.closed
    assert "1 workers did not end within 0 s and were killed" in caplog.text


def test_a_worker_that_is_starting_in_place_of_a_lost_one_is_not_waited_for(monkeypatch, caplog):
    own = Process()
    monkeypatch.setattr(closing, "worker_processes", lambda: {own})
    cluster = Cluster(own)
    cluster.workers[0].process = SimpleNamespace(status=Status.starting)
    closing.close_cluster(cluster)
    assert own.killed.is_set()
    assert not caplog.text


def test_a_cluster_that_closes_is_not_killed(monkeypatch, caplog):
    own = Process()
    monkeypatch.setattr(closing, "worker_processes", lambda: {own})
    cluster = Cluster(own)
    cluster.waits = threading.Event()
    cluster.waits.set()
    closing.close_cluster(cluster)
    assert not own.killed.is_set()
    assert not caplog.text


def test_a_client_that_does_not_close_is_left():
    def close(timeout):
        raise TimeoutError

    closing.close_client(SimpleNamespace(close=close))


def test_workers_that_do_not_start_are_killed_and_an_error(monkeypatch):
    own, before = Process(), Process()
    known = [{before}]
    monkeypatch.setattr(processes, "worker_processes", lambda: known.pop() if known else {before, own})
    with pytest.raises(RunError, match="the worker processes did not start within 0 s"):
        processes._made(lambda: threading.Event().wait(LONG))
    assert own.killed.is_set()
    assert not before.killed.is_set()


def test_workers_are_not_waited_for_where_another_one_ended_while_it_started(monkeypatch):
    monkeypatch.setattr(timeouts, "WORKER_START_TIMEOUT", LONG)
    ended, other = Process(), Process()
    known = [set(), {ended, other}]
    monkeypatch.setattr(processes, "worker_processes", lambda: known.pop(0) if known else {other})

    def make():
        """As Dask: fails once all have started or ended."""
        other.killed.wait()
        raise RuntimeError("Nanny failed to start.")

    with pytest.raises(RunError, match="the worker processes could not be started: Nanny failed to start"):
        processes._made(make)


# --- the list for maintainers ---------------------------------------------------------------------------------------------


def test_all_deadlines_are_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "parallel.md").read_text()
    waits = text[text.index("## Waits") : text.index("## Checkpoints")]
    assert [name for name in NAMES if f"`{name}`" not in waits] == []


def test_no_wait_of_the_package_is_without_a_deadline():
    """``wait()``, ``join()``, ``result()`` without an argument, ``acquire()``; those of messages have one inside."""
    found = []
    for package in ("cluster", "comm"):
        for path in sorted((Path(__file__).parents[3] / "daskreg" / package).glob("*.py")):
            for k, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(r"\.(wait|join|result|acquire)\(\)", line) or re.search(r"\bclient\.(run|scatter|gather)\(", line):
                    found.append(f"{package}/{path.name}:{k} {line.strip()}")
    assert [line for line in found if not any(known in line for known in KNOWN)] == []


KNOWN = (
    "message.wait()",  # Pending.wait: Timeouts.wait
    '"probe").wait()',  # over NCCL: what is launched from now on waits, the host does not
    "self._connected.wait()",  # whoever sends waits for the write with Timeouts.wait
    "self.future.result()",  # after Timeouts.wait
    "return made.result()",  # of a start that has ended
    "pending.pop().result()",  # of a thread of this rank, which reads a file
    "voxels, origin = self.voxels.result()",  # of a thread of this rank, which reads a file
    "self._pending.popleft().result()",  # of a thread of this rank, which writes a file
    "return [f.result() for f in futures]",  # of threads that have ended, in tests
    "client.run(function, *arguments, workers=[worker]",  # in call_each: wait_for
    "c.exception() or c.result()",  # of calls that have ended
)
