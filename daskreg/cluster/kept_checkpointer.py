"""Checkpoints that are the fields of a sweep themselves: committed after every sweep, and read by any number of ranks."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from daskreg.comm import Communicator, SingleRank
from daskreg.config import Deformable
from daskreg.engine.halo import Block
from daskreg.engine.planes import Planes
from daskreg.engine.rank import Read, RunState
from daskreg.engine.report import Watch
from daskreg.engine.sweep.composition import Composition
from daskreg.engine.sweep.loop import SweepBackend
from daskreg.engine.sweep.pipeline import Pipeline
from daskreg.engine.sweep.state import DIRECTION, SweptState
from daskreg.errors import DaskregError
from daskreg.grid import Partition, Span
from daskreg.kernels.device import Device
from daskreg.planning import Level, Plan
from daskreg.planning.slabs import HEIGHTS, total_reach
from daskreg.storage.kept_fields import Commit, KeptCheckpoint, KeptField, KeptFields, kept_folder, remove_kept, write_commit
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.scratch import ScratchFolder

LENGTH = "length"  # in the state of a commit, see ``SweptState``


def progress(state: Mapping[str, Any]) -> tuple[int, int, int]:
    """How far a run is: stage, level, iterations."""
    return int(state["stage"]), int(state["level"]), len(state["losses"])


class KeptCheckpointer:
    """Commits the fields of this rank (``engine.rank.Kept``), and names their folder in the run once the first commit counts."""

    def __init__(self, run: str, scratch: ScratchFolder, comm: Communicator) -> None:
        self.store, self.comm, self.number = CheckpointStore(run), comm, 0
        names = np.frombuffer(uuid.uuid4().bytes + uuid.uuid4().bytes, np.uint8)
        drawn = comm.broadcast(names).tobytes().hex()
        self.identity = self.store.kept() or drawn[:32]
        self.fields = KeptFields(scratch, kept_folder(scratch.path, self.identity), drawn[32:], comm.rank, comm.size)

    def allocate(self, lead: int, span: Span, plane: tuple[int, int], dtype: Any = np.float32) -> KeptField:
        """See ``Kept``."""
        return self.fields.allocate(lead, span, plane, dtype)

    def commit(self, state: RunState, length: float | None, own: Span, fields: Mapping[str, Planes]) -> None:
        """See ``Kept``."""
        self.number += 1
        kept = cast(Mapping[str, KeptField], fields)
        self.fields.commit(self.number, {**asdict(state), LENGTH: length}, own, kept)
        self.comm.barrier()  # the next sweep overwrites what the commit before named
        self.fields.tidy(kept.values())
        if self.number == 1:
            self._point()

    def superseded(self, fields: Mapping[str, Planes]) -> None:
        """See ``Kept``."""
        self.fields.tidy([kept for kept in fields.values() if isinstance(kept, KeptField)])

    def remove(self) -> None:
        """The run needs them no more."""
        remove_kept(self.fields.folder)

    def _point(self) -> None:
        if self.comm.rank == 0:
            self.store.keep(self.identity)
        self.comm.barrier()
        self.fields.remove_others()


@contextmanager
def kept_reader(run: str, folder: str | None, plan: Plan, device: Device, comm: Communicator) -> Iterator[KeptReader | None]:
    """What reads the fields of a run in a scratch folder; None where it has none."""
    identity = CheckpointStore(run).kept()
    if identity is None or folder is None:
        yield None
        return
    with ScratchFolder(kept_folder(folder, identity), reads=True) as scratch:
        yield KeptReader(scratch, plan, device, comm)


class KeptReader:
    """The last commit of a run, made whole: what the ranks of another process go on from."""

    def __init__(self, scratch: ScratchFolder, plan: Plan, device: Device, comm: Communicator) -> None:
        self.scratch, self.plan, self.device, self.comm = scratch, plan, device, comm

    def newer_than(self, full: tuple[int, int, int]) -> RunState | None:
        """The state of the commit where all ranks see the same, it is further than a full checkpoint, and it can be used."""
        found = KeptCheckpoint.latest(self.scratch.path, progress)
        with suppress(DaskregError, OSError, ValueError, KeyError):
            if found is not None and progress(found.state) > full:
                found.require_files(self.scratch)
                self._require_same_fields(found)
                mark = zlib.crc32(repr([(c.path.parent.name, c.about["number"]) for c in found.commits]).encode()) + 1
                return self._agreed(found, float(mark))
        return self._agreed(None, 0.0)

    def _agreed(self, found: KeptCheckpoint | None, mark: float) -> RunState | None:
        most, least = self.comm.max(np.array([mark, -mark]))
        if found is None or most != -least:
            return None
        return RunState(**{k: v for k, v in found.state.items() if k != LENGTH} | {"fields": tuple(found.state["fields"])})

    def _require_same_fields(self, found: KeptCheckpoint) -> None:
        """Raises ValueError for fields that another device, or another version, kept."""
        stage, _ = self._level(found)
        optimizer = stage.optimizer.build(stage.storage, self.device.kind)
        kinds = {name: np.dtype(kind) for name, kind in optimizer.init(lambda dtype=np.float32: np.dtype(dtype)).items()}
        made = {"u": np.dtype(np.float32), **kinds}
        if not optimizer.restores_direction:
            made[DIRECTION] = np.dtype(np.float32)
        if any({n: np.dtype(f["dtype"]) for n, f in c.about["fields"].items()} != made for c in found.commits):
            raise ValueError("the fields are of another kind.")

    def finish(self, watch: Watch) -> Read:
        """Make the last step on all planes, shared out among the ranks; then what reads planes of a field by its name."""
        found = self._found()
        for k, commit in enumerate(found.commits):
            if k % self.comm.size == self.comm.rank and commit.about["state"][LENGTH] is not None:
                self._finish(found, commit, watch)
        self.comm.barrier()
        found = self._found()
        states = [(commit.own, cache(lambda c=commit: self._state(found, c))) for commit in found.commits]
        return lambda name, span: _read(states, name, span)

    def _found(self) -> KeptCheckpoint:
        found = KeptCheckpoint.latest(self.scratch.path, progress)
        assert found is not None
        return found

    def _level(self, found: KeptCheckpoint) -> tuple[Deformable, Level]:
        stage, index = found.state["fields"]
        level = self.plan.levels[stage][index]
        return cast(Deformable, level.in_voxels(self.plan.config.stages[stage])), level

    def _block(self, found: KeptCheckpoint, commit: Commit) -> Block:
        shape = self._level(found)[1].fixed.shape
        partition = Partition(shape[0], tuple(c.own for c in found.commits))
        return Block(shape, partition, int(commit.about["rank"]), 0, self.device)

    def _state(self, found: KeptCheckpoint, commit: Commit) -> SweptState:
        stage, level = self._level(found)
        optimizer = stage.optimizer.build(stage.storage, self.device.kind)
        fields = commit.open(self.scratch)
        made = SweptState.of_fields(self._block(found, commit), level.fixed_factors, optimizer, total_reach(stage), fields)
        made.losses, made.length = list(commit.about["state"]["losses"]), commit.about["state"][LENGTH]
        return made

    def _finish(self, found: KeptCheckpoint, commit: Commit, watch: Watch) -> None:
        """One rank's planes, committed again."""
        (stage, level), state = self._level(found), self._state(found, commit)
        made, alone = Composition(stage, state.block, level.slab or HEIGHTS[0], SingleRank()), SingleRank()
        backend = SweepBackend(state.block, alone, watch, state.losses, level.iterations)
        backend.prepare(state.optimizer, stage.similarity.gradient_scale, 1, False)
        made.backend, made.clock, made.pipeline = backend, backend.clock, Pipeline(made, state)
        try:
            made.finish_step(state)
        finally:
            made.pipeline.close()
        fields, about = cast(Mapping[str, KeptField], state.fields), commit.about
        for kept in fields.values():
            kept.settle()
        whole = {**about["state"], LENGTH: None}
        write_commit(commit.path.parent, about["rank"], about["ranks"], about["number"], whole, commit.own, fields)


def _read(states: Sequence[tuple[Span, Callable[[], SweptState]]], name: str, span: Span) -> NDArray[np.float32]:
    """Planes of a field as a full checkpoint holds them, from the ranks that owned them."""
    parts = []
    for own, state in states:
        planes = own & span
        if len(planes):
            field = state().saved(optimizer=True)[name]
            parts.append(np.empty((field.lead, len(planes), *field.plane), np.float32))
            field.read(planes, parts[-1])
    return np.concatenate(parts, axis=1)
