"""Where two workers' blocks meet, the displacement of a real pair is as smooth as anywhere else."""

import numpy as np
import pytest
from distributed import Client, LocalCluster

from daskreg import LNCC, Affine, Deformable, Moments, register
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.transform import Transform

STAGES = [
    Moments(),
    Affine(scales=(4,), iterations=(20,)),
    Deformable(similarity=LNCC(radius=2), scales=(4, 2, 1), iterations=(20, 20, 10)),
]
LIMIT = 4.5  # standard deviations of the other planes' jumps


def jumps(field):
    """Log of how much more a field (.., Z, Y, X) changes from plane z to z + 1 than between the planes around them, (Z - 3,)."""
    steps = np.abs(np.diff(field, axis=-3)).reshape(-1, field.shape[-3] - 1, field.shape[-2] * field.shape[-1]).mean(axis=(0, 2))
    return np.log(steps[1:-1] / np.sqrt(steps[:-2] * steps[2:]))


def stands_out(field, faces):
    """Deviation of the jumps at ``faces`` (z of the plane before) from those elsewhere, in their standard deviations."""
    found, planes = jumps(field), np.arange(1, field.shape[-3] - 2)
    inside = (planes > field.shape[-3] // 8) & (planes < field.shape[-3] - field.shape[-3] // 8)  # beyond there is little to warp
    at = np.isin(planes, faces)
    away = found[inside & ~at]
    return float(np.abs(found[at] - away.mean()).max() / away.std())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    fixed, moving = demo_pair(3)
    options = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0, "silence_logs": 50}
    with LocalCluster(**options) as cluster, Client(cluster, set_as_default=False) as client:
        output = tmp_path_factory.mktemp("seams") / "run.zarr"
        yield register(fixed, moving, STAGES, output=output, client=client, comm="tcp", residency="window", checkpoint=None)


def test_no_seam_shows_in_the_displacement_and_its_jacobian(result):
    blocks = result.report["blocks"]
    assert len(blocks) == 3
    faces = [stop - 1 for _, stop in blocks[:-1]]
    u = np.asarray(result.displacement)
    determinant = Transform.of(result.affine, result.store.fixed_grid, u).determinant()
    assert stands_out(u, faces) < LIMIT
    assert stands_out(determinant, faces) < LIMIT


def test_a_seam_would_show(result):
    """Displacements near a block's edge that are pulled towards zero, as where a composition is clamped there."""
    stop = result.report["blocks"][0][1]
    u = np.array(result.displacement)
    u[:, stop - 2 : stop + 2] *= 0.7
    assert stands_out(u, [stop - 3, stop + 1]) > LIMIT
