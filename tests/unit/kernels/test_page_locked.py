"""Memory that a GPU reads and writes by itself: of a kind that the system gives large pages for, and no child process shares."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.kernels.page_locked import page_locked_zeros

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of the system's own account of its memory")


@pytest.fixture
def registered(monkeypatch):
    """A GPU; the address and size of what it was told of, none of what was given back."""
    found = {}
    runtime = SimpleNamespace(
        hostRegister=lambda address, size, flags: found.update({address: size}),
        hostUnregister=found.pop,
        CUDARuntimeError=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    return found


def flags(address):
    """What the kernel says of the mapping around an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            start, end = (int(v, 16) for v in head.split("-"))
            inside = start <= address < end
        elif inside and head == "VmFlags:":
            return rest.split()
    raise AssertionError("no such mapping")


def test_its_pages_may_be_large_and_no_child_process_has_them(registered):
    array = page_locked_zeros((3, 1 << 20), np.uint16)
    assert registered == {array.ctypes.data: array.nbytes}
    assert not array.any()
    found = flags(array.ctypes.data)
    assert "sh" not in found, "shared memory has small pages"
    assert "dc" in found
    part = array[1:]
    del array
    assert registered
    del part
    assert not registered
