"""MetaImage and NRRD: what SimpleITK reads and writes, and nothing else than it does."""

import os
import pickle
import sys

import dask.array as da
import numpy as np
import pytest
import SimpleITK as sitk

from daskreg.errors import AxesError, ConfigError, NotFound, OutputError, OutputExists, Unreadable
from daskreg.grid import Grid
from daskreg.storage import describe, open_stack, open_volume, write_image
from daskreg.storage.formats import itk_image

ENDINGS = ["mha", "mhd", "nrrd", "nhdr"]
TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
OBLIQUE = ((0.36, 0.48, -0.8), (-0.8, 0.6, 0.0), (0.48, 0.64, 0.6))
GRID = Grid((5, 6, 7), (2.0, 1.0, 1.5), (5.0, -6.0, 7.0), OBLIQUE, "millimeter", True)


def voxels(dtype="int16", shape=GRID.shape):
    values = np.random.default_rng(0).integers(0, 100, shape)
    return values.astype(dtype)


def as_itk(array, vector=False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing((1.5, 1.0, 2.0))
    image.SetOrigin((7.0, -6.0, 5.0))
    image.SetDirection(np.asarray(OBLIQUE)[::-1, ::-1].ravel().tolist())
    return image


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_itk_wrote_is_read_as_itk_reads_it(tmp_path, ending, compressed, dtype):
    path = str(tmp_path / f"a.{ending}")
    sitk.WriteImage(as_itk(voxels(dtype)), path, compressed)
    volume = open_volume(path)
    assert (volume.dtype, volume.shape) == (np.dtype(dtype), GRID.shape)
    assert (volume.grid.unit, volume.grid.oriented) == ("millimeter", True)
    np.testing.assert_allclose(volume.grid.index_to_world, GRID.index_to_world, atol=1e-12)
    np.testing.assert_array_equal(volume.data.compute(), sitk.GetArrayFromImage(sitk.ReadImage(path)))
    assert (volume.data.npartitions == 1) or not compressed


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [*TYPES, "bool", "float16", ">i2", ">f8"])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_written_is_read_by_itk_and_by_daskreg(tmp_path, ending, dtype, lazy):
    path, data = str(tmp_path / f"a.{ending}"), voxels(dtype)
    write_image(path, da.from_array(data, chunks=3) if lazy else data, GRID)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), data)
    for index in [(0, 0, 0), (4, 5, 6), (1, 2, 3)]:
        point = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(point[::-1], GRID.to_world(index), atol=1e-9)
    back = open_volume(path)
    np.testing.assert_array_equal(back.data.compute(), data)
    np.testing.assert_allclose(back.grid.index_to_world, GRID.index_to_world, atol=1e-9)


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_other_units_become_millimetres(tmp_path, ending):
    write_image(tmp_path / f"a.{ending}", voxels(), Grid(GRID.shape, (2000.0, 1000.0, 1500.0), unit="micrometer"))
    np.testing.assert_allclose(open_volume(tmp_path / f"a.{ending}").grid.spacing, (2.0, 1.0, 1.5))


@pytest.mark.parametrize("ending", ENDINGS)
def test_planes_of_an_uncompressed_file_are_read_alone(tmp_path, ending, monkeypatch):
    monkeypatch.setattr("daskreg.storage.formats.lazy.SLAB_BYTES", 2 * 42 * 2)
    sitk.WriteImage(as_itk(voxels()), str(tmp_path / f"a.{ending}"))
    asked = []
    for name in ("_read_box", "_read_raw"):
        read = getattr(itk_image, name)
        monkeypatch.setattr(itk_image, name, lambda header, box, read=read: asked.append(box) or read(header, box))
    volume = open_volume(tmp_path / f"a.{ending}")
    assert volume.data.chunks[0] == (2, 2, 1)
    np.testing.assert_array_equal(volume.data[3, 1:6:2, -1].compute(), voxels()[3, 1:6:2, -1])
    assert [(s.start, s.stop) for s in asked[-1]] in ([(3, 4), (1, 6), (6, 7)], [(2, 4), (0, 6), (0, 7)])


def test_a_big_endian_nrrd_is_read(tmp_path):
    path = str(tmp_path / "a.nrrd")
    sitk.WriteImage(as_itk(voxels()), path)
    header, _, _ = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    (tmp_path / "a.nrrd").write_bytes(header.replace(b"little", b"big") + b"\n\n" + voxels(">i2").tobytes())
    np.testing.assert_array_equal(open_volume(path).data.compute(), voxels())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), voxels())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_channel_is_chosen_and_many_are_kept_by_a_stack(tmp_path, ending):
    path, data = str(tmp_path / f"rgb.{ending}"), voxels("uint8", (*GRID.shape, 3))
    sitk.WriteImage(as_itk(data, vector=True), path)
    with pytest.raises(AxesError, match="has 3 channels: choose one with '::channel=0'"):
        open_volume(path)
    np.testing.assert_array_equal(open_volume(f"{path}::channel=2").data.compute(), data[..., 2])
    stack = open_stack(path)
    assert stack.axes == ("c",)
    np.testing.assert_array_equal(stack.data.compute(), np.moveaxis(data, -1, 0))


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_time_points_are_chosen_and_flat_images_refused(tmp_path, ending):
    data = voxels("int16", (4, *GRID.shape))
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), str(tmp_path / f"t.{ending}"))
    with pytest.raises(AxesError, match="has 4 time points"):
        open_volume(tmp_path / f"t.{ending}")
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/t.{ending}::time=1").data.compute(), data[1])
    sitk.WriteImage(sitk.GetImageFromArray(data[0, 0]), str(tmp_path / f"flat.{ending}"))
    with pytest.raises(AxesError, match="a 3D image"):
        open_volume(tmp_path / f"flat.{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_unreadable(tmp_path, ending, compressed, capfd):
    path = str(tmp_path / f"a.{ending}")
    sitk.WriteImage(as_itk(voxels("float64")), path, compressed)
    data = next(p for p in tmp_path.iterdir() if "raw" in p.name) if len(os.listdir(tmp_path)) > 1 else tmp_path / f"a.{ending}"
    data.write_bytes(data.read_bytes()[:-200])
    with pytest.raises(Unreadable, match=r"a\.\w+ is (damaged, )?cut short.*copy it again\.$") as caught:
        open_volume(path).read()
    assert "\n" not in str(caught.value)
    capfd.readouterr()  # ITK prints as well


@pytest.mark.parametrize(("name", "content"), [
    ("a.mha", b""), ("a.mha", b"garbage"), ("a.mha", b"ObjectType = Image\nNDims = 3\n"), ("a.nrrd", b"NRRD0004\nfoo: 1\n"),
    ("a.nrrd", b"garbage"),
])  # fmt: skip
def test_what_is_no_image_is_unreadable(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match="damaged, cut short or no"):
        open_volume(tmp_path / name)
    with pytest.raises(NotFound):
        open_volume(tmp_path / "absent.mha")
    capfd.readouterr()


def test_complex_voxels_levels_and_urls_are_refused(tmp_path):
    sitk.WriteImage(as_itk(voxels("complex64")), str(tmp_path / "c.nrrd"))
    with pytest.raises(Unreadable, match="complex of 32-bit float; real numbers were expected"):
        open_volume(tmp_path / "c.nrrd")
    sitk.WriteImage(as_itk(voxels()), str(tmp_path / "a.mha"))
    with pytest.raises(ConfigError, match="no levels"):
        open_volume(f"{tmp_path}/a.mha::level=1")
    with pytest.raises(Unreadable, match="local disks only"):
        open_volume("memory://a.nrrd")


def test_a_header_without_a_direction_is_not_oriented(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nencoding: raw\n\n" + bytes(8)
    )
    grid = open_volume(tmp_path / "a.nrrd").grid
    assert (grid.spacing, grid.oriented) == ((3.0, 2.0, 1.0), False)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_output_is_complete_or_absent(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a.{ending}"
    write_image(path, voxels(), GRID)
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputExists):
        write_image(path, voxels() + 1, GRID)

    class Broken:
        def __call__(self, *_):
            raise OSError(5, "Input/output error")

    broken = da.map_blocks(Broken(), da.zeros(GRID.shape), dtype=np.int16, meta=np.empty((0,) * 3, np.int16))
    with pytest.raises(OutputError, match="Input/output error"):
        write_image(path, broken, GRID, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == names
    np.testing.assert_array_equal(open_volume(path).data.compute(), voxels())
    write_image(path, voxels() + 1, GRID, overwrite=True)
    np.testing.assert_array_equal(open_volume(path).data.compute(), voxels() + 1)
    assert sorted(os.listdir(tmp_path)) == names


def test_a_data_file_of_another_header_is_not_replaced_without_overwrite(tmp_path):
    write_image(tmp_path / "a.mhd", voxels(), GRID)
    with pytest.raises(OutputExists, match=r"a\.raw exists already"):
        write_image(tmp_path / "a.nhdr", voxels() + 1, GRID)
    assert sorted(os.listdir(tmp_path)) == ["a.mhd", "a.raw"]


def test_many_images_do_not_go_into_one_file(tmp_path):
    with pytest.raises(OutputError, match=r"do not go into one file; write \.ome\.zarr"):
        write_image(tmp_path / "a.mha", voxels(shape=(2, *GRID.shape)), GRID, axes=("c",))


def test_without_simpleitk_the_extra_is_named(tmp_path, monkeypatch):
    write_image(tmp_path / "a.mha", voxels(), GRID)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ConfigError, match=r"pip install 'daskreg\[itk\]'"):
        open_volume(tmp_path / "a.mha")
    with pytest.raises(ConfigError, match=r"pip install 'daskreg\[itk\]'"):
        write_image(tmp_path / "b.nrrd", voxels(), GRID)
    assert os.listdir(tmp_path) == ["a.mha"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_lazy_voxels_can_be_pickled(tmp_path, ending):
    write_image(tmp_path / f"a.{ending}", voxels(), GRID)
    again = pickle.loads(pickle.dumps(open_volume(tmp_path / f"a.{ending}")))
    np.testing.assert_array_equal(again.data[1:3].compute(), voxels()[1:3])


@pytest.mark.parametrize(("ending", "compressed", "form"), [
    ("mha", False, "MetaImage"), ("mhd", True, "MetaImage, compressed"), ("nrrd", True, "NRRD, gzip"), ("nhdr", False, "NRRD"),
])  # fmt: skip
def test_info_says_what_it_is(tmp_path, ending, compressed, form):
    sitk.WriteImage(as_itk(voxels()), str(tmp_path / f"a.{ending}"), compressed)
    found = describe(tmp_path / f"a.{ending}")
    assert (found.format, found.shape, found.dtype, found.unit) == (form, GRID.shape, "int16", "millimeter")
    assert (found.hint, found.unit_stated) == (None, False)


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_content_tells_without_an_ending(tmp_path, ending):
    write_image(tmp_path / f"a.{ending}", voxels(), GRID)
    (tmp_path / f"a.{ending}").rename(tmp_path / "a")
    np.testing.assert_array_equal(open_volume(tmp_path / "a").data.compute(), voxels())


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_damaged_compressed_voxels_are_found_although_itk_reads_them(tmp_path, ending):
    data = (np.random.default_rng(0).random((9, 10, 11)) * 255).astype(np.uint8)
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(data), str(path), True)
    np.testing.assert_array_equal(open_volume(path).read(), data)
    whole = path.read_bytes()
    for place in (-40, -300, -3):
        content = bytearray(whole)
        content[place] ^= 4
        (tmp_path / f"{-place}.{ending}").write_bytes(content)
        with pytest.raises(Unreadable, match=r"damaged"):
            open_volume(tmp_path / f"{-place}.{ending}").read()
    (tmp_path / f"cut.{ending}").write_bytes(whole[:-1])
    with pytest.raises(Unreadable, match=r"damaged"):
        open_volume(tmp_path / f"cut.{ending}").read()


@pytest.mark.parametrize(("units", "told"), [(b'"um" "um" "um"', True), (b'"mm" "mm" "mm"', False), (None, False)])
def test_units_of_nrrd_that_itk_does_not_read_are_told_of(tmp_path, caplog, units, told):
    path = tmp_path / f"{told}{units is None}.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.uint8)), str(path))
    if units is not None:
        path.write_bytes(path.read_bytes().replace(b"\nencoding:", b"\nspace units: " + units + b"\nencoding:", 1))
    assert open_volume(path).grid.unit == "millimeter"
    assert describe(path).unit_stated == (units is not None)
    assert open_volume(f"{path}::unit=um").grid.unit == "micrometer"
    assert ("states the units um, um, um" in caplog.text) == told
