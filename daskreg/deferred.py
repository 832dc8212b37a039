"""Modules that are imported when one of their names is first used: who asks what is in a file does not wait for Dask."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class DeferredModule:
    """Stands for a module in a place where its import would be at the top of a file::

        if TYPE_CHECKING:
            import dask.array as da
        else:
            da = DeferredModule("dask.array")

    Any thread may use it first: Python's own lock keeps the others waiting until the module is complete.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)

    def __reduce__(self) -> tuple[type[DeferredModule], tuple[str]]:
        return DeferredModule, (self._name,)
