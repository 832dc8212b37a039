"""What passes round a ring: the planes that each rank sends and receives, and which of its own planes sample them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daskreg.engine.reach import EMPTY, Reach
from daskreg.grid import Partition, Span


@dataclass(frozen=True)
class RingSchedule:
    """One rank's part; two ranks that read the same table agree on every message.

    inner: own planes of the level that read nothing but the own shard;  outer: the others, below and above these;
    sampling: by shard, those of each outer part that read any of it, from the first to the last;
    received: by rank, planes of its shard that the outer ones read;  sent: by rank, planes of the own shard that its outer ones
    read. A rank receives nothing from itself.
    """

    inner: Span
    outer: tuple[Span, ...]
    sampling: tuple[tuple[Span, ...], ...]
    received: tuple[Span, ...]
    sent: tuple[Span, ...]

    @classmethod
    def of(cls, reach: Reach, shards: Partition, rank: int) -> RingSchedule:
        """Where planes read what ``reach`` says, and every rank has a slab of the level and a shard."""
        slabs, mine = reach.partition.slabs, shards[rank]
        inner = [reach.inner(slab, shard, shards.whole) for slab, shard in zip(slabs, shards.slabs, strict=True)]
        outer = [tuple(_outside(slab, run)) for slab, run in zip(slabs, inner, strict=True)]
        met = [[reach.meeting(part, shard) for part in outer[rank]] for shard in shards.slabs]
        sampling = tuple(tuple(own for own, _ in pairs if len(own)) for pairs in met)
        received = [_hull([read for _, read in pairs]) for pairs in met]
        sent = [_hull([reach.meeting(part, mine)[1] for part in parts]) for parts in outer]
        received[rank] = sent[rank] = EMPTY
        return cls(inner[rank], outer[rank], sampling, tuple(received), tuple(sent))


def _outside(slab: Span, inner: Span) -> Iterator[Span]:
    """What of a slab lies below and above a run of its planes; all of it where there is none."""
    ends = [Span(slab.start, inner.start), Span(inner.stop, slab.stop)] if len(inner) else [slab]
    yield from (part for part in ends if len(part))


def _hull(spans: list[Span]) -> Span:
    """From the first plane of any to the last."""
    held = [s for s in spans if len(s)]
    return Span(min(s.start for s in held), max(s.stop for s in held)) if held else EMPTY
