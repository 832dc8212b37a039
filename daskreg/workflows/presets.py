"""Named configurations, chosen by measurements (``benchmarks/``)."""

from __future__ import annotations

from daskreg.config import Affine, Config, Deformable, Moments, Rigid, Search
from daskreg.errors import ConfigError, require_known
from daskreg.optimizers.adam import Adam
from daskreg.similarity import LNCC, NGF

WINDOW = LNCC(radius=3)
# smoother at full resolution, where windows hold more noise than shape: 0.7 gave better overlap than 0.5, and a smoother Jacobian
FINE = Deformable(similarity=WINDOW, scales=(1,), iterations=(50,), smooth_warp=0.7)
COARSE = Deformable(similarity=WINDOW, scales=(4, 2), iterations=(100, 100))
# Of heads. Wider filters move what has edges and let the rest lie: known warps came out a fifth nearer to the truth, and a head
# scanned twice moved a sixth less. The last slow iterations gained no overlap; steps of 0.35 voxel gained some, at the price of
# determinants beyond 0.1 and 10
HEADS = {"smooth_gradient": 1.73, "tolerance": 3e-4}
# A coarse moving image that is interpolated between its own voxels is blurred, and moves to where it is less so: by 0.2 voxel
# where it was in place. Twice as many voxels along each axis brought known warps nearer to the truth at the same overlap.
# Noise differs from voxel to voxel, what has moved pulls its voxels the same way: a head scanned twice moved half as far with
# coherence, at the same overlap (docs/method.md, section 5.1). It does what wide windows did, and three coarse voxels span a
# lobe: windows of radius 1 brought known warps a tenth nearer to the truth. Windows count by their contrast above noise: a head
# scanned twice moved a fifth less, and overlap allowed narrower filters at full resolution. Overlap was best with radius 3 there
# at 1 mm, 2 at 1.5 mm, 1 or 2 at 2 mm and 1 at 3 mm, and known warps came a tenth nearer: a radius in millimetres gives all of
# these, and finer voxels, of mice and microscopes, keep 3. 50 iterations gave no more than 30
NOISE = 0.03  # of the intensity range
RADIUS = 2.8  # mm
COARSELY = {
    "similarity": LNCC(radius=1, noise=NOISE),
    "moving_oversampling": 2,
    "smooth_warp": 1.0,
    "optimizer": Adam(coherence=0.4),
}
FINELY = {
    "similarity": LNCC(radius=3, radius_mm=RADIUS, noise=NOISE),
    "iterations": (30,),
    "smooth_gradient": 1.2,
    "smooth_warp": 0.6,
    "optimizer": Adam(coherence=0.6),
}
HEAD_COARSE = COARSE.model_copy(update={**HEADS, **COARSELY})
HEAD_FINE = FINE.model_copy(update={**HEADS, **FINELY})
SEARCH = Search(rotations="fine", contrast="any")  # from any start: rotations up to 180 degrees, from half an overlap on
# Edges at full resolution: from the right place, mutual information led a slab of 12 slices under a receive field 6 to 12 mm
# astray, an affine stage by it 8 mm, local correlation 1.2 mm, edges 0.7 mm
EDGES = NGF(eta=0.05)
# Smoothed across, where noise is lower and interpolation takes less of it: maps are drawn less to places between voxels, by
# 0.1 to 0.3 voxel instead of 0.25 to 0.45 at 2 % noise, and T1 comes to 0.58 mm of an EPI instead of 0.85
SMOOTHED = NGF(eta=0.05, smoothed=True)
ALIGN = Rigid(similarity=SMOOTHED, scales=(2, 1), iterations=(40, 60))
STRETCH = Affine(similarity=SMOOTHED, scales=(2, 1), iterations=(40, 40))
# Two modalities have edges beside each other's: they gain a little by stretches and by displacements where there is nothing to
# follow. A stiff affine stage moved a head seen in two contrasts 0.31 mm instead of 0.37, a real EPI 1.1 instead of 1.8, and gave
# two brains more overlap. Adam moves every voxel by about as much; with so large an epsilon, those more that have clear edges.
# Noise draws to places between voxels: with coherence, textures with 2 % noise moved by 0.08 to 0.10 voxel instead of 0.24 to
# 0.27, heads and warps about as before (docs/method.md, section 3.4)
STIFF = STRETCH.model_copy(update={"stiffness": 10.0})
SAFE = Deformable(similarity=EDGES, scales=(2, 1), smooth_gradient=1.5, smooth_warp=1.5, optimizer=Adam(coherence=2, epsilon=1))

PRESETS = {
    "brain": Config(stages=(Moments(), Rigid(), Affine(), HEAD_COARSE, HEAD_FINE)),
    "rigid": Config(stages=(SEARCH, ALIGN), percentiles=(0.0, 99.0)),
    "affine": Config(
        stages=(Search(rotations="fine", contrast="any", scale=1.4), STRETCH),
        percentiles=(0.0, 99.0),
    ),
    "multimodal": Config(
        stages=(SEARCH, ALIGN, STIFF, SAFE),
        percentiles=(0.0, 99.0),
    ),
    "lightsheet": Config(stages=(Search(rotations="fine"), Affine(similarity=WINDOW), COARSE, FINE), intensity="log"),
}


def preset(name: str) -> Config:
    """The configuration of that name. Raises ConfigError naming the nearest one."""
    if name not in PRESETS and any(mark in name for mark in "./"):
        raise ConfigError(
            f"{name!r} is no preset ({', '.join(PRESETS)}) and no YAML file; the output of a registration is given by its name, "
            f"output={name!r}."
        )
    require_known("preset", name, PRESETS)
    return PRESETS[name]
