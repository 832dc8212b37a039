"""What ``conftest.py`` puts in the place of ``numpy.empty`` does not reach what Numba compiles."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILED = """
import numpy as np
from tests.unit import conftest
from numba import njit

def compiled():
    return njit(lambda n: np.zeros((n, 2)).sum() + 0 * np.empty(n).size)(3)

np.empty = conftest.filled_with_garbage
assert compiled() == 0
np.empty = conftest.EMPTY
assert compiled() == 0
"""


def test_functions_are_compiled_whatever_stands_for_empty():
    subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, check=True, timeout=300)
