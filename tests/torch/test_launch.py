"""Arguments reach the CUDA driver as a compiled kernel expects them; the driver is a stand-in that reads them back."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from daskreg.errors import DaskregError
from daskreg.kernels.compiler.formula import CPU
from daskreg.kernels.compiler.launch import Kernel
from daskreg.torch import launch
from daskreg.torch.kernels.elementwise import squared_difference, squared_difference_backward
from daskreg.torch.launch import DirectLaunch, Voxels

SIZES = {"Q": ctypes.c_uint64, "q": ctypes.c_int64, "I": ctypes.c_uint32, "i": ctypes.c_int32, "f": ctypes.c_float}


class Form:
    """A kernel that is compiled for anything."""

    def compile(self, types):
        self.types = types
        function = SimpleNamespace(handle=77, device=SimpleNamespace(id=0))
        return SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: function))


@pytest.fixture
def driver(monkeypatch):
    seen = SimpleNamespace(status=0, calls=[])

    def call(handle, bx, by, bz, tx, ty, tz, shared, stream, places, extra):
        seen.calls.append((handle, (bx, by, bz), (tx, ty, tz), shared, stream, list(places)))
        return seen.status

    monkeypatch.setattr(launch, "_launcher", lambda: call)
    return seen


def test_arguments_are_packed_one_after_the_other(driver):
    tensor = torch.arange(24, dtype=torch.float32)
    counts = torch.zeros(5, dtype=torch.int64)
    given = [
        tuple(np.uint32(v) for v in (1, 2, 3, 4)),
        Voxels(tensor, (2, 3, 4)),
        7,
        True,
        0.5,
        np.uint64(2**40),
        Voxels(counts, (5,)),
    ]
    values = []
    kinds = tuple(launch._pack(a, values) for a in given)
    direct = DirectLaunch(Form(), kinds)
    direct((1, 2, 3), (64, 4, 1), 0, 99, values)
    ((handle, blocks, threads, shared, stream, places),) = driver.calls
    assert (handle, blocks, threads, shared, stream) == (77, (1, 2, 3), (64, 4, 1), 0, 99)
    letters = "IIII" + "QQqqQqqqqqq" + "iifQ" + "QQqqQqq"
    read = [SIZES[letter].from_address(place).value for letter, place in zip(letters, places, strict=True)]
    array = [0, 0, 24, 4, tensor.data_ptr(), 2, 3, 4, 48, 16, 4]
    assert read == [1, 2, 3, 4, *array, 7, 1, 0.5, 2**40, 0, 0, 5, 8, counts.data_ptr(), 5, 8]
    found = [str(t) for t in direct.form.types]
    assert found == [
        "UniTuple(uint32 x 4)",
        "array(float32, 3d, C)",
        "int32",
        "int32",
        "float32",
        "uint64",
        "array(int64, 1d, C)",
    ]


def test_a_refusal_of_the_driver_is_reported(driver):
    driver.status = 700
    with pytest.raises(DaskregError, match="error 700"):
        DirectLaunch(Form(), (int,))((1, 1, 1), (1, 1, 1), 0, 0, [1])


def test_other_types_are_refused():
    with pytest.raises(DaskregError, match="float64 on a CPU"):
        DirectLaunch(Form(), ((torch.float64, 1),))


def test_many_planes_take_several_launches(monkeypatch):
    """A grid has at most 65535 blocks along y and z; the stand-in runs each part on the CPU."""
    parts = []

    def run(kernel, blocks, threads, n, *arguments, like):
        parts.append(blocks)
        launch.on_cpu(kernel.launcher(CPU), tuple(int(v) for v in n), *arguments)

    monkeypatch.setattr(launch, "launch", run)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(launch, "MAX_GRID", 4)
    monkeypatch.setattr(Kernel, "without", lambda self, absent: self)
    a, b = torch.rand(11, 3, 5), torch.rand(11, 3, 5)
    rows = launch.run(squared_difference, (11, 3, 5), launch.planes(a), launch.planes(b), like=a)
    torch.testing.assert_close(rows.sum(), ((a - b) ** 2).sum())
    out = torch.full_like(a, torch.nan)
    given = launch.flat(torch.ones(1))
    launch.run(squared_difference_backward, (11, 3, 5), 2.0, given, *map(launch.planes, (a, b, out)), like=a)
    torch.testing.assert_close(out, 2 * (b - a))
    assert len(parts) == 6
