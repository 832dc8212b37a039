"""Other registration programs, one job each; started by file name in the environment that has the program, without daskreg.

``python inside.py NAME FOLDER`` reads ``FOLDER/job.json`` and writes ``FOLDER/result.json``; NAME is a key of ``INSIDE``. Only
the standard library is imported before the program itself. The programs are only run: FireANTs' licence forbids copying its
code, greedy's is the GPL.

The result: ``seconds`` by phase, ``labels`` and ``moved`` (paths by phase: affine, deformable), ``warp`` (the total field as
ITK reads it: mm, LPS, components x, y, z, on the fixed grid), ``matrix`` (the linear stage, in the program's own format),
``version``, and ``settings`` in words.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProgramJob:
    """What an opponent is asked to do.

    fixed, moving: image paths;  labels: moving label image, or None;  work: folder for what it writes;
    dof: 6 or 12, of the linear stage;  deformable: whether a deformable stage follows;
    start: path of an affine in the program's own format to start from, or None for the image centres;
    iterations: of greedy's linear stage, coarse to fine;  device: "cpu" or "cuda", where a program has the choice;
    resample: whether to write the moved image (and labels);  warp: whether to write the field of a linear stage too;
    binary: of greedy, to run instead of its Python package, or NiftyReg's reg_f3d;  extra: of single programs, see their
    functions.
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
    resample: bool = True
    warp: bool = False
    binary: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


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


def _greedy(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    """extra: metric, window, local_iterations, smoothing, search (attempts and shift, mm, of a random search of the pose)."""
    work, said = Path(job.work), list[str]()
    execute = _greedy_command(job, said)
    images, common = f"-i {_word(job.fixed)} {_word(job.moving)}", f"-d 3 -threads {job.threads}"
    start = f"-ia {_word(job.start)}" if job.start else "-ia-image-centers"
    if search := job.extra.get("search"):
        start += f" -search {search[0]} any {search[1]}"
    chains = {"affine": _word(f"{work}/affine.mat")}
    with clock("affine"):
        linear = f"-a -dof {job.dof} -m {job.extra.get('metric', 'NMI')} -n {job.iterations}"
        execute(f"{common} {linear} {images} {start} -o {chains['affine']}")
    if job.deformable:
        field = _word(f"{work}/local.nii.gz")
        with clock("deformable"):
            window, n = job.extra.get("window", "2x2x2"), job.extra.get("local_iterations", "100x50x20")
            local = f"-m NCC {window} -n {n} -s {job.extra.get('smoothing', '1.732vox 0.707vox')}"
            execute(f"{common} {local} {images} -it {chains['affine']} -o {field}")
        chains["deformable"] = f"{field} {chains['affine']}"
    settings = "; ".join(said)
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": f"{work}/affine.mat", "settings": settings}
    with clock("apply"):
        for phase, chain in chains.items() if job.resample else ():
            out["moved"][phase] = f"{work}/moved_{phase}.nii.gz"
            execute(f"{common} -rf {_word(job.fixed)} -rm {_word(job.moving)} {_word(out['moved'][phase])} -r {chain}")
            if job.labels:
                out["labels"][phase] = to = f"{work}/labels_{phase}.nii.gz"
                execute(f"{common} -rf {_word(job.fixed)} -ri NN -rm {_word(job.labels)} {_word(to)} -r {chain}")
    if "deformable" in chains or job.warp:
        with clock("field"):
            out["warp"] = f"{work}/warp.nii.gz"
            execute(f"{common} -rf {_word(job.fixed)} -rc {_word(out['warp'])} -r {list(chains.values())[-1]}")
    return out


def _word(path: str) -> str:
    """A path as a word of greedy's command line. Raises ValueError for one that cannot be: it has no quotes."""
    if len(path.split()) != 1 or path.startswith("-"):
        raise ValueError(f"greedy takes no path with blanks: {path!r}; choose another folder")
    return path


def _greedy_command(job: ProgramJob, said: list[str]) -> Callable[[str], Any]:
    """What runs a command line of greedy; ``said`` keeps them, without paths."""
    run = _greedy_runner(job.binary)

    def execute(line: str) -> None:
        said.append(f"greedy {' '.join(w for w in line.split() if '/' not in w)}")
        run(line)

    return execute


def _greedy_runner(binary: str) -> Callable[[str], Any]:
    """The program, or else the package."""
    if binary:
        return lambda line: _run_binary(binary, *line.split())
    from picsl_greedy import Greedy3D

    package: Callable[[str], Any] = Greedy3D().execute
    return package


def _run_binary(binary: str, *words: str) -> None:
    code = subprocess.run([binary, *words], check=False).returncode
    if code:
        sys.exit(f"{binary} ended with code {code}")


def _ants(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    import ants as lib

    work = Path(job.work)
    with clock("read"):
        fixed, moving = lib.image_read(job.fixed), lib.image_read(job.moving)
    kind = job.extra.get("kind", "SyN") if job.deformable else {6: "Rigid", 12: "Affine"}[job.dof]
    phase = "deformable" if job.deformable else "affine"
    with clock(phase):  # SyN's affine stage is inside: ANTs gives no time of its own for it
        found = lib.registration(fixed, moving, type_of_transform=kind, initial_transform=job.start, outprefix=f"{work}/ants_")
    chain, settings = found["fwdtransforms"], f"ants.registration(type_of_transform={kind!r})"
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": chain[-1], "settings": settings}
    with clock("apply"):
        if job.resample:
            out["moved"][phase] = f"{work}/moved_{phase}.nii.gz"
            lib.image_write(found["warpedmovout"], out["moved"][phase])
        if job.labels:
            labels = lib.image_read(job.labels)
            for name, part in {"affine": chain[-1:], phase: chain}.items():
                out["labels"][name] = f"{work}/labels_{name}.nii.gz"
                warped = lib.apply_transforms(fixed, labels, part, interpolator="nearestNeighbor")
                lib.image_write(warped, out["labels"][name])
    if job.deformable or job.warp:
        with clock("field"):
            out["warp"] = lib.apply_transforms(fixed, moving, chain, compose=f"{work}/warp_")
    return out


def _ants_search(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    import ants as lib

    fixed, moving = lib.image_read(job.fixed), lib.image_read(job.moving)
    with clock("search"):
        start = lib.affine_initializer(fixed, moving, search_factor=job.extra.get("step", 20), radian_fraction=1.0)
    with clock("affine"):
        found = lib.registration(fixed, moving, "Rigid", initial_transform=start, outprefix=f"{job.work}/ants_")
    return {"labels": {}, "moved": {}, "matrix": found["fwdtransforms"][-1]}


def _fireants(job: ProgramJob, clock: Clock) -> dict[str, Any]:
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
    settings = "moments, AffineRegistration cc 5, scales 8, 4, 2; GreedyRegistration cc 5, Adam 0.5, scales 4, 2, 1"
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": f"{work}/affine.mat", "settings": settings}
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
            if transform and job.resample:
                _apply_itk(job, transform, phase, out)
    if job.warp and not job.deformable:
        with clock("field"):
            out["warp"] = _field_of(job, out["matrix"])
    return out


def _simpleitk(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(job.threads)
    with clock("read"):
        fixed, moving = (sitk.ReadImage(p, sitk.sitkFloat32) for p in (job.fixed, job.moving))
    with clock("affine"):
        transform = _mattes(sitk, fixed, moving, job)
    matrix = f"{job.work}/affine.tfm"
    sitk.WriteTransform(transform, matrix)
    out: dict[str, Any] = {"labels": {}, "moved": {}, "matrix": matrix, "settings": "Mattes mutual information, 20 % of voxels"}
    with clock("apply"):
        if job.resample:
            _apply_itk(job, matrix, "affine", out)
    if job.warp:
        with clock("field"):
            out["warp"] = _field_of(job, matrix)
    return out


def _mattes(sitk: Any, fixed: Any, moving: Any, job: ProgramJob) -> Any:
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


def _apply_itk(job: ProgramJob, transform: str, phase: str, out: dict[str, Any]) -> None:
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


def _field_of(job: ProgramJob, transform: str) -> str:
    """A linear transform as a field on the fixed grid."""
    import SimpleITK as sitk

    fixed, path = sitk.ReadImage(job.fixed), f"{job.work}/warp.nii.gz"
    place = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    field_of = sitk.TransformToDisplacementField(_itk_transform(sitk, transform), sitk.sitkVectorFloat32, *place)
    sitk.WriteImage(field_of, path)
    return path


def _elastix(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    """Elastix by itk-elastix: its default parameter maps, one after the other; all use Mattes mutual information."""
    import itk

    with clock("read"):
        fixed, moving = (itk.imread(p, itk.F) for p in (job.fixed, job.moving))
    stages = ["rigid"] + (["affine"] if job.dof == 12 else []) + (["bspline"] if job.deformable else [])
    parameters = itk.ParameterObject.New()
    for stage in stages:
        chosen = parameters.GetDefaultParameterMap(stage)
        if stage == "bspline":  # its bending penalty crashes in several threads (itk-elastix 0.23 and 0.25)
            chosen["UseMultiThreadingForMetrics"] = ("false",)
        parameters.AddParameterMap(chosen)
    with clock("deformable" if job.deformable else "affine"):
        moved, found = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, number_of_threads=job.threads, log_to_console=False
        )
    settings = f"default parameter maps {', '.join(stages)}; metrics of bspline in one thread"
    out: dict[str, Any] = {"labels": {}, "moved": {}, "settings": settings, "warp": f"{job.work}/warp.nii.gz"}
    if job.resample:
        out["moved"]["deformable" if job.deformable else "affine"] = f"{job.work}/moved.nii.gz"
        itk.imwrite(moved, f"{job.work}/moved.nii.gz")
    with clock("field"):
        itk.imwrite(itk.transformix_deformation_field(moving, found), out["warp"])
    return out


def _niftyreg(job: ProgramJob, clock: Clock) -> dict[str, Any]:
    """NiftyReg's programs with their defaults: reg_aladin (block matching), then reg_f3d (B-splines, NMI)."""
    work, said = Path(job.work), list[str]()
    tool, common = partial(_niftyreg_tool, job, said), ["-ref", job.fixed, "-flo", job.moving, "-omp", str(job.threads)]
    chains = {"affine": f"{work}/affine.txt"}
    with clock("affine"):
        start = ["-inaff", job.start] if job.start else []
        model = ["-rigOnly"] if job.dof == 6 else []
        tool("reg_aladin", *common, *start, *model, "-aff", chains["affine"], "-res", f"{work}/moved_affine.nii.gz")
    if job.deformable:
        chains["deformable"] = f"{work}/splines.nii.gz"
        with clock("deformable"):
            to = ["-cpp", chains["deformable"], "-res", f"{work}/moved_deformable.nii.gz"]
            tool("reg_f3d", *common, "-aff", chains["affine"], *to)
    out: dict[str, Any] = {"labels": {}, "matrix": chains["affine"], "settings": "; ".join(said)}
    out["moved"] = {phase: f"{work}/moved_{phase}.nii.gz" for phase in chains if job.resample}
    with clock("apply"):
        for phase, chain in chains.items() if job.labels else ():
            out["labels"][phase] = f"{work}/labels_{phase}.nii.gz"
            images = ["-ref", job.fixed, "-flo", str(job.labels), "-trans", chain, "-res", out["labels"][phase]]
            tool("reg_resample", *images, "-inter", "0")
    if "deformable" in chains or job.warp:
        with clock("field"):
            out["warp"] = f"{work}/warp.nii.gz"
            tool("reg_transform", "-ref", job.fixed, "-disp", list(chains.values())[-1], out["warp"])
            _to_lps(out["warp"])
    return out


def _niftyreg_tool(job: ProgramJob, said: list[str], name: str, *words: str) -> None:
    """Run a program that lies beside reg_f3d."""
    said.append(" ".join([name, *(w for w in words if "/" not in w)]))
    _run_binary(str(Path(job.binary).with_name(name)), *words)


def _to_lps(path: str) -> None:
    """A field of displacements along NIfTI's world axes (RAS), as ITK stores it (LPS)."""
    import nibabel
    import numpy as np

    image: Any = nibabel.load(path)
    along_lps = np.asarray(image.dataobj, np.float32) * np.array([-1, -1, 1], np.float32)
    header: Any = nibabel.Nifti1Header()
    header.set_intent("vector")
    nibabel.save(nibabel.Nifti1Image(along_lps, image.affine, header), path)


INSIDE = {
    "greedy": (_greedy, "picsl_greedy"),
    "ants": (_ants, "antspyx"),
    "ants_search": (_ants_search, "antspyx"),
    "fireants": (_fireants, "fireants"),
    "simpleitk": (_simpleitk, "SimpleITK"),
    "elastix": (_elastix, "itk-elastix"),
    "niftyreg": (_niftyreg, "reg_f3d"),
}


def _version(job: ProgramJob, package: str) -> str:
    if job.binary:
        said = subprocess.run([job.binary, "-version"], capture_output=True, text=True, check=False)
        return f"{job.binary}: {(said.stdout or said.stderr).strip().partition(chr(10))[0]}"
    return f"{package} {importlib.metadata.version(package)}"


def main(name: str, work: Path) -> None:
    """One job in this environment."""
    job, clock = ProgramJob(**json.loads((work / "job.json").read_text())), Clock()
    runner, package = INSIDE[name]
    found = runner(job, clock)
    (work / "result.json").write_text(json.dumps({**found, "seconds": clock.seconds, "version": _version(job, package)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
