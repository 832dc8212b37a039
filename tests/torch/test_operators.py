"""Plain tensors take operators past PyTorch's dispatcher; all that would see them there still does."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import daskreg.torch as dt
from daskreg.torch.compute import fields
from daskreg.torch.operators import derivatives, squared_difference
from tests.torch.test_derivatives import SECOND
from tests.torch.test_pytorch import FUNCTIONS, given, value_and_slopes

SHAPE = 1, 1, 4, 3, 5


@pytest.fixture
def registered(monkeypatch):
    """Calls take the way through the dispatcher."""
    return lambda: monkeypatch.setattr(derivatives, "seen_by_autograd_alone", lambda tensors: False)


def pair():
    moved, fixed, _ = given(shape=SHAPE)
    return moved, fixed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_ways_give_the_same_bits(name, registered):
    found = value_and_slopes(FUNCTIONS[name], given())
    registered()
    for a, b in zip(found, value_and_slopes(FUNCTIONS[name], given()), strict=True):
        assert torch.equal(a, b)


def test_plain_tensors_do_not_take_the_dispatcher(monkeypatch):
    monkeypatch.setattr(squared_difference, "registered", None)
    moved, fixed = pair()
    assert dt.mse(moved, fixed).grad_fn is not None
    assert dt.mse(torch.nn.Parameter(moved.detach()), fixed).requires_grad
    with torch.no_grad():
        assert not dt.mse(moved, fixed).requires_grad
    with torch.inference_mode():
        assert dt.mse(moved, fixed).is_inference()


def test_a_pytorch_without_what_tells_plain_tensors_has_its_dispatcher_called(monkeypatch):
    monkeypatch.setattr("daskreg.torch.operators.derivatives.KNOWN", False)
    monkeypatch.setattr(squared_difference, "apply", None)
    assert dt.mse(*pair()).grad_fn is not None


def test_second_derivatives_are_refused_both_ways(registered):
    registered()
    moved, fixed = pair()
    (slope,) = torch.autograd.grad(SECOND["local correlation"](moved, fixed, None), moved, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative of local correlation"):
        slope.sum().backward()


def test_a_mode_sees_operators_and_their_derivatives():
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), named=None):
            seen.append(str(operator))
            return operator(*arguments, **(named or {}))

    moved, fixed = pair()
    with Recorder():
        dt.mse(moved, fixed).backward()
    ours = [s for s in seen if "daskreg" in s]
    assert ours == ["daskreg.squared_difference.default", "daskreg.squared_difference_backward.default"]


def test_a_subclass_sees_operators():
    seen = []

    class Image(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), named=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, arguments, named)

    moved, fixed = pair()
    assert isinstance(dt.mse(moved.detach().as_subclass(Image), fixed), Image)
    assert "daskreg.squared_difference.default" in seen


def test_a_tracer_sees_operators():
    graph = make_fx(dt.mse)(*(t.detach() for t in pair()))
    assert torch.ops.daskreg.squared_difference.default in [n.target for n in graph.graph.nodes]


def test_a_transform_sees_operators():
    moved, fixed = (t.detach() for t in pair())
    with pytest.raises(RuntimeError, match="functorch"):  # PyTorch's operators in Python have no rule for it
        torch.func.grad(dt.mse)(moved, fixed)


def test_a_view_that_is_not_yet_negated():
    moved, fixed = (t.detach() for t in pair())
    negative = torch.complex(fixed, moved).conj().imag
    assert negative.is_neg()
    assert torch.equal(dt.mse(negative, fixed), dt.mse(-moved, fixed))


def test_hooks_of_saved_tensors_are_called():
    packed = []
    moved, fixed = pair()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        dt.mse(moved, fixed).backward()
    assert packed == [moved.shape, fixed.shape]


SCALARS = "mse", "lncc", "mi", "warped mse", "warped lncc", "warped mi", "penalty", "bending"


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("batch", [1, 2])
def test_losses_are_added_to_in_place(name, batch):
    found = []
    for add in (torch.Tensor.add, torch.Tensor.add_):
        tensors = given(shape=(batch, *SHAPE[1:]))
        add(FUNCTIONS[name](*tensors), 1.0).backward()
        found.append([t.grad for t in tensors if t.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # PyTorch's own use of it
def test_forward_mode_derivatives_are_refused():
    moved, fixed = (t.detach() for t in pair())
    with pytest.raises(RuntimeError, match=r"forward-mode derivative of daskreg::squared_difference"):
        torch.func.jvp(dt.mse, (moved, fixed), (moved, fixed))
    with forward_ad.dual_level():
        assert dt.mse(moved, fixed) == dt.mse(fixed, moved)
        with pytest.raises(RuntimeError, match="forward-mode"):
            dt.gaussian(forward_ad.make_dual(moved, fixed), 0.0)


def test_a_first_call_in_inference_mode_changes_nothing(monkeypatch):
    moved, fixed = pair()
    derivatives.plain_keys.cache_clear()
    with torch.inference_mode():
        dt.mse(moved, fixed)
    monkeypatch.setattr(squared_difference, "registered", None)
    assert dt.mse(moved, fixed).grad_fn is not None


def test_tables_of_filters_do_not_grow_without_bound(monkeypatch):
    monkeypatch.setattr(fields, "_TABLES", {})
    monkeypatch.setattr(fields, "MOST_TABLES", 3)
    image = torch.rand(SHAPE)
    found = [dt.gaussian(image, 0.5 + k / 10) for k in range(4)]
    assert len(fields._TABLES) == 3
    assert all(torch.equal(dt.gaussian(image, 0.5 + k / 10), f) for k, f in enumerate(found))
