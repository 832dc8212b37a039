"""Files that are no image, no transform and no points end in one sentence, at once and without much memory."""

import json
import pickle
import zipfile
from pathlib import Path

import h5py
import meshio
import numpy as np
import pytest
import zarr

from daskreg.errors import InputError, NotFound, Unreadable
from daskreg.grid import Grid
from daskreg.machine import Limit
from daskreg.storage import open_volume, register_format
from daskreg.storage.format import PointFormat
from daskreg.storage.fs import claims
from daskreg.storage.fs.errors import read_errors
from daskreg.storage.points import read_points
from daskreg.storage.registry import point_formats
from daskreg.storage.transform_record import StoredLink
from daskreg.storage.transforms import open_transform, write_affine, write_links
from tests.unit.storage.stores import simple

INSIGHT = "#Insight Transform File V1.0\n#Transform 0\n"


@pytest.mark.parametrize(("header", "found"), [
    ("x,y,z,X,Y,Z", (1, 2, 3)), ("X,Y,Z,x,y,z", (4, 5, 6)), ("Z,Y,X,a,b,c", (3, 2, 1)), ("x,Y,z,d,e,f", (1, 2, 3)),
    ("X,Y,Z,y,x,z", (5, 4, 6)),
])  # fmt: skip
def test_columns_of_the_exact_names_count(tmp_path, header, found):
    (tmp_path / "p.csv").write_text(f"{header}\n1,2,3,4,5,6\n")
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv").points[0, ::-1], found)


@pytest.mark.parametrize(("header", "says"), [
    ("x,y,z,x,y,z", "2 columns named 'x'"), ("X,Y,Z,X,b,c", "2 columns named 'X'"),
    ("x,y,w,a,b,c", "among them: none is z: add it"), ("u,v,w", "among them: rename them"),
    ("X,y,Z,x,b,c", "neither x, y, z nor X, Y, Z"), ("x,Y,Z,y,b,c", "neither x, y, z nor X, Y, Z"),
])  # fmt: skip
def test_columns_of_which_several_may_be_meant_are_refused(tmp_path, header, says):
    (tmp_path / "p.csv").write_text(f"{header}\n1,2,3,4,5,6\n")
    with pytest.raises(Unreadable, match=says):
        read_points(tmp_path / "p.csv")


@pytest.mark.parametrize(("content", "says"), [
    (b"x,y,z\n\xff\xfe,1,2\n", "UTF-8"), (b"x,y,z\n1,\x002,3\n", "bytes of 0"),
    (b'x,y,z\n"' + b"1" * 200000 + b'",2,3\n', "cannot be read"),
    (b"x,y,z\n1e999,2,3\n", "row 2"), (b"", "is empty"),
])  # fmt: skip
def test_tables_that_are_none_are_refused(tmp_path, content, says):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(Unreadable, match=says):
        read_points(tmp_path / "p.csv")


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.zeros((4, 3)))
    content = (tmp_path / "p.npy").read_bytes()
    (tmp_path / "p.npy").write_bytes(content.replace(b"(4, 3), ", b"(99999999999, 3), ", 1))
    with pytest.raises(InputError):
        read_points(tmp_path / "p.npy")
    (tmp_path / "p.npy").write_bytes(content.replace(b"(4, 3), }          ", b"(99999999999, 3), }", 1))
    with pytest.raises(Unreadable, match="promises"):
        read_points(tmp_path / "p.npy")
    (tmp_path / "p.npy").write_bytes(b"x,y,z\n")
    with pytest.raises(Unreadable, match="no NumPy array"):
        read_points(tmp_path / "p.npy")


@pytest.mark.parametrize("ending", ["ply", "vtk", "vtu", "obj", "off", "stl"])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x00" * 200, b"ply\nformat ascii 1.0\nelement vertex 3\n"])
def test_meshes_that_are_none_do_not_end_the_process(tmp_path, ending, content):
    (tmp_path / f"m.{ending}").write_bytes(content)
    with pytest.raises(Unreadable, match=rf"m\.{ending}"):
        read_points(tmp_path / f"m.{ending}")


@pytest.mark.parametrize(("ending", "old", "new"), [
    ("ply", b"element vertex 3", b"element vertex 999999999999"), ("vtk", b"POINTS 3", b"POINTS 999999999999"),
    ("vtu", b'NumberOfPoints="3"', b'NumberOfPoints="999999999999"'),
])  # fmt: skip
def test_meshes_that_claim_more_points_than_their_file_holds_are_refused(tmp_path, ending, old, new):
    path = tmp_path / f"m.{ending}"
    meshio.write(path, meshio.Mesh(np.eye(3), [("triangle", np.array([[0, 1, 2]]))]))
    assert len(read_points(path).points) == 3
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(Unreadable, match="promises"):
        read_points(path)


def test_what_another_package_raises_is_a_sentence_about_the_file(tmp_path):
    class Odd(PointFormat):
        name, endings = "odd points", (".odd",)

        def open(self, path, order):
            raise {"m": MemoryError("all of it"), "r": RecursionError("too deep"), "k": KeyError("x")}[Path(path).read_text()]

        def write(self, path, file):
            raise NotImplementedError

    register_format(Odd)
    try:
        for letter, says in (("m", "more than the memory"), ("r", "too deep"), ("k", "'x' is missing")):
            (tmp_path / "a.odd").write_text(letter)
            with pytest.raises(Unreadable, match=rf"a\.odd.*{says}"):
                read_points(tmp_path / "a.odd")
    finally:
        point_formats.unregister(Odd)


def tfm(path, kind, *parameters):
    path.write_text(f"{INSIGHT}Transform: {kind}\nParameters: {' '.join(map(str, parameters))}\nFixedParameters: 0 0 0\n")
    return path


AFFINE = "AffineTransform_double_3_3"


@pytest.mark.parametrize(("kind", "parameters", "says"), [
    (AFFINE, (1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0), "singular"),
    (AFFINE, (0,) * 12, "singular"),
    (AFFINE, (1, 0, 0, 0, 1, 0, 0, 0, "nan", 0, 0, 0), "finite"),
    (AFFINE, (1, 0, 0, 0, 1, 0, 0, 0, "inf", 0, 0, 0), "finite"),
    ("VersorRigid3DTransform_double_3_3", (2, 0, 0, 0, 0, 0), "no rotation"),
    ("Similarity3DTransform_double_3_3", (0, 0, 0, 0, 0, 0, 0), "scale is 0"),
    ("Similarity3DTransform_double_3_3", (0, 0, 0, 0, 0, 0, -1), "scale is -1"),
])  # fmt: skip
def test_maps_that_are_none_are_refused(tmp_path, kind, parameters, says):
    with pytest.raises(Unreadable, match=says):
        open_transform(tfm(tmp_path / "t.tfm", kind, *parameters))


@pytest.mark.parametrize(("lines", "says"), [
    (["Parameters: 1 0 0 0 1 0 0 0 1 0 0 0"], "no FixedParameters"),
    (["Parameters: 1 0 0 0 1 0 0 0 1 0 0 0"] * 2 + ["FixedParameters: 0 0 0"], "two lines"),
])  # fmt: skip
def test_a_map_that_itk_reads_otherwise_is_refused(tmp_path, lines, says):
    """ITK takes the identity where there are no fixed parameters."""
    (tmp_path / "t.tfm").write_text("\n".join([f"{INSIGHT}Transform: {AFFINE}", *lines]))
    with pytest.raises(Unreadable, match=says):
        open_transform(tmp_path / "t.tfm")


def test_a_strong_but_regular_map_is_read(tmp_path):
    path = tfm(tmp_path / "t.tfm", AFFINE, 1000, 0, 0, 0, 1, 0, 0, 0, 0.001, 0, 0, 0)
    np.testing.assert_array_equal(np.diag(open_transform(path).links[0].affine), [0.001, 1, 1000, 1])


def test_a_large_file_is_no_linear_transform(tmp_path):
    path = tfm(tmp_path / "t.tfm", AFFINE, *[1] * 50000)
    with pytest.raises(Unreadable, match="more than 65536 bytes"):
        open_transform(path)


def written(path):
    write_affine(path, np.eye(4))
    return path


def in_group(name, value):
    def edit(file):
        group = file["TransformGroup/1"]
        del group[name]
        if value is not None:
            group[name] = value

    return edit


@pytest.mark.parametrize(("edit", "says"), [
    (lambda f: f.__delitem__("TransformGroup"), "no transform: it has no group 'TransformGroup'"),
    (lambda f: (f.__delitem__("TransformGroup"), f.__setitem__("TransformGroup", [1.0])), "no group"),
    (lambda f: (f.__delitem__("TransformGroup"), f.create_group("TransformGroup")), "is empty"),
    (lambda f: (f.__delitem__("TransformGroup/1")), "is empty"),
    (lambda f: f.create_group("TransformGroup/one"), "numbers were expected"),
    (lambda f: f.create_group("TransformGroup/2"), "no TransformType"),
    (in_group("TransformType", None), "no TransformType"),
    (in_group("TransformType", 3), "holds a 3"),
    (in_group("TransformParameters", None), "no TransformParameters"),
    (in_group("TransformParameters", np.zeros(12)), "singular"),
    (in_group("TransformParameters", np.zeros(1000)), "1000 values"),
    (in_group("TransformParameters", "text"), "a few numbers"),
    (in_group("TransformFixedParameters", np.full(3, np.nan)), "finite"),
])  # fmt: skip
def test_hdf5_files_that_are_no_transform_are_refused(tmp_path, edit, says):
    path = written(tmp_path / "t.h5")
    with h5py.File(path, "r+") as file:
        edit(file)
    with pytest.raises(Unreadable, match=says):
        open_transform(path)


def test_a_field_whose_numbers_are_not_in_the_file_is_refused(tmp_path):
    grid = Grid((6, 7, 8), (2, 1, 1), unit="mm")
    write_links(tmp_path / "w.h5", [StoredLink(np.eye(4), grid, np.ones((3, 6, 7, 8), np.float32))])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        group = file["TransformGroup/2" if "2" in file["TransformGroup"] else "TransformGroup/1"]
        del group["TransformParameters"]
        group.create_dataset("TransformParameters", (3 * grid.size,), np.float64)
    with pytest.raises(Unreadable, match="does not hold all"):
        open_transform(tmp_path / "w.h5")


# Zarr


def zarray(path, **changes):
    tree = {"zarr_format": 2, "shape": [4, 4, 4], "chunks": [2, 2, 2], "dtype": "|u1", "fill_value": 0, "order": "C"}
    tree |= {"compressor": None, "filters": None}
    path.mkdir()
    (path / ".zarray").write_text(json.dumps(tree | changes))
    return f"{path}::spacing=1"


@pytest.mark.parametrize("changes", [
    {"chunks": [0, 2, 2]}, {"chunks": [-1, 2, 2]}, {"shape": [0, 4, 4]}, {"shape": [2**62, 4, 4]}, {"shape": [2**80, 4, 4]},
    {"chunks": [2**40, 2**20, 2**20], "shape": [2**40, 2**20, 2**20]}, {"shape": "x"}, {"dtype": "|O"}, {"dtype": "<c8"},
    {"compressor": {"id": "none such"}}, {"zarr_format": 9}, {"chunks": [2, 2]}, {"order": 3}, {"filters": 7},
])  # fmt: skip
def test_arrays_that_would_take_forever_or_all_memory_are_refused(tmp_path, changes):
    with pytest.raises(InputError):
        open_volume(zarray(tmp_path / "a.zarr", **changes))


def test_a_sharded_array_whose_chunks_are_zero_is_refused(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 8, 8), chunks=(4, 4, 4), shards=(8, 8, 8), dtype="u1")
    where = tmp_path / "a.zarr" / "zarr.json"
    tree = json.loads(where.read_text())
    tree["codecs"][0]["configuration"]["chunk_shape"] = [0, 4, 4]
    where.write_text(json.dumps(tree))
    with pytest.raises(InputError):
        open_volume(f"{tmp_path / 'a.zarr'}::spacing=1")


def test_more_than_the_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SMALL", 10)
    monkeypatch.setattr(claims, "memory", lambda: Limit(100, "the physical memory"))
    volume = open_volume(zarray(tmp_path / "a.zarr"))
    with pytest.raises(Unreadable, match=r"more than the physical memory"):
        volume.read()


# servers


class Answered(OSError):
    """As aiohttp's."""

    def __init__(self, status):
        super().__init__(f"{status}, message='no'")
        self.status = status


class NoCredentialsError(Exception):
    """As botocore's."""


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status):
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(("error", "says"), [
    (Answered(403), r"access is refused \(HTTP 403\)"),
    (Answered(401), r"access is refused \(HTTP 401\)"),
    (ClientError(403), r"access is refused \(HTTP 403\).*AWS_PROFILE"),
    (PermissionError("Access Denied"), r"access is refused \(Access Denied\)"),
    (NoCredentialsError("Unable to locate credentials"), "no credentials were found; set a profile"),
    (Answered(503), "answers HTTP 503"),
    (ConnectionRefusedError("Connection refused"), "cannot be reached"),
    (TimeoutError("timed out"), "cannot be reached"),
])  # fmt: skip
@pytest.mark.parametrize("hidden", [False, True])
def test_what_a_server_says_is_told_also_where_the_file_system_hides_it(error, says, hidden):
    def read():
        with read_errors("s3://bucket/image.zarr"):
            if not hidden:
                raise error
            try:
                raise error
            except Exception as cause:
                raise FileNotFoundError("s3://bucket/image.zarr") from cause

    with pytest.raises(Unreadable, match=rf"s3://bucket/image\.zarr: .*{says}"):
        read()


def test_what_a_server_does_not_have_is_not_found():
    def read():
        with read_errors("https://host/image.zarr"):
            raise Answered(404) from FileNotFoundError("no")

    with pytest.raises(NotFound):
        read()


@pytest.mark.parametrize("name", ["p.csv", "p.npy", "p.ply"])
def test_points_are_not_read_from_urls(name):
    with pytest.raises(Unreadable, match="local disks only; download it first"):
        read_points(f"https://host/{name}")


def zipped(folder, target):
    with zipfile.ZipFile(target, "w") as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, file.relative_to(folder))
    return target


def test_a_zipped_store_is_read_as_the_folder_and_refused_where_it_is_damaged(tmp_path):
    path = zipped(Path(simple(tmp_path / "a.zarr")), tmp_path / "a.zarr.zip")
    folder, packed = open_volume(tmp_path / "a.zarr"), open_volume(path)
    assert packed.grid == folder.grid == open_volume(f"{path}::array=0").grid
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(packed)).read(), folder.read())
    np.testing.assert_array_equal(open_volume(f"{path}::array=0").read(), folder.read())
    with pytest.raises(InputError, match=r"a\.zarr\.zip"):
        open_volume(f"{path}::array=1")
    content = path.read_bytes()
    for k, damaged in enumerate((content[:-30], b"", b"x" * 300, content[: len(content) // 2])):
        (tmp_path / f"{k}.zip").write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{k}\.zip"):
            open_volume(tmp_path / f"{k}.zip")
    chunk = bytearray(content)
    chunk[content.index(b"c/0/0/0") + 30] ^= 1
    (tmp_path / "b.zip").write_bytes(chunk)
    with pytest.raises(Unreadable, match=r"b\.zip"):
        open_volume(tmp_path / "b.zip").read()
