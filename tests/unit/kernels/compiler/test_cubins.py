"""Compiled kernels kept on disk: found again, never mistaken for one another, never in the way."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daskreg.kernels.compiler import cubin_format
from daskreg.kernels.compiler.cache import folder
from daskreg.kernels.compiler.configuration import SIMULATED
from daskreg.kernels.compiler.cubins import CudaKernelCache, attach_cache
from tests.cuda_libraries import require_cuda_compiler

pytest.importorskip("numba_cuda")
numba_types = pytest.importorskip("numba.cuda.types")


LIBRARY = {"name": "library", "entry_name": "entry", "llvm_strs": ["text"], "ptx_cache": {(9, 0): "text"}, "codegen": None,
           "linkerinfo_cache": {}, "max_registers": None, "nvvm_options": {"fastmath": False, "opt": 3}, "nrt": False,
           "needs_cudadevrt": False, "use_cooperative": False, "lto": False}  # fmt: skip


class Library:
    """In place of numba-cuda's library of a kernel."""

    def __init__(self, code: object = b"cubin", **parts: object) -> None:
        self.parts = {**LIBRARY, "cubin_cache": {(9, 0, "a"): code}, **parts}

    def _reduce_states(self) -> dict[str, object]:
        return self.parts


PARTS = {"cooperative": False, "name": "entry", "signature": "types", "codelibrary": Library(), "debug": 0, "lineinfo": False,
         "call_helper": object(), "extensions": [], "launch_config_sensitive": False}  # fmt: skip
PLAIN = {"debug": False, "opt": True, "lineinfo": False, "launch_bounds": None, "fastmath": False}
HOPPER, AMPERE = ((13, 0), (9, 0)), ((13, 0), (8, 0))
FLOAT = (numba_types.float32,)


class Context:
    """The part of a compiler's context that a cache uses."""

    def __init__(self, machine: object) -> None:
        self.machine = machine

    def refresh(self) -> None:
        """Nothing is stale."""

    def codegen(self) -> SimpleNamespace:
        return SimpleNamespace(magic_tuple=lambda: self.machine)


def kernel(code: object = b"cubin", machine: object = HOPPER) -> SimpleNamespace:
    parts = {**PARTS, "codelibrary": Library(code)}
    held = SimpleNamespace(codegen=SimpleNamespace(magic_tuple=lambda: machine))
    return SimpleNamespace(_codelibrary=held, _reduce_states=lambda: parts)


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Libraries whose machine code was loaded into the device."""
    found: list[object] = []

    def get_cufunc(library: object) -> SimpleNamespace:
        found.append(library)
        return SimpleNamespace(module=SimpleNamespace(initialized=True))

    monkeypatch.setattr("numba.cuda.codegen.CUDACodeLibrary.get_cufunc", get_cufunc)
    return found


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return folder("cuda")


def test_a_kernel_is_found_by_another_cache_of_the_same_identity(cache_folder: Path, loads: list[object]) -> None:
    CudaKernelCache("smooth", "digest", (3,)).save_overload(FLOAT, kernel())
    found = CudaKernelCache("smooth", "digest", (3,)).load_overload(FLOAT, Context(HOPPER))
    assert (found.entry_name, found._codelibrary.get_cubin(cc=(9, 0, "a"))) == ("entry", b"cubin")
    assert found.argument_types == FLOAT
    assert loads == [found._codelibrary], "while the compiler's lock is held, or threads that launch at once load it twice"
    assert [p.suffix for p in cache_folder.iterdir()] == [".cubin"], "nothing temporary is left"


@pytest.mark.parametrize(
    ("name", "identity", "types", "machine"),
    [
        ("other", ("digest", (3,)), FLOAT, HOPPER),
        ("smooth", ("edited", (3,)), FLOAT, HOPPER),
        ("smooth", ("digest", (4,)), FLOAT, HOPPER),
        ("smooth", ("digest", (3,)), (numba_types.float64,), HOPPER),
        ("smooth", ("digest", (3,)), FLOAT, AMPERE),
    ],
)
def test_nothing_else_is_taken_for_it(name: str, identity: tuple[object, ...], types: tuple[object], machine: object) -> None:
    CudaKernelCache("smooth", "digest", (3,)).save_overload(FLOAT, kernel())
    assert CudaKernelCache(name, *identity).load_overload(types, Context(machine)) is None


def test_another_compiler_has_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    CudaKernelCache("smooth").save_overload((), kernel())
    monkeypatch.setattr("daskreg.kernels.compiler.cubins.compiler", lambda: ("another",))
    assert CudaKernelCache("smooth").load_overload((), Context(HOPPER)) is None


@pytest.mark.parametrize(
    "options", [{"debug": True, "opt": False}, {"opt": False}, {"lineinfo": True}, {"launch_bounds": (32, 1)}, {"fastmath": True}]
)
def test_options_of_the_compiler_make_another_kernel(options: dict[str, Any]) -> None:
    """``NUMBA_CUDA_DEBUGINFO`` and ``NUMBA_OPT`` are such, and what was compiled under them must not stay when they have gone."""

    def kept(**given: Any) -> CudaKernelCache:
        return attach_cache(SimpleNamespace(targetoptions={**PLAIN, **given}), "smooth", "digest")._cache

    kept(**options).save_overload((), kernel())
    assert kept().load_overload((), Context(HOPPER)) is None
    assert kept(**options).load_overload((), Context(HOPPER)) is not None


@pytest.mark.parametrize("damage", [b"", b"no kernel", None])
def test_a_damaged_file_is_compiled_anew(damage: bytes | None) -> None:
    cache = CudaKernelCache("smooth")
    cache.save_overload((), kernel())
    path = cache.path((), HOPPER)
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert cache.load_overload((), Context(HOPPER)) is None
    cache.save_overload((), kernel())
    assert cache.load_overload((), Context(HOPPER)) is not None


def test_a_file_with_parts_this_version_does_not_know_is_compiled_anew() -> None:
    cache, strange = CudaKernelCache("smooth"), kernel()
    strange._reduce_states = lambda: {**PARTS, "unheard_of": 1}
    cache.save_overload((), strange)
    assert cache.load_overload((), Context(HOPPER)) is None


def test_what_cannot_be_kept_does_no_harm(cache_folder: Path) -> None:
    cache = CudaKernelCache("smooth")
    cache.save_overload((), kernel(code=lambda: "no machine code"))
    assert cache.load_overload((), Context(HOPPER)) is None
    cache_folder.parent.mkdir(exist_ok=True)
    cache_folder.write_text("a file where the folder should be")
    cache.save_overload((), kernel())
    assert cache.load_overload((), Context(HOPPER)) is None


def test_a_write_that_fails_leaves_nothing(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    CudaKernelCache("smooth").save_overload((), kernel())
    assert list(cache_folder.iterdir()) == []


def test_of_many_kernels_those_stay_that_were_used_last(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daskreg.kernels.compiler.cubins.MAX_CUBINS", 3)
    caches = [CudaKernelCache(f"kernel{k}") for k in range(4)]
    for age, cache in enumerate(caches[:3]):
        cache.save_overload((), kernel())
        os.utime(cache.path((), HOPPER), (age, age))
    assert caches[0].load_overload((), Context(HOPPER)) is not None, "the oldest, but now the last used"
    caches[3].save_overload((), kernel())
    there = [cache.load_overload((), Context(HOPPER)) is not None for cache in caches]
    assert there == [True, False, True, True]


@pytest.mark.parametrize(
    ("states", "library"),
    [({"debug": 1}, {}), ({"extensions": [print]}, {}), ({"cooperative": print}, {}), ({}, {"lto": print}),
     ({}, {"nvvm_options": {"opt": print}}), ({}, {"cubin_cache": {}})],
)  # fmt: skip
def test_a_kernel_of_more_than_plain_values_and_cubins_is_not_kept(states: dict[str, object], library: dict[str, object]) -> None:
    made = kernel()
    made._reduce_states = lambda: {**PARTS, **states, "codelibrary": Library(**library)}
    with pytest.raises(ValueError, match=r"is no plain value|no machine code|can raise exceptions"):
        cubin_format.encode(made)


def test_a_compiled_kernel_comes_back_with_its_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """By numba-cuda's own compiler and linker, which need no device."""
    if SIMULATED:
        pytest.skip("nothing is compiled in the simulator")
    require_cuda_compiler()
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.codegen import CUDACodeLibrary

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0), id=0))
    monkeypatch.setattr(CUDACodeLibrary, "_ensure_cc", lambda library, cc: cc or (9, 0, "a"))

    def twice(a):  # type: ignore[no-untyped-def]
        a[0] *= 2

    types = (numba_types.Array(numba_types.float32, 1, "C"),)
    made = dispatcher._Kernel(twice, types, **cuda.jit(twice).targetoptions)
    code = made._codelibrary.get_cubin().code
    data = cubin_format.encode(made)
    found = cubin_format.decode(data, types)
    assert data.endswith(code)
    assert code.startswith(b"\x7fELF")
    again = found._codelibrary.get_cubin()
    assert (again.code, again.code_type) == (code, "cubin")
    assert (found.entry_name, str(found.signature)) == (made.entry_name, str(made.signature))
    assert found.launch_config_sensitive == made.launch_config_sensitive
