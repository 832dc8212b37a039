"""What the generated launchers ask of a kernel's body."""

from types import SimpleNamespace

import numpy as np
import pytest

from daskreg.kernels.compiler.cooperative import COOPERATIVE_KERNELS, CooperativeKernel, cooperative_kernel
from daskreg.kernels.compiler.launch import KERNELS, voxelwise


@pytest.mark.parametrize("name", ["n", "float32", "cuda"])
def test_a_parameter_with_a_name_of_the_launcher_is_refused(name):
    """It would be overwritten in silence."""
    scope = {"__name__": __name__}
    exec(f"def add(z, y, x, {name}, out):\n    out[z, y, x] = {name}[z, y, x] + 1", scope)
    kernel = voxelwise()(scope["add"])
    with pytest.raises((ValueError, SyntaxError), match=rf"names of its launcher: {name}|duplicate argument"):
        kernel((2, 2, 2), np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.float32))


def test_a_local_of_the_launcher_is_refused_too():
    scope = {"__name__": __name__}
    exec("def add(z, y, x, z0, out):\n    out[z, y, x] = z0[z, y, x] + 1", scope)
    with pytest.raises(ValueError, match="names of its launcher: z0"):
        voxelwise()(scope["add"])((2, 2, 2), np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 2), np.float32))


@pytest.mark.parametrize("register", [voxelwise(), cooperative_kernel()])
def test_a_name_belongs_to_one_module(register, monkeypatch):
    """Compiled kernels are found by name."""
    for table in (KERNELS, COOPERATIVE_KERNELS):
        monkeypatch.setitem(table, "operation", SimpleNamespace(name="operation", module="other.kernels"))
    scope = {"__name__": __name__}
    exec("def operation(z, y, x, out):\n    out[z, y, x] = 1", scope)
    with pytest.raises(
        ValueError, match=r"^other\.kernels has a kernel named 'operation' already; give the one of .* another name\.$"
    ):
        register(scope["operation"])


def test_a_cooperative_kernel_without_blocks_is_not_launched():
    launched = []

    class Form:
        def __getitem__(self, sizes):
            return lambda *arguments: launched.append((sizes[0], arguments))

    kernel = CooperativeKernel(lambda: None, {})
    kernel.form = lambda *constants: Form()
    for planes in (0, 3):
        kernel((), (1, 2, planes), (32, 1, 1), planes)
    assert launched == [((1, 2, 3), (3,))]
