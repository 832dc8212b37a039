"""Which transport ranks use, and what is said where it is not the fastest."""

import logging

import pytest

from daskreg.cluster import link
from daskreg.cluster.link import choose_transport, describe_link, require_nccl
from daskreg.comm import Abilities, SingleRank, abilities, endpoint, local, measure_link
from daskreg.errors import InputError

GPU = Abilities(("ucx", "tcp"), "here", ("self", "posix", "cuda_copy", "cuda_ipc"))
STAGED = Abilities(("ucx", "tcp"), "here", ("self", "posix", "cuda_copy"))
HOST = Abilities(("ucx", "tcp"), "here", ("self", "posix"))
NONE = Abilities(("tcp",), "here", (), "ucxx is not installed")
BROKEN = Abilities(("tcp",), "here", (), "UCX cannot be used (ImportError: libucp.so.0: cannot open shared object file)")


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "daskreg")
    return caplog


@pytest.mark.parametrize(
    ("found", "choice", "device", "expected"),
    [
        ([HOST, HOST], "auto", "cpu", "ucx"),
        ([HOST, NONE], "auto", "cpu", "tcp"),
        ([HOST, NONE], "tcp", "cpu", "tcp"),
        ([GPU, GPU], "auto", "cuda", "ucx"),
        ([GPU, GPU], "ucx", "cuda", "ucx"),
        ([GPU, GPU], "tcp", "cuda", "tcp"),
        ([HOST, HOST], "ucx", "cpu", "ucx"),
    ],
)
def test_ucx_is_chosen_where_every_worker_has_it_and_nothing_is_said(log, found, choice, device, expected):
    assert choose_transport(dict(enumerate(found)), choice, device) == expected
    assert not log.text


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (NONE, "tcp", ["over TCP", "worker b: ucxx is not installed", "several times as long", "daskreg[ucx]"]),
        (BROKEN, "tcp", ["over TCP", "worker b: UCX cannot be used (ImportError: libucp.so.0", "daskreg[ucx]"]),
        (
            STAGED,
            "ucx",
            ["the memory of the host", "b: UCX lacks cuda_ipc (it has self, posix, cuda_copy)", "libucx-cu13"],
        ),
        (HOST, "tcp", ["over TCP", "worker b: UCX lacks cuda_ipc (it has self, posix)", "libucx-cu13"]),
    ],
)
def test_gpus_with_a_slower_link_than_they_could_have_are_told_why(log, found, expected, words):
    assert choose_transport({"a": GPU, "b": found}, "auto", "cuda") == expected
    assert [word for word in words if word not in log.text] == []


@pytest.mark.parametrize(
    ("found", "device", "words"),
    [
        (NONE, "cpu", r"--comm ucx: not every worker can: b: ucxx is not installed; install the extra 'ucx'.*--comm tcp"),
        (BROKEN, "cuda", r"b: UCX cannot be used \(ImportError: libucp.*install the extra 'ucx'"),
        (STAGED, "cuda", r"b: UCX lacks cuda_ipc \(it has self, posix, cuda_copy\); use a UCX that was built with CUDA"),
    ],
)
def test_ucx_is_refused_where_it_was_asked_for_and_is_not_whole(found, device, words):
    with pytest.raises(InputError, match=words):
        choose_transport({"a": GPU, "b": found}, "ucx", device)


def test_ucx_is_used_on_an_encrypted_cluster_only_where_it_is_asked_for(log):
    both = {"a": GPU, "b": GPU}
    assert choose_transport(both, "auto", encrypted=True) == "tcp"
    assert not log.text
    assert choose_transport(both, "auto", "cuda", encrypted=True) == "tcp"
    assert "planes of their GPUs over TCP, because this cluster encrypts" in log.text
    log.clear()
    assert choose_transport(both, "ucx", encrypted=True) == "ucx"
    assert "encrypts its connections (TLS) and UCX does not" in log.text


def test_nccl_moves_the_arrays_of_gpus_that_share_a_machine(log):
    require_nccl({"a": "", "b": ""}, "cuda", same_memory=True)
    assert choose_transport({"a": GPU, "b": GPU}, "nccl", "cuda") == "ucx"
    assert choose_transport({"a": GPU, "b": NONE}, "nccl", "cuda") == "tcp"
    assert choose_transport({"a": GPU, "b": GPU}, "nccl", "cuda", encrypted=True) == "tcp"
    assert not log.text


@pytest.mark.parametrize(
    ("lacking", "device", "same_memory", "words"),
    [
        ("", "cpu", True, "the ranks work on CPUs"),
        ("", "cuda", False, "do not share one machine's memory; between machines use --comm ucx"),
        ("CuPy has no NCCL", "cuda", True, "b: CuPy has no NCCL; install nvidia-nccl-cu13"),
    ],
)
def test_nccl_is_refused_where_it_was_asked_for_and_cannot_be_had(lacking, device, same_memory, words):
    with pytest.raises(InputError, match=words):
        require_nccl({"a": "", "b": lacking}, device, same_memory=same_memory)


def test_the_log_names_the_link():
    assert describe_link("ucx", {"a": GPU, "b": GPU}, "cuda", nccl=True) == "nccl, from GPU to GPU (and ucx)"
    assert describe_link("ucx", {"a": GPU, "b": GPU}, "cuda") == "ucx, from GPU to GPU (cuda_ipc)"
    assert describe_link("ucx", {"a": GPU, "b": STAGED}, "cuda") == "ucx, through the memory of the host"
    assert describe_link("tcp", {"a": HOST, "b": NONE}, "cpu") == "tcp (ucxx is not installed)"
    assert describe_link("ucx", {"a": HOST, "b": HOST}, "cpu") == "ucx"


@pytest.mark.parametrize(
    ("found", "device", "expected"),
    [
        (HOST, "cpu", "ucx"),
        (NONE, "cpu", "tcp (ucxx is not installed)"),
        (GPU, "cuda", "ucx, from GPU to GPU (cuda_ipc)"),
        (NONE, "cuda", "tcp: ucxx is not installed; install the extra"),
        (HOST, "cuda", "tcp: UCX lacks cuda_ipc (it has self, posix); use a UCX that was built with CUDA"),
    ],
)
def test_a_plan_names_the_link_of_this_machine(monkeypatch, found, device, expected):
    monkeypatch.setattr(link, "abilities", lambda: found)
    monkeypatch.setattr(link, "gpus", lambda: 2)
    assert link.local_link(device).startswith(expected)
    monkeypatch.setattr(link, "gpus", lambda: 0)
    assert link.local_link("cuda") == "not known, because it has no GPU"


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (ModuleNotFoundError("No module named 'ucxx'", name="ucxx"), "ucxx is not installed"),
        (OSError("libucp.so.0:\n cannot open"), "UCX cannot be used (OSError: libucp.so.0: cannot open)"),
        (RuntimeError("UCXError no device"), "UCX cannot be used (RuntimeError: UCXError no device)"),
    ],
)
def test_a_process_says_why_it_has_no_ucx(monkeypatch, error, missing):
    def fail():
        raise error

    monkeypatch.setattr(endpoint, "_ucx_links", fail)
    assert abilities().missing == missing
    assert abilities().transports == ("tcp",)


DESCRIBED = """
#     component 6  :  cuda_ipc
#            md 5  :  component 5  cuda_cpy
#      resource 0  :  md 0  dev 0  flags -- self/memory
#      resource 8  :  md 5  dev 4  flags -- cuda_copy/cuda
#      resource 10 :  md 6  dev 5  flags -a cuda_ipc/cuda
"""


def test_ucx_names_its_transports():
    ucx = pytest.importorskip("daskreg.comm.ucx")
    assert {"self", "posix"} <= set(abilities().links)
    assert ucx.RESOURCE.findall(DESCRIBED) == ["self", "cuda_copy", "cuda_ipc"]


def test_a_link_is_measured_alike_on_every_rank_and_leaves_no_trace():
    def probed(comm):
        comm.barrier()
        before = dict(comm.traffic)
        return measure_link(comm), before == dict(comm.traffic)

    speeds = local.run(3, probed)
    assert speeds[0][0].bytes_per_second > 0
    assert 0 < speeds[0][0].seconds < 1
    assert all(found == speeds[0][0] and unchanged for found, unchanged in speeds)
    assert "GB/s at" in str(speeds[0][0])


def test_a_single_rank_has_no_link():
    assert measure_link(SingleRank()) is None
