"""Everything about several GPUs of one machine that tests and times can tell, in one command of less than nine minutes.

    python benchmarks/several_gpus.py                       # on all GPUs of the machine: 2 or 4
    python benchmarks/several_gpus.py --only nccl           # steps whose name has that word
    python benchmarks/several_gpus.py --rehearsal           # the same steps with worker processes on a CPU, smaller

Steps, each with a time limit, the most important first: what the machine has; the link between two ranks over UCX and TCP; a
command that is killed and one that is stopped; runs whose workers are killed, over UCX, then TCP; the bits of one GPU with every
residency; a run of 384^3 that loses a worker; the time of an iteration on one and on all GPUs. Writes a log of each step to
``$OUT`` (or ``build/several_gpus``), and prints the table last. A step that would start after the budget is over is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
OUT = Path(os.environ.get("OUT", ROOT / "build" / "several_gpus"))
BUDGET = 520.0  # seconds for all steps
SHOWN = re.compile(r"passed|failed|went on after|checkpoints again|ended .* after SIGTERM|GB/s|efficiency|seconds|\.\.\. |^E  ")
MOST_SHOWN = 14  # lines of a step's log below its row


@dataclass(frozen=True)
class Step:
    """A command, and the seconds that it may take."""

    name: str
    seconds: float
    command: tuple[str, ...]


def steps(gpus: int, *, rehearsal: bool) -> list[Step]:
    """All of them, in order."""
    python, device = sys.executable, "cpu" if rehearsal else "cuda"
    pytest = (python, "-m", "pytest", "-q", "-s", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default",
              f"--basetemp={_fast_folder()}/pytest", "tests/gpu/test_several_gpus.py", "-k")  # fmt: skip

    def tests(*words: str) -> tuple[str, ...]:
        return (*pytest, " and ".join([f"gpus{gpus}", *words]))

    def link(comm: str) -> tuple[str, ...]:
        return (python, str(ROOT / "benchmarks" / "gpu_link.py"), "--device", device, "--comm", comm)

    edge, scaling = ("48", "40") if rehearsal else ("384", "512")
    nccl = [] if rehearsal else [
        Step("killed workers, nccl", 180, tests("killed", "nccl")),
        Step("the command, nccl", 100, tests("command", "nccl")),
        *(Step(f"scaling, {comm} (nccl)", 100, (python, str(ROOT / "benchmarks" / "gpu_scaling.py"), "--gpus", f"1,{gpus}",
               "--weak", scaling, "--strong", "", "--comm", comm, "--folder", _fast_folder())) for comm in ("nccl", "ucx")),
        Step("timeline (nccl)", 60, (python, str(ROOT / "benchmarks" / "gpu_timeline.py"), scaling, "--ranks", str(gpus),
             "--comm", "nccl", "--residencies", "window", "--losses", "lncc center", "--folder", _fast_folder())),
    ]  # fmt: skip
    return [
        Step("machine", 30, ("bash", "-c", "nvidia-smi; nvidia-smi topo -m; free -g; df -h /dev/shm")),
        Step("link, ucx", 60, link("ucx")),
        Step("link, tcp", 60, link("tcp")),
        Step("the command, ucx", 150, tests("command", "ucx")),
        Step("killed workers, ucx", 180, tests("killed", "ucx")),
        Step("the bits of one GPU", 120, tests("bits")),
        Step("a killed worker, 384^3, ucx", 120, (python, __file__, "recover", edge, device, str(gpus))),
        Step("the command, tcp", 150, tests("command", "tcp")),
        Step("killed workers, tcp", 180, tests("killed", "tcp")),
        Step("scaling", 180, (python, str(ROOT / "benchmarks" / "gpu_scaling.py"), "--gpus", f"1,{gpus}", "--weak", scaling,
                              "--strong", "", "--device", device, "--folder", _fast_folder())),
        *nccl,
    ]  # fmt: skip


def _fast_folder() -> str:
    """In memory, where that is possible."""
    folder = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()) / f"several_gpus.{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return str(folder)


def run(step: Step, seconds: float, environment: dict[str, str]) -> tuple[str, float, list[str]]:
    """How it ended, its seconds, and what its log says; the step and all that it has started are killed after ``seconds``."""
    log, begun = OUT / f"{re.sub(r'[^a-z0-9]+', '_', step.name)}.log", time.monotonic()
    with log.open("w") as file:
        child = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = child.wait(seconds)
            ended = "passed" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            ended = f"over {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    told = [line.strip()[:160] for line in log.read_text(errors="replace").splitlines() if SHOWN.search(line)]
    return ended, time.monotonic() - begun, told[-MOST_SHOWN:]


def recover(edge: int, device: str, gpus: int) -> None:
    """A run by the command line that loses a worker to kill -9 in the middle: seconds, and the bits of one that does not."""
    from gpu_scaling import written

    from daskreg.config import Config, Deformable
    from daskreg.similarity import LNCC
    from daskreg.storage import RunStore
    from tests.integration.command import Command

    with tempfile.TemporaryDirectory(dir=_fast_folder()) as name:
        folder = Path(name)
        images = written(name, (edge, edge, edge), device == "cuda")
        iterations = 200 if device == "cpu" else 4000
        stage = Deformable(similarity=LNCC(), scales=(2, 1), iterations=(50, iterations), tolerance=0)
        (folder / "recipe.yaml").write_text(Config(stages=(stage,)).dump())
        where = ("--workers", gpus) if device == "cpu" else ("--cluster", "cuda", "--workers", gpus)
        options = ("--config", folder / "recipe.yaml", *where, "--checkpoint-every", 2)
        digests = []
        for killed in (True, False):
            with Command(*images, folder / f"{killed}.zarr", *options) as command:
                if killed:
                    first = command.wait_until(lambda run=command: run.checkpoint >= 1)
                    os.kill(command.workers()[-1], signal.SIGKILL)
                    before = command.checkpoint
                    again = command.wait_until(lambda run=command, last=before: run.checkpoint > last + 1, 60)
                    print(f"first checkpoint after {first:.1f} s, checkpoints again {again:.1f} s after the kill", flush=True)
                code, said, _ = command.ended(120)
                print(said, f"killed: {killed}; exit {code} after {time.monotonic() - command.started:.1f} seconds", flush=True)
            displacement = RunStore.open(str(folder / f"{killed}.zarr")).displacement()
            digests.append(hash(displacement.compute().tobytes()))
        print("same bits:", digests[0] == digests[1], "... passed" if digests[0] == digests[1] else "... failed")
        sys.exit(digests[0] != digests[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearsal", action="store_true", help="worker processes on a CPU in place of GPUs")
    parser.add_argument("--gpus", type=int, help="2 or 4 (all that there are)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps")
    parser.add_argument("--only", default="", help="a regular expression of the names of steps")
    given = parser.parse_args()
    if given.gpus is None:
        from daskreg.kernels.device import gpus

        given.gpus = 2 if given.rehearsal or gpus() < 4 else 4
    OUT.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "UCX_WARN_UNUSED_ENV_VARS": "n", "PYTHONUNBUFFERED": "1"}
    environment |= {"DASKREG_REHEARSAL": "1"} if given.rehearsal else {}
    end, rows = time.monotonic() + given.budget, list[str]()
    for step in steps(given.gpus, rehearsal=given.rehearsal):
        left = end - time.monotonic()
        if not re.search(given.only, step.name):
            continue
        ended, seconds, told = run(step, min(step.seconds, left), environment) if left > 10 else ("left out", 0.0, [])
        rows += [f"{step.name:<32}{ended:<14}{seconds:6.1f} s", *(f"    {line}" for line in told)]
        print(rows[-1 - len(told)], flush=True)
    table = "\n".join(["", f"{given.gpus} GPUs" + (" (rehearsal on a CPU)" if given.rehearsal else ""), *rows])
    (OUT / "table.txt").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["recover"]:
        recover(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
