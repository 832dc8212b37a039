"""Images whose object fills the field of view: what lies outside the moving image must not hold the rim back."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Deformable, Rigid
from daskreg.engine.images import Image, normalise
from daskreg.engine.planes import on
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.kernels.device import CPU
from daskreg.planning import make_plan
from daskreg.similarity import LNCC, MI, MSE, NGF
from daskreg.workflows.presets import ALIGN, PRESETS, SAFE

LOSSES = {"mse": MSE(), "lncc": LNCC(), "exact lncc": LNCC(gradient="exact"), "mi": MI(), "ngf": NGF()}
PAD = 12


def texture(shape, sigma, seed=0):
    """Smooth noise, PAD voxels larger than ``shape`` on all sides."""
    made = gaussian_filter(np.random.default_rng(seed).standard_normal([n + 2 * PAD for n in shape]), sigma)
    return made / np.abs(made).max()


def cut(noise, by):
    """The middle of ``noise``, sampled ``by`` (3,) or (3, Z, Y, X) voxels off."""
    shape = [n - 2 * PAD for n in noise.shape]
    at = np.indices(shape) + PAD + (by if np.ndim(by) == 4 else np.reshape(np.broadcast_to(by, 3), (3, 1, 1, 1)))
    return (500 + 400 * map_coordinates(noise, at, order=3)).astype(np.float32)


def outcome(fixed, moving, stages, spacing=(1.0, 1.0, 1.0), masks=(None, None), start=(0.0, 0.0, 0.0)):
    """By one rank, from a shift; ``stages``: a list of them, or a configuration."""
    grids = Grid(fixed.shape, spacing), Grid(moving.shape, spacing)
    config = stages if isinstance(stages, Config) else Config.of_stages(stages)
    plan = make_plan(*grids, config, masks=tuple(m is not None for m in masks))
    images = []
    for voxels, grid, mask in zip((fixed.copy(), moving.copy()), grids, masks, strict=True):
        normalise(voxels, plan.config, SingleRank(), "an image")
        images.append(Image.whole(voxels, grid, mask))
    return Rank(plan, tuple(images), shift_matrix(start), SingleRank(), Watch()).run()


def shift_matrix(by):
    """(4, 4)"""
    made = np.eye(4)
    made[:3, 3] = by
    return made


def farthest(found, grid, by):
    """The largest error of a map of the grid's corners, along each axis, in voxels; ``by``: the true shift, voxels."""
    ends = np.stack(np.meshgrid(*((0, n - 1) for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    corners = grid.to_world(ends)
    moved = corners @ found[:3, :3].T + found[:3, 3]
    return float(np.abs((moved - corners) / grid.spacing - by).max())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [Rigid, pytest.param(Affine, marks=pytest.mark.slow)])
def test_a_shift_of_part_of_a_voxel_is_found(name, kind):
    noise, by = texture((40, 44, 48), 4), np.array((1.3, 2.0, -1.5))
    stage = kind(similarity=LOSSES[name], scales=(2, 1), iterations=(100, 50))
    found = outcome(cut(noise, 0), cut(noise, -by), [stage])
    assert farthest(found.affine, Grid((40, 44, 48)), by) < 0.1


@pytest.mark.parametrize("name", ["lncc", "mi"])
@pytest.mark.parametrize(
    ("shape", "sigma", "spacing"),
    [((12, 60, 60), (1.5, 6, 6), (10.0, 1.0, 1.0)), ((6, 64, 64), 5, (1.0, 1.0, 1.0)), ((1, 64, 64), 5, (1.0, 1.0, 1.0))],
    ids=["voxels of 10 to 1", "six planes", "one plane"],
)
def test_thin_images_and_long_voxels_too(name, shape, sigma, spacing):
    by = np.array((0.4 if shape[0] > 1 else 0.0, 3.0, -2.5))
    noise = texture(shape, sigma)
    found = outcome(cut(noise, 0), cut(noise, -by), [Rigid(similarity=LOSSES[name], scales=(4, 2, 1))], spacing)
    assert farthest(found.affine, Grid(shape, spacing), by) < 0.1


OTHERS = {"same": lambda v: v, "inverted": lambda v: 1000 - v, "half as much": lambda v: 0.5 * v}


@pytest.mark.parametrize("by", [(1.3, 2.0, -1.5), (0.5, -0.5, 2.5), (0.25, 0.75, -1.1)])
@pytest.mark.parametrize("contrast", ["inverted", *(pytest.param(c, marks=pytest.mark.slow) for c in OTHERS if c != "inverted")])
def test_edges_are_not_drawn_to_whole_voxels(contrast, by):
    """Weak ones, of which interpolation between voxels takes a part."""
    noise = texture((32, 36, 32), 4)
    found = outcome(cut(noise, 0), OTHERS[contrast](cut(noise, -np.array(by))), [ALIGN])
    assert farthest(found.affine, Grid((32, 36, 32)), np.array(by)) < 0.02


def test_noise_draws_them_less_where_they_are_smoothed_across():
    noise, by, rng = texture((32, 36, 32), 4), np.array((1.3, 2.0, -1.5)), np.random.default_rng(5)
    images = [
        v + np.float32(0.02 * np.ptp(v)) * rng.standard_normal(v.shape, np.float32) for v in (cut(noise, 0), cut(noise, -by))
    ]
    found = outcome(images[0], 1000 - images[1], [ALIGN], start=np.round(by))
    assert farthest(found.affine, Grid((32, 36, 32)), by) < 0.2


@pytest.mark.slow
def test_nor_is_what_lies_in_place_deformed():
    """By steeper edges, which a displacement makes between voxels."""
    noise, by = texture((32, 36, 32), 4), np.array((0.5, -0.5, 2.5))
    found = outcome(cut(noise, 0), OTHERS["inverted"](cut(noise, -by)), [SAFE], start=by)
    u = on(CPU, found.displacement, found.block.own)
    assert np.linalg.norm(u, axis=0).mean() < 0.05


@pytest.mark.slow
def test_noise_deforms_it_little():
    """To places between voxels, where interpolation takes most of the noise."""
    noise, by, rng = texture((32, 36, 32), 4), np.array((0.5, -0.5, 2.5)), np.random.default_rng(5)
    images = [
        v + np.float32(0.02 * np.ptp(v)) * rng.standard_normal(v.shape, np.float32) for v in (cut(noise, 0), cut(noise, -by))
    ]
    found = outcome(images[0], OTHERS["inverted"](images[1]), [SAFE], start=by)
    u = on(CPU, found.displacement, found.block.own)
    assert np.linalg.norm(u, axis=0).mean() < 0.06


FIELDS = {  # shape, sigma and spacing of the texture
    "cube of 32": ((32,) * 3, 3, (1.0, 1.0, 1.0)),
    "cube of 80": ((80,) * 3, 5, (1.0, 1.0, 1.0)),
    "cube of 128": ((128,) * 3, 6, (1.0, 1.0, 1.0)),
    "voxels of 10 to 1": ((16, 80, 80), (2.5, 8, 8), (10.0, 1.0, 1.0)),
    "six planes": ((6, 96, 96), 5, (1.0, 1.0, 1.0)),
    "one plane": ((1, 128, 128), 5, (1.0, 1.0, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("by", [(2.3, 3.0, -2.5), (0.5, 0.5, -1.5)])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["rigid", "affine", "multimodal"])
@pytest.mark.parametrize("contrast", ["same", "inverted"])
def test_presets_with_their_searches(name, field, by, contrast):
    shape, sigma, spacing = FIELDS[field]
    by = np.array(by) * ((1, 1, 1) if shape[0] > 6 else (0.2, 1, 1) if shape[0] > 1 else (0, 1, 1))
    noise, config = texture(shape, sigma), PRESETS[name]
    linear = config.model_copy(update={"stages": tuple(s for s in config.stages if not isinstance(s, Deformable))})
    found = outcome(cut(noise, 0), OTHERS[contrast](cut(noise, -by)), linear, spacing)
    assert farthest(found.affine, Grid(shape, spacing), by) < 0.1


def test_with_masks_of_both_images_too():
    noise, by, shape = texture((40, 44, 48), 4), np.array((1.3, 2.0, -1.5)), (40, 44, 48)
    fixed, moving = cut(noise, 0), cut(noise, -by)
    masks = np.ones(shape, np.float32), np.ones(shape, np.float32)
    masks[0][:10], masks[1][:, :, 40:] = 0, 0
    moving[:, :, 40:] = fixed[:10].mean()  # something else is there
    found = outcome(fixed, moving, [Rigid(similarity=LNCC(), scales=(2, 1), iterations=(100, 50))], masks=masks)
    assert farthest(found.affine, Grid(shape), by) < 0.1


@pytest.mark.parametrize("name", ["mse", "lncc"])
def test_a_deformation_is_found_as_well_at_the_rim_as_inside(name):
    """Mean error within ten voxels of a face at most twice that of the others."""
    n, rng = 48, np.random.default_rng(1)
    noise, u = texture((n, n, n), 2), np.stack([gaussian_filter(rng.standard_normal((n, n, n)), 6) for _ in range(3)])
    u *= 2.5 / np.abs(u).max()
    stage = Deformable(similarity=LOSSES[name], scales=(2, 1), iterations=(100, 50))
    found = outcome(cut(noise, u), cut(noise, 0), [stage])
    error = np.linalg.norm(on(CPU, found.displacement, found.block.own) - u, axis=0)
    rim = np.min([np.minimum(i, n - 1 - i) for i in np.indices(error.shape)], axis=0) < 10
    assert error[rim].mean() < 2 * error[~rim].mean()
    assert error[rim].mean() < 0.15


def test_voxels_are_compared_anew_and_their_number_never_halves():
    """Two different textures: nothing is alike, and moving them apart must not pay."""
    fixed, moving = (cut(texture((24, 24, 24), 2, seed), 0) for seed in (1, 2))
    for name in ("mse", "mi"):
        found = outcome(fixed, moving, [Rigid(similarity=LOSSES[name], scales=(2, 1), iterations=(40, 20))])
        ends = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1).reshape(-1, 3)
        there = ends @ found.affine[:3, :3].T + found.affine[:3, 3]
        assert ((there >= 0) & (there <= 23)).all(axis=1).mean() > 0.2
