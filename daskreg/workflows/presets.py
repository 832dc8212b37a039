"""Configurations by name, each chosen by measurement (``benchmarks/``)."""

from __future__ import annotations

import difflib

from daskreg.config import LNCC, MI, Affine, Config, Deformable, Moments, Rigid, Search
from daskreg.errors import ConfigError

PRESETS = {
    "brain": Config(stages=(Moments(), Rigid(), Affine(), Deformable())),
    "multimodal": Config(
        stages=(Search(contrast="any"), Rigid(similarity=MI()), Affine(similarity=MI()), Deformable(similarity=MI()))
    ),
    "lightsheet": Config(
        stages=(Search(), Affine(similarity=LNCC(radius=3)), Deformable(similarity=LNCC(radius=3))), intensity="log"
    ),
}


def preset(name: str) -> Config:
    """The configuration of that name. Raises ConfigError naming the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.5)
        raise ConfigError(
            f"unknown preset {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(PRESETS)}.")
        )
    return PRESETS[name]
