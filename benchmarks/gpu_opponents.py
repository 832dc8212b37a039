"""daskreg, warpfield and FireANTs on one GPU, from the same files to files: seconds, error against the known map, memory.

    python benchmarks/gpu_opponents.py --edges 256,512,1024 --folder /dev/shm
    python benchmarks/gpu_opponents.py --edges 48 --device cpu --programs daskreg,fireants     # a rehearsal without a GPU

The pair is the texture of ``gigavoxel.py`` and the same after a rotation, a scale and waves (``Truth``), both with one contrast
and on one grid, because warpfield needs that. Both are uint16 in NIfTI, not compressed. Every program runs in a process of its
own, twice: ``first`` compiles its kernels, ``seconds`` is the second one, process start and imports included.
``error``: distance of the found and the true point in voxels, mean and 95th percentile, at random voxel centres in the body.
``gpu``: most memory of the GPU in use, less what was in use before (asked every 0.2 s).

FireANTs is the wheel from PyPI; neither that nor the source archive there has its fused CUDA extension. It is only run (its
licence forbids copying). A machine without a registry needs, beside PyTorch and CuPy: fireants, warpfield, SimpleITK, tqdm, and
an empty module ``hdf5plugin``, which warpfield imports and these files do not need. FireANTs takes about 340 bytes of GPU
memory a voxel (``gpu_iterations_fireants.json``): 1024^3 fits on no GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
OUT = Path(os.environ.get("OUT", HERE / "results")) / "gpu_opponents.json"
SPACING = 0.1  # mm, as in gigavoxel.py
CONFIG = """
stages:
  - {stage: moments}
  - {stage: affine, similarity: {kind: mse}, scales: [8, 4]}
  - {stage: deformable, similarity: {kind: lncc, gradient: center, radius: 2}, scales: [8, 4, 2, 1],
     iterations: [200, 200, 100, 50]}
"""
Found = tuple[Callable[[np.ndarray], np.ndarray], str]  # the map of fixed to moving voxels (3, n), and the version


# ---------------------------------------------------------------- the programs, each in a process of its own


def daskreg(work: Path, device: str) -> None:
    """By its command line, with an affine stage and LNCC."""
    (work / "config.yaml").write_text(CONFIG)
    sys.argv = ["daskreg", "register", f"{work}/fixed.nii", f"{work}/moving.nii", "-o", f"{work}/run.zarr", "--config",
                f"{work}/config.yaml", "--device", device, "--overwrite"]  # fmt: skip
    from daskreg.cli import main as command_line

    command_line()


def warpfield(work: Path, device: str) -> None:
    """With its default recipe."""
    import warpfield as program

    fixed, _ = program.load_data(f"{work}/fixed.nii")
    moving, _ = program.load_data(f"{work}/moving.nii")
    moved, found, _ = program.register_volumes(fixed, moving, program.Recipe.from_yaml("default.yml"), verbose=False)
    nib.save(nib.Nifti1Image(np.asarray(moved, np.float32), nib.load(f"{work}/fixed.nii").affine), f"{work}/moved.nii")
    found.to_h5(f"{work}/warpfield.h5", compression=None)


def fireants(work: Path, device: str) -> None:
    """Moments, affine and greedy with windowed CC, as its published experiments; writes the transform only."""
    from fireants.io import BatchedImages, Image
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.moments import MomentsRegistration

    fixed, moving = (BatchedImages([Image.load_file(f"{work}/{name}.nii", device=device)]) for name in ("fixed", "moving"))
    centre = MomentsRegistration(scale=4, fixed_images=fixed, moving_images=moving, moments=1)
    centre.optimize()
    linear = AffineRegistration(
        [8, 4], [200, 100], fixed, moving, loss_type="cc", cc_kernel_size=5, optimizer="Adam", optimizer_lr=3e-3,
        init_rigid=centre.get_affine_init(), progress_bar=False,
    )  # fmt: skip
    linear.optimize()
    local = GreedyRegistration(
        [8, 4, 2, 1], [200, 200, 100, 50], fixed, moving, loss_type="cc", cc_kernel_size=5, optimizer="Adam", optimizer_lr=0.5,
        smooth_grad_sigma=1.0, smooth_warp_sigma=0.5, init_affine=linear.get_affine_matrix(), progress_bar=False,
    )  # fmt: skip
    local.optimize()
    local.save_as_ants_transforms([f"{work}/fireants.nii"])


# ---------------------------------------------------------------- their maps


def of_daskreg(work: Path) -> Found:
    """Voxels at which it samples the moving image for some fixed voxels (3, n), order z, y, x."""
    from daskreg import load_transform

    transform = load_transform(f"{work}/run.zarr")
    return lambda p: transform.points(p.T * SPACING).T / SPACING, version("daskreg")


def of_warpfield(work: Path) -> Found:
    """The same of warpfield, whose axes are those of nibabel."""
    from warpfield.register import WarpMap

    found = WarpMap.from_h5(f"{work}/warpfield.h5")
    return lambda p: found.push_coordinates(p[::-1].astype(np.float32)).get()[::-1], version("warpfield")


def of_fireants(work: Path) -> Found:
    """The same of FireANTs, from its field in mm as ITK reads it."""
    field = nib.load(f"{work}/fireants.nii")

    def move(p: np.ndarray) -> np.ndarray:
        u = np.asarray(field.dataobj[..., :]).reshape(*field.shape[:3], 3)
        x, y, z = p[::-1].astype(int)
        return p + u[x, y, z].T[::-1] / SPACING

    return move, version("fireants")


PROGRAMS: dict[str, tuple[Callable[[Path, str], None], Callable[[Path], Found]]] = {
    "daskreg": (daskreg, of_daskreg),
    "warpfield": (warpfield, of_warpfield),
    "fireants": (fireants, of_fireants),
}


def version(package: str) -> str:
    """Empty where it is not installed but found on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------- the pair, and the watch


def make(work: Path, edge: int, gpu: bool) -> Any:
    """Both images, and the truth."""
    from gigavoxel import Truth

    truth = Truth(np.full(3, edge * SPACING))
    xp = importlib.import_module("cupy") if gpu else np
    axis = np.arange(edge) * SPACING
    for name in ("fixed", "moving"):
        voxels = np.empty((edge,) * 3, np.uint16)
        for z in range(0, edge, 32):
            found = (truth.block([axis[z : z + 32], axis, axis], name == "moving", xp) * np.float32(30000)).astype(np.uint16)
            voxels[z : z + 32] = found.get() if gpu else found
        affine = np.diag([-SPACING, -SPACING, SPACING, 1])  # LPS is along the axes
        nib.save(nib.Nifti1Image(voxels.T, affine), work / f"{name}.nii")
    return truth


def samples(truth: Any, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed voxels in the body (3, n), and the true voxels of the moving image."""
    index = np.random.default_rng(0).integers(0, edge, (3, 20000))
    x = index * SPACING
    index = index[:, truth.texture(list(x), np) > 0][:, :4000]
    return index, truth.phi(index * SPACING) / SPACING


class GpuWatch:
    """The most memory of the GPU in use while a block runs, less what was in use before."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.peak, self._done = gpu, 0, threading.Event()

    def __enter__(self) -> GpuWatch:
        self.before = self._used()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self.peak = max(self.peak, self._used() - self.before)

    def _used(self) -> int:
        """MiB."""
        if not self.gpu:
            return 0
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def case(program: str, work: Path, edge: int, truth: Any, device: str, limit: float, once: bool) -> dict[str, Any]:
    """A row of the table."""
    row: dict[str, Any] = {"program": program, "edge": edge}
    command = [sys.executable, __file__, "run", program, str(work), device]
    for name in ("first",) if once else ("first", "seconds"):
        start = time.perf_counter()
        with GpuWatch(device == "cuda") as watch:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            except subprocess.TimeoutExpired:
                return row | {"failed": f"more than {limit:g} s"}
        row |= {name: round(time.perf_counter() - start, 2), "gpu MiB": watch.peak}
        if done.returncode:
            return row | {"failed": (done.stdout + done.stderr)[-300:]}
    index, true = samples(truth, edge)
    move, row["version"] = PROGRAMS[program][1](work)
    error = np.linalg.norm(move(index.astype(np.float64)) - true, axis=0)
    return row | {"error mean": round(float(error.mean()), 3), "error p95": round(float(np.quantile(error, 0.95)), 3),
                  "before": round(float(np.linalg.norm(index - true, axis=0).mean()), 2)}  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        PROGRAMS[sys.argv[2]][0](Path(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", default="256")
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--limit", type=float, default=300, help="seconds of one run of a program")
    parser.add_argument("--once", action="store_true", help="only the first run of each")
    parser.add_argument("--folder", help="where the files go (a temporary place by default)")
    given = parser.parse_args()
    rows = []
    for edge in map(int, given.edges.split(",")):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            truth = make(Path(folder), edge, given.device == "cuda")
            for program in given.programs.split(","):
                rows.append(case(program, Path(folder), edge, truth, given.device, given.limit, given.once))
                print(json.dumps(rows[-1]), flush=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
