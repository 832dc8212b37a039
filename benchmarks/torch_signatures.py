"""Write ``daskreg/kernels/compiler/torch_signatures.txt``: the CUDA kernels of ``daskreg.torch`` with its usual arguments.

    python benchmarks/torch_signatures.py [OUTPUT]

Needs PyTorch and the extra ``ptx``, and no GPU: tensors of the CPU say that they are a GPU's, and launches are noted in place of
being executed. To be run again when a kernel's arguments or constants have changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import daskreg.torch as dt
from daskreg.kernels.compiler import precompile
from daskreg.torch import direct_launch, fireants, functional, icon, launch, monai, transmorph, voxelmorph
from daskreg.torch.compute import correlation, fields, information, sampling
from daskreg.torch.operators import prepared

SHAPE = 1, 1, 12, 12, 12
BLOCK_MEMORY = 163 * 1024, 227 * 1024  # bytes that a block can have on an A100 and an H100: how many copies of a histogram fit


def images(*, both: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The derivative with respect to the first, or to both."""
    return torch.rand(SHAPE).requires_grad_(), torch.rand(SHAPE).requires_grad_(both)


def field(*, derivative: bool = True) -> torch.Tensor:
    return torch.rand(1, 3, *SHAPE[2:]).requires_grad_(derivative)


def affine() -> torch.Tensor:
    return torch.eye(3, 4)[None].requires_grad_()


def losses() -> Iterator[Callable[..., Any]]:
    """Of two images: the functions' defaults, and those of the modules that stand for other packages'."""
    yield from (dt.mse, dt.lncc, dt.mutual_information)
    yield lambda a, b: dt.mutual_information(a, b, kind="spline")
    yield from (monai.LocalNormalizedCrossCorrelationLoss(kernel_size=size) for size in (3, 5, 7, 9))
    yield monai.GlobalMutualInformationLoss()
    yield from (voxelmorph.NCC(), transmorph.NCC_vxm(), transmorph.MutualInformation())
    yield from (fireants.LNCC(), fireants.MutualInformation(), fireants.MSE())
    yield from (icon.LNCC(5), icon.SquaredLNCC(5))


def samplers() -> Iterator[Callable[[], Any]]:
    """With derivatives with respect to the image, the displacement, or both."""
    for border in ("zeros", "border", "reflection"):
        for image, u in ((images()[0], field()), (torch.rand(SHAPE), field()), (images()[0], field(derivative=False))):
            yield lambda b=border, m=image, v=u: dt.warp(m, v, b)
            yield lambda b=border, m=image, v=u: dt.grid_sample(m, v.permute(0, 2, 3, 4, 1), padding_mode=b)
    yield lambda: dt.warp(images()[0], field(), interpolation="nearest")
    yield lambda: dt.affine_warp(images()[0], affine(), field())
    yield lambda: dt.affine_warp(images()[0], affine())
    yield lambda: dt.compose(field(), field())
    yield lambda: dt.exponential(field())
    yield lambda: voxelmorph.IntegrateVelocityField()(field())
    for loss in ("mse", "lncc", "mi"):
        yield lambda of=loss: dt.warped_loss(*images(), field(), of)
        yield lambda of=loss: dt.warped_loss(torch.rand(SHAPE), torch.rand(SHAPE), field(), of)


def of_fields() -> Iterator[Callable[[], Any]]:
    yield from (lambda p=p: dt.gradient_penalty(field(), p) for p in ("l1", "l2"))
    yield from (lambda n=n: dt.bending_energy(field(), normalize=n) for n in (False, True))
    yield lambda: dt.jacobian_determinant(field())
    yield from (lambda s=s: dt.gaussian(field(), s) for s in (0.5, 1.0, 2.0))


def calls() -> Iterator[Callable[[], Any]]:
    for loss in losses():
        yield from (lambda f=loss, b=both: f(*images(both=b)) for both in (False, True))
    yield from samplers()
    yield from of_fields()


def noted() -> dict[str, None]:
    """Lines, in the order of the first launches."""
    lines: dict[str, None] = {}

    def note(form: Any, blocks: Any, threads: Any, *arguments: Any, shared: int = 0, **where: Any) -> Any:
        kinds, _, _ = direct_launch.packed(arguments)
        types = tuple(map(direct_launch._type, kinds))
        signature = precompile.format_types(types)
        assert precompile.parse_types(signature) == types, signature
        kept = form._cache
        lines[f"{kept.name.removesuffix('_cuda')}\t{kept.identity[2]!r}\t{signature}"] = None
        return lambda *tensors: None

    def sequence(*launches: Any, cleared: int = 0) -> Any:
        return lambda *addresses: None

    for module in (launch, correlation, fields, information, sampling):
        vars(module).update(launch=note, KeptLaunch=note, LaunchSequence=sequence, processors=lambda index: 132)
    prepared.current_device = lambda: -1
    torch.Tensor.is_cuda = property(lambda self: True)
    sampling.window_size = lambda index: 8192
    for memory in BLOCK_MEMORY:
        information.block_memory = lambda index, memory=memory: memory
        for functional.SMALL in (0, 2**23):
            prepared._PREPARED.clear()
            for cached in (information._counting, information._sloping):
                cached.cache_clear()
            for call in calls():
                value = call()
                if value.requires_grad:
                    value.float().sum().backward()
    return lines


def main() -> None:
    lines = noted()
    Path(sys.argv[1] if len(sys.argv) > 1 else precompile.TORCH_SIGNATURES).write_text("".join(f"{line}\n" for line in lines))
    print(len(lines), "kernels")


if __name__ == "__main__":
    main()
