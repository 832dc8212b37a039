"""The list of kernels that ``daskreg precompile --torch`` compiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daskreg.kernels.compiler.precompile import TORCH_SIGNATURES
from tests.cuda_libraries import require_cuda_compiler

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_usual_kernels_are_listed(tmp_path):
    require_cuda_compiler()
    command = [sys.executable, ROOT / "benchmarks" / "torch_signatures.py", tmp_path / "list.txt"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert sorted((tmp_path / "list.txt").read_text().splitlines()) == sorted(TORCH_SIGNATURES.read_text().splitlines())
