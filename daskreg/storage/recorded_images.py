"""The images that a run was made from, where they are now."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from daskreg.errors import ConfigError, InputError, NotFound
from daskreg.storage.digest import difference, digest
from daskreg.storage.fs.address import is_remote, parse_address, parse_spacing, with_key, with_path
from daskreg.storage.fs.errors import require_exists
from daskreg.storage.runs.run import RunStore

log = logging.getLogger("daskreg")
FOLDER = "folder"  # of a recipe: where the run was written


def recorded_image(store: RunStore, role: str) -> str | None:
    """The address of the fixed or moving image of a run, with the voxel size given for it; None for an image in memory.

    It does not depend on the working directory: it is where the run has read the image or, where both were moved together, where
    it is seen from the folder of the run. The image there is compared with the digest that the run keeps.
    Raises NotFound; ConfigError where another image is there; Unreadable.
    """
    recipe = store.recipe
    named = recipe.get(role) or store.provenance.get("inputs", {}).get(role, {}).get("name")
    if not isinstance(named, str) or named == "array" or role in recipe.get("arrays", ()):
        return None
    inputs = recipe.get("inputs")
    known = inputs.get(role) if isinstance(inputs, Mapping) else None
    if isinstance(known, Mapping) and isinstance(known.get("address"), str):
        named = _unchanged(store, role, named, known)
    else:
        log.warning("%s has no digest of its %s image; %s is taken to be it", store.name, role, named)
    spacing = recipe.get("spacing")
    if spacing is None or parse_address(named).spacing is not None:
        return named
    return with_key(named, "spacing", "x".join(f"{s:.17g}" for s in parse_spacing(spacing)))


def _unchanged(store: RunStore, role: str, named: str, known: Mapping[str, Any]) -> str:
    """The first of the places where the image may be that has it. Raises what is wrong with the first of them."""
    path, errors = parse_address(known["address"]).path, list[InputError]()
    for place in _places(store, path):
        try:
            address = with_path(named, place)
            _require_unchanged(store, role, address, path, known)
        except (NotFound, ConfigError) as error:
            errors.append(error)
        else:
            return address
    raise errors[0]


def _places(store: RunStore, path: str) -> Iterator[str]:
    """Where the run has read an image, and where that is seen from the folder of a run that was moved."""
    yield path
    folder, now = store.recipe.get(FOLDER), os.path.dirname(os.path.realpath(store.path))
    if isinstance(folder, str) and folder != now and not is_remote(path) and not is_remote(store.path):
        yield os.path.normpath(os.path.join(now, os.path.relpath(path, folder)))


def _require_unchanged(store: RunStore, role: str, address: str, path: str, known: Mapping[str, Any]) -> None:
    """path: where the run has read it. A large image whose files have other times alone is taken, with a warning."""
    place = parse_address(address).path
    if not is_remote(place):
        require_exists(place)
    found = digest(address, known_as=path)
    assert found is not None
    if (what := difference({**known, "files": found["files"]}, found)) is not None:
        raise ConfigError(
            f"{place} is not the {role} image that {store.name} was made from, or has changed since: {what}; put that back, or "
            "name it by hand where it is."
        )
    if (what := difference(known, found)) is not None:
        log.warning("%s is taken to be the %s image of %s; of what is compared, %s has changed", place, role, store.name, what)
