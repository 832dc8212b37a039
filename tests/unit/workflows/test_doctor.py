"""The machine check says what works, what does not, and what to do."""

import subprocess

import pytest
from distributed import Client, LocalCluster

import daskreg
from daskreg.comm.endpoint import Abilities
from daskreg.machine import Limit
from daskreg.workflows import doctor, examinations
from daskreg.workflows.examinations import Finding


def found(look) -> dict[str, Finding]:
    return {finding.name: finding for finding in look()}


def test_this_machine_is_examined_and_nothing_is_left(tmp_path):
    examined = daskreg.doctor(scratch=tmp_path)
    assert examined.ok
    assert {f.name for f in examined.findings} >= {
        "python",
        "packages",
        "numba",
        "gpu",
        "link",
        "cores",
        "memory",
        "scratch",
    }
    assert examined.lines()[-1] == "everything that daskreg needs works"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gpus", [0, 2])
def test_nccl_is_named_where_there_are_gpus(monkeypatch, gpus):
    monkeypatch.setattr("daskreg.comm.abilities", lambda: Abilities(("tcp",), "here", missing="ucxx is not installed"))
    monkeypatch.setattr("daskreg.kernels.device.gpus", lambda: gpus)
    (finding,) = examinations.links()
    assert "extra 'ucx'" in finding.mend
    assert ("nccl" in finding.mend) == (gpus > 0)


def test_what_is_wrong_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(examinations, "requires", lambda _: ["numpy>=99", "nosuchpackage>=1", "nothere; extra == 'x'"])
    (finding,) = examinations.packages()
    assert finding.status == "wrong"
    assert "numpy is" in finding.found
    assert ">=99 is needed" in finding.found
    assert "nosuchpackage is missing" in finding.found
    assert "nothere" not in finding.found
    examined = doctor.Examination((finding,))
    assert (examined.ok, examined.lines()[-1]) == (False, "1 to mend")
    assert "-> pip install" in examined.lines()[0]


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    scratch = found(examinations.folders(blocked))["scratch"]
    assert scratch.status == "wrong"
    assert "--scratch" in scratch.mend


def test_a_folder_that_the_first_run_makes_is_not_wrong(tmp_path):
    assert examinations._writable("kernel cache", tmp_path / "a/b", "", "", made=True).status == "ok"
    assert examinations._writable("scratch", tmp_path / "a/b", "", "create it").status == "wrong"


def test_a_gpu_without_its_packages_is_noted(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="NVIDIA H200, 580.1, 143771 MiB\n")
    monkeypatch.setattr(examinations.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(examinations.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(examinations, "find_spec", lambda _: None)
    seen = found(examinations.gpus)
    assert "H200" in seen["gpu"].found
    assert seen["cuda"].mend == "pip install 'daskreg[cuda13]' (or cuda12)"


def test_limits_name_their_source(monkeypatch):
    monkeypatch.setattr(examinations.machine, "memory", lambda: Limit(2 << 30, "the cgroup limit /sys/fs/cgroup/memory.max"))
    monkeypatch.setattr(examinations.machine, "address_space", lambda: 4 << 30)
    seen = found(examinations.limits)
    assert "the cgroup limit" in seen["memory"].found
    assert seen["address space"].status == "note"


def test_workers_are_asked_for_their_versions():
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        seen = {f.name: f for f in doctor._of_cluster(client, None, 1)}
        assert [seen[name].status for name in ("workers", "versions")] == ["ok", "ok"]


@pytest.mark.parametrize(("theirs", "status"), [({}, "ok"), ({"numpy": "1.0"}, "wrong"), ({"host": "elsewhere"}, "ok")])
def test_workers_with_other_versions_are_wrong(theirs, status):
    (finding,) = doctor._differences({"tcp://a:1": {**examinations.facts(), **theirs}})
    assert finding.status == status
    assert ("numpy is 1.0 on tcp://a:1" in finding.found) == (status == "wrong")
