"""Several GPUs give the bits of one, through dask-cuda as a user starts it."""

import numpy as np
import pytest

import daskreg
from daskreg.config import Affine, Config, Deformable
from daskreg.kernels.device import gpus
from daskreg.similarity import LNCC, MI, NGF
from tests.phantoms import blobs

pytestmark = pytest.mark.gpu
LOSSES = {"lncc": LNCC(), "center": LNCC(gradient="center"), "mi": MI(), "ngf": NGF()}


def displacement(loss, **given):
    stages = Affine(scales=(2,), iterations=(10,)), Deformable(similarity=LOSSES[loss], scales=(2, 1), iterations=(20, 12))
    shape = (96, 80, 72)
    found = daskreg.register(blobs(shape, 1), blobs(shape, 2), Config(stages=stages), checkpoint=None, **given)
    return np.asarray(found.displacement)


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_several_gpus_give_the_bits_of_one(loss, number):
    if gpus() < number:
        pytest.skip(f"this machine has {gpus()} GPUs")
    pytest.importorskip("dask_cuda")
    alone = displacement(loss, device="cuda")
    for residency in ("replicate", "window", "ring"):
        found = displacement(loss, cluster="cuda", workers=number, residency=residency)
        np.testing.assert_array_equal(found, alone)
