"""Which of the levels of an image an address asks for, where they have numbers and no names."""

from __future__ import annotations

from daskreg.errors import NotFound
from daskreg.storage.fs.address import Address


def chosen_level(address: Address, levels: int) -> int:
    """The number behind ``::level=``, 0 without one. Raises NotFound listing those there are."""
    asked = 0 if address.level is None else address.level
    if not str(asked).isdecimal() or int(asked) >= levels:
        raise NotFound(f"{address.path} has no level {asked!r}; it has {', '.join(str(k) for k in range(levels))}.")
    return int(asked)
