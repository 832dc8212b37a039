"""Transforms in SimpleITK and ngff-zarr, on the bundled heads, on oblique, mirrored and anisotropic grids."""

from dataclasses import replace
from pathlib import Path

import ngff_zarr
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from daskreg.errors import IncompleteRun, Unreadable
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import open_volume, write_image
from daskreg.workflows.apply import apply
from daskreg.workflows.demo import demo_pair
from daskreg.workflows.export import export
from tests.phantoms import rotation, smooth_field
from tests.unit.workflows.runs import make_run

MIRRORED = rotation((8, -12, 15)) @ np.diag([1.0, 1.0, -1.0])
TURNED = Grid((40, 52, 36), (3.5, 3.0, 4.0), (-70.0, -95.0, 78.0), tuple(map(tuple, MIRRORED)), "mm", True)


def warp_on(grid, voxels=2.5, bump=4.0):
    """A smooth field with a bump in the middle, away from the corners of all blocks, (3, Z, Y, X) world units."""
    u = smooth_field(grid.shape, voxels, seed=3).field(grid.shape)
    z, y, x = (np.indices(grid.shape) - (np.array(grid.shape) / 2 + 0.3).reshape(3, 1, 1, 1)) / 4
    u[1] += bump * np.exp(-(z**2 + y**2 + x**2))
    return np.einsum("rc,czyx->rzyx", grid.index_to_world[:3, :3], u).astype(np.float32)


def affine_about(grid):
    m = np.eye(4)
    m[:3, :3] = rotation((3, 6, -5)) @ np.diag([1.05, 0.95, 1.0])
    m[:3, 3] = grid.center - m[:3, :3] @ grid.center + [4.0, -6.0, 3.0]
    return m


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The bundled head, 3 mm, as a file and a Volume."""
    return demo_pair(3)[1], open_volume(demo_pair(3)[1])


@pytest.fixture(scope="module")
def chain(head):
    """Two displacements on different grids, each followed by an affine."""
    moving = head[1].grid
    first = Transform.of(affine_about(TURNED), TURNED, warp_on(TURNED))
    return replace(first.then(Transform.of(None, moving, warp_on(moving, 1.5, 2.0), moving)), fixed=TURNED)


def by_sitk(head, like, transform):
    """The head resampled by an ITK transform on the grid of a file, and where its points are well inside."""
    moving, fixed = sitk.ReadImage(str(head[0]), sitk.sitkFloat64), sitk.ReadImage(str(like))
    ones = moving * 0 + 1
    eroded = sitk.ConstantPad(ones[1:-1, 1:-1, 1:-1], (1, 1, 1), (1, 1, 1))
    value = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    inside = sitk.Resample(eroded, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat64)
    return sitk.GetArrayFromImage(value), sitk.GetArrayFromImage(inside) > 0.999


def field_inside(transform, link, margin=1):
    """Voxels whose points are inside the grid of a link: ITK ends a field half a voxel later."""
    grid = transform.fixed
    p = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)).reshape(-1, 3)
    for before in transform.links[:link]:
        p = before.transform_points(p)
    index = transform.links[link].displacement_grid.to_index(p)
    inside = ((index > margin) & (index < np.array(transform.links[link].displacement_grid.shape) - 1 - margin)).all(axis=1)
    return inside.reshape(grid.shape)


def relative(a, b, where):
    return np.abs(a - b)[where].mean() / np.abs(b[where]).mean()


def test_itk_applies_a_composite_alike(chain, head, tmp_path):
    write_image(tmp_path / "like.nii.gz", np.zeros(TURNED.shape, np.float32), TURNED)
    export(chain, tmp_path / "chain.h5")
    itk = sitk.ReadTransform(str(tmp_path / "chain.h5"))
    theirs, inside = by_sitk(head, tmp_path / "like.nii.gz", itk)
    ours = chain.apply(replace(head[1], data=head[1].data.astype(np.float32))).compute()
    inside &= field_inside(chain, 0) & field_inside(chain, 1)
    assert inside.mean() > 0.2
    assert relative(ours, theirs, inside) < 0.005
    points = TURNED.to_world(np.random.default_rng(0).uniform(5, np.array(TURNED.shape) - 6, (200, 3)))
    wanted = np.array([itk.TransformPoint(p[::-1].tolist())[::-1] for p in points])
    between = chain.links[1].displacement_grid.to_index(chain.links[0].transform_points(points))
    known = ((between > 0) & (between < np.array(chain.links[1].displacement_grid.shape) - 1)).all(axis=1)
    assert known.sum() > 50
    assert np.abs(chain.points(points) - wanted)[known].max() < 0.01 * 3


def test_a_composite_written_by_itk_is_read(chain, tmp_path):
    """A composite of ITK's own, with a centred Euler transform, and back through our file."""
    export(chain, tmp_path / "chain.h5")
    itk = sitk.ReadTransform(str(tmp_path / "chain.h5"))
    both = sitk.CompositeTransform([itk, sitk.Euler3DTransform((10.0, -20.0, 15.0), 0.1, -0.05, 0.2, (1.0, 2.0, 3.0))])
    both.FlattenTransform()
    sitk.WriteTransform(both, str(tmp_path / "theirs.h5"))
    back = load_transform(tmp_path / "theirs.h5")
    inner = np.array(TURNED.shape) / 2
    points = TURNED.to_world(np.random.default_rng(0).uniform(inner - 6, inner + 6, (100, 3)))
    wanted = np.array([both.TransformPoint(p[::-1].tolist())[::-1] for p in points])
    np.testing.assert_allclose(back.points(points), wanted, atol=2e-3)
    assert back.unit == "millimeter"


def test_a_displacement_field_written_by_itk_is_read(chain, tmp_path):
    export(chain, tmp_path / "total.nii.gz")
    itk = sitk.ReadImage(str(tmp_path / "total.nii.gz"), sitk.sitkVectorFloat64)
    sitk.WriteImage(sitk.Cast(itk, sitk.sitkVectorFloat32), str(tmp_path / "theirs.nii"))
    transform = sitk.DisplacementFieldTransform(itk)
    points = TURNED.to_world(np.random.default_rng(0).uniform(1, np.array(TURNED.shape) - 2, (200, 3)))
    wanted = np.array([transform.TransformPoint(p[::-1].tolist())[::-1] for p in points])
    for name in ("theirs.nii", "total.nii.gz"):
        back = load_transform(tmp_path / name)
        np.testing.assert_allclose(back.grid.index_to_world, TURNED.index_to_world, atol=1e-3)
        assert np.abs(back.points(points) - wanted).max() < 0.01


def in_own_axes(volume):
    """An image for ngff-zarr along its own axes, as OME-NGFF's intrinsic systems are, and its grid there."""
    grid = volume.grid
    shift = np.linalg.solve(np.asarray(grid.direction), np.asarray(grid.origin))
    scale, translation = dict(zip("zyx", grid.spacing)), dict(zip("zyx", shift.tolist()))
    return ngff_zarr.to_ngff_image(volume.data.compute(), dims=["z", "y", "x"], scale=scale, translation=translation)


def test_ngff_zarr_resamples_through_a_field_alike(head, tmp_path):
    """The warp alone, on the oblique grid; the image lies along the same axes."""
    like = replace(TURNED, shape=(44, 50, 40), spacing=(3.0, 3.2, 3.6))
    image = replace(head[1], data=Transform.of(grid=like).apply(head[1]), grid=like)
    warp = Transform.of(None, TURNED, warp_on(TURNED), like)
    export(warp, tmp_path / "warp.zarr")
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "warp.zarr"), validate=True)
    (reported,) = scene.coordinateTransformations
    (field,) = [t for t in reported.transformations if t.type == "displacements"]
    group = ngff_zarr.from_ome_zarr(str(tmp_path / "warp.zarr" / field.path), validate=True)
    float_image = replace(image, data=image.data.astype(np.float32))
    blank = replace(float_image, data=Transform.of(grid=TURNED).apply(float_image), grid=TURNED)
    fixed = in_own_axes(blank)
    theirs = np.asarray(ngff_zarr.resample(field, fixed, in_own_axes(float_image), fields={field.path: group.images[0]}).data)
    ours = load_transform(tmp_path / "warp.zarr").apply(float_image).compute()
    assert np.ptp(theirs) > 10
    at = like.to_index(warp.points(TURNED.to_world(np.moveaxis(np.indices(TURNED.shape), 0, -1))))
    inside = ((at > 0) & (at < np.array(like.shape) - 1)).all(axis=-1)
    assert inside.mean() > 0.3
    assert np.abs(theirs - ours)[inside].max() / np.ptp(ours) < 1e-3


def test_a_stored_chain_is_read_back_unchanged(chain, tmp_path):
    export(chain, tmp_path / "chain.zarr")
    back = load_transform(tmp_path / "chain.zarr")
    assert (back.fixed, back.moving, back.unit) == (chain.fixed, chain.moving, chain.unit)
    points = TURNED.to_world(np.random.default_rng(0).uniform(0, np.array(TURNED.shape), (200, 3)))
    np.testing.assert_allclose(back.points(points), chain.points(points), atol=1e-4)
    group = zarr.open_group(tmp_path / "chain.zarr", mode="r+")
    group.attrs.put({"ome": group.attrs["ome"]})  # what another program would have written
    foreign = load_transform(tmp_path / "chain.zarr")
    np.testing.assert_allclose(foreign.points(points), chain.points(points), atol=1e-4)
    scene = ngff_zarr.NgffScene.from_ome_zarr(str(tmp_path / "chain.zarr"), validate=True)
    assert [t.type for t in scene.coordinateTransformations[0].transformations].count("displacements") == 2


def test_a_run_is_a_scene(head, tmp_path):
    moving = head[1].grid
    run = make_run(tmp_path / "run.zarr", affine_about(TURNED), warp_on(TURNED), fixed=TURNED, moving=moving)
    transform = load_transform(run)
    group = zarr.open_group(tmp_path / "run.zarr", mode="r+")
    group.attrs.put({"ome": group.attrs["ome"]})
    points = TURNED.to_world(np.random.default_rng(0).uniform(0, np.array(TURNED.shape) - 1, (200, 3)))
    np.testing.assert_allclose(load_transform(tmp_path / "run.zarr").points(points), transform.points(points), atol=1e-4)


def test_a_scene_of_another_program_is_read(tmp_path):
    group = zarr.create_group(tmp_path / "s.zarr", zarr_format=3)
    steps = [
        {"type": "scale", "scale": [2.0, 1.0, 1.0]},
        {"type": "rotation", "rotation": rotation((0, 0, 90)).tolist()},
        {"type": "mapAxis", "mapAxis": [0, 2, 1]},
        {"type": "identity"},
        {"type": "translation", "translation": [1.0, 2.0, 3.0]},
    ]
    reported = {"type": "bijection", "forward": {"type": "sequence", "transformations": steps}, "inverse": {"type": "identity"}}
    system = {"name": "a", "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]}
    group.attrs["ome"] = {"version": "0.6", "scene": {"coordinateSystems": [system], "coordinateTransformations": [
        {**reported, "input": {"name": "a"}, "output": {"name": "a"}}]}}  # fmt: skip
    transform = load_transform(tmp_path / "s.zarr")
    p = rotation((0, 0, 90)) @ np.array([2.0, 5.0, 7.0]) * 1.0
    assert transform.unit == "micrometer"
    np.testing.assert_allclose(transform.points([1.0, 5.0, 7.0]), p[[0, 2, 1]] + [1, 2, 3], atol=1e-12)
    group.attrs["ome"] = {
        "version": "0.6",
        "scene": {"coordinateTransformations": [{"type": "byDimension"}]},
    }
    with pytest.raises(Unreadable, match="byDimension"):
        load_transform(tmp_path / "s.zarr")
    group.attrs["ome"] = {"version": "0.6", "scene": {"coordinateTransformations": [{"type": "displacements", "path": "gone"}]}}
    with pytest.raises(Unreadable, match="'gone' is missing"):
        load_transform(tmp_path / "s.zarr")


def test_other_files_are_refused_as_transforms(head, tmp_path):
    with pytest.raises(Unreadable, match="not an image"):
        load_transform(head[0])
    zarr.create_group(tmp_path / "g.zarr", zarr_format=3)
    with pytest.raises(Unreadable, match="holds no transform"):
        load_transform(tmp_path / "g.zarr")
    zarr.create_group(tmp_path / "t.zarr", zarr_format=3, attributes={"daskreg": {"kind": "transform", "complete": False}})
    with pytest.raises(IncompleteRun, match="incomplete"):
        load_transform(tmp_path / "t.zarr")
    (tmp_path / "x.h5").write_bytes(b"no")
    with pytest.raises(Unreadable, match=r"x\.h5"):
        load_transform(tmp_path / "x.h5")


def test_apply_accepts_any_transform(chain, head, tmp_path):
    export(chain, tmp_path / "chain.h5")
    moved = apply(tmp_path / "chain.h5", head[0], tmp_path / "moved.ome.zarr", like=TURNED)
    ours = chain.apply(head[0]).compute().astype(float)
    assert np.abs(moved.data.compute() - ours).max() <= 1


def test_label_interpolation_agrees_with_itk(tmp_path):
    """Real labels, 117 of them, through an oblique affine: ITK's label interpolator sums the same trilinear weights."""
    labels = Path(demo_pair(3)[1]).parent / "quickstart_colin27_labelsAAL_3mm.nii.gz"
    write_image(tmp_path / "like.nii.gz", np.zeros(TURNED.shape, np.float32), TURNED)
    transform = Transform.of(affine_about(TURNED), TURNED)
    export(transform, tmp_path / "affine.tfm", part="affine")
    moving, fixed = sitk.ReadImage(str(labels), sitk.sitkUInt16), sitk.ReadImage(str(tmp_path / "like.nii.gz"))
    itk = sitk.ReadTransform(str(tmp_path / "affine.tfm"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkLabelLinear, 0.0, sitk.sitkUInt16))
    nearest = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt16))
    ours = transform.apply(labels, interpolation="label").compute()
    at = open_volume(labels).grid.to_index(transform.points(TURNED.to_world(np.moveaxis(np.indices(TURNED.shape), 0, -1))))
    inside = ((at > 0) & (at < np.array(moving.GetSize()[::-1]) - 1)).all(axis=-1)
    assert len(np.unique(ours)) > 80
    assert (ours != theirs)[inside].mean() < 1e-3  # equal shares, which may fall either way
    assert (nearest != theirs)[inside].mean() > 0.01


def test_itk_differs_by_rounding_only(head, tmp_path):
    """Within the extent of the moving image, where both repeat the outermost voxels, and beyond, where both give 0."""
    float_head = replace(head[1], data=head[1].data.astype(np.float32) + 50)  # a rim that is not 0
    write_image(tmp_path / "moving.nii.gz", float_head.data, float_head.grid)
    write_image(tmp_path / "like.nii.gz", np.zeros(TURNED.shape, np.float32), TURNED)
    transform = Transform.of(affine_about(TURNED), TURNED, warp_on(TURNED), float_head.grid)
    export(transform, tmp_path / "t.h5")
    moving, fixed = sitk.ReadImage(str(tmp_path / "moving.nii.gz")), sitk.ReadImage(str(tmp_path / "like.nii.gz"))
    itk = sitk.ReadTransform(str(tmp_path / "t.h5"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, itk, sitk.sitkLinear, 0.0, sitk.sitkFloat32))
    difference = np.abs(transform.apply(float_head).compute() - theirs) / np.ptp(theirs)
    at = float_head.grid.to_index(transform.points(TURNED.to_world(np.moveaxis(np.indices(TURNED.shape), 0, -1))))
    last = np.array(float_head.shape) - 1
    rim = np.abs(np.abs(at - last / 2) - (last + 1) / 2).min(axis=-1) < 1e-4  # may round to either side
    assert difference[~rim].max() < 1e-5
    assert ((at < 0) | (at > last)).any(axis=-1).mean() > 0.1
