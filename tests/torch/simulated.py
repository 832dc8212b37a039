"""Operations on CUDA tensors under Numba's simulator: ``python -m tests.torch.simulated FILE`` writes what they return.

Tensors are the CPU's that say they are a GPU's; a launch runs the same kernel, with the same arguments, in the simulator.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import daskreg.torch as dt
from tests.torch.oracles import smooth

SHAPE = B, C, D, H, W = 2, 2, 5, 6, 9
Case = Callable[[], torch.Tensor]


def images(shape=SHAPE):
    moved, fixed = (torch.sigmoid(smooth(shape, k)).float() for k in (1, 2))
    return moved.requires_grad_(), fixed


def field(scale=1.2, shape=(D, H, W), batch=B):
    return (scale * smooth((batch, 3, *shape), 3)).float().requires_grad_()


def affine():
    return (torch.eye(3, 4).expand(B, 3, 4) + 0.03).contiguous().requires_grad_()


def both(shape=SHAPE):
    moved, fixed = images(shape)
    return moved, fixed.requires_grad_()


def without_a_number():
    """Two volumes of three with intensities that are none; an infinite one is clamped."""
    moved, fixed = images((3, 1, 2, 5, 9))
    with torch.no_grad():
        moved[0, 0, 1, 4, 8] = fixed[1, 0, 0, 2, 3] = math.nan
        moved[2, 0, 0, 0, 0] = math.inf
    return moved, fixed.requires_grad_()


SMALL = 1, 2, 4, 5, 7
LOSSES: dict[str, Callable[..., Any]] = {
    "mse": lambda: (dt.mse, both()),
    "lncc 3": lambda: (lambda m, f: dt.lncc(m, f, 3), both(SMALL)),
    "lncc 5, one derivative": lambda: (lambda m, f: dt.lncc(m, f, 5, reduction="volume"), images(SMALL)),
    "lncc 9, counted": lambda: (lambda m, f: dt.lncc(m, f, 9, kind="gaussian", border="count"), images((1, 1, 3, 17, 34))),
    "lncc 1 x 3 x 5, each": lambda: (lambda m, f: dt.lncc(m, f, (1, 3, 5), reduction="none"), images(SMALL)),
    "lncc not squared": lambda: (
        lambda m, f: dt.lncc(m, f, (7, 3, 3), squared=False, additive=1e-4, epsilon=0, floor=0.01),
        images(SMALL),
    ),
    "lncc of many planes": lambda: (lambda m, f: dt.lncc(m, f, 3), images((1, 1, 18, 3, 4))),
    "mi": lambda: (lambda m, f: dt.mutual_information(m, f, 16), both()),
    "mi of splines": lambda: (lambda m, f: dt.mutual_information(m, f, 16, kind="spline", reduction="none"), images()),
    "mi, sigma 1": lambda: (lambda m, f: dt.mutual_information(m, f, 12, sigma_ratio=1.0, additive=1e-6), images()),
    "mi of what is no number": lambda: (lambda m, f: dt.mutual_information(m, f, 8, reduction="none"), without_a_number()),
    "not contiguous": lambda: (
        lambda m, f: dt.mse(m.mT, f.mT) + dt.lncc(m.mT, f.mT, 3) + dt.mutual_information(m.mT, f.mT, 8),
        images(SMALL),
    ),
    "warp": lambda: (lambda m, u: dt.warp(m, u, "zeros"), (images()[0], field())),
    "warp, border": lambda: (lambda m, u: dt.warp(m, u, "border"), (images()[0], field())),
    "warp, reflection": lambda: (lambda m, u: dt.warp(m, u, "reflection"), (images()[0], field(3.0))),
    "warp, far": lambda: (lambda m, u: dt.warp(m, u, "border"), (images()[0], field(4.0))),
    "warp, smooth": lambda: (lambda m, u: dt.warp(m, u), (images((1, 1, 4, 3, 9))[0], field(0.2, (4, 3, 9), 1))),
    "warp, nearest": lambda: (lambda m, u: dt.warp(m, u, interpolation="nearest"), (images()[0], field())),
    "grid": lambda: (
        lambda m, u: dt.grid_sample(m, u.permute(0, 2, 3, 4, 1), padding_mode="reflection"),
        (images()[0], field(0.8)),
    ),
    "affine": lambda: (dt.affine_warp, (images()[0], affine(), field(0.5))),
    "affine first": lambda: (lambda m, a, u: dt.affine_warp(m, a, u, order="affine_first"), (images()[0], affine(), field(0.5))),
    "affine alone": lambda: (lambda m, a: dt.affine_warp(m, a, size=(3, 4, 5)), (images()[0], affine())),
    "compose": lambda: (dt.compose, (field(), field(0.7))),
    "exponential": lambda: (lambda u: dt.exponential(u, 2), (field(),)),
    "gaussian": lambda: (lambda u: dt.gaussian(u, 0.7), (field(),)),
    "l1": lambda: (lambda u: dt.gradient_penalty(u, "l1"), (field(),)),
    "l2": lambda: (dt.gradient_penalty, (field(),)),
    "bending": lambda: (dt.bending_energy, (field(),)),
    "normalized bending": lambda: (lambda u: dt.bending_energy(u, normalize=True), (field(),)),
    "determinant": lambda: (dt.jacobian_determinant, (field(0.3),)),
    "warped mse": lambda: (lambda m, f, u: dt.warped_loss(m, f, u, "mse"), (*images(), field())),
    "warped lncc": lambda: (
        lambda m, f, u: dt.warped_loss(m, f, u, "lncc", window=3),
        (*images((1, 2, 3, 4, 5)), field(0.7, (3, 4, 5), 1)),
    ),
    "warped mi": lambda: (lambda m, f, u: dt.warped_loss(m, f, u, "mi", bins=12), (*images(), field())),
}


def results(name: str, device: str = "cpu") -> Iterator[np.ndarray]:
    """The value of a case, and its derivatives with respect to all that has any."""
    function, given = LOSSES[name]()
    given = [t.detach().to(device).requires_grad_(t.requires_grad) for t in given]
    value = function(*given)
    yield value.detach().cpu().numpy()
    weight = torch.cos(torch.arange(value.numel(), device=value.device)).reshape(value.shape)
    for slope in torch.autograd.grad((value * weight).sum(), [t for t in given if t.requires_grad]):
        yield slope.cpu().numpy()


def simulate() -> None:
    """Let tensors say that they are a GPU's, and launches run in the simulator."""
    from daskreg.torch import direct_launch, functional, launch
    from daskreg.torch.compute import correlation, fields, information, sampling
    from daskreg.torch.operators import prepared
    from tests.parity.simulator import prepare_simulator

    prepare_simulator()
    torch.Tensor.is_cuda = property(lambda self: True)
    launched = []

    def run(form: Any, blocks: Any, threads: Any, *arguments: Any, like: Any, shared: int = 0) -> None:
        launched.append(form)
        form[blocks, threads, 0, shared](*(as_taken(a) for a in arguments))

    def kept(form: Any, blocks: Any, threads: Any, *arguments: Any, index: int, shared: int = 0) -> Any:
        def launched_with(*tensors: torch.Tensor) -> None:
            given = iter(tensors)
            run(form, blocks, threads, *(as_given(a, given) for a in arguments), like=None, shared=shared)

        launched_with.arrays = [a for a in arguments if isinstance(a, direct_launch.Array)]
        return launched_with

    def sequence(*launches: Any, cleared: int = 0) -> Any:
        def launched_at(*addresses: int) -> None:
            ctypes.memset(addresses[0], 0, cleared)
            for launched_with, places in launches:
                launched_with(*(at(addresses[k], a) for k, a in zip(places, launched_with.arrays, strict=True)))

        return launched_at

    def at(address: int, array: Any) -> torch.Tensor:
        memory = (ctypes.c_char * (math.prod(array.shape) * array.dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=array.dtype)

    def as_given(argument: Any, tensors: Iterator[torch.Tensor]) -> Any:
        return launch.Voxels(next(tensors), argument.shape) if isinstance(argument, direct_launch.Array) else argument

    def as_taken(argument: Any) -> Any:
        if isinstance(argument, launch.Voxels):
            return launch.view(argument)
        return np.float32(argument) if isinstance(argument, float) else argument

    for module in (launch, correlation, fields, information, sampling):
        module.launch, module.KeptLaunch, module.processors = run, kept, lambda index: 2
        module.LaunchSequence = sequence
    prepared.current_device = lambda: -1
    sampling.window_size = lambda index: 90  # so that most windows fit, some after their planes are divided, and some never
    information.block_memory = lambda index: 8192  # several copies of a table, but not so many that it takes long to fill them
    launch.VOXEL_THREADS, functional.SMALL = (8, 2, 1), 0


def main() -> None:
    simulate()
    torch.set_num_threads(1)
    np.savez(sys.argv[1], **{f"{name}|{k}": v for name in LOSSES for k, v in enumerate(results(name))})


if __name__ == "__main__":
    main()
