"""Prepared calls are taken by plain tensors of a GPU alone; tensors of the CPU say here that they are a GPU's."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import daskreg.torch as dt
from daskreg.errors import DaskregError
from daskreg.torch.compute.prepared_loss import PreparedLoss
from daskreg.torch.operators import prepared
from daskreg.torch.operators.prepared import Prepared, direct


class Kernels:
    """first . second, and what a prepared derivative is made of."""

    def __init__(self):
        self.calls = []

    def forward(self, first, second):
        self.calls.append("forward")
        return (first * second).sum(), 1 * first

    def backward(self, needs, given, first, second, kept):
        if needs[0]:
            return None
        self.calls.append("backward")
        return None, given * kept


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(prepared, "current_device", lambda: -1)


@pytest.fixture
def made(gpu):
    kernels = Kernels()

    def slopes(needs, given, first, second, kept):
        kernels.calls.append("slopes")
        return given * second if needs[0] else None, given * first if needs[1] else None

    return kernels.calls, Prepared(kernels, slopes)


def test_the_derivative_of_a_loss_is_given_its_addresses_in_order():
    class Loss(PreparedLoss):
        out, slopes = staticmethod(lambda: torch.empty(1)), None

    loss, calls = Loss(), []
    Loss.slopes = property(lambda self: lambda *addresses: calls.append(addresses))
    given, fixed, moved, kept = (torch.empty(1) for _ in range(4))
    nothing, found = loss.backward((False, True), given, fixed, moved, kept)
    assert nothing is None
    assert calls == [tuple(t.data_ptr() for t in (given, kept, fixed, moved, found))]
    assert loss.backward((True, True), given, fixed, moved, kept) is None


def pair():
    torch.manual_seed(0)
    return torch.rand(2, 3), torch.rand(2, 3).requires_grad_()


def test_a_call_and_its_derivative(made):
    calls, product = made
    a, b = pair()
    (slope,) = torch.autograd.grad(product(a, b), b)
    assert torch.equal(slope, a)
    assert calls == ["forward", "backward"]
    with torch.no_grad():
        assert not product(a, b).requires_grad
    assert not product(a, b.detach()).requires_grad


def test_a_swapped_call(made):
    calls, product = made
    product.swapped = True
    a, b = pair()
    assert torch.equal(torch.autograd.grad(product(b, a), b)[0], a)
    assert calls == ["forward", "backward"]


def test_what_is_not_prepared_is_left_to_operators(made):
    calls, product = made
    a, b = pair()
    a.requires_grad_()
    assert all(map(torch.equal, torch.autograd.grad(product(a, b), (a, b)), (b, a)))
    (slope,) = torch.autograd.grad(product(a.detach(), b), b, create_graph=True)
    assert calls == ["forward", "slopes", "forward", "slopes"]
    assert slope.shape == b.shape


def test_tensors_that_hooks_give_back_are_looked_at(made):
    calls, product = made
    a, b = pair()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.t().contiguous().t()):
        (slope,) = torch.autograd.grad(product(a, b), b)
    assert torch.equal(slope, a)
    assert calls == ["forward", "slopes"]


def test_a_mode_during_the_derivative_is_heard(made):
    calls, product = made
    a, b = pair()
    found = product(a, b)

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), named=None):
            return operator(*arguments, **(named or {}))

    with Listener():
        found.backward()
    assert calls == ["forward", "slopes"]


class Image(torch.Tensor):
    pass


OTHERS = {
    "another layout": lambda: torch.rand(3, 2).t(),
    "another type": lambda: torch.rand(2, 3).half(),
    "a subclass": lambda: torch.rand(2, 3).as_subclass(Image),
    "a view that is not yet negated": lambda: torch.complex(torch.rand(2, 3), torch.rand(2, 3)).conj().imag,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_left_to_operators(gpu, name):
    a, _ = pair()
    assert direct(a, torch.nn.Parameter(a))
    assert not direct(a, OTHERS[name]())


def test_tensors_of_other_devices_are_left_to_operators(gpu, monkeypatch):
    monkeypatch.setattr(prepared, "current_device", lambda: 0)
    assert not direct(*pair())
    monkeypatch.undo()
    assert not direct(*pair())


def test_a_pytorch_without_what_tells_plain_tensors_has_nothing_prepared(gpu, monkeypatch):
    monkeypatch.setattr("daskreg.torch.operators.derivatives.KNOWN", False)
    assert not direct(*pair())


GRID = torch.zeros(1, 2, 3, 4, 3)


@pytest.mark.parametrize("grid", [GRID.expand(2, -1, -1, -1, -1), GRID[..., :2], GRID[0]])
def test_a_grid_of_another_shape_is_not_left_to_pytorch(gpu, grid):
    image = torch.rand(1, 1, 2, 3, 4)
    assert torch.equal(dt.grid_sample(image, GRID), torch.nn.functional.grid_sample(image, GRID, align_corners=False))
    with pytest.raises(DaskregError, match=r"\(1, Z, Y, X, 3\) was expected"):
        dt.grid_sample(image, grid)
    with pytest.raises(DaskregError, match="padding_mode is 'edge'"):
        dt.grid_sample(image, GRID, padding_mode="edge")


def test_prepared_calls_do_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr(prepared, "_PREPARED", found := {})
    monkeypatch.setattr(prepared, "MOST_LAUNCHES", 3)
    for n in range(8):
        assert prepared.keep(("key", n), n) == n
        assert len(found) <= 3
