"""``daskreg.torch`` on CUDA tensors: values and derivatives of the CPU, and how it stands in PyTorch there.

Needs PyTorch with CUDA and numba-cuda: ``pytest -m gpu tests/gpu/test_torch_on_gpu.py``.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

pytestmark = pytest.mark.gpu
NAMES = ["mse", "lncc 3", "lncc 5, one derivative", "lncc 9, counted", "lncc 1 x 3 x 5, each", "lncc not squared",
         "lncc of many planes", "mi", "mi of splines", "mi, sigma 1", "mi of what is no number", "not contiguous",
         "warp", "warp, border", "warp, reflection", "warp, far", "warp, smooth", "warp, nearest",
         "grid", "affine", "affine first", "affine alone", "compose", "exponential", "gaussian", "l1", "l2", "bending",
         "normalized bending", "determinant", "warped mse", "warped lncc", "warped mi"]  # fmt: skip


@pytest.fixture
def cases():
    """The cases of the simulator; imported where a test runs, because they import PyTorch."""
    return import_module("tests.torch.simulated")


@pytest.fixture
def torch():
    return import_module("torch")


@pytest.fixture
def dt():
    return import_module("daskreg.torch")


def test_all_cases_of_the_simulator_are_run(cases):
    assert list(cases.LOSSES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_cuda_tensors_give_what_cpu_tensors_give(cases, name):
    for a, b in zip(cases.results(name, "cuda"), cases.results(name), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * max(1e-3, float(np.nanmax(np.abs(b)))))


@pytest.fixture
def no_volume_is_small(monkeypatch):
    functional = import_module("daskreg.torch.functional")
    monkeypatch.setattr(functional, "SMALL", 0)
    functional._left_to_pytorch.cache_clear()
    yield
    functional._left_to_pytorch.cache_clear()


def test_grids_that_are_not_left_to_pytorch_give_what_cpu_tensors_give(cases, no_volume_is_small):
    test_cuda_tensors_give_what_cpu_tensors_give(cases, "grid")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e4])
def test_slopes_that_are_no_numbers_or_large_stay_where_they_are(torch, dt, wrong):
    image, u = torch.rand((1, 2, 20, 40, 50)), 3 * torch.randn((1, 3, 20, 40, 50))
    slope = torch.rand_like(image)
    slope[0, 0, 7, 8, 9] = wrong
    found = []
    for device in ("cpu", "cuda"):
        a = image.to(device).requires_grad_()
        (of_image,) = torch.autograd.grad(dt.warp(a, u.to(device)), (a,), slope.to(device))
        found.append(of_image.cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("size", [5, 210])
def test_small_grids_alone_are_left_to_pytorch(torch, dt, size):
    image, grid = torch.rand((1, 1, *(size,) * 3), device="cuda"), torch.rand((1, *(size,) * 3, 3), device="cuda")
    left = type(dt.grid_sample(image.requires_grad_(), grid).grad_fn).__name__ == "GridSampler3DBackward0"
    assert left == (size == 5)
    assert dt.grid_sample(image.half(), grid, padding_mode="border").dtype == torch.float16


def volumes(torch, shape=(2, 3, 70, 81, 93)):
    torch.manual_seed(0)
    moved, fixed = torch.rand(shape, device="cuda"), torch.rand(shape, device="cuda")
    u = torch.randn((shape[0], 3, *shape[2:]), device="cuda")
    return moved.requires_grad_(), fixed, u.requires_grad_()


FUNCTIONS = {
    "lncc": lambda dt, m, f, u: dt.lncc(m, f, 7),
    "mi": lambda dt, m, f, u: dt.mutual_information(m, f),
    "warp": lambda dt, m, f, u: dt.warp(m, u).square().mean(),
    "warped lncc": lambda dt, m, f, u: dt.warped_loss(m, f, u, "lncc"),
    "exponential": lambda dt, m, f, u: dt.exponential(u, 4).square().mean(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_large_volumes_agree_with_the_cpu(torch, dt, name):
    given = volumes(torch)
    there = [t.detach().cpu().requires_grad_(t.requires_grad) for t in given]
    found, expected = (FUNCTIONS[name](dt, *tensors) for tensors in (given, there))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(found, given[::2], allow_unused=True), torch.autograd.grad(expected, there[::2], allow_unused=True)
    ):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.cpu() - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("name", ["lncc", "mi"])
def test_results_are_the_same_bits_every_time(torch, dt, name):
    moved, fixed, u = volumes(torch)
    runs = [torch.autograd.grad(FUNCTIONS[name](dt, moved, fixed, u), moved)[0] for _ in range(3)]
    assert all(torch.equal(runs[0], r) for r in runs[1:])


PREPARED = {
    "mse": lambda dt, m, f, u: dt.mse(m, f),
    "lncc": FUNCTIONS["lncc"],
    "lncc of each volume": lambda dt, m, f, u: dt.lncc(f, m, 5, reduction="volume").square().sum(),
    "mi": FUNCTIONS["mi"],
    "mi of each": lambda dt, m, f, u: dt.mutual_information(m, f, 16, reduction="none").square().sum(),
    "warp": lambda dt, m, f, u: dt.warp(f, u).square().mean(),
    "compose": lambda dt, m, f, u: dt.compose(u.detach(), u).square().mean(),
}


@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.parametrize("both", [False, True])
def test_prepared_calls_have_the_bits_of_operators(torch, dt, monkeypatch, name, both):
    moved, fixed, u = volumes(torch, (2, 2, 20, 31, 43))
    given = moved, fixed.requires_grad_(both and "warp" not in name), u
    found = value_and_derivatives(torch, dt, name, given), value_and_derivatives(torch, dt, name, given)
    monkeypatch.setattr("daskreg.torch.functional.direct", lambda *tensors: False)
    for prepared in found:
        assert all(map(torch.equal, prepared, value_and_derivatives(torch, dt, name, given)))


def value_and_derivatives(torch, dt, name, given):
    found = PREPARED[name](dt, *given)
    of = torch.autograd.grad(found, [t for t in given if t.requires_grad], allow_unused=True)
    return [found.detach(), *(s for s in of if s is not None)]


@pytest.mark.parametrize("name", ["mse", "lncc", "mi", "warp"])
def test_second_derivatives_are_refused(torch, dt, name):
    given = volumes(torch, (1, 1, 5, 6, 7))
    of = torch.autograd.grad(PREPARED[name](dt, *given), given[2 * (name == "warp")], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="second derivative"):
        of.square().sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_stream_of_its_own(torch, dt, name):
    moved, fixed, u = volumes(torch)
    expected = FUNCTIONS[name](dt, moved, fixed, u)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        scaled = (moved * 2).mul(0.5)  # not ready when the kernel is launched
        found = FUNCTIONS[name](dt, scaled, fixed, u)
        slopes = torch.autograd.grad(found, (moved, u), allow_unused=True)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert all(torch.isfinite(s).all() for s in slopes if s is not None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_cuda_graphs_replay_them(torch, dt, name):
    moved, fixed, u = volumes(torch)

    def step():
        return torch.autograd.grad(FUNCTIONS[name](dt, moved, fixed, u), (moved, u), allow_unused=True)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = [s.clone() for s in step() if s is not None]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip([s for s in captured if s is not None], expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_nothing_waits_for_the_device(torch, dt):
    given = volumes(torch)
    for function in FUNCTIONS.values():
        function(dt, *given).backward()  # compiles, and copies tables to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        for function in FUNCTIONS.values():
            function(dt, *given).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_lncc_needs_three_volumes_at_most(torch, dt):
    moved, fixed, _ = volumes(torch, (1, 1, 128, 128, 128))
    dt.lncc(moved, fixed, 7).backward()
    moved.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dt.lncc(moved, fixed, 7).backward()
    gradient = moved.grad.numel() * 4
    assert torch.cuda.max_memory_allocated() - before - gradient <= 3.1 * gradient


def test_tf32_does_not_touch_the_variance(torch, dt):
    """Windows of low contrast: a convolution in TF32 loses the variance, this does not."""
    torch.manual_seed(0)
    contrast = torch.nn.functional.avg_pool3d(torch.rand((1, 1, 66, 66, 66), device="cuda", dtype=torch.float64), 3, 1)
    moved, fixed = 0.8 + 0.01 * contrast, 0.8 + 0.01 * (0.6 * contrast + 0.4 * contrast.flip(2))
    oracle = import_module("tests.torch.oracles").lncc
    weights = [(1.0,) * 7] * 3
    exact = oracle(moved, fixed, weights, epsilon=1e-12).mean().item()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = -dt.lncc(moved.float(), fixed.float(), 7, epsilon=1e-12).item()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert found == pytest.approx(exact, abs=1e-3)


def test_float64_is_refused(torch, dt):
    with pytest.raises(import_module("daskreg.errors").DaskregError, match="float64 on a CPU"):
        dt.mse(*(torch.zeros(1, 1, 4, device="cuda", dtype=torch.float64),) * 2)
