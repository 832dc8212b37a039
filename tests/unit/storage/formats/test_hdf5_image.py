"""Datasets of plain HDF5 files, and of FreeSurfer's and folders of TIFF, which have little more than voxels."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest

from daskreg.errors import GridError, NotFound, Unreadable
from daskreg.lazy import blocks
from daskreg.storage import describe, open_stack, open_volume
from daskreg.storage.formats import hdf5_image, tiff_folder
from daskreg.storage.registry import identify
from tests.unit.storage.stores import SHAPE, voxels

tifffile = pytest.importorskip("tifffile")


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("volumes/raw", data=voxels(), chunks=(3, 4, 4))
        data.attrs["element_size_um"] = (2.0, 1.0, 0.5)
    return tmp_path / "a.h5"


def test_the_only_dataset_is_read_with_its_voxel_size(path):
    assert identify(str(path)).name == "HDF5"
    for address in (path, f"{path}::array=volumes/raw"):
        volume = open_volume(address)
        np.testing.assert_array_equal(volume.data[1:4, 2:, :3], voxels()[1:4, 2:, :3])
        assert (volume.grid.spacing, volume.grid.unit) == ((2, 1, 0.5), "micrometer")


def test_several_datasets_are_listed_and_axes_are_those_of_ilastik(path):
    with h5py.File(path, "a") as file:
        data = file.create_dataset("exported", data=np.stack([voxels()] * 2, -1))
        data.attrs["axistags"] = json.dumps({"axes": [{"key": k} for k in "zyxc"]})
        file.create_dataset("table", data=np.ones((4, 4)))
    with pytest.raises(Unreadable, match=r"2 datasets; choose one with '::array=exported' \(there are exported \(6x7x8x2\), vol"):
        open_volume(path)
    assert open_stack(f"{path}::array=exported,spacing=1").axes == ("c",)
    with pytest.raises(GridError, match="states no voxel size"):
        open_volume(f"{path}::array=exported,channel=0")
    with pytest.raises(NotFound, match="no dataset 'nosuch'"):
        open_volume(f"{path}::array=nosuch")


def test_axes_that_are_a_guess_are_said_to_be(path):
    assert "(not stated: taken as z y x; " in describe(path).lines()[2]
    with h5py.File(path, "a") as file:
        for k, name in enumerate("zyx"):
            file["volumes/raw"].dims[k].label = name
    assert "(z, y, x)" in describe(path).lines()[2]


def test_what_is_in_another_file_is_not_read(path, tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(path), "volumes/raw")
    with pytest.raises(Unreadable, match="link"):
        open_volume(f"{tmp_path / 'b.h5'}::array=link")


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_files_of_freesurfer(tmp_path, name):
    affine = np.array([[-1, 0, 0, 4], [0, 0, 1, -5], [0, -1, 0, 6], [0, 0, 0, 1.0]])
    nib.save(nib.MGHImage(voxels().T.astype(np.int16), affine), tmp_path / name)
    nib.save(nib.Nifti1Image(voxels().T.astype(np.int16), affine), tmp_path / "a.nii")
    volume, same = open_volume(tmp_path / name), open_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.read(), voxels())
    np.testing.assert_allclose(volume.grid.index_to_world, same.grid.index_to_world, atol=1e-6)
    assert (volume.grid.unit, volume.grid.oriented) == ("millimeter", True)
    content = (tmp_path / name).read_bytes()
    (tmp_path / f"b{name}").write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable, match=r"cut short|damaged|holds"):
        open_volume(tmp_path / f"b{name}").read()


def test_frames_of_freesurfer_keep_their_repetition_time(tmp_path):
    image = nib.MGHImage(np.stack([voxels().T.astype(np.int16)] * 3, -1), np.eye(4))
    image.header["tr"] = 2500
    nib.save(image, tmp_path / "a.mgz")
    (time,) = open_stack(tmp_path / "a.mgz").lead
    assert (time.unit, time.scale) == ("millisecond", 2500)


def test_a_folder_of_planes(tmp_path):
    for k, plane in enumerate(voxels()):
        tifffile.imwrite(tmp_path / f"ch1_z{8 + k}.tif", plane)  # 10 comes after 9
    np.testing.assert_array_equal(open_volume(f"{tmp_path}::spacing=2x1x1,unit=um").read(), voxels())
    assert open_volume(f"{tmp_path}::spacing=1").shape == SHAPE
    with pytest.raises(GridError, match="states no voxel size"):
        open_volume(tmp_path)
    (tmp_path / "ch1_z10.tif").unlink()
    with pytest.raises(Unreadable, match="5 planes, of which number 10 is missing"):
        open_volume(f"{tmp_path}::spacing=1")
    np.testing.assert_array_equal(open_volume(f"{tmp_path}::spacing=1,missing=fill").read()[2], 0)
    tifffile.imwrite(tmp_path / "ch1_z10.tif", voxels()[0, :3])
    with pytest.raises(Unreadable, match=r"ch1_z10\.tif has uint16 voxels of shape \(3, 8\)"):
        open_volume(f"{tmp_path}::spacing=1").read()
    tifffile.imwrite(tmp_path / "ch2_z10.tif", voxels()[0])
    with pytest.raises(Unreadable, match="two of its 7 files have the same number"):
        open_volume(f"{tmp_path}::spacing=1")


@pytest.mark.parametrize(("name", "command"), [("a.czi", "bioformats2raw"), ("a.dcm", "dcm2niix"), ("a.hdr", "nibabel")])
def test_a_format_that_is_not_read_is_refused_with_the_command_that_converts_it(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(Unreadable, match=f"convert it first: .*{command}"):
        open_volume(tmp_path / name)
    with pytest.raises(Unreadable, match=f"convert it first: .*{command}"):
        identify(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["dataset of planes", "folder of planes"])
def test_blocks_decode_each_plane_once(tmp_path, monkeypatch, kind):
    if kind == "dataset of planes":
        source, module, read = tmp_path / "a.h5", hdf5_image, "_read"
        with h5py.File(source, "w") as file:
            file.create_dataset("raw", data=voxels(), chunks=(1, *SHAPE[1:]), compression="gzip")
    else:
        source, module, read = tmp_path, tiff_folder, "_read"
        for z, plane in enumerate(voxels()):
            tifffile.imwrite(tmp_path / f"p{z:03}.tif", plane, compression="zlib")
    monkeypatch.setattr(blocks, "CACHED_BYTES", 0)
    found, real = [], getattr(module, read)
    monkeypatch.setattr(module, read, lambda *given: found.append(given[-1]) or real(*given))
    reader = blocks.Reader(open_volume(source, spacing=(1, 1, 1)).data)
    for x in range(0, SHAPE[2], 2):
        np.testing.assert_array_equal(reader[0 : SHAPE[0], 1:4, x : x + 3], voxels()[:, 1:4, x : x + 3])
    assert len(found) == SHAPE[0]
