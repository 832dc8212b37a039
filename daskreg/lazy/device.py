"""Which device a lazy array is computed on."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from daskreg.config import DeviceName
from daskreg.errors import require_known

if TYPE_CHECKING:
    from daskreg.kernels.device import Kind


def resolve_device(wanted: DeviceName) -> Kind:
    """Where kernels run; ``auto``: on a GPU where this process, or every worker of the current Dask client, has one.

    Raises ConfigError for another word, InputError where a GPU is wanted and one is missing.
    """
    require_known("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cpu" or (wanted == "auto" and "distributed" not in sys.modules and not _has_cupy()):
        return "cpu"  # there is no current client and no GPU: nothing slow is imported to say so
    from daskreg.cluster import device_of, existing_client  # importing distributed takes a second that the CPU need not wait for

    with existing_client() as client:
        return device_of(client, wanted)


def _has_cupy() -> bool:
    return "cupy" in sys.modules or find_spec("cupy") is not None


def local_device(wanted: DeviceName) -> Kind:
    """Where kernels run in this process, whatever a current Dask client has; ``auto``: on a GPU where there is one.

    Raises as ``resolve_device`` does.
    """
    require_known("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cpu" or (wanted == "auto" and not _has_cupy()):
        return "cpu"
    from daskreg.cluster import device_of

    return device_of(None, wanted)
