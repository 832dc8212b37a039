"""CUDA's compiler and linker, which need no GPU and come with the extra ptx."""

import pytest


def require_cuda_compiler():
    """Skip a test where they are not installed."""
    pytest.importorskip("cuda.bindings.nvjitlink")
    pathfinder = pytest.importorskip("cuda.pathfinder")
    for library in ("nvrtc", "nvJitLink", "nvvm"):
        try:
            pathfinder.load_nvidia_dynamic_lib(library)
        except pathfinder.DynamicLibNotFoundError:
            pytest.skip(f"needs the library {library}, which comes with the extra ptx")
