"""A run is continued from the inputs that it was started from: a digest of each is stored with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from daskreg.errors import ConfigError, InputError
from daskreg.storage import RunStore
from daskreg.storage.digest import Record, difference, digest
from daskreg.workflows.inputs import IMAGE_ROLES, Request, address_of

log = logging.getLogger("daskreg")
Digests = dict[str, Record | None]


def input_digests(request: Request) -> Digests:
    """A digest of each input, None of one that is only computed (a Dask array). Raises NotFound and Unreadable."""
    return {role: digest(source) for role, source in _sources(request).items()}


def resumed_recipe(store: RunStore, request: Request, *, changed: bool) -> dict[str, Any]:
    """The recipe of a run that is continued.

    changed: whether inputs may differ from those that it was started with, which raises ConfigError otherwise.
    """
    recipe, found = store.recipe, input_digests(request)
    known = recipe.get("inputs")
    if isinstance(known, Mapping):
        _require_same(store, known, found, changed)
    else:
        log.warning("%s was started by a version that kept no digest of its inputs; they are taken to be unchanged", store.name)
    addresses = {role: address_of(getattr(request, role)) for role in IMAGE_ROLES} if changed else {}
    return {**recipe, **addresses, "inputs": found}


def changes_while_running(store: RunStore, request: Request) -> dict[str, Any]:
    """``changed_inputs`` for the record of a run: what became of inputs that were written while it read them. Warns of them."""
    known, found = store.recipe.get("inputs", {}), {}
    for role, source in _sources(request).items():
        try:
            now = digest(source)
            what = None if now is None or known.get(role) is None else difference(known[role], now)
        except InputError as error:
            what = str(error)
        if what is not None:
            log.warning("the %s changed while the run read it: %s; the result may be of both", in_words(role), what)
            found[role] = what
    return {"changed_inputs": found} if found else {}


def _require_same(store: RunStore, known: Mapping[str, Any], found: Digests, changed: bool) -> None:
    for role, text in differences(known, found):
        if not changed:
            raise ConfigError(
                f"{store.name} was started with another {in_words(role)}: {text}. To continue with it all the same, which mixes "
                "both, add --inputs-changed (inputs_changed=True); to start again, --overwrite without --resume."
            )
        log.warning("continuing with another %s: %s; the result is of both", in_words(role), text)


def differences(known: Mapping[str, Any], found: Digests) -> Iterator[tuple[str, str]]:
    """Roles of inputs that differ, and how."""
    for role, now in found.items():
        before = known.get(role)
        if now is None or not isinstance(before, Mapping):
            continue
        if before.get("address") != now["address"]:
            yield role, f"{before.get('address') or 'an array'}, not {now['address'] or 'an array'}"
        elif (what := difference(before, now)) is not None:
            yield role, f"{now['address'] or 'the array'} has changed since, {what}"


def _sources(request: Request) -> dict[str, Any]:
    """What is given, by role; masks and initial transform as the configuration names them where they are not given."""
    config = request.chosen
    given = {role: getattr(request, role) for role in IMAGE_ROLES} | {"initial_transform": config.initial_transform}
    for role in ("fixed_mask", "moving_mask"):
        given[role] = getattr(config, role) if given[role] is None else given[role]
    return {role: source for role, source in given.items() if source is not None}


def in_words(role: str) -> str:
    """The name of an input in a sentence."""
    return f"{role} image" if role in ("fixed", "moving") else role.replace("_", " ")
