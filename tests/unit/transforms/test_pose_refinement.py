"""Maps are refined by edges: the derivatives are those of the sums, and the right map comes out, whatever the other maps are."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from daskreg.grid import Grid
from daskreg.transforms.linear import linear_about, translation
from daskreg.transforms.pose_refinement import EdgeField, PoseRefinement, first_distinct

SHAPE = (20, 24, 22)
MIDDLE = np.array([9.5, 11.5, 10.5])


@pytest.fixture(scope="module")
def field():
    """Edges of a smooth image, which fall off to nothing at its faces."""
    bell = [np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / 6)) ** 2)) for n in SHAPE]
    image = gaussian_filter(np.random.default_rng(0).standard_normal(SHAPE), 2)
    edges = np.stack(np.gradient(image)) / 0.05 * np.einsum("i,j,k", *bell)
    return EdgeField(Grid(SHAPE), np.concatenate([edges, np.ones((1, *SHAPE))]).astype(np.float32))


def away(degrees, shift, scale=1.0):
    """A map near the identity."""
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, -0.48, 0.64])).as_matrix()
    return translation(np.array(shift)) @ linear_about(MIDDLE, scale * turn)


def test_the_gradient_is_that_of_the_sums(field):
    refinement, maps = PoseRefinement(field, field, scaled=True), away(4, (0.3, -0.2, 0.4), 1.02)[None]
    sums = refinement.sums(maps)[0]
    for k in range(7):
        step = np.zeros((1, 7))
        step[0, k] = 0.02 if k < 3 else 0.002
        more, less = (refinement.sums(refinement._moved(maps, sign * step))[0] for sign in (1, -1))
        by_steps = (more - less) / (2 * step[0, k])
        scale = 1 if k < 3 else 10
        np.testing.assert_allclose([sums[4 + k], sums[11 + k]], [by_steps[0] / 2, by_steps[2] / 4], rtol=0.08, atol=2 * scale)


def test_so_is_that_of_smoothed_tensors(field):
    edges = field.values[:3]
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    tensors = np.stack([edges[i] * edges[j] - (i == j) * (edges**2).sum(axis=0) / 3 for i, j in pairs])
    smooth = gaussian_filter(tensors, (0, 1, 1, 1))
    tensor = EdgeField(field.grid, np.concatenate([smooth, field.values[3:]]).astype(np.float32))
    refinement, maps = PoseRefinement(tensor, tensor, scaled=True), away(4, (0.3, -0.2, 0.4), 1.02)[None]
    sums = refinement.sums(maps)[0]
    for k in range(7):
        step = np.zeros((1, 7))
        step[0, k] = 0.02 if k < 3 else 0.002
        more, less = (refinement.sums(refinement._moved(maps, sign * step))[0] for sign in (1, -1))
        by_steps = (more - less) / (2 * step[0, k])
        np.testing.assert_allclose(
            [sums[4 + k], sums[11 + k]], [by_steps[0] / 2, by_steps[2] / 4], rtol=0.08, atol=0.02 * sums[2]
        )
    np.testing.assert_allclose(refinement.refined(away(12, (1.5, -1, 1))[None], 12).world[0], np.eye(4), atol=0.05)


@pytest.mark.parametrize(("scale", "scaled"), [(1.0, False), (1.06, True)])
def test_the_map_is_found_whatever_the_others_are(field, scale, scaled):
    refinement, start = PoseRefinement(field, field, scaled=scaled), away(8, (1.0, -0.5, 0.7), scale)
    alone = refinement.refined(start[None], 12)
    np.testing.assert_allclose(alone.world[0], np.eye(4), atol=0.05)
    assert alone.score[0] > 0.99
    both = refinement.refined(np.stack([away(150, (0, 0, 0)), start]), 12)
    np.testing.assert_array_equal(both.world[1], alone.world[0])
    assert both.weight[0] < 0.5


@pytest.mark.parametrize(("scaled", "n"), [(False, 6), (True, 7)])
def test_neighbours_lie_as_far_off_as_asked_for(field, scaled, n):
    refinement, start = PoseRefinement(field, field, scaled=scaled), away(5, (0.5, 0, 0))
    near = refinement.neighbours(start, (2.0, 4.0))
    assert near.shape == (4 * n, 4, 4)
    halfway = MIDDLE + (Grid(SHAPE).corners() - MIDDLE) / 2
    apart = np.linalg.norm((near - start)[:, :3, :3] @ halfway.T + (near - start)[:, :3, 3:], axis=1).mean(axis=1)
    assert ((apart[: 2 * n] > 1) & (apart[: 2 * n] < 2.5)).all()
    np.testing.assert_allclose(apart[2 * n :], 2 * apart[: 2 * n], rtol=0.15)  # scales are exponentials
    middles = near[:, :3, :3] @ MIDDLE + near[:, :3, 3]
    np.testing.assert_allclose((middles[:n] + middles[n : 2 * n]) / 2, [start[:3, :3] @ MIDDLE + start[:3, 3]] * n, atol=1e-6)


def test_a_neighbour_leads_from_the_wrong_one_of_two_edges_to_the_right_one():
    """Two layers, of which one ends earlier: steps from a map that lays one over the other stay there."""
    image = np.zeros((28, 28, 28))
    image[8:10, 4:24, 4:24] = image[14:16, 4:24, 6:16] = 1
    image[20:22, 10:14, 4:24] = 0.6
    edges = np.stack(np.gradient(gaussian_filter(image, 0.7)))
    edges /= np.sqrt((edges**2).sum(axis=0) + 0.05**2)
    own = EdgeField(Grid(image.shape), np.concatenate([edges, np.ones((1, *image.shape))]).astype(np.float32))
    refinement, wrong = PoseRefinement(own, own, scaled=False), translation(np.array([6.0, 0, 0]))[None]
    stuck = refinement.refined(wrong, 12)
    assert stuck.weight[0] < 0.8
    near = refinement.neighbours(stuck.world[0], (3.0, 4.0, 6.0))
    best = near[np.argsort(-refinement.refined(near, 0).weight)[:4]]
    found = refinement.refined(best, 12)
    np.testing.assert_allclose(found.world[found.weight.argmax()], np.eye(4), atol=0.05)


def test_maps_that_take_points_to_the_same_places_count_once():
    corners, maps = Grid(SHAPE).corners(), np.stack([np.eye(4), away(1, (0, 0, 0)), away(90, (0, 0, 0))])
    assert first_distinct(maps, corners, 1.0, 5) == [0, 2]
    assert first_distinct(maps, corners, 0.01, 2) == [0, 1]


@pytest.mark.parametrize("shape", [SHAPE, (3, 24, 22), (1, 24, 22)])
def test_every_other_point_stands_where_it_stood(field, shape):
    thin = field.values[:, : shape[0]]
    whole = EdgeField(Grid(shape, (0.5, 0.5, 0.5), (3.0, -2.0, 7.0)), thin)
    sparse = whole.at_every(2)
    index = np.array([1, 2, 3]) % sparse.grid.shape
    place = whole.grid.to_index(sparse.grid.to_world(index)).round().astype(int)
    np.testing.assert_array_equal(sparse.values[(slice(None), *index)], thin[(slice(None), *place)])
    assert shape[0] // 2 in whole.grid.to_index(sparse.grid.to_world(np.argwhere(sparse.values[3])))[:, 0].round()


def test_fewer_points_lead_to_the_same_place(field):
    few = PoseRefinement(field, field, scaled=True).at_every(2)
    np.testing.assert_allclose(few.refined(away(4, (0.3, -0.2, 0.4), 1.02)[None], 12).world[0], np.eye(4), atol=0.05)
