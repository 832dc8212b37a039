"""The global search refines its candidates where the images are."""

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.config import Search
from daskreg.engine.images import Image
from daskreg.engine.initial import run_initial
from daskreg.engine.report import Watch
from daskreg.grid import Grid
from daskreg.kernels.device import CPU, Device, host
from daskreg.kernels.peaks.cpu import separate_peaks
from daskreg.kernels.smoothing.whole_arrays import box_around, gaussian
from tests.phantoms import blobs

pytestmark = pytest.mark.gpu


def start(device):
    """What is found for an image moved by many voxels."""
    fixed = np.pad(blobs((40, 44, 36), 3), 12)
    moving, grid = np.roll(fixed, (9, -7, 10), (0, 1, 2)), Grid(fixed.shape)
    images = Image.whole(device.put(fixed), grid), Image.whole(device.put(moving), grid)
    return run_initial(Search(size=48), images, np.eye(4), SingleRank(), Watch())[0]


def test_the_start_is_that_of_the_processor_but_for_the_rounding_of_few_iterations():
    device = Device("cuda")
    device.use()
    cpu, cuda = start(CPU), start(device)
    center = np.array([31.5, 33.5, 29.5])
    for found in (cpu, cuda):
        np.testing.assert_allclose(found[:3, :3] @ center + found[:3, 3] - center, (9, -7, 10), atol=0.3)
    np.testing.assert_allclose(cuda[:3, :3], cpu[:3, :3], atol=0.02)


def turned(device, fixed, moving):
    """What the search over all rotations finds."""
    images = tuple(Image.whole(device.put(voxels.copy()), Grid(voxels.shape)) for voxels in (fixed, moving))
    return run_initial(Search(rotations="fine"), images, np.eye(4), SingleRank(), Watch())[0]


def test_a_turned_image_is_found_as_on_the_processor():
    device = Device("cuda")
    device.use()
    fixed = np.pad(blobs((40, 48, 36), 3), ((10, 10), (8, 8), (14, 14)))
    moving = np.roll(np.rot90(fixed, axes=(1, 2)), (3, -4, 5), (0, 1, 2))
    cpu, cuda = turned(CPU, fixed, moving), turned(device, fixed, moving)
    corners = np.array([[0, 0, 0, 1], [59, 0, 63, 1], [0, 63, 0, 1], [59, 63, 63, 1.0]])
    np.testing.assert_allclose(corners @ cuda.T, corners @ cpu.T, atol=0.3)
    np.testing.assert_allclose(np.abs(cuda[:3, :3]).round(), [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_filters_of_whole_arrays_are_those_of_the_processor():
    device = Device("cuda")
    device.use()
    channels = np.random.default_rng(0).standard_normal((3, 7, 20, 13)).astype(np.float32)
    sigma, reach = np.array([0.4, 2.0, 5.0]), np.array([0, 2, 5])
    np.testing.assert_allclose(host(gaussian(device.put(channels), sigma)), gaussian(channels, sigma), atol=1e-6)
    region = channels[0] > 2
    np.testing.assert_array_equal(host(box_around(device.put(region), reach)), box_around(region, reach))


def test_peaks_of_maps_of_every_size_are_those_of_the_processor():
    """From less than what a peak takes along every axis to more rows than a block has threads."""
    device = Device("cuda")
    device.use()
    for shape, count in (((2, 3, 5, 4), 3), ((3, 40, 48, 45), 12), ((24, 64, 60, 66), 12)):
        maps = np.random.default_rng(2).standard_normal(shape, np.float32)
        expected = separate_peaks(maps.copy(), count)
        for cpu, cuda in zip(expected, separate_peaks(device.put(maps), count), strict=True):
            np.testing.assert_array_equal(cuda, cpu)


def test_maps_without_a_number_end_the_search_for_peaks():
    device = Device("cuda")
    device.use()
    at, values = separate_peaks(device.put(np.full((2, 4, 5, 6), np.nan, np.float32)), 1)
    assert (at >= 0).all()
    assert (at < np.array([4, 5, 6])[:, None, None]).all()
    assert np.isnan(values).all()
