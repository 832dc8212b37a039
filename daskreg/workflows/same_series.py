"""Whether a complete run of a series is of the images and the configuration that are given again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskreg.errors import ConfigError
from daskreg.storage import RunStore
from daskreg.storage.digest import difference, digest
from daskreg.storage.fs.address import parse_address
from daskreg.workflows.inputs import Request
from daskreg.workflows.resume import from_anywhere, same_address, same_selection
from daskreg.workflows.unchanged import differences, in_words, input_digests


def require_same(path: str, request: Request) -> None:
    """Raises ConfigError where a complete run is of other images or of another configuration."""
    store, wanted = RunStore.attach(path), request.recipe()
    found = (_other_image(store, role, str(wanted[role])) for role in ("fixed", "moving"))
    other = [text for text in found if text]
    if store.recipe.get("config") != wanted["config"]:
        other.append(f"its configuration is another, {_first_difference(store.recipe.get('config'), wanted['config'])}")
    known = store.recipe.get("inputs")
    if not other and isinstance(known, Mapping):
        files = differences({k: v for k, v in known.items() if k not in ("fixed", "moving")}, input_digests(request))
        other = [f"the {in_words(role)} is another: {text}" for role, text in files]
    if other:
        raise ConfigError(f"{path} is of another series: {'; '.join(other)}. Choose another folder, or --overwrite.")


def _other_image(store: RunStore, role: str, given: str) -> str | None:
    """What tells a given image from that of a run, in words; None for the same one, also where both were moved since."""
    its, inputs = from_anywhere(store, role, store.recipe.get(role)), store.recipe.get("inputs")
    known = inputs.get(role) if isinstance(inputs, Mapping) else None
    same = same_address(given, its)
    if isinstance(known, Mapping) and (same or same_selection(given, its)):
        now = digest(given, known_as=parse_address(str(known.get("address"))).path)
        changed = None if now is None else difference(known, now)
        if changed is None or same:
            return None if changed is None else f"its {role} image {its} has changed since, {changed}"
    return None if same else f"its {role} image is {its}, and {given} was given"


def _first_difference(its: Any, wanted: Any, where: str = "") -> str:
    """Where two configurations differ first, in words."""
    if isinstance(its, Mapping) and isinstance(wanted, Mapping):
        key = next(k for k in [*its, *wanted] if its.get(k) != wanted.get(k))
        return _first_difference(its.get(key), wanted.get(key), f"{where}.{key}" if where else str(key))
    if isinstance(its, list) and isinstance(wanted, list) and len(its) == len(wanted):
        k = next(k for k, (a, b) in enumerate(zip(its, wanted, strict=True)) if a != b)
        return _first_difference(its[k], wanted[k], f"{where}[{k}]")
    if isinstance(its, list) and isinstance(wanted, list):
        return f"{where} has {len(its)} entries where {len(wanted)} were given"
    return f"{where} is {its!r} where {wanted!r} was given"
