"""Which entries an address takes along the axes that are not spatial: a channel, a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from daskreg.errors import AxesError, NotFound, closest
from daskreg.storage.axes import Axis
from daskreg.storage.fs.address import Address
from daskreg.storage.given_axes import how_to_name, how_to_plane
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.objects import ARRAY

if TYPE_CHECKING:
    import dask.array as da

UNWRITABLE = (",", "::", "'")  # in the name of a channel, which then is named by its number in what is said


def select(record: ImageRecord, address: Address, *, keep: bool = False) -> tuple[da.Array, tuple[Axis, ...]]:
    """The array without its other than spatial axes; ``keep`` keeps those with several entries of which none is chosen.

    Raises AxesError saying what to type.
    """
    index = selection(record, address, keep=keep)
    return record.data[index], tuple(a for a, i in zip(record.axes, index, strict=True) if isinstance(i, slice))


def selection(record: ImageRecord, address: Address, *, keep: bool = False) -> tuple[int | slice, ...]:
    """What is taken along each axis. Raises as ``select`` does."""
    wanted = {"time": address.time, "channel": address.channel}
    _require_axes(record, wanted)
    index: list[int | slice] = [slice(None)] * len(record.axes)
    for kind in ("time", "channel", "other"):
        for at, (axis, length) in enumerate(zip(record.axes, record.shape, strict=True)):
            chosen = wanted.get(kind)
            if axis.kind == kind and not (keep and chosen is None and length > 1):
                index[at] = chosen_index(record, axis, length, chosen)
    return tuple(index)


def _require_axes(record: ImageRecord, wanted: Mapping[str, int | str | None]) -> None:
    """Raises NotFound for a channel or time of an image without such an axis, unless it is the one that there is."""
    for kind, chosen in wanted.items():
        only = 0 if kind == "time" or not record.channels else record.channels[0]
        if chosen not in (None, 0, only) and all(a.kind != kind for a in record.axes):
            axes = ", ".join(a.name for a in record.axes)
            raise NotFound(
                f"{record.name} has no {kind} {chosen!r}: it has no {kind} axis, its axes are {axes}; leave '::{kind}=' out"
                f"{'' if len(record.axes) == 3 and all(a.stated for a in record.axes) else how_to_name(record, 'or')}."
            )


def chosen_index(record: ImageRecord, axis: Axis, length: int, chosen: int | str | None) -> int:
    """The index to take along an axis that is not spatial. Raises AxesError, NotFound saying what to type."""
    if chosen is None and length == 1:
        return 0
    if axis.kind == "other":
        raise AxesError(
            f"{record.name} has {length} entries along its axis {axis.name!r}; an image of z, y, x was expected"
            f"{how_to_name(record)}."
        )
    labels = f" ({', '.join(record.channels)})" if axis.kind == "channel" and record.channels else ""
    if chosen is None:
        word = "channels" if axis.kind == "channel" else "time points"
        if record.format == ARRAY:
            raise AxesError(f"{record.name} has {length} {word}{labels}; index it first, so that three axes (z, y, x) are left.")
        guess = how_to_plane(record, axis) if axis.stated else how_to_name(record)
        raise AxesError(f"{record.name} has {length} {word}{labels}: choose one with {_example(record, axis)}{guess}.")
    index = record.channels.index(chosen) if chosen in record.channels else chosen
    if not isinstance(index, int) or index >= length:
        example = _example(record, axis, chosen)
        raise NotFound(f"{record.name} has no {axis.kind} {chosen!r}; it has {length}{labels}: choose one with {example}.")
    return index


def _example(record: ImageRecord, axis: Axis, like: int | str = "") -> str:
    """How an entry is chosen: a channel by its name, the one nearest to ``like``, where it can be written in an address."""
    name = record.channels[0] if axis.kind == "channel" and record.channels else ""
    name = (closest(like, record.channels) if name and isinstance(like, str) else None) or name
    usable = name and not name.isdecimal() and not any(mark in name for mark in UNWRITABLE)
    return f"'::{axis.kind}={name if usable else 0}'"
