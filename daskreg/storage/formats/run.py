"""RUN.zarr as a transform."""

from __future__ import annotations

from daskreg.errors import InputError
from daskreg.storage.format import TransformFormat
from daskreg.storage.runs.layout import DISPLACEMENT
from daskreg.storage.runs.run import RunStore, is_run
from daskreg.storage.transform_record import StoredLink, TransformRecord, require_map


class Run(TransformFormat):
    """What ``daskreg register`` writes."""

    name = "daskreg run"
    endings = (".zarr",)
    writes = False
    is_run = True

    def sniff(self, path: str) -> bool:
        """By the attributes of the root."""
        try:
            return is_run(path)
        except InputError:
            return False

    def open(self, path: str) -> TransformRecord:
        """The transform of a complete run. Raises NotFound, Unreadable and IncompleteRun."""
        return run_record(RunStore.open(path))


def run_record(store: RunStore) -> TransformRecord:
    """The transform of a run."""
    grid = store.fixed_grid
    field = store.displacement() if store.has(DISPLACEMENT) else None
    link = StoredLink(store.affine, grid, field)
    require_map(store.path, link)
    return TransformRecord((link,), grid.unit, grid, store.moving_grid, Run.name)
