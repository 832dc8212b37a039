"""Small files of every format that daskreg reads, how each is read to the end, and what is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meshio
import nibabel as nib
import numpy as np
import zarr
from hypothesis import strategies as st

from daskreg.config import Config
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.lazy.save import write_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import open_volume, write_image
from daskreg.storage.points import read_points
from daskreg.storage.transform_record import StoredLink
from daskreg.storage.transforms import write_affine, write_links
from daskreg.workflows.info import info
from tests.fuzz import oracles
from tests.fuzz.mutations import BYTES, HEAD, JSON, WORD
from tests.phantoms import rotation
from tests.unit.storage.stores import axes, dataset, ome_zarr
from tests.unit.workflows.runs import make_run

SHAPE = (7, 8, 9)
GRID = Grid(SHAPE, (2.0, 1.5, 1.0), (-6.0, -5.0, 4.0), tuple(map(tuple, rotation((6, -11, 17)))), "mm", True)
RNG = np.random.default_rng(0)
VOXELS = (RNG.random(SHAPE) * 255).astype(np.uint8)
FIELD = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
AFFINE = np.eye(4) + np.pad(RNG.normal(0, 0.05, (3, 4)), ((0, 1), (0, 0)))


@dataclass(frozen=True)
class Case:
    """make: writes the file or store;  read: reads all of it, returns what is compared with ``expected``, if that knows;
    changed: what is mutated, below a store, and how.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[str], Any]
    changed: tuple[tuple[str, st.SearchStrategy], ...]
    expected: Callable[[str], Any] = lambda _: None


def read_image(path: str):
    """The grid and all voxels, whatever the levels."""
    info(path)
    volume = open_volume(path)
    voxels = volume.read()
    assert voxels.shape == volume.grid.shape
    return volume.grid.index_to_world, voxels


def read_metres(path: str):
    """Spacing and origin in metres; the voxels are read too."""
    read_image(path)
    grid = open_volume(path).grid
    metres = oracles.METRES.get(grid.unit, 1.0)
    return np.array(grid.spacing) * metres, np.linalg.solve(np.array(grid.direction), np.array(grid.origin)) * metres


def read_transform(path: str):
    """Where it takes some points, and the largest displacement."""
    info(path)
    transform = load_transform(path)
    points = transform.fixed_to_moving_points(oracles.POINTS[:, ::-1])
    assert np.isfinite(points).all() or transform.links[0].displacement is not None
    return points


def read_table(path: str):
    """Points are finite."""
    info(path)
    points = read_points(path).points
    assert points.shape == (len(points), 3)
    assert np.isfinite(points).all()
    return points


def read_config(path: str):
    """A configuration that is read is written to the same."""
    config = Config.load(path)
    assert Config.load(_kept(path, config.dump())) == config


def _kept(path: str, text: str) -> str:
    other = Path(path).with_name("again.yaml")
    other.write_text(text)
    return str(other)


def nifti_field(name: str = "", first: float = 0):
    def make(path):
        values = np.ascontiguousarray(FIELD.transpose(3, 2, 1, 0)[:, :, :, None])
        image = nib.Nifti1Image(values, np.diag([1.0, 1.5, 2, 1]))
        image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = 1007, name.encode(), first
        image.header.set_xyzt_units(2)
        nib.save(image, path)

    return make


def image(path):
    write_image(path, VOXELS, GRID)


def ome(version):
    def make(path):
        levels = [dataset("0", (2.0, 1.0, 0.5), (10, 20, 30)), dataset("1", (4.0, 2.0, 1.0))]
        outer = [{"type": "scale", "scale": [1, 1, 1]}, {"type": "translation", "translation": [1, 2, 3]}]
        arrays = [VOXELS, VOXELS[::2, ::2, ::2]]
        ome_zarr(path, arrays, levels, version=version, axis_list=axes(), outer=outer)

    return make


def ome06(path):
    step = {"type": "scale", "scale": [2.0, 1.0, 0.5], "input": {"path": "0"}, "output": {"name": "physical"}}
    system = {"name": "physical", "axes": axes()}
    image = {"coordinateSystems": [system], "datasets": [{"path": "0", "coordinateTransformations": [step]}]}
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.create_array("0", data=VOXELS, chunks=(4, 4, 4))
    group.attrs.update({"ome": {"version": "0.6", "multiscales": [image]}})


def bare(form):
    def make(path):
        zarr.create_array(str(path), data=VOXELS, chunks=(4, 4, 4), zarr_format=form, overwrite=True)

    return make


def read_bare(path: str):
    """A bare array states no voxel size."""
    volume = open_volume(f"{path}::spacing=2x1x1")
    return volume.read()


def links(path):
    write_links(path, [StoredLink(AFFINE), StoredLink(np.eye(4), GRID, FIELD)])


def scene(path):
    write_transform(Transform.of(AFFINE, GRID, FIELD, GRID), str(path))


def scene_without_own(path):
    """As of another program: the specification's part alone."""
    scene(path)
    group = zarr.open_group(str(path))
    group.attrs.put({"ome": group.attrs["ome"]})
    field = group["coordinateTransformations/0"]
    field.attrs.put({"ome": field.attrs["ome"]})


def mesh(path):
    meshio.write(path, meshio.Mesh(RNG.random((4, 3)), [("triangle", np.array([[0, 1, 2], [1, 2, 3]]))]))


def text(content):
    return lambda path: Path(path).write_text(content)


TABLE = "name,x,y,z,side\n" + "".join(f"p{k},{k},{2 * k}.5,-{k},left\n" for k in range(6))
CONFIG = """stages:
- stage: affine
  scales: [4, 2]
  iterations: 100x50
- stage: deformable
  similarity: {kind: lncc, radius: 3}
"""
DISPLACEMENT = "transform/displacement"
ONE_FILE = (("", HEAD), ("", BYTES))
TEXT_FILE = (("", WORD), ("", WORD), ("", BYTES))


def metadata(*places):
    return tuple((place, kind) for place in places for kind in (JSON, JSON, BYTES))


CASES = {
    case.name: case
    for case in (
        Case("image.nii", image, read_image, ONE_FILE, oracles.nifti),
        Case("image.nii.gz", image, read_image, ONE_FILE, oracles.nifti),
        Case("field.nii", nifti_field(), read_transform, ONE_FILE),
        Case("field.nii.gz", nifti_field(), read_transform, ONE_FILE),
        Case("y_spm.nii", nifti_field("Mapping"), read_transform, ONE_FILE),
        Case("niftyreg.nii", nifti_field("NREG_TRANS", 1), read_transform, ONE_FILE),
        Case("image.mha", image, read_image, ONE_FILE),
        Case("image.nrrd", image, read_image, ONE_FILE),
        Case("affine.tfm", lambda p: write_affine(p, AFFINE), read_transform, TEXT_FILE, oracles.itk_points),
        Case("affine.txt", lambda p: write_affine(p, AFFINE), read_transform, TEXT_FILE),
        Case("affine.mat", lambda p: write_affine(p, AFFINE), read_transform, ONE_FILE),
        Case("composite.h5", links, read_transform, ONE_FILE),
        Case("points.csv", text(TABLE), read_table, TEXT_FILE),
        Case("points.tsv", text(TABLE.replace(",", "\t")), read_table, TEXT_FILE),
        Case("bare.txt", text("1 2 3\n4 5 6\n"), read_table, TEXT_FILE),
        Case("points.npy", lambda p: np.save(p, RNG.random((5, 3))), read_table, ONE_FILE),
        Case("mesh.ply", mesh, read_table, ONE_FILE),
        Case("mesh.vtk", mesh, read_table, ONE_FILE),
        Case("mesh.vtu", mesh, read_table, TEXT_FILE),
        Case("mesh.obj", mesh, read_table, TEXT_FILE),
        Case("mesh.off", mesh, read_table, TEXT_FILE),
        Case("mesh.stl", mesh, read_table, TEXT_FILE),
        Case("config.yaml", text(CONFIG), read_config, TEXT_FILE),
        Case("v04.zarr", ome("0.4"), read_metres, metadata(".zattrs", ".zattrs", "0/.zarray", "1/.zarray"), oracles.ome_zarr),
        Case("v05.zarr", ome("0.5"), read_metres, metadata("zarr.json", "zarr.json", "0/zarr.json"), oracles.ome_zarr),
        Case("v06.zarr", ome06, read_metres, metadata("zarr.json", "0/zarr.json"), oracles.ome_zarr),
        Case("own.zarr", image, read_metres, metadata("zarr.json", "zarr.json", "0/zarr.json"), oracles.ome_zarr),
        Case("array2.zarr", bare(2), read_bare, (*metadata(".zarray"), ("0.0.0", BYTES))),
        Case("array3.zarr", bare(3), read_bare, (*metadata("zarr.json"), ("c/0/0/0", BYTES))),
        Case(
            "run.zarr",
            lambda p: make_run(p, AFFINE, FIELD, GRID, GRID),
            read_transform,
            metadata(*(f"{place}zarr.json" for place in ("", "transform/", f"{DISPLACEMENT}/", f"{DISPLACEMENT}/0/"))),
        ),
        Case(
            "transform.zarr",
            scene,
            read_transform,
            metadata("zarr.json", "coordinateTransformations/0/zarr.json", "coordinateTransformations/0/0/zarr.json"),
        ),
        Case(
            "scene.zarr",
            scene_without_own,
            read_transform,
            metadata("zarr.json", "coordinateTransformations/0/zarr.json", "coordinateTransformations/0/0/zarr.json"),
        ),
    )
}
