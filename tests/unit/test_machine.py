"""What limits a process: affinity, control groups of both versions, resource limits; and how much memory it takes."""

import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from daskreg import machine

GIB = 1 << 30
ASK = "from daskreg import machine; print(machine.memory(), machine.cores(), sep='\\n')"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 16 cores and 64 GiB whose /proc and cgroups are files: ``system(mounts, groups, {file: text})``."""

    def make(mounts, groups, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "mountinfo").write_text("\n".join(m.format(tmp_path) for m in mounts))
        (tmp_path / "cgroup").write_text("\n".join(groups))
        return tmp_path

    monkeypatch.setattr(machine, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 64 * GIB}))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (machine.resource.RLIM_INFINITY,) * 2)
    return make


V2 = ["30 23 0:26 / {}/cg rw,nosuid - cgroup2 cgroup2 rw"]
V1 = [
    "31 23 0:27 / {}/memory rw - cgroup cgroup rw,memory",
    "32 23 0:28 / {}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    "33 23 0:29 / {}/systemd rw - cgroup cgroup rw,name=systemd",
]


def test_without_limits_it_is_the_whole_machine(system):
    system([], [], {})
    assert machine.memory() == machine.Limit(64 * GIB, "the physical memory")
    assert machine.cores() == machine.Limit(16, "the cores of the machine")


def test_a_container_of_cgroups_v2_sees_its_own_group_as_the_root(system):
    folder = system(V2, ["0::/"], {"cg/memory.max": f"{8 * GIB}\n", "cg/memory.high": "max\n", "cg/cpu.max": "250000 100000\n"})
    assert machine.memory() == machine.Limit(8 * GIB, f"the cgroup limit {folder}/cg/memory.max")
    assert machine.cores() == machine.Limit(3, f"the CPU quota of the cgroup {folder}/cg")


def test_a_batch_job_is_limited_by_any_group_above_it(system):
    """SLURM limits the job, and the step that the process is in has no limit of its own."""
    files = {
        "cg/slurm/job_7/memory.max": f"{20 * GIB}",
        "cg/slurm/job_7/step_0/memory.max": "max",
        "cg/slurm/cpu.max": "max 100000",
    }
    folder = system(V2, ["0::/slurm/job_7/step_0"], files)
    assert machine.memory() == machine.Limit(20 * GIB, f"the cgroup limit {folder}/cg/slurm/job_7/memory.max")
    assert machine.cores().value == 16


def test_cgroups_v1_have_a_hierarchy_for_each_controller(system):
    files = {
        "memory/slurm/job_7/memory.limit_in_bytes": f"{12 * GIB}",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu,cpuacct/box/cpu.cfs_quota_us": "400000",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    folder = system(V1, ["9:name=systemd:/x", "4:memory:/slurm/job_7", "2:cpu,cpuacct:/box"], files)
    assert machine.memory() == machine.Limit(12 * GIB, f"the cgroup limit {folder}/memory/slurm/job_7/memory.limit_in_bytes")
    assert machine.cores() == machine.Limit(4, f"the CPU quota of the cgroup {folder}/cpu,cpuacct/box")


def test_a_container_without_a_namespace_has_only_its_part_of_the_hierarchy_mounted(system):
    mounts = ["31 23 0:27 /docker/ab12 {}/memory ro master:1 - cgroup cgroup rw,memory"]
    files = {"memory/memory.limit_in_bytes": f"{4 * GIB}", "memory/inner/memory.limit_in_bytes": f"{3 * GIB}"}
    system(mounts, ["4:memory:/docker/ab12/inner"], files)
    assert machine.memory().value == 3 * GIB
    system(mounts, ["4:memory:/docker/ab12"], {})
    assert machine.memory().value == 4 * GIB
    system(mounts, ["4:memory:/elsewhere"], {})
    assert machine.memory().value == 4 * GIB


@pytest.mark.parametrize("text", ["", "none", "-1", "1 2 3"])
def test_a_file_that_is_no_limit_is_none(system, text):
    system(V2, ["0::/"], {"cg/memory.max": text, "cg/cpu.max": text})
    assert (machine.memory().value, machine.cores().value) == (64 * GIB, 16)


def test_affinity_names_its_cores(system, monkeypatch):
    system([], [], {})
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 8, 9}, raising=False)
    assert machine.cores() == machine.Limit(6, "the CPU affinity (0-2,5,8-9)")


def test_a_system_without_affinity_and_proc_counts_its_cores(monkeypatch, tmp_path):
    """As macOS."""
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    for name in ("MOUNTS", "CGROUP", "STATUS"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    assert machine.cores() == machine.Limit(os.cpu_count(), "the cores of the machine")
    assert machine.memory().value > 0
    assert 0 < machine.resident_bytes() < 4 * machine.peak_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce address space limits")
def test_a_resource_limit_is_respected():
    """A real one, of a process of its own."""
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({6 * GIB}, {6 * GIB})); {ASK}"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
    memory = machine.memory().value
    assert f"value={min(6 * GIB, memory)}" in found.stdout
    assert ("RLIMIT_AS" in found.stdout) == (memory > 6 * GIB)


@contextmanager
def real_group(controller, **files):
    """A cgroup of this machine below this process's own, with some of its files written. Skips where that is not allowed."""
    made = next((f for f in machine._cgroup_folders(controller) if any((f / name).exists() for name in files)), Path("none"))
    group = made / "daskreg-test"
    try:
        group.mkdir()
    except OSError:
        pytest.skip(f"no cgroup of the controller {controller} can be made here")
    try:
        for name, text in files.items():
            (group / name).write_text(text)
        yield group
    finally:
        group.rmdir()


def test_a_real_cgroup_limits_the_process_in_it():
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    name = "memory.max" if v2 else "memory.limit_in_bytes"
    with real_group("memory", **{name: str(GIB)}) as group:
        join = f"from pathlib import Path; Path('{group}/cgroup.procs').write_text('0'); {ASK}"
        found = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, check=True, env=environment())
    assert found.stdout.splitlines()[0] == str(machine.Limit(GIB, f"the cgroup limit {group / name}"))


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(machine.__file__).parents[1])}


def test_the_resident_size_follows_what_is_allocated():
    before = machine.resident_bytes()
    with mmap.mmap(-1, 32 << 20) as held:  # no memory that was freed before
        held.write(b"1" * len(held))
        assert machine.resident_bytes() > before + len(held) // 2
        assert machine.peak_bytes() >= len(held)


def test_the_limit_of_address_space_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (3 * GIB, 4 * GIB))
    assert machine.address_space() == 3 * GIB
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (machine.resource.RLIM_INFINITY,) * 2)
    assert machine.address_space() is None
