"""Axes that the user names by letters, where a file names none or wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from daskreg.errors import AxesError, site_page
from daskreg.grid import IDENTITY
from daskreg.storage.axes import KINDS, SPACE, Axis, spatial
from daskreg.storage.grid_metadata import GridMetadata, triple
from daskreg.storage.image_record import ImageRecord, Resolution
from daskreg.storage.objects import ARRAY

COMMON = {3: "zyx", 4: "czyx", 5: "tczyx"}  # by the number of axes
SAMPLES = "s"  # of a pixel, which are channels where there is no other axis of them


def with_axes(record: ImageRecord, letters: str) -> ImageRecord:
    """The image with an axis named by each letter, the slowest first.

    Voxel sizes that the file states stay with the axes of the array that they are stated for. Those of axes that nothing names
    belong to the three spatial ones in their order. Raises AxesError for another number of axes, and where the file says by
    directions how the axes lie in space.
    """
    if len(letters) != len(record.shape):
        shape = " x ".join(map(str, record.shape))
        raise AxesError(
            f"{record.name}: axes={letters} names {len(letters)} axes; the array has {len(record.shape)}, {shape}: give a letter "
            "for each."
        )
    before, order = spatial(record.axes), tuple(letters.index(a) for a in SPACE)
    places = _places(record.axes, before, order)
    axes = tuple(_named(letter, letters, axis) for letter, axis in zip(letters, record.axes, strict=True))
    channels = record.channels if _channel(axes) == _channel(record.axes) else ()
    metadata, sizes = None, () if places is not None and record.grid_metadata is not None else _sizes(record, letters)
    if record.grid_metadata is not None and places is not None:
        metadata = _permuted(record, record.grid_metadata, places)
    elif len(sizes) == 3 and all(sizes):
        metadata = GridMetadata(triple(s or 0 for s in sizes), unit=record.partial_unit or _unit(record))
    return replace(
        record, axes=axes, grid_metadata=metadata, levels=_levels(record, before, order), channels=channels,
        colors=record.colors if channels else (), partial_spacing=sizes, partial_unit=record.partial_unit or _unit(record) or "",
    )  # fmt: skip


def how_to_name(record: ImageRecord, word: str = "") -> str:
    """The end of a sentence about unsuitable axes: how to name them; empty for a number of axes that makes no 3D image."""
    if len(record.shape) < 3:
        return ""
    letters = COMMON.get(len(record.shape), "q" * (len(record.shape) - 5) + COMMON[5])
    where = f"daskreg.open_volume(array, axes={letters!r})" if record.format == ARRAY else f"'::axes={letters}'"
    shape, begin = "x".join(map(str, record.shape)), f", {word}" if word else ";"
    return f"{begin} say with {where} or the like what the axes are ({shape}) where the file does it wrongly or not at all"


def how_to_plane(record: ImageRecord, axis: Axis) -> str:
    """The end of a sentence about times of an image that has one plane: they may be its planes, as ImageJ often stores them."""
    lengths = dict(zip((a.name for a in record.axes), record.shape, strict=True))
    letters = "".join(lengths)
    if axis.name != "t" or lengths.get("z", 1) > 1 or len(letters) != len(record.shape):
        return ""
    return f", or, if they are its planes, say so with '::axes={letters.translate(str.maketrans('tz', 'zt'))}'"


def how_to_divide(record: ImageRecord) -> str:
    """The end of a sentence about pages of a TIFF that nothing names: they may be those of several channels or times."""
    if not record.format.startswith("TIFF") or len(record.shape) != 3 or record.axes[0].stated:
        return ""
    return (
        f" If its {record.shape[0]} planes are those of several channels or times, write it anew with its axes: "
        f"{site_page('archives', 'axes')}"
    )


def _places(axes: Sequence[Axis], before: tuple[int, ...] | None, order: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which of the three axes that were z, y, x the new ones are; None where they are others."""
    if before is None:
        return None
    if set(before) == set(order):
        return tuple(before.index(i) for i in order)
    if all(axes[i].stated for i in before):
        return None
    return tuple(before.index(sorted(before)[sorted(order).index(i)]) for i in order)


def _named(letter: str, letters: str, axis: Axis) -> Axis:
    kind = "channel" if letter == SAMPLES and "c" not in letters else KINDS.get(letter, "other")
    return replace(axis, name=letter, stated=True) if axis.kind == kind else Axis(letter, kind)


def _channel(axes: Sequence[Axis]) -> int | None:
    return next((k for k, a in enumerate(axes) if a.kind == "channel"), None)


def _unit(record: ImageRecord) -> str | None:
    return None if record.grid_metadata is None else record.grid_metadata.unit


def _sizes(record: ImageRecord, letters: str) -> tuple[float | None, ...]:
    """Voxel sizes along z, y, x, of the axes of the array that they are stated for; of an axis that the file only has a size of,
    that one. None where there is none.
    """
    stated = record.partial_spacing or (record.grid_metadata.spacing if record.grid_metadata is not None else ())
    if len(stated) != 3:
        return ()
    by_name, names = dict(zip(SPACE, stated, strict=True)), [a.name.lower() for a in record.axes]
    old = [names[letters.index(a)] for a in SPACE]
    return tuple(by_name[n] if n in by_name else None if a in names else by_name[a] for a, n in zip(SPACE, old, strict=True))


def _permuted(record: ImageRecord, metadata: GridMetadata, places: tuple[int, ...]) -> GridMetadata:
    if places == (0, 1, 2):
        return metadata
    if metadata.oriented or metadata.direction != IDENTITY:
        raise AxesError(
            f"{record.name} says by directions how its axes lie in space ({record.format}), which another order of z, y and x "
            "contradicts; correct its header, or leave axes= out."
        )
    origin = None if metadata.origin is None else triple(np.asarray(metadata.origin)[list(places)])
    spacing, translation = (triple(np.asarray(v)[list(places)]) for v in (metadata.spacing, metadata.translation))
    return replace(metadata, spacing=spacing, translation=translation, origin=origin)


def _levels(record: ImageRecord, before: tuple[int, ...] | None, order: tuple[int, ...]) -> tuple[Resolution, ...]:
    """Shapes and spacings of the levels along the new axes, as far as they are known."""
    if before is not None and set(before) != set(order):
        return ()
    places = [before.index(i) if before is not None else i for i in order]
    known = [level for level in record.levels if len(level.shape) == (3 if before is not None else len(record.shape))]
    return tuple(Resolution(v.path, tuple(v.shape[i] for i in places), tuple(v.spacing[i] for i in places)) for v in known)
