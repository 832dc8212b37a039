"""``daskreg doctor``: what works on this machine and on the workers of a cluster, and how to mend what does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskreg.arguments import checked_arguments
from daskreg.errors import DaskregError, InputError
from daskreg.html import Printable
from daskreg.workflows import examinations
from daskreg.workflows.examinations import Finding
from daskreg.workflows.resources import parse_duration

if TYPE_CHECKING:
    from daskreg.cluster import Client

APART = ("host", "folder")  # of the facts of a worker: they may differ


@dataclass(frozen=True, repr=False)
class Examination(Printable):
    """What ``doctor`` found, in order."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(f.status != "wrong" for f in self.findings)

    def lines(self) -> list[str]:
        """One a finding, with what to do behind it, and a last one."""
        wrong = sum(f.status == "wrong" for f in self.findings)
        last = "everything that daskreg needs works" if self.ok else f"{wrong} to mend"
        return [*(f.line() for f in self.findings), last]

    def __repr__(self) -> str:
        return f"Examination({self.lines()[-1]})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, "findings": [asdict(f) for f in self.findings]}


@checked_arguments()
def doctor(
    *,
    client: Client | None = None,
    cluster: str | None = None,
    scratch: str | Path | None = None,
    workers: int = 1,
    wait_for_workers: float | str | None = None,
) -> Examination:
    """Look at this machine, and at the workers of a client, a scheduler's address or a batch system. Nothing is left behind.

    scratch: the folder for fields on disk;  workers: that the cluster should have;  wait_for_workers: seconds, or text such as
    30min, to wait for them, by default 10 s, and a day for jobs in a queue. Raises InputError where no scheduler answers.
    """
    wait = parse_duration(wait_for_workers)
    looks = (
        examinations.python, examinations.packages, examinations.extras, examinations.compiler, examinations.gpus,
        examinations.links, examinations.limits, examinations.shared_memory,
        examinations.folders(None if scratch is None else Path(scratch)),
    )  # fmt: skip
    found = [finding for look in looks for finding in look()]
    if client is not None or cluster is not None:
        found += _of_cluster(client, cluster, workers, wait)
    return Examination(tuple(found))


def _of_cluster(client: Client | None, address: str | None, workers: int, wait: float | None = None) -> Iterator[Finding]:
    """Its workers answer, import the same versions, and there are as many as wanted."""
    from daskreg.cluster import BATCH_SYSTEMS, existing_client, worker_count
    from daskreg.cluster.worker_calls import ask_workers

    default = None if address in BATCH_SYSTEMS else 10.0
    with existing_client(client, address, workers) as connected:
        assert connected is not None
        try:
            with suppress(InputError):  # too few, which is told below
                worker_count(connected, workers, default if wait is None else wait)
            answers = ask_workers(connected, examinations.facts, "what it has installed")
        except (DaskregError, ImportError, AttributeError) as error:
            mend = "install the same daskreg on every worker, and start the workers again"
            yield Finding("workers", "wrong", " ".join(f"they do not answer: {error}".split()), mend)
            return
    enough = len(answers) >= workers
    mend = "" if enough else "look at the queue of the batch system and at the logs of the workers"
    yield Finding("workers", "ok" if enough else "wrong", f"{len(answers)} of {workers} on {_hosts(answers)}", mend)
    yield from _differences(answers)


def _hosts(answers: dict[str, dict[str, str]]) -> str:
    return ", ".join(sorted({a["host"] for a in answers.values()})) or "no machine"


def _differences(answers: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Versions that are not those of this process."""
    mine = examinations.facts()
    apart = [
        f"{name} is {theirs[name]} on {worker}, {mine[name]} here"
        for worker, theirs in sorted(answers.items())
        for name in mine
        if name not in APART and theirs.get(name) != mine[name]
    ]
    if apart:
        yield Finding("versions", "wrong", "; ".join(apart[:5]), "use one environment everywhere, such as a container")
    elif answers:
        yield Finding(
            "versions", "ok", "the same on all workers: " + ", ".join(f"{k} {v}" for k, v in mine.items() if k not in APART)
        )
