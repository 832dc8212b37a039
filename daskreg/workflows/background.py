"""The background that images are stored with: as it is asked for, or found on their faces."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from daskreg.config import Config
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, Unreadable
from daskreg.storage import Volume
from daskreg.storage.fill import parse_fill
from daskreg.storage.fs.errors import reason

if TYPE_CHECKING:
    import dask

    from daskreg.engine import background as engine
    from daskreg.engine.background import Background
else:
    dask = DeferredModule("dask")
    engine = DeferredModule("daskreg.engine.background")

log = logging.getLogger("daskreg")
LEAST_SHARE = 0.01  # of the voxels on the faces of an image that a constant filling takes
NONE, AUTO = "none", "auto"
Choice = float | str | tuple[Any, Any] | None  # of one image or both: a number, "nan", "auto", "none"; None: not given


def parse_background(value: Choice) -> dict[str, Any]:
    """Fields of a configuration from one choice for both images, or from two, fixed and moving, as a pair or as text ``a,b``.

    Raises ConfigError.
    """
    if value is None:
        return {}
    given = tuple(value.split(",")) if isinstance(value, str) else value if isinstance(value, list | tuple) else (value,)
    if len(given) not in (1, 2):
        raise ConfigError(f"background is {value!r}; one choice, or two (fixed,moving), was expected.")
    names = ("fixed_background", "moving_background")
    return dict(zip(names, map(_parsed, given * (3 - len(given)) if len(given) == 1 else given), strict=True))


def _parsed(value: Any) -> Any:
    word = value.strip().lower() if isinstance(value, str) else None
    if value is None or word == NONE:
        return None
    if word == AUTO:
        return AUTO
    try:
        return parse_fill(value)
    except ConfigError:
        raise ConfigError(f"background is {value!r}; a number, nan, auto or none was expected.") from None


def backgrounds(config: Config, fixed: Volume, moving: Volume) -> tuple[Background | None, Background | None]:
    """What is to be left out of each image, and a line in the log about it. Raises Unreadable."""
    return _background(config.fixed_background, fixed, "fixed"), _background(config.moving_background, moving, "moving")


def _background(choice: float | str | None, image: Volume, role: str) -> Background | None:
    if choice is None:
        return None
    if choice != AUTO:
        return engine.Background(float(choice))
    found = constant_filling(image)
    if found is None:
        log.info("background: no constant filling was found on the faces of the %s image %s", role, image.name)
        return None
    value, share = found
    log.info(
        "background: %g fills %.0f %% of the faces of the %s image %s; its areas are left out",
        value,
        100 * share,
        role,
        image.name,
    )
    return engine.Background(value, areas=True)


def constant_filling(image: Volume) -> tuple[float, float] | None:
    """The value (NaN is one) that fills the largest part of an image's faces in areas of 3 x 3 equal voxels, and that part.

    None where it is less than LEAST_SHARE. Only the chunks at the faces are read. Raises Unreadable.
    """
    counts, total = Counter[float | None](), 0
    for face in _faces(image):
        total += face.size
        inside = face[_constant(face)]
        counts[None] += int(np.isnan(inside).sum())
        values, times = np.unique(inside[~np.isnan(inside)], return_counts=True)
        counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))
    value, most = max(counts.items(), key=lambda item: (item[1], item[0] is None, -(item[0] or 0.0)))
    return None if most < LEAST_SHARE * total else (math.nan if value is None else value, most / total)


def _faces(image: Volume) -> Iterator[NDArray[np.float32]]:
    lazy = [image.data[(slice(None),) * axis + (end,)] for axis in range(3) for end in sorted({0, image.shape[axis] - 1})]
    try:
        yield from (np.asarray(face, np.float32) for face in dask.compute(*lazy))  # type: ignore[attr-defined, no-untyped-call]
    except Exception as error:
        raise Unreadable(f"{image.name}: its faces cannot be read: {reason(error)}.") from error


def _constant(face: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a pixel's neighbours, as far as there are any, have its value."""
    same = np.ones(face.shape, bool)
    nan = np.isnan(face)
    for axis in range(2):
        first, last = ((slice(None),) * axis + (s,) for s in (slice(None, -1), slice(1, None)))
        equal = (face[first] == face[last]) | (nan[first] & nan[last])
        same[first] &= equal
        same[last] &= equal
    return same
