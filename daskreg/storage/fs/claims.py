"""Sizes that a header claims, compared with what the file and the memory can hold before anything is allocated."""

from __future__ import annotations

from daskreg.errors import Unreadable
from daskreg.machine import memory

DEFLATE_RATIO = 1032  # no stream of zlib and gzip expands to more than this multiple
SMALL = 1 << 28  # bytes that are never too many


def require_held(path: str, claimed: int, stored: int, ratio: int = 1) -> None:
    """Raises Unreadable where ``claimed`` bytes cannot be in ``stored`` ones. ratio: to which compression may expand them"""
    if claimed > stored * ratio:
        how = "" if ratio == 1 else ", compressed,"
        raise Unreadable(
            f"{path} is cut short or its header is damaged: it has {stored} bytes{how}, its header promises {claimed}; copy it "
            "again."
        )


def require_memory(path: str, nbytes: int) -> None:
    """Raises Unreadable where so many bytes are more than this process may use."""
    if nbytes > SMALL and nbytes > (limit := memory()).value:
        raise Unreadable(
            f"{path}: {nbytes / 1e9:.1f} GB of it are needed at once, more than {limit.source} ({limit.value / 1e9:.1f} GB); "
            "choose a part or a coarser level, convert it to .zarr, or repair its header if it is not as large."
        )
