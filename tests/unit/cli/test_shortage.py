"""Memory, a thread or a process that the system refuses: one sentence about the limit, whatever was made of the failure."""

import pytest

from daskreg import machine
from daskreg.cli.failure import describe
from daskreg.cluster import scheduler_required
from daskreg.errors import InputError, RunError
from daskreg.workflows import resources


def raised_from(cause, error):
    error.__cause__ = cause
    return error


CASES = [
    MemoryError(),
    RuntimeError("can't start new thread"),
    raised_from(RuntimeError("can't start new thread"), InputError("a.nii cannot be read; it may be damaged")),
    InputError("a.nii cannot be read: can't start new thread; it may be damaged"),
    ImportError("zarrs.so: failed to map segment from shared object"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", CASES, ids=lambda e: type(e).__name__)
def test_under_a_limit_of_address_space_it_is_named(monkeypatch, error):
    monkeypatch.setattr(machine, "address_space", lambda: 1 << 30)
    code, text = describe(error)
    assert code == 1
    assert text.startswith("daskreg: the limit of address space (ulimit -v) is 1.00 GiB, which is too little")
    assert len(text.splitlines()) == 1


def test_without_it_the_limit_of_threads_is(monkeypatch):
    monkeypatch.setattr(machine, "address_space", lambda: None)
    assert "look at ulimit -u" in describe(RuntimeError("can't start new thread"))[1]
    assert describe(MemoryError())[1].startswith("daskreg: out of memory")
    assert describe(InputError("a.nii is damaged")) == (2, "daskreg: a.nii is damaged")


def test_a_process_that_could_not_start_is_refused_before_it_is(monkeypatch):
    monkeypatch.setattr(machine, "address_space", lambda: 2 << 30)
    resources._require_address_space(2 << 30)
    with pytest.raises(InputError, match=r"\(ulimit -v\) is 2.00 GiB, and a process maps 3.00 GiB"):
        resources._require_address_space(3 << 30)


def test_whatever_dask_raises_without_its_scheduler_is_one_sentence():
    from distributed.client import ClosedClientError, FuturesCancelledError
    from distributed.comm.core import CommClosedError

    for error in (CommClosedError("closed"), ClosedClientError("closed"), FuturesCancelledError([])):
        with pytest.raises(RunError, match=r"the Dask scheduler was lost .*--resume"), scheduler_required():
            raise error
    with pytest.raises(OSError, match="disk"), scheduler_required():
        raise OSError("disk")
