"""Write ``daskreg/kernels/compiler/signatures.txt``: the CUDA kernels that usual registrations launch, in the order of launches.

    python benchmarks/warm_up_signatures.py [OUTPUT]

Needs a GPU. To be run again when a kernel's arguments or constants have changed; until then a first registration compiles what
the list no longer names itself.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import daskreg
from daskreg import LNCC, MI, MSE, Affine, Deformable
from daskreg.config import Config
from daskreg.kernels.compiler import precompile
from daskreg.kernels.compiler.cubins import LAUNCHED
from daskreg.storage import write_image
from daskreg.workflows.presets import PRESETS

DATA = Path(__file__).parents[1] / "daskreg" / "data"
FIXED, MOVING = (str(DATA / f"quickstart_{name}_T1_3mm.nii.gz") for name in ("mni2009c", "colin27"))
LABELS = str(DATA / "quickstart_colin27_labelsAAL_3mm.nii.gz")
LOSSES = (MSE(), LNCC(), LNCC(gradient="center"), MI())
SHORT = {"scales": (2, 1), "iterations": (20, 20)}


def configs() -> list[Config]:
    """Presets first, then every loss by itself, in both kinds of storage."""
    alone = [Config(stages=(Affine(similarity=loss), Deformable(similarity=loss, **SHORT))) for loss in LOSSES]
    mixed = [Config(stages=(Deformable(similarity=loss, storage="mixed", **SHORT),)) for loss in LOSSES]
    return [*PRESETS.values(), *alone, *mixed]


def register_archives(folder: str) -> None:
    """Voxels of archives are decoded in their stored type and converted on the device."""
    for kind in ("uint16", "uint8", "int16", "float32"):
        pair = [f"{folder}/{name}_{kind}.ome.zarr" for name in ("fixed", "moving")]
        for path, image in zip(pair, map(daskreg.open_volume, (FIXED, MOVING))):
            voxels = np.asarray(image.data)
            write_image(path, (voxels * (100 / voxels.max())).astype(kind), image.grid)
        short = Config(stages=(Deformable(similarity=MSE(), scales=(2,), iterations=(2,)),))
        daskreg.register(*pair, short, output=f"{folder}/run.zarr", overwrite=True, device="cuda")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        register_archives(folder)
        for config in configs():
            daskreg.register(FIXED, MOVING, config, output=f"{folder}/run.zarr", overwrite=True, device="cuda")
        for interpolation, image in (("linear", MOVING), ("nearest", MOVING), ("cubic", MOVING), ("label", LABELS)):
            output = f"{folder}/{interpolation}.nii.gz"
            daskreg.apply(f"{folder}/run.zarr", image, output, interpolation=interpolation, device="cuda")
    lines = dict.fromkeys(
        f"{kept.name.removesuffix('_cuda')}\t{kept.identity[2]!r}\t{precompile.format_types(types)}"
        for kept, types in LAUNCHED
        if precompile.parse_types(precompile.format_types(types)) == tuple(types)
    )
    Path(sys.argv[1] if len(sys.argv) > 1 else precompile.SIGNATURES).write_text("".join(f"{line}\n" for line in lines))
    print(len(lines), "kernels of", len({(kept.name, str(kept.identity), str(types)) for kept, types in LAUNCHED}))


if __name__ == "__main__":
    main()
