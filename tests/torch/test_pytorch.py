"""How operators stand in PyTorch: the compiler, types, memory layouts, registration."""

import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

import daskreg.torch as dt
from daskreg.errors import DaskregError
from daskreg.torch import operators, warped
from tests.torch.oracles import smooth

SHAPE = B, C, D, H, W = 2, 2, 6, 5, 7


def given(dtype=torch.float32, shape=SHAPE, grad=True):
    image, fixed = torch.sigmoid(smooth(shape, 1)).to(dtype), torch.sigmoid(smooth(shape, 2)).to(dtype)
    u = smooth((shape[0], 3, *shape[2:]), 3, 0.8, dtype)
    return image.requires_grad_(grad), fixed, u.requires_grad_(grad)


FUNCTIONS = {
    "mse": lambda m, f, u: dt.mse(m, f),
    "lncc": lambda m, f, u: dt.lncc(m, f, 3),
    "lncc map": lambda m, f, u: dt.lncc(m, f, 3, reduction="none"),
    "mi": lambda m, f, u: dt.mutual_information(m, f, 16),
    "warp": lambda m, f, u: dt.warp(m, u, "border"),
    "grid": lambda m, f, u: dt.grid_sample(m, 0.2 * u.permute(0, 2, 3, 4, 1)),
    "affine": lambda m, f, u: dt.affine_warp(m, torch.eye(3, 4, dtype=m.dtype)[None], u),
    "affine alone": lambda m, f, u: dt.affine_warp(m, torch.eye(3, 4, dtype=m.dtype)[None]),
    "warped mse": lambda m, f, u: dt.warped_loss(m, f, u, "mse"),
    "warped lncc": lambda m, f, u: dt.warped_loss(m, f, u, "lncc", window=3),
    "warped mi": lambda m, f, u: dt.warped_loss(m, f, u, "mi", bins=16),
    "compose": lambda m, f, u: dt.compose(u, u),
    "exponential": lambda m, f, u: dt.exponential(u, 3),
    "gaussian": lambda m, f, u: dt.gaussian(m, 0.7),
    "penalty": lambda m, f, u: dt.gradient_penalty(u),
    "bending": lambda m, f, u: dt.bending_energy(u),
    "determinant": lambda m, f, u: dt.jacobian_determinant(u),
}


def value_and_slopes(function, arguments):
    value = function(*arguments)
    wanted = [t for t in arguments if t.requires_grad]
    slopes = torch.autograd.grad(value.float().square().sum(), wanted, allow_unused=True)
    return [value, *(s for s in slopes if s is not None)]


def close(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_graph_for_all_shapes(name):
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in (SHAPE, (1, 3, 7, 8, 6)):
        close(value_and_slopes(compiled, given(shape=shape)), value_and_slopes(FUNCTIONS[name], given(shape=shape)))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    few = given(dtype)
    single = [t.detach().float().requires_grad_(t.requires_grad) for t in few]
    found, expected = value_and_slopes(FUNCTIONS[name], few), value_and_slopes(FUNCTIONS[name], single)
    close(found[:1], [expected[0].to(found[0].dtype)], 1e-3 if dtype == torch.float16 else 1e-2)
    assert all(s.dtype == dtype for s in found[1:])
    assert len(found) == len(expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_memory_layout(name):
    image, fixed, u = given()
    strange = [t.detach().to(memory_format=torch.channels_last_3d).requires_grad_(t.requires_grad) for t in (image, fixed, u)]
    close(value_and_slopes(FUNCTIONS[name], strange), value_and_slopes(FUNCTIONS[name], (image, fixed, u)))
    wide = [torch.stack([t.detach()] * 2, -1)[..., 0].requires_grad_(t.requires_grad) for t in (image, fixed, u)]
    assert not wide[0].is_contiguous()
    close(value_and_slopes(FUNCTIONS[name], wide), value_and_slopes(FUNCTIONS[name], (image, fixed, u)))


def test_autocast_leaves_losses_in_float32():
    image, fixed, _ = given()
    with torch.autocast("cpu", torch.bfloat16):
        assert dt.lncc(image, fixed, 3).dtype == torch.float32


def operator_cases():
    image, fixed, u = given()
    affine = torch.eye(3, 4)[None].expand(B, 3, 4).contiguous()
    none, ones, slope = torch.empty(0), [1.0] * 3, torch.ones(SHAPE)
    constants = [0.0, 0.0, 1e-5, 0.0, float("inf")]
    kind, intensities = (0, 16, 5, 2), (0.0, 1.0, 0.0, 15.0, 2.0)
    table, factors = torch.rand(B, 20, 20), torch.rand(5, *SHAPE)
    return {
        operators.sample: [(image, u, affine, 0, 0, False, False, True, []),
                           (image, none, affine, 4, 1, False, False, True, [3, 4, 5])],
        operators.sample_backward: [(slope, image, u, affine, 2, 0, False, False, True, True, True, True)],
        operators.correlate: [(fixed, image, ones, ones, ones, constants, True, False, True, False, 3, 1.0),
                              (fixed, image, ones, ones, ones, constants, True, False, False, True, 3, 1.0)],
        operators.correlate_backward: [(torch.ones(1), none, factors, fixed, image, ones, ones, ones, 1.0, True, True)],
        operators.inform: [(fixed, image, kind, intensities, (1e-7, 1e-7, 0.0), 1.0, each) for each in (False, True)],
        operators.inform_backward: [(torch.ones(B), table, fixed, image, kind, intensities, 1.0)],
        operators.squared_difference: [(fixed, image)],
        operators.squared_difference_backward: [(torch.ones(()), fixed, image)],
        operators.penalize: [(u, k) for k in range(4)],
        operators.penalize_backward: [(torch.ones(()), u, 1), (torch.ones(()), u, 2)],
        operators.determinant: [(u,)],
        operators.determinant_backward: [(torch.ones(B, 1, D, H, W), u)],
        operators.filtered: [(image, ones, ones, [1.0], True, False)],
        operators.exponential: [(u, 2, 0)],
        operators.exponential_backward: [(torch.ones_like(u), u, 2, 0)],
        warped.warped: [(fixed, image, u, affine, 0, 0, 1, [1, 0], constants, ones, ones, ones, True, True)],
        warped.scaled: [(torch.ones(()), slope)],
    }  # fmt: skip


FORWARD = "test_schema", "test_faketensor"


@pytest.mark.parametrize("operator", operator_cases(), ids=lambda o: o.name)
def test_operators_are_registered_as_pytorch_wants(operator):
    backward = operator.name.endswith("_backward")
    for arguments in operator_cases()[operator]:
        if backward:  # their derivatives are refused
            arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
        checks = FORWARD if backward or operator in (operators.correlate, operators.inform, warped.warped) else None
        opcheck(operator.registered, arguments, **({"test_utils": checks} if checks else {}))


def test_a_distributed_module_has_the_gradients_of_a_single_one():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for wrap in (lambda m: m, torch.nn.parallel.DistributedDataParallel):
            torch.manual_seed(0)
            module = torch.nn.Conv3d(2, 3, 3, padding=1)
            image, fixed, _ = given(grad=False)
            dt.warped_loss(image, fixed, wrap(module)(image), "lncc", window=3).backward()
            found.append(module.weight.grad)
        assert torch.equal(*found)
    finally:
        torch.distributed.destroy_process_group()


def test_daskreg_does_not_import_pytorch():
    code = "import sys, daskreg, daskreg.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ONE = torch.zeros(1, 1, 4, 4, 4)
MISTAKES = {
    "is torch.int64": lambda: dt.mse(ONE.long(), ONE.long()),
    "one was expected": lambda: dt.lncc(ONE, ONE[..., 1:]),
    "odd numbers were expected": lambda: dt.lncc(ONE, ONE, 4),
    r"\(B, C, Z, Y, X\) was expected": lambda: dt.lncc(ONE[0], ONE[0]),
    "one value or three": lambda: dt.lncc(ONE, ONE, (3, 3)),
    r"\(1, 3, Z, Y, X\) was expected": lambda: dt.warp(ONE, ONE),
    r"\(1, Z, Y, X, 3\) was expected": lambda: dt.grid_sample(ONE, ONE),
    r"\(1, 3, 4\) was expected": lambda: dt.affine_warp(ONE, torch.eye(4)[None]),
    "border is 'edge'; 'zeros' or 'border' or 'reflection' was expected": lambda: dt.warp(ONE, ONE.expand(1, 3, 4, 4, 4), "edge"),
    "0 to 30 were expected": lambda: dt.exponential(ONE.expand(1, 3, 4, 4, 4), 31),
    "at least 3 voxels": lambda: dt.bending_energy(ONE[:, :, :2]),
    "on the displacement's grid": lambda: dt.warped_loss(ONE, ONE[..., 1:], ONE.expand(1, 3, 4, 4, 4)),
    "bins from": lambda: dt.mutual_information(ONE, ONE, 1),
    "0 or more was expected": lambda: dt.gaussian(ONE, -1.0),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_get_one_sentence(sentence):
    with pytest.raises(DaskregError, match=sentence):
        MISTAKES[sentence]()
