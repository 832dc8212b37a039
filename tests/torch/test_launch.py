"""Arguments reach the CUDA driver as a compiled kernel expects them; the driver is a stand-in that reads them back."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from daskreg.errors import DaskregError
from daskreg.kernels.compiler.formula import CPU
from daskreg.kernels.compiler.launch import Kernel
from daskreg.torch import direct_launch, launch
from daskreg.torch.direct_launch import Array, DirectLaunch, Function, KeptLaunch, LaunchSequence, Voxels, function
from daskreg.torch.kernels.elementwise import squared_difference_batch, squared_difference_batch_backward

SIZES = {"Q": ctypes.c_uint64, "q": ctypes.c_int64, "I": ctypes.c_uint32, "i": ctypes.c_int32, "f": ctypes.c_float}


class Form:
    """A kernel that is compiled for anything."""

    def compile(self, types):
        self.types = types
        function = SimpleNamespace(handle=77, device=SimpleNamespace(id=0))
        return SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: function))


class Configuration(ctypes.Structure):
    """CUlaunchConfig, as cuda.h has it."""

    _fields_ = [*((n, ctypes.c_uint) for n in ("bx", "by", "bz", "tx", "ty", "tz", "shared")),
                ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint)]  # fmt: skip


@pytest.fixture
def driver(monkeypatch):
    seen = SimpleNamespace(status=0, calls=[])

    def call(configuration, handle, places, extra):
        c = Configuration.from_address(configuration)
        assert (c.attributes, c.count, extra) == (None, 0, None)
        seen.calls.append((handle, (c.bx, c.by, c.bz), (c.tx, c.ty, c.tz), c.shared, c.stream or 0, places))
        return seen.status

    monkeypatch.setattr(direct_launch, "_launcher", lambda: call)
    monkeypatch.setattr(direct_launch, "_FUNCTIONS", {})
    monkeypatch.setattr(direct_launch, "_LAUNCHES", {})
    monkeypatch.setattr(Function, "allow", lambda self, shared: None)
    return seen


def read(places, letters):
    """What a kernel finds behind the addresses of its parameters."""
    addresses = (ctypes.c_void_p * len(letters)).from_address(places)
    return [SIZES[letter].from_address(place).value for letter, place in zip(letters, addresses, strict=True)]


LETTERS = "IIII" + "QQqqQqqqqqq" + "iifQ" + "QQqqQqq"


def given():
    scalars = 7, True, 0.5, np.uint64(2**40)
    box = tuple(np.uint32(v) for v in (1, 2, 3, 4))
    return [box, Voxels(torch.rand(24), (2, 3, 4)), *scalars, Voxels(torch.zeros(5, dtype=torch.int64), (5,))]


def expected(arguments):
    image, counts = arguments[1].tensor, arguments[-1].tensor
    array = [0, 0, 24, 4, image.data_ptr(), 2, 3, 4, 48, 16, 4]
    return [1, 2, 3, 4, *array, *arguments[2:6], 0, 0, 5, 8, counts.data_ptr(), 5, 8]


def test_parameters_are_where_the_driver_is_told(driver):
    arguments = given()
    kinds, scalars, addresses = direct_launch.packed(arguments)
    compiled = function(Form(), 0, kinds)
    DirectLaunch(compiled, kinds)((1, 2, 3), (64, 4, 1), 96, 99, scalars, addresses)
    ((*seen, _),) = driver.calls
    assert seen == [77, (1, 2, 3), (64, 4, 1), 96, 99]
    array, counts = "array(float32, 3d, C)", "array(int64, 1d, C)"
    assert [str(t) for t in compiled.form.types] == ["UniTuple(uint32 x 4)", array, "int32", "int32", "float32", "uint64", counts]


def test_launches_of_the_same_shapes_write_values_alone(driver, monkeypatch):
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    monkeypatch.setattr(direct_launch, "_stream", lambda index: 5)
    form, found = Form(), []
    for _ in range(3):
        arguments = given()
        direct_launch.launch(form, (1, 1, 1), (32, 1, 1), *arguments, like=arguments[1].tensor)
        found.append(read(driver.calls[-1][-1], LETTERS))
        assert found[-1] == expected(arguments)
    assert len({tuple(f) for f in found}) == 3
    assert len(direct_launch._LAUNCHES) == len(direct_launch._FUNCTIONS) == 1
    wide = [arguments[0], Voxels(torch.rand(24), (4, 3, 2)), *arguments[2:]]
    direct_launch.launch(form, (1, 1, 1), (32, 1, 1), *wide, like=arguments[1].tensor)
    assert read(driver.calls[-1][-1], LETTERS)[9:15] == [4, 3, 2, 24, 8, 4]
    assert (len(direct_launch._LAUNCHES), len(direct_launch._FUNCTIONS)) == (2, 1)


def test_a_kept_launch_writes_addresses_and_the_stream_alone(driver, monkeypatch):
    streams = iter((5, 5, 9))
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    monkeypatch.setattr(direct_launch, "_stream", lambda index: next(streams))
    arguments = given()
    arrays = Array((2, 3, 4)), Array((5,), torch.int64)
    kept = KeptLaunch(Form(), (1, 2, 3), (64, 4, 1), arguments[0], arrays[0], *arguments[2:6], arrays[1], index=-1, shared=96)
    for stream in (5, 5, 9):
        image, counts = torch.rand(2, 3, 4), torch.zeros(5, dtype=torch.int64)
        kept(image, counts)
        *seen, places = driver.calls[-1]
        assert seen == [77, (1, 2, 3), (64, 4, 1), 96, stream]
        assert read(places, LETTERS) == expected([arguments[0], Voxels(image, ()), *arguments[2:6], Voxels(counts, ())])


def test_a_kept_launch_of_no_blocks_calls_nothing(driver, monkeypatch):
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    KeptLaunch(Form(), (1, 0, 1), (64, 4, 1), Array((0,)), index=-1)(torch.zeros(0))
    assert not driver.calls


@pytest.fixture
def sequence(driver, monkeypatch):
    """Two launches, of a, b and of c, a, after 40 bytes of a are cleared; and what is cleared."""
    driver.cleared = []

    def clear(*arguments):
        driver.cleared.append(arguments)
        driver.before = len(driver.calls)
        return driver.status

    monkeypatch.setattr(direct_launch, "_clearer", lambda: clear)
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    monkeypatch.setattr(direct_launch, "_stream", lambda index: 5)
    first = KeptLaunch(Form(), (1, 2, 3), (64, 4, 1), 7, Array((10,)), Array((6,)), index=-1, shared=96)
    none = KeptLaunch(Form(), (0, 2, 3), (64, 4, 1), Array((10,)), index=-1)
    second = KeptLaunch(Form(), (4, 1, 1), (32, 1, 1), Array((3,)), 0.5, Array((10,)), index=-1)
    return LaunchSequence((first, (0, 1)), (none, (1,)), (second, (2, 0)), cleared=40)


def test_a_sequence_writes_each_address_once(driver, sequence, monkeypatch):
    streams = iter((5, 5, 9))
    monkeypatch.setattr(direct_launch, "_stream", lambda index: next(streams))
    for stream in (5, 5, 9):
        driver.calls.clear()
        sequence(1000, 2000, 3000)
        assert (driver.cleared[-1], driver.before) == ((1000, 0, 40, stream), 0)
        (*first, a), (*second, b) = driver.calls
        assert first == [77, (1, 2, 3), (64, 4, 1), 96, stream]
        assert second == [77, (4, 1, 1), (32, 1, 1), 0, stream]
        assert read(a, "i" + 2 * "QQqqQqq") == [7, 0, 0, 10, 4, 1000, 10, 4, 0, 0, 6, 4, 2000, 6, 4]
        assert read(b, "QQqqQqq" + "f" + "QQqqQqq") == [0, 0, 3, 4, 3000, 3, 4, 0.5, 0, 0, 10, 4, 1000, 10, 4]


def test_a_sequence_does_not_change_the_launches_it_is_made_of(driver, monkeypatch):
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    monkeypatch.setattr(direct_launch, "_stream", lambda index: 5)
    kept, tensor = KeptLaunch(Form(), (1, 1, 1), (32, 1, 1), Array((3,)), index=-1), torch.zeros(3)
    kept(tensor)
    sequence = LaunchSequence((kept, (0,)))  # held, as its memory is read afterwards
    sequence(1000)
    kept(tensor)
    assert [read(c[-1], "QQqqQqq")[4] for c in driver.calls[1:]] == [1000, tensor.data_ptr()]


def test_a_sequence_in_a_thread_without_a_context_gets_one(driver, sequence, monkeypatch):
    driver.status = 201
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: setattr(driver, "status", 0))
    sequence(1000, 2000, 3000)
    assert (len(driver.cleared), len(driver.calls)) == (2, 2)
    driver.status = 700
    with pytest.raises(DaskregError, match="error 700"):
        sequence(1000, 2000, 3000)


def test_launches_that_are_kept_do_not_grow_without_bound(driver, monkeypatch):
    monkeypatch.setattr(direct_launch, "current_device", lambda: -1)
    monkeypatch.setattr(direct_launch, "_stream", lambda index: 5)
    monkeypatch.setattr(direct_launch, "MOST_LAUNCHES", 3)
    form = Form()
    for n in range(1, 9):
        direct_launch.launch(form, (1, 1, 1), (32, 1, 1), launch.flat(torch.zeros(n)), like=torch.zeros(1))
        assert len(direct_launch._LAUNCHES) <= 3


def test_a_refusal_of_the_driver_is_reported(driver):
    driver.status = 700
    with pytest.raises(DaskregError, match="error 700"):
        DirectLaunch(function(Form(), 0, (int,)), (int,))((1, 1, 1), (1, 1, 1), 0, 0, [1], [])


def test_a_thread_without_a_context_gets_one(driver, monkeypatch):
    driver.status = 201
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: setattr(driver, "status", 0))
    DirectLaunch(function(Form(), 0, (int,)), (int,))((1, 1, 1), (1, 1, 1), 0, 0, [1], [])
    assert len(driver.calls) == 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: None)
    driver.status = 201
    with pytest.raises(DaskregError, match="error 201"):
        DirectLaunch(function(Form(), 0, (int,)), (int,))((1, 1, 1), (1, 1, 1), 0, 0, [1], [])


def test_shared_memory_is_asked_for_where_a_block_takes_more_than_before(driver, monkeypatch):
    asked = []

    def allow(self, shared):
        asked.append(shared)
        self.shared = shared

    monkeypatch.setattr(Function, "allow", allow)
    direct = DirectLaunch(function(Form(), 0, (int,)), (int,))
    # the driver allows 48 KiB less what is static of a kernel, which is not known here
    for shared in (0, 48 * 1024, 60_000, 50_000, 70_000):
        direct((1, 1, 1), (1, 1, 1), shared, 0, [1], [])
    assert asked == [48 * 1024, 60_000, 70_000]


def test_other_types_are_refused():
    with pytest.raises(DaskregError, match="float64 on a CPU"):
        function(Form(), 0, ((torch.float64, (1,)),))


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
    rows = launch.run(squared_difference_batch, (11, 3, 5), launch.planes(a), launch.planes(b), like=a)
    torch.testing.assert_close(rows.sum(), ((a - b) ** 2).sum())
    out = torch.full_like(a, torch.nan)
    given = launch.flat(torch.ones(1))
    launch.run(squared_difference_batch_backward, (11, 3, 5), 2.0, given, *map(launch.planes, (a, b, out)), like=a)
    torch.testing.assert_close(out, 2 * (b - a))
    assert len(parts) == 6
