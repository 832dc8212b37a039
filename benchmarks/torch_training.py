"""A training step of VoxelMorph's and TransMorph's networks, with their own losses, compiled ones, and daskreg's.

    python benchmarks/torch_training.py [--only voxelmorph transmorph] [--transmorph FOLDER] [--shape 160 192 224]
        [--losses lncc mi] [--variants network original compiled daskreg fused]

The networks are the published ones: ``voxelmorph`` 0.3 from its package, and ``TransMorph/`` of its repository in FOLDER (with
``timm`` and ``ml_collections``). A step is a forward pass, the loss and its regulariser, a backward pass and Adam; the batch is
one pair, in float32. Variants of a step:

- ``network``: the network alone, and Adam: what no loss can save,
- ``original``: warp, loss and regulariser of the package,
- ``compiled``: the same, by ``torch.compile``,
- ``daskreg``: daskreg's modules of the same names in their places,
- ``daskreg, fused``: the loss from the displacement, without a moved image.

Each row has the loss at the first weights, so that what is compared can be seen to be the same. Milliseconds are a median of
steps by CUDA events, memory is the peak less what is there before a step (weights, Adam's state). Without a GPU, times are of the
CPU: a check that all of it runs; TransMorph's own losses ask for a GPU. Prints a JSON line a row and writes
``torch_training.json`` to $OUT, or to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch_losses as measuring
from torch import Tensor, nn

import daskreg.torch as dt
from daskreg.torch import monai, transmorph, voxelmorph

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "torch_training.json"
WEIGHT = 1.0  # of the regulariser
BINS = 32
LOSSES = ("lncc", "mi")
VARIANTS = ("network", "original", "compiled", "daskreg", "fused")
Warp = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class VoxelMorph:
    """``voxelmorph.nn.models.VxmPairwise`` with the defaults of its package: 5 steps of integration at full resolution.

    NCC is neurite's, negated; the package has no mutual information: MONAI's, which its users take.
    """

    def __init__(self, shape: tuple[int, ...], device: str) -> None:
        import neurite.nn.modules as neurite
        import voxelmorph.nn.models as models
        from monai.losses import GlobalMutualInformationLoss

        self.network = models.VxmPairwise(3, 1, 1, device=device).to(device)
        self.integrator = self.network.velocity_field_integrator
        ncc, theirs, ours = neurite.NCC(), GlobalMutualInformationLoss(num_bins=BINS), voxelmorph.NCC()
        information = monai.GlobalMutualInformationLoss(num_bins=BINS)
        self.warps: tuple[Warp, Warp] = self.network.spatial_transformer, voxelmorph.SpatialTransformer()
        self.regularisers = neurite.SpatialGradient("l2"), voxelmorph.SpatialGradient("l2")
        self.losses: dict[str, tuple[Loss | None, Loss]] = {
            "lncc": (lambda a, b: -ncc(a, b).squeeze(), lambda a, b: -ours(a, b).squeeze()),
            "mi": (theirs, information),
        }

    def displacement(self, moving: Tensor, fixed: Tensor, *, ours: bool) -> Tensor:
        """In voxels, (1, 3, D, H, W)."""
        self.network.velocity_field_integrator = voxelmorph.IntegrateVelocityField(steps=5) if ours else self.integrator
        u: Tensor = self.network(moving, fixed)
        return u

    def fused(self, loss: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """From image, fixed image and displacement."""
        return lambda m, f, u: dt.warped_loss(m, f, u, "lncc") if loss == "lncc" else dt.warped_loss(m, f, u, "mi", bins=BINS)


class Unwarped(nn.Module):
    """In place of a network's own warp, where the displacement alone is wanted."""

    def forward(self, image: Tensor, flow: Tensor) -> Tensor:
        return image


class TransMorph:
    """``TransMorph`` of its repository, with the published sizes; the windows fit the shape."""

    def __init__(self, folder: Path, shape: tuple[int, ...], device: str) -> None:
        sys.path.insert(0, str(folder / "TransMorph"))
        import losses
        from models import TransMorph as module

        config = copy.deepcopy(module.CONFIGS["TransMorph"])
        config.img_size, config.window_size = shape, tuple(n // 32 for n in shape)
        self.network = module.TransMorph(config).to(device)
        theirs = self.network.spatial_trans
        self.network.spatial_trans = Unwarped()
        self.warps: tuple[Warp, Warp] = theirs, transmorph.SpatialTransformer(shape).to(device)
        self.regularisers = losses.Grad3d("l2"), transmorph.Grad3d("l2")
        self.regularisers = tuple(lambda u, g=g: g(u, u) for g in self.regularisers)
        self.losses: dict[str, tuple[Loss | None, Loss]] = {
            "lncc": (losses.NCC_vxm() if device != "cpu" else None, transmorph.NCC_vxm()),  # theirs ask for a GPU
            "mi": (losses.MutualInformation() if device != "cpu" else None, transmorph.MutualInformation()),
        }

    def displacement(self, moving: Tensor, fixed: Tensor, *, ours: bool) -> Tensor:
        """In voxels, (1, 3, D, H, W)."""
        u: Tensor = self.network(torch.cat((moving, fixed), 1))[1]
        return u

    def fused(self, loss: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """From image, fixed image and displacement."""
        return lambda m, f, u: (
            dt.warped_loss(m, f, u, "lncc") if loss == "lncc" else dt.warped_loss(m, f, u, "mi", sigma_ratio=1.0)
        )


def variants(model: Any, loss: str) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """What a step minimises, as a function of both images."""
    (their_loss, our_loss), (their_warp, our_warp) = model.losses[loss], model.warps
    their_rule, our_rule = model.regularisers
    fused = model.fused(loss)

    def whole(ours: bool, warp: Warp, compare: Loss, rule: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def function(moving: Tensor, fixed: Tensor) -> Tensor:
            u = model.displacement(moving, fixed, ours=ours)
            return compare(fixed, warp(moving, u)) + WEIGHT * rule(u)

        return function

    def without_moved(moving: Tensor, fixed: Tensor) -> Tensor:
        u = model.displacement(moving, fixed, ours=True)
        return fused(moving, fixed, u) + WEIGHT * our_rule(u)

    yield "network", lambda moving, fixed: model.displacement(moving, fixed, ours=False).square().mean()
    if their_loss is not None:
        yield "original", whole(False, their_warp, their_loss, their_rule)
        yield "compiled", whole(False, their_warp, torch.compile(their_loss), torch.compile(their_rule))
    yield "daskreg", whole(True, our_warp, our_loss, our_rule)
    yield "daskreg, fused", without_moved


def measure(name: str, model: Any, loss: str, weights: Any, moving: Tensor, fixed: Tensor, wanted: list[str]) -> None:
    """One row a variant, each from the same weights."""
    for who, function in variants(model, loss):
        if who.split()[-1] not in wanted:
            continue
        model.network.load_state_dict(weights)
        torch.manual_seed(0)  # of layers that drop paths
        optimizer = torch.optim.Adam(model.network.parameters(), 1e-4)

        def step(minimised: Callable[[Tensor, Tensor], Tensor] = function, adam: Any = optimizer) -> Tensor:
            adam.zero_grad()
            value = minimised(moving, fixed)
            value.backward()
            adam.step()
            return value.detach()

        at = {"shape": list(moving.shape[2:]), "loss": loss}
        measuring.report(f"{name} training step", who, step, moving.numel(), **at, value=float(step()))


def images(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Smooth ones, a few voxels apart."""
    torch.manual_seed(0)
    coarse = torch.rand((1, 1, *(n // 8 for n in shape)))
    fixed = nn.functional.interpolate(coarse, size=shape, mode="trilinear").to(device)
    return fixed.roll((2, 1, -2), (2, 3, 4)), fixed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=("voxelmorph", "transmorph"), default=["voxelmorph", "transmorph"])
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--shape", nargs=3, type=int, default=[160, 192, 224], help="multiples of 32")
    parser.add_argument("--transmorph", type=Path, help="a folder with TransMorph/ of its repository")
    given = parser.parse_args()
    device, shape = "cuda" if torch.cuda.is_available() else "cpu", tuple(given.shape)
    measuring.OUT = OUT
    measuring.describe(device)
    moving, fixed = images(shape, device)
    for name in given.only:
        if name == "transmorph" and given.transmorph is None:
            print(json.dumps({"case": "transmorph", "error": "no --transmorph FOLDER"}), flush=True)
            continue
        model = VoxelMorph(shape, device) if name == "voxelmorph" else TransMorph(given.transmorph, shape, device)
        weights = copy.deepcopy(model.network.state_dict())
        for loss in given.losses:
            measure(name, model, loss, weights, moving, fixed, given.variants)


if __name__ == "__main__":
    main()
