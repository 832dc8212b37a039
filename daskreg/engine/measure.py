"""Numbers about a result that need the whole images: how alike they are, and whether space folds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from daskreg.engine.images import Image
from daskreg.engine.report import Outcome
from daskreg.kernels.jacobian import jacobian
from daskreg.kernels.sample import sample, sample_affine
from daskreg.planning import Plan
from daskreg.similarity import NOWHERE, MutualInformation
from daskreg.transforms.linear import fixed_point, index_map, linear_part

SLAB = 32  # planes looked at together


def likeness(plan: Plan, outcome: Outcome, images: tuple[Image, Image]) -> dict[str, float]:
    """Correlation and mutual information (nats) of fixed and moved, over the fixed voxels that land in the moving image."""
    fixed, moving = images[0].voxels, images[1].voxels
    matrix = index_map(outcome.affine, plan.fixed, plan.moving)
    place = fixed_point(matrix), linear_part(matrix)
    sums, counts, information = np.zeros(6), np.zeros((32, 32), np.int64), MutualInformation(32)
    for z in range(0, fixed.shape[0], SLAB):
        still = fixed[z : z + SLAB]
        moved = np.empty(still.shape, np.float32)
        if outcome.displacement is None:
            sample_affine(still.shape, z, place[0], moving, moved)
        else:
            sample(still.shape, z, *place, outcome.displacement[:, z : z + SLAB], moving, moved)
        counts += information.partial(still, NOWHERE, moved, moved).astype(np.int64)
        inside = np.isfinite(moved)
        f, m = still[inside].astype(np.float64), moved[inside].astype(np.float64)
        sums += [f.size, f.sum(), m.sum(), f @ f, m @ m, f @ m]
    return {"ncc": _correlation(sums), "mi": -information.value(counts)[0], "overlap": sums[0] / fixed.size}


def _correlation(sums: NDArray[np.float64]) -> float:
    n, f, m, ff, mm, fm = sums
    spread = (ff - f * f / n) * (mm - m * m / n) if n else 0.0
    return float((fm - f * m / n) / np.sqrt(spread)) if spread > 0 else 0.0


def folding(u: NDArray[np.float32]) -> dict[str, float]:
    """Percentage of voxels where det(I + Du) <= 0, and the determinant's range."""
    folded, low, high, nz = 0, np.inf, -np.inf, u.shape[1]
    for z in range(0, nz, SLAB):
        lead = min(z, 1)
        part = np.ascontiguousarray(u[:, z - lead : z + SLAB + 1])
        determinant = np.empty((min(SLAB, nz - z), *u.shape[2:]), np.float32)
        jacobian(determinant.shape, lead, part, determinant)
        folded += int((determinant <= 0).sum())
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
    return {"folded_percent": 100 * folded / (u.size / 3), "smallest": low, "largest": high}
