"""What a group of ranks agrees on before it starts."""

import pytest

from daskreg.cluster.bring_up import _choose, _same_memory, _shared_cores
from daskreg.cluster.rank_group import RankGroup
from daskreg.comm import Abilities
from daskreg.errors import InputError
from daskreg.machine import Limit


def test_ranks_of_one_machine_share_its_cores_and_never_have_none():
    whole = Limit(8, "the cores of the machine")
    assert _shared_cores(["a", "a", "b"], [whole] * 3) == (4, 4, 8)
    assert _shared_cores(["a"] * 9, [whole] * 9) == (1,) * 9


def test_ranks_with_cores_of_their_own_share_none():
    """As tasks of a batch job that are bound to cores."""
    limits = [Limit(4, "the CPU affinity (0-3)"), Limit(4, "the CPU affinity (4-7)")]
    assert _shared_cores(["a", "a"], limits) == (4, 4)


@pytest.mark.parametrize(
    ("transports", "choice", "expected"),
    [
        ([("ucx", "tcp"), ("ucx", "tcp")], "auto", "ucx"),
        ([("ucx", "tcp"), ("tcp",)], "auto", "tcp"),
        ([("ucx", "tcp"), ("tcp",)], "tcp", "tcp"),
    ],
)
def test_ucx_is_chosen_where_every_worker_has_it(transports, choice, expected):
    assert _choose(transports, choice) == expected


def test_ucx_is_used_on_an_encrypted_cluster_only_where_it_is_asked_for(caplog):
    both = [("ucx", "tcp"), ("ucx", "tcp")]
    assert _choose(both, "auto", encrypted=True) == "tcp"
    assert not caplog.text
    assert _choose(both, "ucx", encrypted=True) == "ucx"
    assert "encrypts its connections (TLS) and UCX does not" in caplog.text


def test_ranks_share_memory_where_all_say_so():
    here, there, unknown = (Abilities(("tcp",), memory) for memory in ("boot ipc", "boot other", ""))
    assert _same_memory([here, here])
    assert not _same_memory([here, there])
    assert not _same_memory([unknown, unknown])


def test_a_transport_that_a_worker_lacks_is_refused():
    with pytest.raises(InputError, match=r"--comm ucx: not every worker can.*--comm tcp"):
        _choose([("ucx", "tcp"), ("tcp",)], "ucx")


def test_a_group_names_its_ranks():
    group = RankGroup("run", ("tcp://1", "tcp://2"), ("here", "there"), (1, 1), "tcp", 600.0)
    assert group.names == ("here, worker tcp://1", "there, worker tcp://2")


def test_a_group_is_encrypted_where_all_its_connections_are_and_does_not_show_its_secret():
    plain, encrypted = (RankGroup("run", (f"{scheme}://1",) * 2, ("a", "b"), (1, 1), "tcp", 600.0) for scheme in ("tcp", "tls"))
    assert (plain.encrypted, encrypted.encrypted) == (False, True)
    assert plain.secret != encrypted.secret
    assert str(plain.secret.key) not in repr(plain)
