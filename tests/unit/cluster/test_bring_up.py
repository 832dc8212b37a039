"""What a group of ranks agrees on before it starts."""

import pytest

from daskreg.cluster import bring_up
from daskreg.cluster.bring_up import _same_memory, _shared_cores
from daskreg.cluster.rank_group import RankGroup
from daskreg.comm import Abilities
from daskreg.errors import RankLost
from daskreg.machine import Limit


def test_ranks_of_one_machine_share_its_cores_and_never_have_none():
    whole = Limit(8, "the cores of the machine")
    assert _shared_cores(["a", "a", "b"], [whole] * 3) == (4, 4, 8)
    assert _shared_cores(["a"] * 9, [whole] * 9) == (1,) * 9


def test_ranks_with_cores_of_their_own_share_none():
    """As tasks of a batch job that are bound to cores."""
    limits = [Limit(4, "the CPU affinity (0-3)"), Limit(4, "the CPU affinity (4-7)")]
    assert _shared_cores(["a", "a"], limits) == (4, 4)


def test_ranks_share_memory_where_all_say_so():
    here, there, unknown = (Abilities(("tcp",), memory) for memory in ("boot ipc", "boot other", ""))
    assert _same_memory([here, here])
    assert not _same_memory([here, there])
    assert not _same_memory([unknown, unknown])


def test_a_group_names_its_ranks():
    group = RankGroup("run", ("tcp://1", "tcp://2"), ("here", "there"), (1, 1), "tcp", 600.0)
    assert group.names == ("here, worker tcp://1", "there, worker tcp://2")


def test_a_group_is_encrypted_where_all_its_connections_are_and_does_not_show_its_secret():
    plain, encrypted = (RankGroup("run", (f"{scheme}://1",) * 2, ("a", "b"), (1, 1), "tcp", 600.0) for scheme in ("tcp", "tls"))
    assert (plain.encrypted, encrypted.encrypted) == (False, True)
    assert plain.secret != encrypted.secret
    assert str(plain.secret.key) not in repr(plain)


def test_a_worker_that_is_gone_before_the_ranks_are_formed_is_lost(monkeypatch):
    monkeypatch.setattr(bring_up, "workers_of", lambda client: {"tcp://a:1": {"host": "a"}})
    with pytest.raises(RankLost, match=r"^rank 1 \(tcp://b:2\) was lost before the ranks were brought up; look at that worker"):
        bring_up.form_group(None, ["tcp://a:1", "tcp://b:2"], "auto", 60.0)
