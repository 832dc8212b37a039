"""Names of similarities, optimisers and transform models, and where their classes are.

A built-in one is a line in a table here; another package adds one through an entry point of the group, or passes an instance
where a configuration takes one. Classes are imported when a configuration is first parsed; they import neither Numba nor Dask.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

log = logging.getLogger("daskreg")


class Registry:
    """Classes by the name that selects them in a configuration (their field ``kind``).

    what: for messages;  group: of entry points, ``name = "package.module:Class"``;  builtin: the same as a table.
    """

    def __init__(self, what: str, group: str, builtin: Mapping[str, str]) -> None:
        self.what, self.group, self.builtin = what, group, dict(builtin)
        self._classes: dict[str, type[Any]] | None = None

    def classes(self) -> dict[str, type[Any]]:
        """All that can be imported, built-in ones first; an entry point never replaces another class, which the log says."""
        if self._classes is None:
            self._classes = self._found()
        return self._classes

    def _found(self) -> dict[str, type[Any]]:
        found, places = {name: _load(path) for name, path in self.builtin.items()}, dict(self.builtin)
        for point in entry_points(group=self.group):
            if (there := places.get(point.name)) is not None:
                if there != point.value:
                    log.warning("the %s %r of %s is not used: %s has that name.", self.what, point.name, point.value, there)
                continue
            try:
                found[point.name] = _checked(point.load(), point.name)
                places[point.name] = point.value
            except Exception as error:  # noqa: BLE001  # whatever another package's module raises: daskreg works without it
                log.warning("the %s %r of %s cannot be used: %s", self.what, point.name, point.value, error)
        return found


def _checked(loaded: type[Any], name: str) -> type[Any]:
    """The class, if the name selects it. Raises TypeError: a configuration could not tell it from others."""
    kind = loaded.model_fields["kind"].default if "kind" in getattr(loaded, "model_fields", {}) else None
    if kind != name:
        raise TypeError(f"its field 'kind' is {kind!r}, not {name!r}")
    return loaded


def _load(path: str) -> type[Any]:
    module, _, name = path.partition(":")
    loaded: type[Any] = getattr(import_module(module), name)
    return loaded


SIMILARITIES = Registry(
    "similarity",
    "daskreg.similarities",
    {
        "mse": "daskreg.similarity.mse:MSE",
        "lncc": "daskreg.similarity.lncc:LNCC",
        "mi": "daskreg.similarity.mutual_information:MI",
        "ngf": "daskreg.similarity.ngf:NGF",
    },
)
OPTIMIZERS = Registry(
    "optimizer",
    "daskreg.optimizers",
    {
        "adam": "daskreg.optimizers.adam:Adam",
        "sgd": "daskreg.optimizers.sgd:SGD",
    },
)
MODELS = Registry("transform model", "daskreg.models", {"displacement": "daskreg.models.displacement:Displacement"})
