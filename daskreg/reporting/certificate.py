"""The certificate of an inverse, as text for the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daskreg.errors import ConfigError, counted
from daskreg.grid import Grid
from daskreg.storage.transforms import open_transform


def certificate(inverse: str | Path, fixed: Grid | None = None) -> dict[str, str]:
    """Human-readable facts of an inverse's certificate. Raises ConfigError where there is none, or for another fixed grid."""
    contents = open_transform(inverse)
    found = contents.metadata.get("certificate")
    if not isinstance(found, dict):
        raise ConfigError(f"{inverse} has no certificate of an inverse; give what 'daskreg invert' wrote.")
    if fixed is not None and contents.moving is not None and not _alike(fixed, contents.moving):
        raise ConfigError(f"{inverse} is the inverse of another transform: it leads to another grid than this run's fixed image.")
    solved, around = found.get("fixed_point"), found["beyond_limit_within"]
    where = "" if around is None else f", all within {tuple(around['start'])} to {tuple(around['stop'])}"
    facts = {
        "there and back, mean": f"{found['mean']:.2g} voxel over {found['voxels']} voxels",
        "largest": f"{found['largest']:.2g} voxel at {tuple(found['worst_voxel'])} (z, y, x)",
        f"beyond {found['limit']:g} voxel": f"{counted(found['beyond_limit'], 'voxel')}{where}",
    }
    other = found.get("back_and_there")  # older ones have none
    if other:
        facts["back and there, mean"] = f"{other['mean']:.2g} voxel, largest {other['largest']:.2g}"
        facts["folded"] = counted(found["folded_voxels"], "voxel")
    if solved:
        share = 100 * solved["unproven_voxels"] / solved["voxels"]
        facts["fixed point, residual"] = f"at most {solved['residual']:.2g} voxel"
        facts["proven error"] = f"at most {solved['bound']:.2g} voxel, without proof at {share:.2g} % of voxels"
    return facts


def _alike(a: Grid, b: Grid) -> bool:
    if a.shape != b.shape or (a.unit is None) != (b.unit is None):
        return False
    return bool(np.allclose(a.index_to_world, b.to_unit(a.unit).index_to_world, rtol=1e-5, atol=1e-3 * min(a.spacing)))
