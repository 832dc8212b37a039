"""The other registration programs, each behind one function, run in their own environment.

``python benchmarks/opponents.py install DIR`` makes that environment from ``opponents.txt``. The functions below start
``DIR/bin/python`` with this same file as a subprocess, so wall time includes process start, imports and reading, and nothing
of theirs is loaded beside daskreg. Opponents are only run: FireANTs' licence forbids copying its code, greedy's is the GPL.

Each returns a dict: ``seconds`` by phase, ``wall`` (process start included), ``peak_rss`` (bytes, the process and its
children), ``labels`` and ``moved`` (paths by phase: 'affine', 'deformable'), ``warp`` (total field as ITK reads it: mm, LPS,
components x, y, z, on the fixed grid), ``matrix`` (the linear stage, in the program's own format) and ``version``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DEFAULT_HOME = HERE.parent.parent / "opp" / "venv"  # overridden by --opponents-home


@dataclass(frozen=True)
class Job:
    """What an opponent is asked to do.

    fixed, moving: image paths;  labels: moving label image, or None;  work: folder for what it writes;
    dof: 6 or 12, of the linear stage;  deformable: whether a deformable stage follows;
    start: path of an affine in the program's own format to start from, or None for the image centres;
    iterations: of greedy's linear stage, coarse to fine;  device: "cpu" or "cuda", where a program has the choice.
    """

    fixed: str
    moving: str
    work: str
    labels: str | None = None
    threads: int = 2
    dof: int = 12
    deformable: bool = True
    start: str | None = None
    iterations: str = "100x50x10"
    device: str = "cpu"
    extra: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------- this side: start, watch, collect


def greedy(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """PICSL greedy: affine NMI, then NCC 2x2x2, 100x50x20 iterations, smoothing 1.732 and 0.707 voxels."""
    return _start("greedy", job, home)


def greedy_tuned(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """The same with local correlation for the affine stage too, windows of 7 voxels, 100x100x50 iterations, less smoothing."""
    return _start("greedy", replace(job, extra={**job.extra, **GREEDY_TUNED}), home)


def ants_cc(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs by antspyx: ``type_of_transform="SyNCC"``, cross-correlation in windows of radius 4."""
    return _start("ants", replace(job, extra={**job.extra, "kind": "SyNCC"}), home)


def ants(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs by antspyx: ``type_of_transform="SyN"`` with its defaults, or "Rigid"/"Affine" where no deformable stage is asked."""
    return _start("ants", job, home)


def fireants(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """FireANTs on the CPU: moments, affine, ``GreedyRegistration`` with windowed CC, Adam; without its CUDA extension."""
    return _start("fireants", job, home)


def fireants_cuda(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """The same on a GPU: the wheel from PyPI, plain PyTorch, without its fused extension."""
    return {**_start("fireants", replace(job, device="cuda"), home), "device": "cuda"}


def simpleitk(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """SimpleITK: a linear stage (``job.dof`` 6 or 12) by Mattes MI; it has no deformable stage here."""
    return _start("simpleitk", job, home)


def greedy_search(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """PICSL greedy, rigid by NMI from its random search: ``-search N any SHIFT``, N and SHIFT (mm) in ``job.extra["search"]``."""
    return _start("greedy", replace(job, dof=6, deformable=False), home)


def ants_search(job: Job, home: Path = DEFAULT_HOME) -> dict[str, Any]:
    """ANTs, rigid by Mattes MI from ``antsAffineInitializer`` (antspyx has no antsAI) over full circles, in steps of
    ``job.extra["step"]`` degrees.
    """
    return _start("ants_search", replace(job, dof=6, deformable=False), home)


GREEDY_TUNED = {
    "metric": "NCC 4x4x4",
    "window": "3x3x3",
    "local_iterations": "100x100x50",
    "smoothing": "1.5vox 0.5vox",
}
RUNNERS = {
    "greedy": greedy,
    "greedy_tuned": greedy_tuned,
    "greedy_search": greedy_search,
    "ants_search": ants_search,
    "ants": ants,
    "ants_cc": ants_cc,
    "fireants": fireants,
    "fireants_cuda": fireants_cuda,
    "simpleitk": simpleitk,
}


def _start(name: str, job: Job, home: Path) -> dict[str, Any]:
    """Raises FileNotFoundError without the environment, RuntimeError with the end of the log when the program fails."""
    from measure import watched

    python = home / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; make it with: python {HERE / 'opponents.py'} install {home}")
    work = Path(job.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "job.json").write_text(json.dumps(asdict(job)))
    (work / "result.json").unlink(missing_ok=True)
    run = watched([str(python), str(HERE / "opponents.py"), "run", name, str(work)], work / "log.txt", _limits(job.threads))
    return {**json.loads((work / "result.json").read_text()), "wall": run.seconds, "peak_rss": run.peak_rss}


def _limits(threads: int) -> dict[str, str]:
    # before the process starts: the libraries read these while they load
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, str(threads))


def install(home: Path) -> None:
    """Make the opponents' environment in ``home``: a few GB, mostly torch."""
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "-r", HERE / "opponents.txt"], check=True)


# ---------------------------------------------------------------- the other side: inside their environment


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block under this name."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = round(time.perf_counter() - start, 2)


def _greedy(job: Job, clock: Clock) -> dict[str, Any]:
    from picsl_greedy import Greedy3D

    work = Path(job.work)
    images, common = f"-i {job.fixed} {job.moving}", f"-d 3 -threads {job.threads}"
    start = f"-ia {job.start}" if job.start else "-ia-image-centers"
    if search := job.extra.get("search"):
        start += f" -search {search[0]} any {search[1]}"
    chains = {"affine": f"{work}/affine.mat"}
    tool = Greedy3D()
    with clock("affine"):
        linear = f"-a -dof {job.dof} -m {job.extra.get('metric', 'NMI')} -n {job.iterations}"
        tool.execute(f"{common} {linear} {images} {start} -o {chains['affine']}")
    if job.deformable:
        with clock("deformable"):
            window, n = job.extra.get("window", "2x2x2"), job.extra.get("local_iterations", "100x50x20")
            local = f"-m NCC {window} -n {n} -s {job.extra.get('smoothing', '1.732vox 0.707vox')}"
            tool.execute(f"{common} {local} {images} -it {chains['affine']} -o {work}/local.nii.gz")
        chains["deformable"] = f"{work}/local.nii.gz {work}/affine.mat"
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": chains["affine"]}
    with clock("apply"):
        for phase, chain in chains.items():
            out["moved"][phase] = f"{work}/moved_{phase}.nii.gz"
            tool.execute(f"{common} -rf {job.fixed} -rm {job.moving} {out['moved'][phase]} -r {chain}")
            if job.labels:
                out["labels"][phase] = f"{work}/labels_{phase}.nii.gz"
                tool.execute(f"{common} -rf {job.fixed} -ri NN -rm {job.labels} {out['labels'][phase]} -r {chain}")
    if "deformable" in chains:  # not timed: only the count of folds needs it
        out["warp"] = f"{work}/warp.nii.gz"
        tool.execute(f"{common} -rf {job.fixed} -rc {out['warp']} -r {chains['deformable']}")
    return out


def _ants(job: Job, clock: Clock) -> dict[str, Any]:
    import ants as lib

    work = Path(job.work)
    with clock("read"):
        fixed, moving = lib.image_read(job.fixed), lib.image_read(job.moving)
    kind = job.extra.get("kind", "SyN") if job.deformable else {6: "Rigid", 12: "Affine"}[job.dof]
    phase = "deformable" if job.deformable else "affine"
    with clock(phase):  # SyN's affine stage is inside: ANTs gives no time of its own for it
        found = lib.registration(fixed, moving, type_of_transform=kind, initial_transform=job.start, outprefix=f"{work}/ants_")
    chain, out = found["fwdtransforms"], {"labels": {}, "moved": {}, "matrix": found["fwdtransforms"][-1]}
    with clock("apply"):
        out["moved"][phase] = f"{work}/moved_{phase}.nii.gz"
        lib.image_write(found["warpedmovout"], out["moved"][phase])
        if job.labels:
            labels = lib.image_read(job.labels)
            for name, part in {"affine": chain[-1:], phase: chain}.items():
                out["labels"][name] = f"{work}/labels_{name}.nii.gz"
                warped = lib.apply_transforms(fixed, labels, part, interpolator="nearestNeighbor")
                lib.image_write(warped, out["labels"][name])
    if job.deformable:
        out["warp"] = lib.apply_transforms(fixed, moving, chain, compose=f"{work}/warp_")
    return out


def _ants_search(job: Job, clock: Clock) -> dict[str, Any]:
    import ants as lib

    fixed, moving = lib.image_read(job.fixed), lib.image_read(job.moving)
    with clock("search"):
        start = lib.affine_initializer(fixed, moving, search_factor=job.extra.get("step", 20), radian_fraction=1.0)
    with clock("affine"):
        found = lib.registration(fixed, moving, "Rigid", initial_transform=start, outprefix=f"{job.work}/ants_")
    return {"labels": {}, "moved": {}, "matrix": found["fwdtransforms"][-1]}


def _fireants(job: Job, clock: Clock) -> dict[str, Any]:
    """Settings of the published brain experiments as far as a CPU allows: scales 4, 2, 1, Adam at 0.5, window 5."""
    import torch

    torch.set_num_threads(job.threads)
    from fireants.io import BatchedImages, Image
    from fireants.registration.affine import AffineRegistration
    from fireants.registration.greedy import GreedyRegistration
    from fireants.registration.moments import MomentsRegistration

    work, quiet = Path(job.work), {"progress_bar": False}
    with clock("read"):
        fixed, moving = (BatchedImages([Image.load_file(p, device=job.device)]) for p in (job.fixed, job.moving))
    with clock("affine"):
        centre = MomentsRegistration(scale=4, fixed_images=fixed, moving_images=moving, moments=1)
        centre.optimize()
        linear = AffineRegistration(
            job.extra.get("affine_scales", [8, 4, 2]), job.extra.get("affine_iterations", [200, 100, 50]), fixed, moving,
            loss_type="cc", cc_kernel_size=5, optimizer="Adam", optimizer_lr=3e-3, init_rigid=centre.get_affine_init(), **quiet,
        )  # fmt: skip
        linear.optimize()
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": f"{work}/affine.mat"}
    linear.save_as_ants_transforms([out["matrix"]])
    if job.deformable:
        with clock("deformable"):
            local = GreedyRegistration(
                job.extra.get("scales", [4, 2, 1]), job.extra.get("iterations", [200, 100, 50]), fixed, moving,
                loss_type="cc", cc_kernel_size=5, optimizer="Adam", optimizer_lr=0.5, smooth_grad_sigma=1.0,
                smooth_warp_sigma=0.5, init_affine=linear.get_affine_matrix(), **quiet,
            )  # fmt: skip
            local.optimize()
        out["warp"] = f"{work}/warp.nii.gz"
        local.save_as_ants_transforms([out["warp"]])
    with clock("apply"):
        for phase, transform in {"affine": out["matrix"], "deformable": out.get("warp")}.items():
            if transform:
                _apply_itk(job, transform, phase, out)
    return out


def _simpleitk(job: Job, clock: Clock) -> dict[str, Any]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(job.threads)
    with clock("read"):
        fixed, moving = (sitk.ReadImage(p, sitk.sitkFloat32) for p in (job.fixed, job.moving))
    with clock("affine"):
        transform = _mattes(sitk, fixed, moving, job)
    matrix = f"{job.work}/affine.tfm"
    sitk.WriteTransform(transform, matrix)
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": matrix}
    with clock("apply"):
        _apply_itk(job, matrix, "affine", out)
    return out


def _mattes(sitk: Any, fixed: Any, moving: Any, job: Job) -> Any:
    """Three levels, 20 % of the voxels with a fixed seed, gradient descent, as in ITK's own rigid examples."""
    model = sitk.Euler3DTransform() if job.dof == 6 else sitk.AffineTransform(3)
    first = sitk.CenteredTransformInitializer(fixed, moving, model, sitk.CenteredTransformInitializerFilter.GEOMETRY)
    if job.start:
        first = sitk.ReadTransform(job.start)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(1.0, 200, 1e-6, 10)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(first, inPlace=False)
    return method.Execute(fixed, moving)


def _apply_itk(job: Job, transform: str, phase: str, out: dict[str, Any]) -> None:
    """Image (linear) and labels (nearest) on the fixed grid by SimpleITK, for the programs that only write a transform."""
    import SimpleITK as sitk

    fixed, chain = sitk.ReadImage(job.fixed), _itk_transform(sitk, transform)
    nearest = (job.labels, sitk.sitkNearestNeighbor, sitk.sitkInt32)
    todo = {"moved": (job.moving, sitk.sitkLinear, sitk.sitkFloat32), "labels": nearest}
    for kind, (path, how, pixel) in todo.items():
        if path:
            out[kind][phase] = f"{job.work}/{kind}_{phase}.nii.gz"
            sitk.WriteImage(sitk.Resample(sitk.ReadImage(path, pixel), fixed, chain, how, 0, pixel), out[kind][phase])


def _itk_transform(sitk: Any, path: str) -> Any:
    if path.endswith((".nii.gz", ".nii")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
    return sitk.ReadTransform(path)


INSIDE = {"greedy": (_greedy, "picsl_greedy"), "ants": (_ants, "antspyx"), "ants_search": (_ants_search, "antspyx"),
          "fireants": (_fireants, "fireants"),
          "simpleitk": (_simpleitk, "SimpleITK")}  # fmt: skip


def _run(name: str, work: Path) -> None:
    job, clock = Job(**json.loads((work / "job.json").read_text())), Clock()
    runner, package = INSIDE[name]
    found = runner(job, clock)
    version = importlib.metadata.version(package)
    (work / "result.json").write_text(json.dumps({**found, "seconds": clock.seconds, "version": f"{package} {version}"}))


def main(argv: list[str] | None = None) -> None:
    """``install DIR``, or, started by the functions above, ``run NAME WORK``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install", help="make the opponents' environment").add_argument("home", type=Path)
    run = verbs.add_parser("run", help="used internally: one job inside that environment")
    run.add_argument("name", choices=INSIDE)
    run.add_argument("work", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "install":
        install(args.home)
    else:
        _run(args.name, args.work)


if __name__ == "__main__":
    main(sys.argv[1:])
