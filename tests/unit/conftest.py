"""What memory held before must not matter."""

from importlib import import_module

import numpy as np
import numpy.ma  # it wraps numpy.empty when it is imported, and reads its documentation
import pytest
from numba.extending import overload

import_module("numba.np.arrayobj")  # registers numpy.empty when it is imported
EMPTY = np.empty
SIGNALLING_NAN = 0x7FA00001  # the bits of a float32 that arithmetic warns of


def filled_with_garbage(shape, dtype=float, **given):
    """As ``numpy.empty``, of memory that held what shows when it is used."""
    array = EMPTY(shape, dtype, **given)
    if array.dtype == np.float32:
        array.view(np.uint32)[...] = SIGNALLING_NAN
    elif array.dtype.kind == "f":
        array[...] = np.nan
    elif array.dtype.kind in "iu":
        array[...] = np.iinfo(array.dtype).max
    return array


@overload(filled_with_garbage)
def compiled(shape, dtype=float):
    """``numpy.empty`` itself, in functions that Numba compiles meanwhile."""
    return lambda shape, dtype=float: EMPTY(shape, dtype)


@pytest.fixture(autouse=True)
def garbage(monkeypatch):
    """New arrays hold garbage: a voxel that is read before it is written shows, as it does one day on a user's machine."""
    monkeypatch.setattr(np, "empty", filled_with_garbage)
