"""The run that a transform is of."""

from __future__ import annotations

from daskreg.lazy.load import TransformLike, path_of, require_address, run_in
from daskreg.storage import RunStore
from daskreg.storage.formats.run import Run
from daskreg.storage.fs.address import parse_address


def run_of(transform: TransformLike) -> RunStore | None:
    """The complete run that a transform is of, None for others. Raises IncompleteRun, Unreadable, ConfigError."""
    found = run_in(transform)
    if isinstance(found, RunStore):
        return found
    path = path_of(transform)
    require_address(path)
    return RunStore.open(path) if path is not None and Run().sniff(str(parse_address(path).path)) else None
