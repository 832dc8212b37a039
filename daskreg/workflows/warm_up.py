"""Use what usual registrations use, so that it is compiled and kept.

python -m daskreg.workflows.warm_up {cpu,cuda} [PRESET ...]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

from daskreg.kernels.device import Kind
from daskreg.workflows.apply import apply
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.presets import PRESETS
from daskreg.workflows.register import register


def warm_up(device: Kind, presets: Sequence[str] = tuple(PRESETS)) -> None:
    """Register the bundled pair at 3 mm by some presets, and apply the transform, into a folder that is removed."""
    fixed, moving = demo_pair(3)
    with tempfile.TemporaryDirectory() as folder:
        for name in presets:
            register(fixed, moving, name, output=f"{folder}/{name}.zarr", device=device, progress=False)
            apply(f"{folder}/{name}.zarr", moving, f"{folder}/{name}.nii.gz", device=device)


if __name__ == "__main__":
    warm_up("cuda" if sys.argv[1:2] == ["cuda"] else "cpu", sys.argv[2:] or tuple(PRESETS))
