"""Named configurations, chosen by measurements (``benchmarks/``)."""

from __future__ import annotations

from daskreg.config import Affine, Config, Deformable, Moments, Rigid, Search
from daskreg.errors import require_known
from daskreg.similarity import LNCC, MI

WINDOW = LNCC(radius=3)
# smoother at full resolution, where windows hold more noise than shape: 0.7 gave better overlap than 0.5, and a smoother Jacobian
FINE = Deformable(similarity=WINDOW, scales=(1,), iterations=(50,), smooth_warp=0.7)
COARSE = Deformable(similarity=WINDOW, scales=(4, 2), iterations=(100, 100))
SEARCH = Search(rotations="fine", contrast="any")  # from any start: rotations up to 180 degrees, from half an overlap on
# full resolution at once: the optimum of mutual information at scale 2 was further off than where the search ends; and
# local correlation finishes what mutual information begins: it is not led astray by a receive field
ALIGN = (
    SEARCH,
    Rigid(similarity=MI(bins=64), scales=(1,), iterations=(100,)),
    Rigid(similarity=WINDOW, scales=(1,), iterations=(40,)),
)

PRESETS = {
    "brain": Config(stages=(Moments(), Rigid(), Affine(), COARSE, FINE)),
    "rigid": Config(stages=ALIGN, percentiles=(0.0, 99.0)),
    "affine": Config(
        stages=(Search(rotations="fine", contrast="any", scale=1.4), *ALIGN[1:], Affine(similarity=WINDOW, scales=(2, 1))),
        percentiles=(0.0, 99.0),
    ),
    "multimodal": Config(
        stages=(
            SEARCH,
            Rigid(similarity=MI(bins=64), scales=(4, 2)),
            Affine(),
            Deformable(similarity=MI(), smooth_warp=1.5),
        ),
        percentiles=(0.0, 99.0),
    ),
    "lightsheet": Config(stages=(Search(rotations="fine", scale=1.4), Affine(similarity=WINDOW), COARSE, FINE), intensity="log"),
}


def preset(name: str) -> Config:
    """The configuration of that name. Raises ConfigError naming the nearest one."""
    require_known("preset", name, PRESETS)
    return PRESETS[name]
