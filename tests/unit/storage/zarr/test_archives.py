"""Stores as archives keep them: early OME-Zarr, zip files, plates, converted files, servers that refuse or do not list."""

import pickle
import zipfile
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from daskreg.errors import GridError, InputError, NotFound, Unreadable
from daskreg.storage import describe, open_volume
from daskreg.storage.digest import digest
from daskreg.storage.runs.scenes import find_image
from tests.unit.storage.stores import SHAPE, simple, voxels


def early(path, version, names, levels=2):
    """OME-Zarr 0.1 to 0.3, whose metadata states neither scales nor units; 0.1 and 0.2 have five axes."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    separator = "." if version == "0.1" else "/"
    for k in range(levels):
        array = voxels((4, 6, 8))[:: 2**k, :: 2**k, :: 2**k]
        array = array.reshape((1,) * (len(names) - 3) + array.shape)
        key = {"name": "v2", "separator": separator}
        group.create_array(str(k), shape=array.shape, dtype=array.dtype, chunks=array.shape, chunk_key_encoding=key)[...] = array
    image = {"version": version, "datasets": [{"path": str(k)} for k in range(levels)]}
    group.attrs["multiscales"] = [image | ({"axes": list(names)} if version == "0.3" else {})]
    return str(path)


@pytest.mark.parametrize(("version", "names"), [("0.1", "tczyx"), ("0.2", "tczyx"), ("0.3", "zyx"), ("0.3", "czyx")])
def test_early_versions_are_read_with_the_voxel_size_that_is_given(tmp_path, version, names):
    path = early(tmp_path / "a.zarr", version, names)
    with pytest.raises(GridError, match=r"states no voxel size.*'::spacing="):
        open_volume(path)
    assert "states no voxel size" in (describe(path).hint or "")
    np.testing.assert_array_equal(open_volume(f"{path}::spacing=2x1x1").read(), voxels((4, 6, 8)))
    for address in (f"{path}::level=1,spacing=4x2x2", f"{path}/1::spacing=4x2x2"):
        coarse = open_volume(address)
        assert coarse.grid.origin == (1.0, 0.5, 0.5)  # the centre of a block of the first level
        assert [level.spacing for level in coarse.levels] == [(1, 1, 1), (2, 2, 2)]
    with pytest.raises(InputError, match=r"no voxel size|axes"):
        find_image("fixed", path)


@pytest.mark.parametrize("image", [{"datasets": []}, {"datasets": [{}]}, {"axes": "zyx"}, {"axes": ["z", "z", "x"]}])
def test_early_metadata_that_is_wrong_is_refused(tmp_path, image):
    path = early(tmp_path / "a.zarr", "0.3", "zyx")
    group = zarr.open_group(path)
    group.attrs["multiscales"] = [group.attrs["multiscales"][0] | image]
    with pytest.raises(Unreadable, match=r"invalid at multiscales\[0\]"):
        open_volume(f"{path}::spacing=1")


def packed(folder, target, inside=""):
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            file.write(path, f"{inside}{path.relative_to(folder)}")
    return str(target)


@pytest.mark.parametrize(("name", "inside"), [("a.ozx", ""), ("a.zarr.zip", ""), ("a.ome.zarr.zip", "deep.zarr/"), ("A.ZIP", "")])
def test_a_store_in_one_file_is_read_as_the_folder(tmp_path, name, inside):
    path = packed(simple(tmp_path / "b.zarr"), tmp_path / name, inside)
    for address in (path, f"{path}/0", f"{path}::array=0"):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(open_volume(address))).read(), voxels())
        assert open_volume(address).grid.spacing == (2.0, 1.0, 0.5)


def test_a_store_in_one_file_behind_a_url(tmp_path):
    system = fsspec.filesystem("memory")
    system.put(packed(simple(tmp_path / "b.zarr"), tmp_path / "a.ozx"), "/zipped/a.ozx")
    volume = open_volume("memory://zipped/a.ozx")
    np.testing.assert_array_equal(volume.read(), voxels())
    assert digest(volume)["bytes"] == (tmp_path / "a.ozx").stat().st_size
    with pytest.raises(NotFound, match=r"memory://zipped/b\.ozx does not exist"):
        open_volume("memory://zipped/b.ozx")


def test_what_is_in_a_zip_file_without_a_store_is_said(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as file:
        file.writestr("readme.txt", "none")
    with pytest.raises(Unreadable, match=r"a zip file without Zarr metadata"):
        open_volume(tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as file:
        for k in "ab":
            file.writestr(f"{k}/zarr.json", "{}")
    with pytest.raises(Unreadable, match=r"several Zarr stores.*::array=a.*a, b"):
        open_volume(tmp_path / "b.zarr.zip")
    path = packed(simple(tmp_path / "b.zarr"), tmp_path / "c.ozx")
    with pytest.raises(Unreadable, match=r"c\.ozx/nosuch: the zip file has no Zarr array"):
        open_volume(f"{path}::array=nosuch")


def plate(path):
    fields = {"plate": {"version": "0.4", "wells": [{"path": "A/1"}, {"path": "B/2"}], "field_count": 2}}
    zarr.open_group(str(path), mode="w", zarr_format=2).attrs.update(fields)
    for well in ("A/1", "B/2"):
        for field in "01":
            simple(path / well / field, version="0.4")
        zarr.open_group(str(path / well), zarr_format=2).attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
    return str(path)


def converted(path, series="01", *, listed=True, nested=False):
    """As bioformats2raw writes a file; nested: OME-Zarr 0.5."""
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if nested else 2)
    layout = {"bioformats2raw.layout": 3}
    group.attrs.update({"ome": {"version": "0.5", **layout}} if nested else layout)
    for name in series:
        simple(path / name, version="0.5" if nested else "0.4")
    if listed:
        names = {"series": list(series)}
        group.require_group("OME").attrs.update({"ome": names} if nested else names)
        images = "".join(f'<Image ID="Image:{n}" Name="scan {n}"/>' for n in series)
        (path / "OME" / "METADATA.ome.xml").write_text(f'<OME xmlns="http://ome">{images}</OME>')
    return str(path)


def test_wells_and_fields_of_a_plate_are_listed(tmp_path):
    path = plate(tmp_path / "p.zarr")
    said = r"is a plate \(2 wells: A/1, B/2; 2 fields of A/1: 0, 1\); choose an image with '::array=A/1/0'"
    with pytest.raises(Unreadable, match=said):
        open_volume(path)
    found = describe(path)
    assert found.contents == {"wells": ("A/1", "B/2"), "fields of A/1": ("0", "1")}
    assert "wells      A/1, B/2" in found.lines()
    with pytest.raises(NotFound, match=rf"p\.zarr has no B/3; it {said}"):
        open_volume(f"{path}::array=B/3")
    with pytest.raises(NotFound, match=r"p\.zarr/B/2 has no 7; it is a well of a plate .*; choose an image with '::array=B/2/0'"):
        open_volume(f"{path}::array=B/2/7")
    with pytest.raises(Unreadable, match=r"is a well of a plate \(2 fields: 0, 1\); choose an image with '::array=B/2/0'"):
        open_volume(f"{path}::array=B/2")
    assert open_volume(f"{path}::array=B/2/1").shape == SHAPE


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_series_of_a_converted_file_are_listed_and_a_single_one_is_read(tmp_path, listed, nested):
    path = converted(tmp_path / "c.zarr", listed=listed, nested=nested)
    with pytest.raises(Unreadable, match=r"2 series: 0.*1.*choose an image with '::array=0'"):
        open_volume(path)
    assert describe(path).contents == {"series": ("0 (scan 0)", "1 (scan 1)") if listed else ("0", "1")}
    single = converted(tmp_path / "d.zarr", "0", listed=listed, nested=nested)
    volume = open_volume(single)
    np.testing.assert_array_equal(volume.read(), voxels())
    assert digest(volume)["kind"] == "zarr"


class RefusingFileSystem(MemoryFileSystem):
    """Answers as S3 does where listing is not permitted: what does not exist is refused."""

    protocol = "refusing"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("refusing://", "memory://"))

    def ls(self, path, detail=True, **options):
        raise PermissionError("403 Forbidden")

    def cat_file(self, path, start=None, end=None, **options):
        try:
            return super().cat_file(path, start, end, **options)
        except FileNotFoundError:
            raise PermissionError("403 Forbidden") from None

    def info(self, path, **options):
        path = self._strip_protocol(path)
        if path not in self.store:
            raise PermissionError("403 Forbidden")
        return {"name": path, "size": self.store[path].size, "type": "file"}

    def exists(self, path, **options):
        return self._strip_protocol(path) in self.store


@pytest.fixture
def refusing(tmp_path):
    fsspec.register_implementation("refusing", RefusingFileSystem, clobber=True)
    system = RefusingFileSystem()

    def put(folder):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                system.pipe_file(f"/bucket/{path.relative_to(tmp_path)}", path.read_bytes())
        return f"refusing://bucket/{Path(folder).relative_to(tmp_path)}"

    yield put
    system.store.clear()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_server_that_refuses_what_does_not_exist_is_read(tmp_path, refusing, version):
    url = refusing(simple(tmp_path / "a.zarr", version=version))
    for address in (url, f"{url}/0"):
        np.testing.assert_array_equal(open_volume(address).read(), voxels())
    assert digest(url)["kind"] == "zarr"
    with pytest.raises(Unreadable, match="access is refused"):
        open_volume("refusing://bucket/nosuch.zarr")


def test_series_and_plates_are_found_without_listing(tmp_path, refusing):
    assert describe(refusing(converted(tmp_path / "c.zarr"))).contents == {"series": ("0 (scan 0)", "1 (scan 1)")}
    assert describe(refusing(converted(tmp_path / "d.zarr", listed=False))).contents == {"series": ("0", "1")}
    assert describe(refusing(plate(tmp_path / "p.zarr"))).contents["wells"] == ("A/1", "B/2")


def test_missing_chunks_of_a_server_that_refuses_them_are_counted(tmp_path, refusing, caplog):
    path = simple(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    url = refusing(path)
    with pytest.raises(Unreadable, match="the chunk c/1/1/1 is missing, and 1 of 8 chunks are"):
        open_volume(url).read()
    assert open_volume(f"{url}::missing=fill").read()[-1, -1, -1] == 0
    assert "1 of 8 chunks are missing (the first is c/1/1/1), and are read as 0" in caplog.text
