"""Compiled CPU kernels kept on disk: found again, never mistaken for one another, never in the way."""

import os
import threading
import time

import numpy as np
import pytest
from numba import njit

from daskreg.kernels.compiler import cache
from daskreg.kernels.compiler.cache import KernelCache, attach_cache, folder
from daskreg.kernels.compiler.configuration import SIMULATED

pytestmark = pytest.mark.skipif(SIMULATED, reason="nothing is compiled")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return folder("cpu")


def kernel(name="double", digest="1"):
    """A new one, as another process has it."""

    def double(a):
        return a + a

    double.__module__ = "daskreg.kernels"
    double.__globals__["__name__"] = __name__
    return attach_cache(njit(double), name, digest)


def loaded(made, value=2):
    """Whether a kernel came from the disk when it was called."""
    assert made(value) == value + value
    return sum(made.stats.cache_hits.values()) > 0


def test_a_kernel_is_found_by_another_process(cache_folder):
    assert [loaded(kernel()), loaded(kernel())] == [False, True]
    assert [p.suffix for p in cache_folder.iterdir()] == [".kernel"], "nothing temporary is left"


def test_nothing_else_is_taken_for_it(monkeypatch):
    loaded(kernel())
    assert not loaded(kernel("other"))
    assert not loaded(kernel(digest="edited"))
    assert not loaded(kernel(), np.float32(2))
    monkeypatch.setattr(cache, "compiler", lambda: ("another",))
    assert not loaded(kernel())


@pytest.mark.parametrize("damage", [b"", b"no kernel", None])
def test_a_damaged_file_is_compiled_anew(cache_folder, damage):
    loaded(kernel())
    (path,) = cache_folder.iterdir()
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert [loaded(kernel()), loaded(kernel())] == [False, True]


def test_a_folder_that_cannot_be_used_does_no_harm(cache_folder):
    cache_folder.parent.mkdir(exist_ok=True)
    cache_folder.write_text("a file where the folder should be")
    assert [loaded(kernel()), loaded(kernel())] == [False, False]


def test_a_user_without_a_home_compiles(monkeypatch):
    def homeless(device):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache, "folder", homeless)
    assert kernel()(2) == 4


def test_a_write_that_fails_leaves_nothing(cache_folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not loaded(kernel())
    assert list(cache_folder.iterdir()) == []


def test_of_many_kernels_those_stay_that_were_used_last(cache_folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FILES", 2)
    loaded(kernel("a"))
    loaded(kernel("b"))
    for path, age in zip(sorted(cache_folder.iterdir()), (1, 2), strict=True):
        os.utime(path, (age, age))
    assert loaded(kernel("a")), "the oldest, but now the last used"
    loaded(kernel("c"))
    assert [p.name[0] for p in sorted(cache_folder.iterdir())] == ["a", "c"]


def test_a_process_waits_for_the_one_that_compiles_the_same(monkeypatch):
    made, waiting = [], kernel()

    class Context:
        """Of a compiler that need not be asked."""

        refresh = staticmethod(lambda: None)
        codegen = staticmethod(lambda: Context)
        magic_tuple = staticmethod(lambda: ("x86",))

    monkeypatch.setattr(KernelCache, "_load", lambda self, path, context: path.read_text() if path.exists() else None)
    first, second = KernelCache("a", "1"), KernelCache("a", "1")
    assert first.load_overload((), Context) is None
    path = first.path((), Context.magic_tuple())
    told = []
    monkeypatch.setattr(cache.TALLY, "report", told.append)

    def wait():
        made.append(second.load_overload((), Context))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(3 * cache.POLL_INTERVAL)
    assert not made
    assert told == [path], "whoever follows the run learns what is waited for"
    path.write_text("compiled")
    first._release(path)
    thread.join(timeout=60)
    assert made == ["compiled"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert waiting(3) == 6


def test_it_does_not_wait_for_ever(monkeypatch, cache_folder):
    monkeypatch.setattr(cache, "WAIT_TIMEOUT", 2 * cache.POLL_INTERVAL)
    first = KernelCache("a", "1")
    cache_folder.mkdir()
    assert not first._wait(cache_folder / "a.kernel")
    assert KernelCache("a", "1")._wait(cache_folder / "a.kernel")
    assert not first._wait(cache_folder / "a.kernel"), "a compiler that failed is asked again"
    first._release(None)


def test_a_file_system_without_locks_does_no_harm(monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cache.fcntl, "flock", unsupported)
    assert [loaded(kernel()), loaded(kernel())] == [False, True]
