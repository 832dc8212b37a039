"""OME-Zarr metadata that places voxels wrongly is refused, or what is assumed is told."""

import json

import numpy as np
import pytest
import zarr

from daskreg.errors import ConfigError, GridError, InputError, UnitsError, Unreadable
from daskreg.grid import Grid, unit_name
from daskreg.storage import describe, open_volume, write_image
from daskreg.storage.runs.scenes import find_image
from daskreg.storage.transforms import open_transform
from tests.unit.storage.stores import axes, dataset, ome_zarr, simple, voxels

OUTER = [{"type": "scale", "scale": [1, 1, 1]}, {"type": "translation", "translation": [10, 20, 30]}]
SHIFTED = ((0, 0, 1), (-1, 0, 0), (0, 1, 0))


def with_units(path, *units, scale=(1.5, 200, 200)):
    named = [a | {"unit": u} if u else {k: v for k, v in a.items() if k != "unit"} for a, u in zip(axes(), units)]
    return ome_zarr(path, [voxels()], [dataset("0", scale, scale)], axis_list=named)


def edited(path, change):
    """A store whose root attributes are changed in place."""
    where = path / "zarr.json"
    tree = json.loads(where.read_text())
    change(tree["attributes"])
    where.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize("units", [("um", "nm", "nm"), ("micron", "nanometer", "nm"), ("\u03bcm", "nm", "nanometre")])
def test_units_that_differ_between_axes_are_converted(tmp_path, units):
    grid = open_volume(with_units(tmp_path / "a.zarr", *units)).grid
    np.testing.assert_allclose(grid.spacing, (1.5, 0.2, 0.2), rtol=1e-12)
    np.testing.assert_allclose(grid.origin, (1.5, 0.2, 0.2), rtol=1e-12)
    assert grid.unit == "micrometer"
    np.testing.assert_allclose(describe(tmp_path / "a.zarr").levels[0].spacing, (1.5, 0.2, 0.2), rtol=1e-12)


@pytest.mark.parametrize("word", ["\u03bcm", "\u00b5m", "um", "micron", "Microns", "micrometre", "micrometers", "Micrometer"])
def test_spellings_of_a_unit_are_understood(word):
    assert unit_name(word) == "micrometer"


@pytest.mark.parametrize("word", ["Mm", "gram", "second", "pixels per inch"])
def test_other_words_are_no_units_of_length(word):
    with pytest.raises(UnitsError, match="not a unit of length"):
        unit_name(word)


def test_an_unknown_unit_beside_a_known_one_is_refused_and_a_missing_one_is_told(tmp_path, caplog):
    with pytest.raises(UnitsError, match=r"furlong, nm, nm"):
        open_volume(with_units(tmp_path / "a.zarr", "furlong", "nm", "nm"))
    assert open_volume(with_units(tmp_path / "b.zarr", "um", None, None)).grid.spacing == (1.5, 200, 200)
    assert "not all of its axes state a unit" in caplog.text


def test_a_scene_does_not_link_an_image_with_two_units(tmp_path):
    with pytest.raises(ConfigError, match="one unit"):
        find_image("fixed", with_units(tmp_path / "a.zarr", "um", "nm", "nm"))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_translation_of_the_whole_image_leaves_coarse_levels_at_the_centres_of_blocks(tmp_path, version, caplog):
    levels = [dataset("0", (1, 1, 1)), dataset("1", (2, 2, 2))]
    path = ome_zarr(tmp_path / "a.zarr", [voxels(), voxels((3, 4, 4))], levels, version=version, outer=OUTER)
    assert open_volume(path).grid.origin == (10, 20, 30)
    assert not caplog.text
    assert open_volume(f"{path}::level=1").grid.origin == (10.5, 20.5, 30.5)
    assert "states no translation" in caplog.text
    scaled = [{"type": "scale", "scale": [3, 1, 1]}, OUTER[1]]
    path = ome_zarr(tmp_path / "b.zarr", [voxels(), voxels((3, 4, 4))], levels, version=version, outer=scaled)
    assert open_volume(f"{path}::level=1").grid.origin == (11.5, 20.5, 30.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("direction", [[1, 0, 0], [0, 1, 0], [0, 1, 0]]),
        ("direction", [[2, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("direction", [[1, 0, 0], [0, 1, 0]]),
        ("direction", [["x", 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("direction", None),
        ("spacing", [2, 1]),
        ("spacing", "211"),
        ("spacing", [2, 1, 1e-320]),
        ("spacing", [4, 1, 1.5]),
        ("origin", [0, 0, float("nan")]),
        ("origin", [0, 0, 2.0**63]),
        ("origin", [0, 0, 0, 0]),
        ("shape", [6, 7, 9]),
        ("shape", [6, 7, 2**70]),
        ("unit", "gram"),
        ("unit", "nanometer"),
    ],
)
def test_a_wrong_grid_beside_the_metadata_is_refused_not_ignored(tmp_path, key, value):
    write_image(tmp_path / "a.zarr", voxels(), Grid((6, 7, 8), (2, 1, 1.5), (5, -6, 7), SHIFTED, "um", True))
    assert open_volume(tmp_path / "a.zarr").grid.direction == SHIFTED
    edited(tmp_path / "a.zarr", lambda tree: tree["daskreg"]["grid"].update({key: value}))
    with pytest.raises(Unreadable, match=r"daskreg\.grid"):
        open_volume(tmp_path / "a.zarr")


def test_a_grid_without_one_of_its_keys_is_refused(tmp_path):
    write_image(tmp_path / "a.zarr", voxels(), Grid((6, 7, 8), unit="um"))
    edited(tmp_path / "a.zarr", lambda tree: tree["daskreg"]["grid"].pop("direction"))
    with pytest.raises(Unreadable, match=r"daskreg\.grid\.direction: Field required"):
        open_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**63, 1e300])
@pytest.mark.parametrize("kind", ["scale", "translation"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_absurd_places_are_refused(tmp_path, kind, value, version):
    step = {"scale": (1.0, 1.0, 1.0), "translation": (0.0, 0.0, 0.0)} | {kind: (value, 1.0, 1.0)}
    path = ome_zarr(tmp_path / "a.zarr", [voxels()], [dataset("0", step["scale"], step["translation"])], version=version)
    with pytest.raises((Unreadable, GridError)):
        open_volume(path)


@pytest.mark.parametrize("value", ["x", "123", ["1", "a", "1"], [1, 1], [1, 1, 1, 1], [[1, 1, 1]], {"z": 1}, None, True])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_scales_that_are_no_numbers_are_refused(tmp_path, value, version):
    group = zarr.open_group(simple(tmp_path / "a.zarr", version=version))
    tree = json.loads(json.dumps(dict(group.attrs)))
    tree.get("ome", tree)["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = value
    group.attrs.put(tree)
    with pytest.raises(Unreadable, match=r"a\.zarr"):
        open_volume(tmp_path / "a.zarr")


def test_a_version_is_required_where_the_specification_requires_it(tmp_path, caplog):
    simple(tmp_path / "new.zarr")
    edited(tmp_path / "new.zarr", lambda tree: tree["ome"].pop("version"))
    with pytest.raises(Unreadable, match="does not state its version"):
        open_volume(tmp_path / "new.zarr")
    group = zarr.open_group(simple(tmp_path / "old.zarr", version="0.4"))
    images = group.attrs["multiscales"]
    group.attrs["multiscales"] = [{k: v for k, v in images[0].items() if k != "version"}]
    assert open_volume(tmp_path / "old.zarr").grid.spacing == (2.0, 1.0, 0.5)
    assert "states no version" in caplog.text


def test_of_two_images_in_a_group_the_first_is_taken_with_a_warning_and_either_is_chosen_by_its_level(tmp_path, caplog):
    path = tmp_path / "a.zarr"
    ome_zarr(path, [voxels(), voxels((3, 4, 4))], [dataset("a", (2, 1, 1)), dataset("b", (6, 6, 6), (1, 1, 1))])

    def split(tree):
        image = tree["ome"]["multiscales"][0]
        first, second = image["datasets"]
        tree["ome"]["multiscales"] = [image | {"name": n, "datasets": [d]} for n, d in (("one", first), ("two", second))]

    edited(path, split)
    assert open_volume(path).grid.spacing == (2, 1, 1)
    assert "several multiscale images (one: a; two: b)" in caplog.text
    caplog.clear()
    for address in (f"{path}::level=b", path / "b"):
        assert open_volume(address).grid == Grid((3, 4, 4), (6, 6, 6), (1, 1, 1), unit="um")
    assert not caplog.text


def test_a_level_whose_scale_is_wrong_is_told_of(tmp_path, caplog):
    ome_zarr(tmp_path / "a.zarr", [voxels((60, 7, 8)), voxels((30, 7, 8))], [dataset("0", (1, 1, 1)), dataset("1", (8, 1, 1))])
    open_volume(tmp_path / "a.zarr")
    assert "level 1 does not cover the space that level 0 covers" in caplog.text


def scene(path, *steps, version="0.6", unit="millimeter", **more):
    space = [{"name": n, "type": "space", "unit": unit} for n in "zyx"]
    systems = [{"name": n, "axes": space} for n in ("fixed", "moving")]
    whole = {"type": "sequence", "input": {"name": "fixed"}, "output": {"name": "moving"}, "transformations": list(steps)}
    ome = {"scene": {"coordinateSystems": systems, "coordinateTransformations": [whole | more]}} | (
        {"version": version} if version else {}
    )
    zarr.open_group(str(path), mode="w", zarr_format=3).attrs.update({"ome": ome})
    return path


def test_a_scene_is_read_as_its_steps_say(tmp_path):
    turn = {"type": "rotation", "rotation": [[0, -1, 0], [1, 0, 0], [0, 0, 1]]}
    record = open_transform(scene(tmp_path / "s.zarr", turn, {"type": "translation", "translation": [1, 2, 3]}))
    total = record.links[1].affine @ record.links[0].affine
    np.testing.assert_array_equal(total @ [1, 0, 0, 1], [1, 3, 3, 1])
    assert record.unit == "millimeter"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"type": "rotation", "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}, "rotation"),
        ({"type": "rotation", "rotation": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "mirrors"),
        ({"type": "rotation", "rotation": [[1, 0], [0, 1]]}, "shape"),
        ({"type": "mapAxis", "mapAxis": [0, 0, 1]}, "permutation"),
        ({"type": "mapAxis", "mapAxis": [-1, 0, 1]}, "permutation"),
        ({"type": "scale", "scale": [1, 1]}, "shape"),
        ({"type": "scale", "scale": [1, "1", 1]}, r"\('1'\)"),
        ({"type": "scale", "scale": [1, float("nan"), 1]}, "finite"),
        ({"type": "affine", "affine": [[1, 0, 0, 0, 5], [0, 1, 0, 0, 5], [0, 0, 1, 0, 5]]}, "shape"),
        ({"type": "affine", "affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1]]}, "different lengths"),
        ({"type": "affine", "path": "matrix"}, "array of its own"),
        ({"type": "displacements", "path": "field", "interpolation": "nearest"}, "interpolated by 'nearest'"),
        ({"type": "displacements", "path": "../field"}, "below the scene"),
        ({"type": "displacements"}, "path"),
        ({"type": "twirl"}, "type 'twirl'"),
        ({"transformations": []}, "type: Field required"),
    ],
)  # fmt: skip
def test_steps_that_are_no_map_are_refused(tmp_path, step, says):
    with pytest.raises(Unreadable, match=says):
        open_transform(scene(tmp_path / "s.zarr", step))


@pytest.mark.parametrize("version", [None, "0.5", 6])
def test_a_scene_of_another_version_is_refused(tmp_path, version):
    with pytest.raises(Unreadable, match=r"0\.6 was expected"):
        open_transform(scene(tmp_path / "s.zarr", {"type": "identity"}, version=version))


@pytest.mark.parametrize("wrong", ["fixed", [], {"scene": 1}, [{"name": 1}], None])
def test_a_scene_of_another_shape_is_refused(tmp_path, wrong):
    path = scene(tmp_path / "s.zarr", {"type": "identity"})
    edited(path, lambda tree: tree["ome"]["scene"].update({"coordinateTransformations": wrong}))
    with pytest.raises(InputError):
        open_transform(path)


def image06(path, **changes):
    """A 0.6 image of another program, with changes to its system or its dataset."""
    step = {"type": "scale", "scale": [2.0, 1.0, 0.5], "input": {"path": "0"}, "output": {"name": "physical"}}
    system = {"name": "physical", "axes": changes.pop("axes", axes())}
    image = {"coordinateSystems": [system], "datasets": [{"path": "0", "coordinateTransformations": [step | changes]}]}
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.create_array("0", data=voxels())
    group.attrs.update({"ome": {"version": "0.6", "multiscales": [image]}})
    return path


def test_an_image_of_version_0_6_is_placed_as_it_says(tmp_path):
    grid = open_volume(image06(tmp_path / "a.zarr", axes=axes("zyx", "\u03bcm"))).grid
    assert grid == Grid((6, 7, 8), (2.0, 1.0, 0.5), unit="um")


@pytest.mark.parametrize("changes", [
    {"axes": axes("zzx")}, {"axes": axes("zy")}, {"axes": "zyx"}, {"output": {"name": "other"}}, {"output": None},
    {"type": "affine"},
    {"scale": [1, 1]}, {"scale": None}, {"scale": [1, 1, "x"]}, {"scale": [1, 1, float("inf")]},
    {"type": "sequence", "transformations": [1]},
])  # fmt: skip
def test_images_of_version_0_6_that_cannot_be_placed_are_refused(tmp_path, changes):
    with pytest.raises(InputError, match=r"a\.zarr"):
        open_volume(image06(tmp_path / "a.zarr", **changes))
