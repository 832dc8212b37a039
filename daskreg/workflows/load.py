"""Transforms from files: runs, and what other tools write."""

from __future__ import annotations

from pathlib import Path

from daskreg.storage import RunStore
from daskreg.workflows.blocks import Reader
from daskreg.workflows.transform import Transform

DISPLACEMENT = "transform/displacement"


def load_transform(run: str | Path | RunStore) -> Transform:
    """The transform of a run, its displacement lazily. Raises NotFound, Unreadable and IncompleteRun."""
    store = run if isinstance(run, RunStore) else RunStore.open(run)
    displacement = Reader(store.displacement()) if store.has(DISPLACEMENT) else None
    return Transform.of(store.affine, store.fixed_grid, displacement, store.moving_grid)
