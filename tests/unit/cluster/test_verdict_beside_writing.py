"""When a rank makes its verdict: before the result is written on a CPU, beside that on a GPU."""

import threading
from types import SimpleNamespace

import pytest

from daskreg.cluster import rank_job


@pytest.fixture
def threads(monkeypatch):
    """Names of the threads that judged."""
    seen = []
    monkeypatch.setattr(rank_job, "coarse_pair", lambda *_: "pair")
    monkeypatch.setattr(rank_job, "_judged", lambda *given: seen.append(threading.current_thread().name) or {"pair": given[2]})
    return seen


def verdict(device, rank):
    with rank_job._verdict(SimpleNamespace(plan=None, device=device), None, None, {}, {}, SimpleNamespace(rank=rank)) as found:
        return found()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rank_0_judges_and_no_other(threads, device):
    assert verdict(device, 1) == {}
    assert threads == []
    assert verdict(device, 0) == {"pair": "pair"}
    assert [name.startswith("verdict") for name in threads] == [device == "cuda"]


def test_what_fails_beside_writing_is_raised(threads, monkeypatch):
    def fail(*_):
        raise FloatingPointError("no verdict")

    monkeypatch.setattr(rank_job, "_judged", fail)
    with pytest.raises(FloatingPointError, match="no verdict"):
        verdict("cuda", 0)
