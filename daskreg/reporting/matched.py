"""The verdict on the page: its reasons, and where the images do not match, painted over the moved image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.match_map import MatchMap
from daskreg.engine.verdict import Verdict
from daskreg.errors import Unreadable
from daskreg.grid import Grid
from daskreg.reporting import pictures
from daskreg.reporting.views import View

log = logging.getLogger("daskreg")
UNMATCHED = (224, 122, 20)  # orange
PAINTED = 0.6  # part of a pixel's colour


def verdict(
    record: Mapping[str, Any], fixed: Grid, views: Sequence[View], moved: Sequence[NDArray[np.float64]]
) -> dict[str, Any] | None:
    """Status, reasons and pictures; None for a run of a version that gave no verdict. moved: shades of its views."""
    found = Verdict.of_record(record.get("verdict"))
    if found is None:
        return None
    return {"status": found.status, "reasons": found.reasons, "pictures": _pictures(found, fixed, views, moved)}


def _pictures(found: Verdict, fixed: Grid, views: Sequence[View], moved: Sequence[NDArray[np.float64]]) -> list[str]:
    """None where the map is missing or damaged."""
    try:
        states = MatchMap.of_record(found.matched)
    except Unreadable as error:
        log.warning("the report shows no map of where the images match: %s", error)
        return []
    if states is None:
        return []
    return [pictures.data_uri(_painted(shade, states, fixed, view)) for shade, view in zip(moved, views, strict=True)]


def _painted(shade: NDArray[np.float64], states: MatchMap, fixed: Grid, view: View) -> pictures.Pixels:
    factors = np.asarray(states.factors)
    at = np.rint((fixed.to_index(view.points()) - (factors - 1) / 2) / factors).astype(int)
    inside = ((at >= 0) & (at < states.states.shape)).all(axis=-1)
    z, y, x = np.moveaxis(np.where(inside[..., None], at, 0), -1, 0)
    bad = inside & (states.states[z, y, x] == 2)
    pixels = pictures.gray(shade)
    pixels[bad] = (1 - PAINTED) * pixels[bad] + PAINTED * np.asarray(UNMATCHED)
    return pixels
