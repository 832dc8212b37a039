"""What other packages compute on the bundled heads, in data/originals.npz: ``python tests/torch/originals.py
LOSSES_OF_TRANSMORPH VOXELMORPH_0_2``.

Run it in an environment of its own with torch, monai, voxelmorph, neurite, icon-registration and nibabel, and without daskreg.
``LOSSES_OF_TRANSMORPH``: ``TransMorph/losses.py`` of TransMorph's repository;  ``VOXELMORPH_0_2``: the folder
``voxelmorph/torch`` of the unpacked wheel ``voxelmorph==0.2``. Of each case the value is kept (of fields of
values, VOXELS of them), and of each derivative VOXELS of its entries and its norm. tests/torch/test_drop_ins.py compares.
data/README.md says which versions were run.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import torch

HERE = Path(__file__).parent
HEADS = HERE.parents[1] / "daskreg" / "data"
VOXELS = 400
SHAPE = 36, 40, 32


def head(name: str) -> torch.Tensor:
    """The middle of a bundled head, (1, 1, *SHAPE), intensities in [0, 1]."""
    voxels = np.asarray(nibabel.load(HEADS / f"quickstart_{name}_T1_3mm.nii.gz").dataobj, np.float32)
    first = [(n - m) // 2 for n, m in zip(voxels.shape, SHAPE)]
    middle = voxels[tuple(slice(a, a + m) for a, m in zip(first, SHAPE))]
    return torch.from_numpy(np.ascontiguousarray(middle / voxels.max()))[None, None]


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two batch elements: the two heads, and the same with one of them turned over."""
    a, b = head("colin27"), head("mni2009c")
    return torch.cat([a, a.flip(2)]), torch.cat([b, b])


def displacement(scale: float = 2.5) -> torch.Tensor:
    """A smooth displacement, (2, 3, *SHAPE)."""
    axes = torch.meshgrid(*(torch.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    waves = [torch.sin(axes[k] * (k + 1) + axes[(k + 1) % 3]) for k in range(3)]
    field = scale * torch.stack(waves)[None]
    return torch.cat([field, -0.7 * field.flip(2)])


def chosen(count: int) -> np.ndarray:
    """Which entries of a tensor are kept."""
    return np.random.default_rng(0).choice(count, min(VOXELS, count), replace=False)


def kept(tensor: torch.Tensor) -> np.ndarray:
    """Some entries of a tensor, and last its norm."""
    flat = tensor.detach().double().flatten().numpy()
    return np.append(flat[chosen(flat.size)], np.linalg.norm(flat)).astype(np.float32)


def evaluate(function, *given: torch.Tensor) -> list[np.ndarray]:
    """The value, and the derivatives of its sum weighted by position with respect to everything given."""
    leaves = [t.clone().requires_grad_() for t in given]
    value = function(*leaves)
    weight = 1 + torch.arange(value.numel()).reshape(value.shape) % 7 if value.numel() > 1 else 1
    slopes = torch.autograd.grad((value * weight).sum(), leaves)
    return [kept(value), *map(kept, slopes)]


def on_a_cpu(path: str, name: str):
    """A module by its file, of which losses ask for a GPU."""
    to = torch.Tensor.to
    torch.Tensor.to = lambda self, *a, **k: self if a and a[0] == "cuda" else to(self, *a, **k)
    torch.Tensor.cuda = lambda self, *a, **k: self
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def voxelmorph_0_2(folder: str):
    """Name, function, tensors of VoxelMorph 0.2."""
    layers, losses = (on_a_cpu(f"{folder}/{name}.py", f"voxelmorph_0_2_{name}") for name in ("layers", "losses"))
    (moved, fixed), u = pair(), displacement()
    yield "voxelmorph 0.2 transformer", layers.SpatialTransformer(SHAPE), (moved, u)
    yield "voxelmorph 0.2 integrate", layers.VecInt(SHAPE, 5), (u,)
    yield "voxelmorph 0.2 ncc", losses.NCC().loss, (fixed, moved)
    yield "voxelmorph 0.2 mse", losses.MSE().loss, (fixed, moved)
    yield "voxelmorph 0.2 l1", lambda u: losses.Grad("l1").loss(None, u), (u,)
    yield "voxelmorph 0.2 l2", lambda u: losses.Grad("l2", 2).loss(None, u), (u,)


def cases(path: str, earlier: str):
    """Name, function, tensors."""
    import neurite.nn.modules as neurite
    import voxelmorph.nn.modules as voxelmorph
    from icon_registration import losses as icon
    from monai.losses import BendingEnergyLoss, GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import DVF2DDF, Warp

    trans = on_a_cpu(path, "transmorph_losses")
    moved, fixed = pair()
    u, both = displacement(), (moved, fixed)
    for kind in ("rectangular", "triangular", "gaussian"):
        yield f"monai lncc {kind}", LocalNormalizedCrossCorrelationLoss(kernel_size=7, kernel_type=kind), both
    rules = {"kernel_size": 5, "smooth_nr": 1e-4, "smooth_dr": 1e-3}
    yield "monai lncc none", LocalNormalizedCrossCorrelationLoss(reduction="none", **rules), both
    yield "monai lncc sum", LocalNormalizedCrossCorrelationLoss(reduction="sum", **rules), both
    yield "monai mi", GlobalMutualInformationLoss(), both
    yield "monai mi none", GlobalMutualInformationLoss(num_bins=32, reduction="none"), both
    for padding in ("border", "zeros", "reflection"):
        yield f"monai warp {padding}", Warp(padding_mode=padding), (moved, u)
    yield "monai dvf2ddf", DVF2DDF(num_steps=5), (u,)
    yield "monai bending", BendingEnergyLoss(), (u,)
    yield "monai bending normalized", BendingEnergyLoss(normalize=True, reduction="sum"), (u,)
    yield "voxelmorph ncc", neurite.NCC(), both
    yield "voxelmorph ncc 5", neurite.NCC(window_size=5, reduction=None), both
    yield "voxelmorph l1", neurite.SpatialGradient("l1"), (u,)
    yield "voxelmorph l2", neurite.SpatialGradient("l2"), (u,)
    yield "voxelmorph transformer", voxelmorph.SpatialTransformer(), (moved, u)
    yield "voxelmorph integrate", voxelmorph.IntegrateVelocityField(steps=5), (u,)
    yield from voxelmorph_0_2(earlier)
    yield "transmorph ncc_vxm", trans.NCC_vxm(), both
    yield "transmorph ncc", trans.NCC(), both
    yield "transmorph mi", trans.MutualInformation(), both
    yield "transmorph grad", trans.Grad3d("l2", 2.0), (u,)
    for sigma in (2, 5):
        yield f"icon lncc {sigma}", icon.LNCC(sigma), both
    yield "icon squared", icon.SquaredLNCC(3), both
    yield "icon ssd", icon.BlurredSSD(2), both


def main() -> None:
    warnings.simplefilter("ignore")
    second = {"transmorph grad": lambda f: lambda u: f(u, None)}
    found = {}
    for name, function, given in cases(*sys.argv[1:3]):
        wrap = second.get(name, lambda f: f)
        found |= {f"{name}|{k}": v for k, v in enumerate(evaluate(wrap(function), *given))}
    np.savez_compressed(HERE / "data" / "originals.npz", **found)


if __name__ == "__main__":
    main()
