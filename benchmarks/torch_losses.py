"""Time and memory of ``daskreg.torch`` on one GPU beside PyTorch, its compiler and other packages.

    python benchmarks/torch_losses.py [--only WORD ...] [--edges 64 128 256 512] [--fused-lncc FOLDER]

CUDA events, 12 calls to warm up, median of 40; memory: the peak less what is there before the call. Opponents are those that can
be imported (monai; fused_lncc, or from FOLDER, where its extension was built; fireants with its extension, see docs/torch.md) and
plain PyTorch; each with ``cudnn.allow_tf32`` off and on where it convolves. Needs PyTorch with CUDA and numba-cuda. Prints a JSON
line per case and writes ``torch_losses.json`` to $OUT, or to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import commit
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import daskreg.torch as dt

OUT = Path(os.environ.get("OUT", Path(__file__).parent / "results")) / "torch_losses.json"
ROWS: list[dict[str, Any]] = []
WARM_UP, TIMES = 12, 40
ROUNDS = 30  # of calls whose host time is measured
BEGAN = time.perf_counter()
Step = Callable[[], Any]


# ---------------------------------------------------------------- measuring


def synchronize() -> None:
    """Wait for the device; nothing waits without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(step: Step, times: int = TIMES) -> float:
    """The median time of a step on the device; fewer times where a step takes long. Without a GPU, of the CPU."""
    for k in range(WARM_UP):
        start = time.perf_counter()
        step()
        synchronize()
        if k and time.perf_counter() - start > 0.25:
            times = 5
            break
    if not torch.cuda.is_available():
        return 1e3 * median(_seconds(step) for _ in range(times))
    events = []
    for _ in range(times):  # without a wait in between: as in a training loop, the device works while the next calls are made
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        step()
        b.record()
        events.append((a, b))
    synchronize()
    return median(a.elapsed_time(b) for a, b in events)


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak(step: Step) -> int:
    """Bytes of the GPU that a step holds at most, less those that are there before it."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def backward(function: Callable[..., torch.Tensor], *given: torch.Tensor, slope: torch.Tensor | None = None) -> Step:
    """A forward and a backward pass, for all of ``given`` that have derivatives;  slope: of what is not a loss."""
    leaves = [t for t in given if t.requires_grad]
    return lambda: torch.autograd.grad(function(*given), leaves, slope)


def report(case: str, who: str, step: Step, n: int, **more: Any) -> None:
    """Measure a case, and keep the error where it fails: the others are still measured."""
    row: dict[str, Any] = {"case": case, "who": who, **more}
    try:
        step()
        row |= {"ms": round(milliseconds(step), 3), "extra_bytes_per_voxel": round(peak(step) / n, 2)}
    except Exception as problem:  # noqa: BLE001  # an opponent may run out of memory
        row["error"] = f"{type(problem).__name__}: {str(problem)[:160]}"
        if who == "daskreg":
            traceback.print_exc()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(row | {"s": round(time.perf_counter() - BEGAN, 1)})


def say(row: dict[str, Any]) -> None:
    ROWS.append(row)
    print(json.dumps(row), flush=True)
    OUT.write_text(json.dumps(ROWS, indent=1) + "\n")


def describe(device: str = "cuda") -> None:
    """Card, versions, and the bandwidth of a copy."""
    a = torch.empty(512**3 if device == "cuda" else 64**3, device=device)
    b = torch.empty_like(a)
    rate = 8 * a.numel() / milliseconds(lambda: b.copy_(a)) / 1e9
    card = torch.cuda.get_device_name() if device == "cuda" else "(no GPU)"
    say({"case": "machine", "card": card, "torch": torch.__version__, "commit": commit(),
         "copy TB/s": round(rate, 2), "warm_up": WARM_UP, "median_of": TIMES})  # fmt: skip


# ---------------------------------------------------------------- opponents


def conv_lncc(moved: torch.Tensor, fixed: torch.Tensor, k: int, separable: bool) -> torch.Tensor:
    """As VoxelMorph's first PyTorch version: five convolutions with ones; or one axis after the other."""
    shape = moved.shape
    f, m = (t.reshape(-1, 1, *shape[2:]) for t in (fixed, moved))

    def box(image: torch.Tensor) -> torch.Tensor:
        if not separable:
            return F.conv3d(image, image.new_ones((1, 1, k, k, k)), padding=k // 2)
        for axis in range(3):
            size, pad = [1, 1, 1], [0, 0, 0]
            size[axis], pad[axis] = k, k // 2
            image = F.conv3d(image, image.new_ones((1, 1, *size)), padding=pad)
        return image

    n = k**3
    sum_f, sum_m = box(f), box(m)
    cross = box(f * m) - sum_f * sum_m / n
    var_f, var_m = box(f * f) - sum_f * sum_f / n, box(m * m) - sum_m * sum_m / n
    return -(cross * cross / (var_f * var_m + 1e-5)).mean()


def plain_mi(moved: torch.Tensor, fixed: torch.Tensor, bins: int = 32) -> torch.Tensor:
    """Weights of all bins for all voxels, as MONAI and TransMorph have them."""
    centers = torch.linspace(0, 1, bins, device=moved.device)
    h = 0.5 / (0.5 / (bins - 1)) ** 2

    def weights(image: torch.Tensor) -> torch.Tensor:
        w = torch.exp(-h * (image.clamp(0, 1).reshape(image.shape[0], -1, 1) - centers) ** 2)
        return w / w.sum(-1, keepdim=True)

    a, b = weights(moved), weights(fixed)
    joint = torch.bmm(a.transpose(1, 2), b) / a.shape[1]
    product = a.mean(1)[:, :, None] * b.mean(1)[:, None]
    return -(joint * torch.log((joint + 1e-7) / (product + 1e-7))).sum((1, 2)).mean()


def plain_warp(image: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The identity, the displacement and ``grid_sample``."""
    sizes = u.shape[2:]
    axes = [torch.arange(n, device=u.device, dtype=u.dtype) for n in sizes]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + u
    scale = torch.tensor([2 / (n - 1) for n in sizes], device=u.device).view(1, 3, 1, 1, 1)
    grid = (points * scale - 1).permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image, grid, align_corners=True)


def imported(name: str) -> Any:
    """A module, or None."""
    try:
        return __import__(name, fromlist=["_"])
    except Exception as problem:  # noqa: BLE001  # not installed, or not for this machine
        say({"case": "opponent", "who": name, "error": f"{type(problem).__name__}: {str(problem)[:160]}"})
        return None


def with_tf32(case: str, who: str, step: Step, n: int, **more: Any) -> None:
    """Both settings of cuDNN's convolutions."""
    for allowed in (False, True):
        torch.backends.cudnn.allow_tf32 = allowed
        report(case, f"{who}, TF32 {'on' if allowed else 'off'}", step, n, **more)
    torch.backends.cudnn.allow_tf32 = True


# ---------------------------------------------------------------- cases


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    fixed = F.avg_pool3d(torch.rand((shape[0], shape[1], *(n + 4 for n in shape[2:])), device="cuda"), 5, 1)
    return (0.7 * fixed + 0.3 * fixed.flip(2)).requires_grad_(), fixed


def lncc(edges: list[int]) -> None:
    """The batch that fused-lncc publishes, then single volumes."""
    monai, fused, fireants = imported("monai.losses"), imported("fused_lncc"), imported("fireants.losses.fusedcc")
    for shape in [(2, 16, 128, 128, 128), *((1, 1, e, e, e) for e in edges)]:
        lncc_of(shape, monai, fused, fireants)


def lncc_of(shape: tuple[int, ...], monai: Any, fused: Any, fireants: Any) -> None:
    moved, fixed = pair(*shape)
    n, at, case = moved.numel(), {"shape": list(shape), "window": 7}, "lncc forward + backward"
    report(case, "daskreg", backward(lambda m: dt.lncc(m, fixed, 7), moved), n, **at)
    report("lncc forward", "daskreg", lambda: dt.lncc(moved.detach(), fixed, 7), n, **at)
    if fused is not None:
        report(case, "fused-lncc", backward(lambda m: fused.fused_lncc_loss(m, fixed, 7), moved), n, **at)
    if fireants is not None:
        theirs = fireants.FusedLocalNormalizedCrossCorrelationLoss(kernel_size=7)
        report(case, "FireANTs, fused", backward(lambda m: theirs(m, fixed), moved), n, **at)
    if monai is not None:
        module = monai.LocalNormalizedCrossCorrelationLoss(kernel_size=7).cuda()
        with_tf32(case, "monai", backward(lambda m: module(m, fixed), moved), n, **at)
    if n <= 2**27:
        with_tf32(case, "separable convolutions", backward(lambda m: conv_lncc(m, fixed, 7, True), moved), n, **at)
    if shape[0] == 2:
        compiled = torch.compile(lambda m, f: conv_lncc(m, f, 7, True))
        report(case, "separable, torch.compile", backward(lambda m: compiled(m, fixed), moved), n, **at)
        report(case, "full convolutions, TF32 on", backward(lambda m: conv_lncc(m, fixed, 7, False), moved), n, **at)


def low_contrast() -> None:
    """What TF32 convolutions make of variances where the contrast is small: the loss itself, which float64 knows."""
    moved, fixed = pair(1, 1, 96, 96, 96)
    for contrast in (1.0, 0.1, 0.01):
        m, f = (0.8 + contrast * (t.detach() - t.detach().mean()) for t in (moved, fixed))
        row = {"case": "lncc of low contrast", "contrast": contrast, "float64": conv_lncc(m.double(), f.double(), 7, True).item(),
               "daskreg": dt.lncc(m, f, 7).item()}  # fmt: skip
        for allowed in (False, True):
            torch.backends.cudnn.allow_tf32 = allowed
            row[f"separable convolutions, TF32 {'on' if allowed else 'off'}"] = conv_lncc(m, f, 7, True).item()
            row[f"full convolutions, TF32 {'on' if allowed else 'off'}"] = conv_lncc(m, f, 7, False).item()
        say(row)


def mi(edges: list[int]) -> None:
    monai, fused = imported("monai.losses"), imported("fireants.losses.fusedmi")
    plain = imported("fireants.losses.mi") if fused is None else None
    for e in edges:
        mi_of(e, monai, fused, plain)


def mi_of(e: int, monai: Any, fused: Any, plain: Any) -> None:
    moved, fixed = pair(1, 1, e, e, e)
    n, at, case = moved.numel(), {"edge": e, "bins": 32}, "mi forward + backward"
    report(case, "daskreg", backward(lambda m: dt.mutual_information(m, fixed), moved), n, **at)
    if fused is not None:
        fireants = fused.FusedGlobalMutualInformationLoss(num_bins=32)
        report(case, "FireANTs, fused", backward(lambda m: fireants(m, fixed), moved), n, **at)
    if e > 256:
        return  # 32 weights a voxel do not fit
    if plain is not None:  # without its extension
        slow = plain.GlobalMutualInformationLoss(num_bins=32)
        report(case, "FireANTs, not fused", backward(lambda m: slow(m, fixed), moved), n, **at)
    if monai is not None:
        module = monai.GlobalMutualInformationLoss(num_bins=32).cuda()
        report(case, "monai", backward(lambda m: module(m, fixed), moved), n, **at)
    report(case, "plain PyTorch", backward(lambda m: plain_mi(m, fixed), moved), n, **at)
    if e == 256:
        compiled = torch.compile(plain_mi)
        report(case, "torch.compile", backward(lambda m: compiled(m, fixed), moved), n, **at)


def sampler(edges: list[int]) -> None:
    for e in edges:
        sampler_of(e)


def sampler_of(e: int) -> None:
    image, weight = pair(1, 1, e, e, e)
    still = image.detach()
    coarse = 2 * torch.randn((1, 3, e // 8, e // 8, e // 8), device="cuda")
    u = F.interpolate(coarse, size=(e, e, e), mode="trilinear").requires_grad_()
    n, at = image.numel(), {"edge": e}

    def compare(case: str, plain: str, ours: Callable[..., Any], theirs: Callable[..., Any], *given: torch.Tensor) -> None:
        report(case, "daskreg", backward(ours, *given, slope=weight), n, **at)
        report(case, plain, backward(theirs, *given, slope=weight), n, **at)

    compare("warp forward + backward", "torch grid_sample with its grid", dt.warp, plain_warp, image, u)
    compare("warp forward + backward, displacement only", "torch grid_sample with its grid",
            lambda v: dt.warp(still, v), lambda v: plain_warp(still, v), u)  # fmt: skip
    identity = F.affine_grid(torch.eye(3, 4, device="cuda")[None], [1, 1, e, e, e], align_corners=False)
    noise = 0.02 * (torch.rand_like(identity) * 2 - 1)
    smooth = u.detach().flip(1).permute(0, 2, 3, 4, 1) * (2 / e)  # the displacement of warp
    for kind, moves in (("smooth", smooth), ("white-noise", noise)):
        grid = (identity + moves).requires_grad_()
        compare(f"grid_sample forward + backward, {kind} grid", "torch", dt.grid_sample,
                lambda a, g: F.grid_sample(a, g, align_corners=False), image, grid)  # fmt: skip
    for loss in ("mse", "lncc", "mi"):
        report(f"warped {loss} forward + backward", "daskreg", backward(warped(still, weight, loss), u), n, **at)
    report("warped mse forward + backward", "torch", backward(lambda v: F.mse_loss(plain_warp(still, v), weight), u), n, **at)


def warped(image: torch.Tensor, fixed: torch.Tensor, loss: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda u: dt.warped_loss(image, fixed, u, loss)


def fields(edges: list[int]) -> None:
    for e in edges:
        v = torch.randn((1, 3, e, e, e), device="cuda").requires_grad_()
        n, at = e**3, {"edge": e}

        def plain_exponential(field: torch.Tensor) -> torch.Tensor:
            field = field / 2**7
            for _ in range(7):
                field = field + plain_warp(field, field)
            return field.square().mean()

        report("exponential forward + backward", "daskreg", backward(lambda a: dt.exponential(a).square().mean(), v), n, **at)
        if e <= 256:
            report("exponential forward + backward", "torch", backward(plain_exponential, v), n, **at)
        report("bending energy forward + backward", "daskreg", backward(dt.bending_energy, v), n, **at)
        report("gradient penalty forward + backward", "daskreg", backward(dt.gradient_penalty, v), n, **at)
        report(
            "jacobian forward + backward", "daskreg", backward(lambda a: dt.jacobian_determinant(a).square().mean(), v), n, **at
        )
        report("gaussian forward + backward", "daskreg", backward(lambda a: dt.gaussian(a, 1.0).square().mean(), v), n, **at)


@torch.library.custom_op("daskreg_benchmark::empty", mutates_args=())
def empty(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """An operator that does nothing."""
    return a.new_empty(())


@empty.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(())


empty.register_autograd(lambda ctx, g: (None, None), setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def overhead() -> None:
    """Host time of a call, without waiting for the device: 128^3, batch 1; forward, without derivatives, and both passes."""
    moved, fixed = pair(1, 1, 128, 128, 128)
    u = torch.zeros((1, 3, 128, 128, 128), device="cuda").requires_grad_()
    calls: dict[str, tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
        "empty custom operator": (empty, (moved, fixed)),
        "mse": (dt.mse, (moved, fixed)),
        "lncc": (lambda m, f: dt.lncc(m, f, 7), (moved, fixed)),
        "mutual information": (dt.mutual_information, (moved, fixed)),
        "warp": (dt.warp, (moved, u)),
        "warp, displacement only": (dt.warp, (fixed, u)),
        "torch mse": (F.mse_loss, (moved, fixed)),
        "torch grid_sample": (lambda a, v: F.grid_sample(a, v.permute(0, 2, 3, 4, 1), align_corners=True), (moved, u)),
    }
    steps: list[tuple[dict[str, Any], str, Step, bool]] = []
    for name, (function, given) in calls.items():
        row: dict[str, Any] = {"case": "host time of a call", "who": name}
        call = partial(function, *given)
        steps += [(row, "microseconds", call, True), (row, "without derivatives", call, False),
                  (row, "forward + backward", both_passes(function, *given), True)]  # fmt: skip
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):  # one after the other, since the processor is slower at some times
        for (_, _, step, recording), found in zip(steps, taken):
            with torch.set_grad_enabled(recording):
                found += [host_microseconds(step)]
    for (row, name, _, _), found in zip(steps, taken):
        row[name] = round(median(found), 1)
    for row in {id(row): row for row, *_ in steps}.values():
        say(row)


def both_passes(function: Callable[..., torch.Tensor], *given: torch.Tensor) -> Step:
    """A call and the derivatives with respect to all that has any, for a slope that is there."""
    slope, leaves = torch.ones_like(function(*given)), [t for t in given if t.requires_grad]
    return lambda: torch.autograd.grad(function(*given), leaves, slope, allow_unused=True)


def host_microseconds(call: Step) -> float:
    """The median time until a call returns, each on a device that has nothing to do."""
    taken = []
    for _ in range(WARM_UP):
        synchronize()
        start = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - start))
    return median(taken[2:])


CASES: dict[str, Callable[[list[int]], None]] = {
    "overhead": lambda edges: overhead(),
    "lncc": lncc,
    "contrast": lambda edges: low_contrast(),
    "mi": mi,
    "sampler": sampler,
    "fields": fields,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--edges", nargs="*", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--fused-lncc", type=Path, help="a folder with the package and its built extension")
    given = parser.parse_args()
    if given.fused_lncc is not None:
        sys.path.insert(0, str(given.fused_lncc))
    describe()
    for name in given.only:
        CASES[name](given.edges)


if __name__ == "__main__":
    main()
