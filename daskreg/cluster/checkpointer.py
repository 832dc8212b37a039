"""Checkpoints of a run: each rank writes its own planes, rank 0 commits once all have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from daskreg.cluster.kept_checkpointer import KeptReader, progress
from daskreg.comm import Communicator
from daskreg.engine.planes import Planes, piecewise
from daskreg.engine.rank import Rank, RunState
from daskreg.grid import Index, Span
from daskreg.storage import CheckpointStore, RunStore


class Checkpointer:
    """Saves the state of the ranks of a run, and restores it."""

    def __init__(self, run: str, comm: Communicator, attempt: str = "") -> None:
        self.comm, self.store, self.number = comm, CheckpointStore(run), 0
        self.run = RunStore(run, attempt=attempt)

    def save(self, state: RunState, fields: Mapping[str, tuple[Span, Planes]], shape: Index | None) -> None:
        """Write a checkpoint, on all ranks; it counts once rank 0 has committed it.

        Raises OutputError where the run was removed, or is continued by another process.
        """
        self.number += 1
        if self.comm.rank == 0:
            self.run.require_mine()
            self.store.begin(self.number, dict.fromkeys(fields, (3, *shape)) if shape else {})
        self.comm.barrier()
        for name, (own, field) in fields.items():
            for span, planes in piecewise(field, own):
                self.store.write(self.number, name, span.start, planes)
        self.comm.barrier()
        if self.comm.rank == 0:
            self.run.require_mine()
            self.store.commit(self.number, asdict(state))

    def restore(self, rank: Rank, kept: KeptReader | None = None) -> None:
        """Set a rank to the last checkpoint, if there is one;  kept: of fields that are their own."""
        found = self.store.latest()
        if found is None:
            return
        self.number, state = found
        newer = None if kept is None else kept.newer_than(progress(state))
        if kept is not None and newer is not None:
            rank.resume(newer, kept.finish(rank.watch))
            return
        fields = tuple(state["fields"]) if state["fields"] else None
        rank.resume(RunState(**{**state, "fields": fields}), lambda name, span: self.store.read(self.number, name, span))
