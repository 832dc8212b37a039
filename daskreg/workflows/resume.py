"""Going on where an unfinished run was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daskreg.errors import ConfigError, Diverged, InputError, NotFound
from daskreg.grid import Grid
from daskreg.storage import CheckpointStore, RunStore
from daskreg.workflows.inputs import address_of, as_config

log = logging.getLogger("daskreg")


@contextmanager
def kept_or_gone(store: RunStore) -> Iterator[None]:
    """A run that ends early keeps its last checkpoint, if there is one that another attempt can use; else nothing of it stays."""
    try:
        yield
    except (InputError, Diverged):
        store.abandon()
        raise
    except BaseException as error:
        if CheckpointStore(store.path).latest() is None:
            store.abandon()
        else:
            store.mark_resumable()
            error.add_note(f"What was reached is kept: continue with 'daskreg register --resume -o {store.path}'.")
        raise


def resumed(output: str | Path | None) -> RunStore | None:
    """The unfinished run at ``output``; None where nothing is, so that a job that is started anew can say resume every time."""
    if output is None:
        raise ConfigError("resume needs the output of the run that is to go on; add -o RUN.zarr.")
    try:
        return RunStore.resume(output)
    except NotFound:
        log.info("nothing to resume at %s: starting", output)
        return None


def recalled(store: RunStore, *given: Any) -> list[Any]:
    """What the run was started with, where it is not given again. Raises ConfigError where another recipe is."""
    recipe = store.recipe
    names = ("fixed", "moving", "config", "fixed_mask", "moving_mask", "spacing")
    values = [recipe.get(name) if value is None else value for name, value in zip(names, given, strict=True)]
    for name, value in (("fixed_mask", given[3]), ("moving_mask", given[4])):
        if value is not None and address_of(value) != recipe.get(name):
            raise ConfigError(f"{store.path} was started with another {name}; leave it out, or use --overwrite.")
    if given[2] is not None and as_config(given[2]).model_dump(mode="json") != recipe.get("config"):
        raise ConfigError(f"{store.path} was started with another configuration; leave it out to go on, or use --overwrite.")
    if values[0] is None or values[1] is None:
        raise ConfigError(f"{store.path} was started from arrays in memory; give the two images again to go on.")
    return values


def require_same(store: RunStore, grids: tuple[Grid, Grid]) -> None:
    """Raises ConfigError when the images are not those of the run that is to go on."""
    for role, mine, its in (("fixed", grids[0], store.fixed_grid), ("moving", grids[1], store.moving_grid)):
        if mine != its:
            raise ConfigError(
                f"{store.path} was started with another {role} image ({its.shape}, not {mine.shape}); use --overwrite."
            )
