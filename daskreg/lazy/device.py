"""Which device a lazy array is computed on."""

from __future__ import annotations

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
    if wanted == "cpu":
        return "cpu"
    from daskreg.cluster import device_of, existing_client  # importing distributed takes a second that the CPU need not wait for

    with existing_client() as client:
        return device_of(client, wanted)
