"""What a run knows of the images that it was made from."""

from __future__ import annotations

from daskreg.lazy.load import TransformLike, path_of, run_in
from daskreg.storage import RunStore
from daskreg.storage.formats.run import Run
from daskreg.storage.fs.address import parse_address, parse_spacing, with_key


def run_of(transform: TransformLike) -> RunStore | None:
    """The complete run that a transform is of, None for others. Raises IncompleteRun and Unreadable."""
    found = run_in(transform)
    if isinstance(found, RunStore):
        return found
    path = path_of(transform)
    return RunStore.open(path) if path is not None and Run().sniff(str(parse_address(path).path)) else None


def recorded_address(store: RunStore, role: str) -> str | None:
    """The address of the fixed or moving image of a run, with the voxel size given for it; None for an array in memory."""
    recipe = store.recipe
    named = recipe.get(role) or store.provenance.get("inputs", {}).get(role, {}).get("name")
    if not isinstance(named, str) or named == "array":
        return None
    spacing = recipe.get("spacing")
    if spacing is None or parse_address(named).spacing is not None:
        return named
    return with_key(named, "spacing", "x".join(f"{s:.17g}" for s in parse_spacing(spacing)))
