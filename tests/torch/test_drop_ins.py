"""Modules that stand for those of other packages give their numbers: forward to 1e-4, derivatives to 1e-3, on real images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from daskreg.errors import DaskregError
from daskreg.torch import fireants, functional, icon, monai, transmorph, voxelmorph, voxelmorph_0_2
from daskreg.torch.fused_lncc import fused_lncc_loss
from tests.torch import oracles
from tests.torch.originals import SHAPE, displacement, evaluate, pair

with np.load(Path(__file__).parent / "data" / "originals.npz") as _file:
    ORIGINALS = dict(_file)
FORWARD, DERIVATIVE = 1e-4, 1e-3
RULES = {"kernel_size": 5, "smooth_nr": 1e-4, "smooth_dr": 1e-3}
MOVED, FIXED = pair()
U = displacement()
CASES = {
    **{f"monai lncc {kind}": (monai.LocalNormalizedCrossCorrelationLoss(kernel_size=7, kernel_type=kind), (MOVED, FIXED))
       for kind in ("rectangular", "triangular", "gaussian")},
    **{f"monai lncc {name}": (monai.LocalNormalizedCrossCorrelationLoss(reduction=name, **RULES), (MOVED, FIXED))
       for name in ("none", "sum")},
    "monai mi": (monai.GlobalMutualInformationLoss(), (MOVED, FIXED)),
    "monai mi none": (monai.GlobalMutualInformationLoss(num_bins=32, reduction="none"), (MOVED, FIXED)),
    **{f"monai warp {name}": (monai.Warp(padding_mode=name), (MOVED, U)) for name in ("border", "zeros", "reflection")},
    "monai dvf2ddf": (monai.DVF2DDF(num_steps=5), (U,)),
    "monai bending": (monai.BendingEnergyLoss(), (U,)),
    "monai bending normalized": (monai.BendingEnergyLoss(normalize=True, reduction="sum"), (U,)),
    "voxelmorph ncc": (voxelmorph.NCC(), (MOVED, FIXED)),
    "voxelmorph ncc 5": (voxelmorph.NCC(window_size=5, reduction=None), (MOVED, FIXED)),
    "voxelmorph l1": (voxelmorph.SpatialGradient("l1"), (U,)),
    "voxelmorph l2": (voxelmorph.SpatialGradient("l2"), (U,)),
    "voxelmorph transformer": (voxelmorph.SpatialTransformer(), (MOVED, U)),
    "voxelmorph integrate": (voxelmorph.IntegrateVelocityField(steps=5), (U,)),
    "voxelmorph 0.2 transformer": (voxelmorph_0_2.SpatialTransformer(SHAPE), (MOVED, U)),
    "voxelmorph 0.2 integrate": (voxelmorph_0_2.VecInt(SHAPE, 5), (U,)),
    "voxelmorph 0.2 ncc": (voxelmorph_0_2.NCC().loss, (FIXED, MOVED)),
    "voxelmorph 0.2 mse": (voxelmorph_0_2.MSE().loss, (FIXED, MOVED)),
    "voxelmorph 0.2 l1": (lambda u: voxelmorph_0_2.Grad("l1").loss(None, u), (U,)),
    "voxelmorph 0.2 l2": (lambda u: voxelmorph_0_2.Grad("l2", 2).loss(None, u), (U,)),
    "transmorph ncc_vxm": (transmorph.NCC_vxm(), (MOVED, FIXED)),
    "transmorph ncc": (transmorph.NCC(), (MOVED, FIXED)),
    "transmorph mi": (transmorph.MutualInformation(), (MOVED, FIXED)),
    "transmorph grad": (transmorph.Grad3d("l2", 2.0), (U,)),
    "icon lncc 2": (icon.LNCC(2), (MOVED, FIXED)),
    "icon lncc 5": (icon.LNCC(5), (MOVED, FIXED)),
    "icon squared": (icon.SquaredLNCC(3), (MOVED, FIXED)),
    "icon ssd": (icon.BlurredSSD(2), (MOVED, FIXED)),
}  # fmt: skip


def test_all_that_was_recorded_is_compared():
    assert {name.partition("|")[0] for name in ORIGINALS} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_those_of_the_original(name):
    function, given = CASES[name]
    found = evaluate(function, *given)
    for k, values in enumerate(found):
        expected, tolerance = ORIGINALS[f"{name}|{k}"], DERIVATIVE if k else FORWARD
        assert values.shape == expected.shape
        assert values[-1] == pytest.approx(expected[-1], rel=tolerance)  # the norm
        difference = np.linalg.norm(values[:-1] - expected[:-1]) / max(np.linalg.norm(expected[:-1]), 1e-30)
        assert difference < tolerance, f"part {k}: {difference}"


def test_fused_lncc_is_its_published_formula():
    moved = MOVED.clone().requires_grad_()
    loss = fused_lncc_loss(moved, FIXED, 5)
    plain = MOVED.double().requires_grad_()
    windows = oracles.lncc(plain, FIXED.double(), [(1.0,) * 5] * 3, additive=1e-5, floor=-np.inf, epsilon=0.0, limit=1.0)
    assert loss.item() == pytest.approx(1 - windows.mean().item(), rel=FORWARD)
    (of_plain,), (of_ours,) = torch.autograd.grad(1 - windows.mean(), plain), torch.autograd.grad(loss, moved)
    assert (of_ours - of_plain).norm() / of_plain.norm() < DERIVATIVE


def test_losses_of_fireants_take_moved_and_fixed():
    for loss, expected in ((fireants.LNCC(5), -0.5), (fireants.MutualInformation(), -0.3), (fireants.MSE(), 0.03)):
        assert loss(MOVED, FIXED).ndim == 0
        assert abs(loss(MOVED, FIXED).item()) > abs(expected) / 10
    assert fireants.LNCC(7).get_image_padding() == 3


def test_the_loss_of_earlier_versions_of_voxelmorph_is_negative():
    assert voxelmorph.NCCLoss().loss(FIXED, MOVED).item() == pytest.approx(-voxelmorph.NCC()(FIXED, MOVED).item(), rel=1e-5)


def test_checkpoints_of_transmorph_load():
    size = tuple(U.shape[2:])
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij"))[None]
    saved = {"spatial_trans.grid": grid}
    for keep in (True, False):
        network = torch.nn.Module()
        network.spatial_trans = transmorph.SpatialTransformer(size, keep_grid=keep)
        network.load_state_dict(dict(saved), strict=True)
        assert torch.equal(network.spatial_trans(MOVED, U), functional.warp(MOVED, U))
        assert ("spatial_trans.grid" in network.state_dict()) is keep


def test_checkpoints_of_voxelmorph_0_2_load():
    size = tuple(U.shape[2:])
    grid = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij"))[None]
    saved = {"transformer.grid": grid, "integrate.transformer.grid": grid}
    network = torch.nn.Module()
    network.transformer, network.integrate = voxelmorph_0_2.SpatialTransformer(size), voxelmorph_0_2.VecInt(size, 7)
    network.load_state_dict(dict(saved), strict=True)
    assert network.state_dict().keys() == saved.keys()


MISTAKES = {
    "spatial_dims is 2": lambda: monai.LocalNormalizedCrossCorrelationLoss(2),
    "odd numbers were expected": lambda: monai.LocalNormalizedCrossCorrelationLoss(kernel_size=4),
    "kernel_type is 'b-spline'": lambda: monai.GlobalMutualInformationLoss("b-spline"),
    "jitter is on": lambda: monai.Warp(jitter=True),
    "reduction is 'median'": lambda: voxelmorph.NCC(reduction="median"),
    "shape of the volume was given.*voxelmorph_0_2": lambda: voxelmorph.SpatialTransformer((36, 40, 32)),
    "nsteps is -1": lambda: voxelmorph_0_2.VecInt((3, 4, 5), -1),
    "align_corners is False": lambda: voxelmorph.SpatialTransformer(align_corners=False),
    "three axes were expected": lambda: transmorph.SpatialTransformer((3, 4)),
    "a mask was given": lambda: icon.LNCC(2)(MOVED, FIXED, FIXED),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_what_is_not_there_is_refused(sentence):
    with pytest.raises(DaskregError, match=sentence):
        MISTAKES[sentence]()
