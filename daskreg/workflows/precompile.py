"""Compile kernels ahead, for GPUs that need not be there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from daskreg.errors import ConfigError

ARCHITECTURES = ("sm_80", "sm_90")  # A100; H100 and H200


def precompile(architectures: Sequence[str] = ARCHITECTURES, folder: str | Path | None = None) -> Path:
    """Compile the kernels of usual registrations with all cores, such as into an image of a container.

    architectures: of GPUs, such as ``"sm_90"`` for an H100;  folder: for ``DASKREG_KERNEL_CACHE``, readable by all; None: the
    user's own cache. Returns the folder of the kernels. Raises ConfigError for an unknown architecture, or none, and without
    numba-cuda; RunError where kernels do not compile.
    """
    from daskreg.kernels.compiler.offline import compile_for

    if not architectures:
        raise ConfigError("no architecture is named; sm_80 (A100), sm_90 (H100, H200) or another sm_NN was expected.")
    return compile_for(architectures, None if folder is None else Path(folder))
