"""What the commands of batch systems say when they refuse a job, as one sentence with advice."""

from __future__ import annotations

import re

# of what commands say whose controller does not answer
UNREACHABLE = re.compile(
    "unable to contact|could not establish a configuration source|communications? (connection )?failure|cannot connect"
    "|connection refused|unable to resolve|not responding|DNS SRV lookup failed|lsf is down|unable to send message to qmaster",
    re.I,
)
ASKED = {"slurm": "sinfo", "pbs": "qstat -B", "lsf": "lsid", "sge": "qstat"}  # which say whether the controller answers
LONGEST = 300  # characters of what is repeated


def refusal(system: str, said: str) -> str:
    """The end of a sentence: what a command said, in one line, and what to do about it."""
    lines = [line.strip().rstrip(".") for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if "fatal" in line.lower()] or lines
    text = "; ".join(fatal)[:LONGEST] or "it gives no reason"
    if not UNREACHABLE.search(said):
        return f"{text}."
    return (
        f"{text}. The controller of {system} does not answer here: run this on a login node of its cluster, where "
        f"'{ASKED[system]}' lists it, or wait until it is up."
    )
