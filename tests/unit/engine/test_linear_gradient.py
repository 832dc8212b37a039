"""The derivative of a loss with respect to the parameters of a linear map."""

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.config import Affine
from daskreg.engine.images import Image
from daskreg.engine.linear import LinearLoss
from daskreg.grid import Grid
from daskreg.planning import Level
from daskreg.similarity import LNCC, MI, MSE, NGF
from daskreg.transforms.linear import PARAMETER_COUNTS, LinearModel, index_map
from tests import reference
from tests.phantoms import blobs, rotation

FIXED = Grid((13, 14, 15), (2.0, 1.5, 1.0), (-12.0, -9.0, 4.0), tuple(map(tuple, rotation((6, -11, 17)))))
MOVING = Grid((15, 12, 16), (1.5, 1.7, 1.2), (-11.0, -10.0, 1.0), tuple(map(tuple, rotation((-17, 6, 11)))))
UNIT = (0.0, 1.0)
ORACLES = {
    "mse": (MSE(), reference.mse),
    "lncc": (LNCC(epsilon=1e-5, minimum_contrast=0), reference.lncc),
    "mi": (MI(bins=16), lambda f, m, w: reference.mi(f, m, w, 16, UNIT, UNIT)),
    "ngf": (NGF(eta=0.1), lambda f, m, w: reference.ngf(f, m, w, 0.1)),
}


def images():
    return Image.whole(blobs(FIXED.shape, 1), FIXED), Image.whole(blobs(MOVING.shape, 2), MOVING)


def loss_of(choice):
    level = Level.alone(1, (1, 1, 1), (1, 1, 1), FIXED, MOVING, 1)
    return LinearLoss(Affine(similarity=choice), level, images(), SingleRank())


def oracle(value, world):
    """The loss in float64."""
    (fixed, moving) = (i.voxels.astype(float) for i in images())
    p = reference.sampling_points(FIXED.shape, index_map(world, FIXED, MOVING)[:3])
    moved, _, inside = reference.trilinear(moving, p)
    return value(fixed, moved, inside.astype(float))


@pytest.mark.parametrize("kind", PARAMETER_COUNTS)
@pytest.mark.parametrize("name", ORACLES)
def test_the_gradient_is_the_central_difference_of_the_reference(name, kind):
    choice, value = ORACLES[name]
    start = np.eye(4)
    start[:3, 3] = MOVING.center - FIXED.center
    model = LinearModel(kind, FIXED.center, 8.0, start)
    q = np.random.default_rng(3).uniform(-0.4, 0.4, model.size)
    loss, slope = loss_of(choice)(model.matrix(q))
    assert loss == pytest.approx(oracle(value, model.matrix(q)), rel=2e-5)
    h = 1e-6
    numeric = [
        (oracle(value, model.matrix(q + e)) - oracle(value, model.matrix(q - e))) / (2 * h) for e in np.eye(model.size) * h
    ]
    # float32 images and slopes; the background is exactly 0, so few voxels sit where a cell or the domain ends
    np.testing.assert_allclose(model.apply_jacobian_transpose(q, slope), numeric, atol=2e-3 * np.abs(numeric).max())
