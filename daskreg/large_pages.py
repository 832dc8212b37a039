"""Anonymous memory in large pages, for transfers: the system pins and looks up each page of them."""

from __future__ import annotations

import mmap
from contextlib import suppress


def large_pages(count: int) -> mmap.mmap:
    """Bytes that are 0, from a page on, in large pages where the system has them.

    It is private memory: shared memory has large pages only where an administrator allowed them. No child process sees it, as the
    system would then give one of both a copy, while a transfer goes on in the other.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return mmap.mmap(-1, count)
    made = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):
        with suppress(OSError):  # a kernel without large pages
            made.madvise(advice)
    return made
