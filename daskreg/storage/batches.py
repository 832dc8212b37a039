"""Planes of an archive in batches: the next one is read while a batch is in use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Span

Part = TypeVar("Part")
Voxel = TypeVar("Voxel", bound=np.generic)
Found = TypeVar("Found")
BATCH_PLANES = 64  # read at a time, as many as a usual chunk has


def batches(planes: Span, most: int = BATCH_PLANES) -> list[Span]:
    """Spans of BATCH_PLANES planes, or of ``most`` where that is less; they start where chunks usually do."""
    each = max(1, min(BATCH_PLANES, most))
    return [Span(z, z + each) & planes for z in range(planes.start // each * each, planes.stop, each)]


def read_ahead(read: Callable[[Part], Found], parts: Iterable[Part], ahead: int) -> Iterator[tuple[Part, Found]]:
    """Parts and what is read of them, in order; so many are being read by threads while one is in use."""
    with ThreadPoolExecutor(ahead, "daskreg-input") as readers:
        pending = deque[tuple[Part, Future[Found]]]()
        try:
            for part in parts:
                pending.append((part, readers.submit(read, part)))
                if len(pending) > ahead:
                    first, found = pending.popleft()
                    yield first, found.result()
            while pending:
                first, found = pending.popleft()
                yield first, found.result()
        finally:
            for _, left in pending:
                left.cancel()


def prefetched(read: Callable[[Part], NDArray[Voxel]], spans: Sequence[Part]) -> Iterator[tuple[Part, NDArray[Voxel]]]:
    """Spans and their planes, or other parts; the next one is read while one is in use."""
    with ThreadPoolExecutor(1, "daskreg-input") as reader:
        pending = [reader.submit(read, batch) for batch in spans[:1]]
        for batch, following in zip_longest(spans, spans[1:]):
            found = pending.pop().result()
            pending = [reader.submit(read, following)] if following else []
            yield batch, found
