"""Continuing an unfinished run from its last checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskreg.config import Config
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, Diverged, InputError, NotFound, OutputError, OutputExists, Unreachable, Unreadable
from daskreg.grid import Grid
from daskreg.reporting.log import shown
from daskreg.storage import CheckpointStore, RunStore, open_volume
from daskreg.storage.digest import located
from daskreg.storage.fs.address import Address, is_remote, parse_address, with_path
from daskreg.storage.kept_fields import KeptCheckpoint, kept_folder, remove_kept, what_is_kept
from daskreg.storage.runs.run_state import has_checkpoint
from daskreg.workflows.inputs import IMAGE_ROLES, ImageLike, Request, Spacing, address_of, spacing_for
from daskreg.workflows.unchanged import differences, in_words, input_digests

if TYPE_CHECKING:
    from daskreg import cluster as clusters
    from daskreg.cluster import Client
else:
    clusters = DeferredModule("daskreg.cluster")

log = logging.getLogger("daskreg")
FILES = ("fixed_mask", "moving_mask", "initial_transform")


def kept_fields(run: str, scratch: str | None) -> Path | None:
    """Where the fields of an unfinished run are that are their own checkpoint, None where it has none."""
    identity = CheckpointStore(run).kept() if scratch is not None else None
    return None if identity is None or scratch is None else kept_folder(scratch, identity)


def seconds_so_far(run: str, scratch: str | None) -> float:
    """What the parts of an unfinished run have taken, each up to its last checkpoint."""
    full, folder = CheckpointStore(run).latest(), kept_fields(run, scratch)
    kept = None if folder is None else KeptCheckpoint.latest(folder, _seconds)
    return max((_seconds(state) for state in (full and full[1], kept and kept.state) if state), default=0.0)


def _seconds(state: Mapping[str, Any]) -> float:
    return float(state.get("seconds", 0.0))  # earlier versions kept none


def tell_of_other_scratch(run: str, scratch: str | None, client: Client | None = None) -> None:
    """Warn where a run kept its last iteration in a folder that is not named now, or in files that cannot be read.

    client: of the workers that look for it; None where they are on this machine.
    """
    folder = kept_fields(run, scratch)
    if folder is None:
        return
    look = partial(what_is_kept, folder)
    found = {look()} if client is None else {*clusters.ask_workers(client, look, "what a run has kept on disk").values()}
    if found == {"nothing"}:
        log.warning(
            "the fields of the last iteration are not in %s: going on from the last full checkpoint; to go on from them, stop "
            "and name the --scratch folder of the run.",
            scratch,
        )
    elif "unreadable" in found:
        log.warning(
            "the fields of the last iteration in %s were kept by another version of daskreg, or are damaged: going on from the "
            "last full checkpoint; to go on from them, stop and use that version.",
            scratch,
        )


@contextmanager
def keep_checkpoint_or_remove(store: RunStore, scratch: str | None = None, *, lasting: bool = True) -> Iterator[None]:
    """A run that ends early keeps its last checkpoint, if another attempt can use it; otherwise the run is removed.

    scratch: where its fields may be;  lasting: whether the run is still there after Ctrl-C or SIGTERM.

    Raises OutputError in place of what followed from it when the run was removed, or is continued by another process.
    """
    try:
        yield
    except BaseException as error:
        try:
            lost = _lost(store)
        except Unreachable:
            error.add_note(
                f"The run is left as it is there. When the server is back, 'daskreg register --resume -o {store.name}' goes on "
                "from its last checkpoint, or begins again."
            )
            raise error from None
        if lost is None:
            _keep_or_remove(store, error, kept_fields(store.path, scratch), lasting)
            raise
        store.abandon()
        if isinstance(error, Exception):
            raise lost from error
        raise


def _lost(store: RunStore) -> OutputError | None:
    """The error where the run was removed, or is another's."""
    try:
        store.require_mine()
    except OutputError as error:
        return error
    return None


def _keep_or_remove(store: RunStore, error: BaseException, fields: Path | None, lasting: bool) -> None:
    if store.complete:  # but its place was taken, as the error says
        return
    hopeless = isinstance(error, InputError | Diverged) and not isinstance(error, NotFound | Unreadable)
    hopeless |= not (lasting or isinstance(error, Exception))
    if hopeless or not has_checkpoint(store.path):  # a chunk that is missing or damaged can be restored
        store.abandon()
        if fields is not None:
            remove_kept(fields)
        return
    with suppress(OutputError):  # on a full disk the checkpoint is there all the same, and enough
        store.mark_resumable()
    how = (
        f"The last checkpoint is kept: continue with 'daskreg register --resume -o {store.name}', "
        f"in Python with daskreg.register({_images_again(store)}output={store.name!r}, resume=True)."
    )
    error.add_note(how)
    if not isinstance(error, Exception) and not getattr(error, "notes_are_said", False):
        with shown():  # a script may catch the interrupt, and not everything that shows an exception shows its notes
            log.warning("%s", how)


def _images_again(store: RunStore) -> str:
    """Arguments for images that only the caller has."""
    return "".join(f"{name}={name}, " for name in store.recipe.get("arrays", ()))


def require_resume_arguments(output: str | Path | None, *, resume: bool, inputs_changed: bool) -> None:
    """Raises ConfigError for arguments about resuming that do not go together."""
    if resume and output is None:
        raise ConfigError("resume needs the output of the run to continue; add -o RUN.zarr.")
    if inputs_changed and not resume:
        raise ConfigError("inputs_changed (--inputs-changed) is about a run that is continued; add --resume.")


def run_to_resume(output: str | Path) -> RunStore | None:
    """The run at ``output``, unfinished or complete; None where nothing is, so that a batch job can ask to resume every time."""
    try:
        return RunStore.unfinished(output)
    except OutputExists:
        return RunStore.open(output)
    except NotFound:
        log.info("nothing to resume at %s: starting", output)
        return None


def restore_request(store: RunStore, given: Request) -> Request:
    """The request that the run was started with, its arrays in memory as they are given now.

    Raises ConfigError where a mask, initial transform or configuration is given that is not the run's: a run is continued as it
    was started.
    """
    recipe = store.recipe
    _require_same_arguments(store, given)
    if _other_filling(store, given):
        raise ConfigError(
            f"{store.name} was started with another fill or background; leave them out to continue, or use --overwrite."
        )
    known = {name: from_anywhere(store, name, recipe.get(name)) for name in IMAGE_ROLES}
    known |= {"config": _config_from_anywhere(store, recipe.get("config")), "spacing": recipe.get("spacing")}
    found = replace(given, **{name: value for name, value in known.items() if getattr(given, name) is None})
    lacking = [name for name in recipe.get("arrays", ("fixed", "moving")) if getattr(found, name) is None]
    if lacking:
        raise ConfigError(f"{store.name} was started from arrays in memory; give {' and '.join(lacking)} again to continue.")
    return found


def _config_from_anywhere(store: RunStore, config: Any) -> Any:
    """The configuration of a run, with the files that it names as ``from_anywhere`` has them."""
    if not isinstance(config, Mapping):
        return config
    return {**config, **{name: from_anywhere(store, name, config[name]) for name in FILES if name in config}}


def from_anywhere(store: RunStore, role: str, named: Any) -> Any:
    """The address of an input that a run has recorded, by a path that does not depend on the working folder."""
    inputs = store.recipe.get("inputs")
    known = inputs.get(role) if isinstance(inputs, Mapping) else None
    if not isinstance(named, str) or not isinstance(known, Mapping) or not isinstance(known.get("address"), str):
        return named
    path, place = parse_address(named).path, parse_address(known["address"]).path
    if is_remote(path) or os.path.isabs(path) or os.path.realpath(path) == place:
        return named
    log.info("the %s %s of the run is %s", in_words(role), named, place)
    return with_path(named, place)


def require_same_request(store: RunStore, given: Request) -> None:
    """Raises ConfigError, OutputExists for a complete run where what is given is not what it was made of, or not comparable.

    What is not given is not looked at: its images may be gone.
    """
    _require_same_arguments(store, given)
    if _other_filling(store, given):
        raise _another(store, "with another fill or background")
    spacing = store.recipe.get("spacing") if given.spacing is None else given.spacing
    for role, its in (("fixed", store.fixed_grid), ("moving", store.moving_grid)):
        if not _on_grid(getattr(given, role), its, spacing):
            raise _another(store, f"from another {role} image, or one of another voxel size")
    known, found = store.recipe.get("inputs"), input_digests(given)
    if found and not (isinstance(known, Mapping) and all(v is not None and known.get(role) for role, v in found.items())):
        raise _another(store, "from inputs that cannot be compared with these")
    for role, text in differences(known or {}, found):
        raise _another(store, f"from another {in_words(role)}: {text}")


def _other_filling(store: RunStore, given: Request) -> bool:
    """Whether a fill or a background is given, without a configuration, that is not the run's."""
    recorded = store.recipe.get("config")
    beside = given.fill is not None or given.background is not None
    return given.config is None and beside and not _same_stages(replace(given, config=recorded).chosen, recorded)


def _on_grid(image: ImageLike | None, grid: Grid, spacing: Spacing) -> bool:
    """Whether an image, where one is given, has the grid."""
    if image is None:
        return True
    found = open_volume(image, spacing=spacing_for(image, spacing)).grid
    return (found.unit is None) == (grid.unit is None) and found.to_unit(grid.unit) == grid


def _another(store: RunStore, what: str) -> OutputExists:
    advice = "name another output, or replace it with --overwrite, without --resume"
    return OutputExists(f"{store.name} is complete, and was made {what}; {advice}.")


def _require_same_arguments(store: RunStore, given: Request) -> None:
    """Raises ConfigError for files and a configuration that are given and are not those of the run."""
    recipe = store.recipe
    for name in FILES:
        known = recipe.get(name) or (recipe.get("config") or {}).get(name)
        _require_same_file(store, name, getattr(given, name), known)
    if given.config is not None and not _same_stages(given.chosen, recipe.get("config")):
        raise ConfigError(f"{store.name} was started with another configuration; leave it out to continue, or use --overwrite.")


def _require_same_file(store: RunStore, name: str, value: Any, known: Any) -> None:
    if value is not None and not same_address(address_of(value), from_anywhere(store, name, known)):
        was = f"with the {name.replace('_', ' ')} {known}" if known else f"without {name.replace('_', ' ')}"
        raise ConfigError(f"{store.name} was started {was}; leave {name} out to continue, or use --overwrite to start again.")


def same_address(given: Any, known: Any) -> bool:
    """Whether two addresses select the same of the same file, by whatever path."""
    if not (isinstance(given, str) and isinstance(known, str)):
        return bool(given == known)
    one, other = (Address("", parse_address(text).path) for text in (given, known))
    return same_selection(given, known) and located(one) == located(other)


def same_selection(given: Any, known: Any) -> bool:
    """Whether two addresses say the same behind their paths."""
    if not (isinstance(given, str) and isinstance(known, str)):
        return bool(given == known)
    one, other = (replace(parse_address(text), text="", path="") for text in (given, known))
    return one == other


def _same_stages(given: Config, recorded: Any) -> bool:
    """Whether two configurations are equal, apart from the files they name."""
    files, known = dict.fromkeys(FILES), recorded or {}
    with suppress(ConfigError):  # of a version that had other names, or with parts of which only instances are known here
        known = Config.parse(known).model_dump(mode="json")
    return {**given.model_dump(mode="json"), **files} == {**known, **files}


def require_same_images(store: RunStore, grids: tuple[Grid, Grid]) -> None:
    """Raises ConfigError when the images are not those of the run."""
    for role, mine, its in (("fixed", grids[0], store.fixed_grid), ("moving", grids[1], store.moving_grid)):
        if mine != its:
            raise ConfigError(
                f"{store.name} was started with another {role} image ({its.shape}, not {mine.shape}); use --overwrite."
            )
