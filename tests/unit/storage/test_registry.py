"""Formats are found by ending, and by content where that is not enough."""

import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from daskreg.errors import NotFound, OutputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage import open_volume, registry, write_image
from daskreg.storage.format import ImageFormat, PointFormat
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.registry import FormatRegistry, identify, image_formats, point_formats, register_format, transform_formats


class Plain(ImageFormat):
    name = "plain"
    endings = (".plain", ".nii.plain")
    writes = False

    def sniff(self, path):
        with open(path, "rb") as file:
            return file.read(5) == b"plain"

    def open(self, address):
        raise AttributeError("plain files are not decoded here")


@pytest.fixture
def plain():
    register_format(Plain)
    yield
    image_formats.unregister(Plain)


def test_a_class_that_is_defined_again_takes_the_place_of_the_first(plain, tmp_path):
    class Again(Plain):
        name = "again"

    Again.__module__, Again.__qualname__ = Plain.__module__, Plain.__qualname__
    (tmp_path / "a.plain").write_bytes(b"plain")
    register_format(Again)
    try:
        assert image_formats.to_read(str(tmp_path / "a.plain")).name == "again"
        assert [f.name for f in image_formats.by_ending("a.plain")] == ["again"]
    finally:
        image_formats.unregister(Again)


@pytest.mark.parametrize("formats", [image_formats, transform_formats, point_formats])
def test_every_built_in_line_names_a_format_of_its_kind(formats):
    assert len(formats.all()) == len({type(f) for f in formats.all()}) > 0
    assert all(f.name and f.endings for f in formats.all())


def test_formats_are_imported_when_they_are_asked_for():
    late = FormatRegistry("image", ImageFormat, ["tests.unit.storage.late_format:Late"])
    assert "tests.unit.storage.late_format" not in sys.modules
    assert late.endings() == (".late",)


def test_the_longest_ending_counts_whatever_its_case(plain):
    assert [type(f).__name__ for f in image_formats.by_ending("a.NII.gz")] == ["NiftiImage"]
    assert [type(f).__name__ for f in image_formats.by_ending("a.nii.plain")] == ["Plain"]
    assert [type(f).__name__ for f in image_formats.by_ending("a.ome.zarr/")] == ["ZarrImage"]
    assert image_formats.by_ending("plain") == ()


def test_an_output_in_a_format_that_is_only_read_is_answered_with_what_is_written(monkeypatch):
    monkeypatch.setattr("daskreg.storage.registry.find_spec", lambda _: None)
    says = r"moved.ome.tif: files of this format \(TIFF\) are read, but not written; choose one of the endings .ome.zarr, .zarr, "
    with pytest.raises(OutputError, match=rf"{says}.nii.gz, .nii; with SimpleITK installed .mha, .* \(Fiji opens .nii.gz\)"):
        image_formats.to_write("moved.ome.tif")


def test_content_decides_where_the_ending_says_nothing(tmp_path, plain):
    (tmp_path / "a").write_bytes(b"plain text")
    write_image(tmp_path / "b.nii", np.ones((3, 4, 5), np.float32), Grid((3, 4, 5)))
    (tmp_path / "b.nii").rename(tmp_path / "b.img")
    assert type(image_formats.to_read(str(tmp_path / "a"))) is Plain
    assert open_volume(tmp_path / "b.img").format == "NIfTI-1"


def test_content_decides_between_formats_that_share_an_ending(tmp_path):
    (tmp_path / "a.txt").write_text("#Insight Transform File V1.0\n")
    (tmp_path / "b.txt").write_text("1 2 3\n")
    assert identify(str(tmp_path / "a.txt")).name == "ITK linear transform"
    assert isinstance(identify(str(tmp_path / "b.txt")), PointFormat)


def test_what_is_not_known_is_refused_with_what_is_known(tmp_path, plain):
    (tmp_path / "a.abc").write_bytes(b"ZISRAWFILE")
    with pytest.raises(Unreadable, match=r"no known image format.*\.nii\.gz, \.nii, .*\.plain"):
        image_formats.to_read(str(tmp_path / "a.abc"))
    with pytest.raises(Unreadable, match=r"no known format.*\.nii\.gz.*\.h5.*\.csv"):
        identify(str(tmp_path / "a.abc"))
    with pytest.raises(NotFound):
        image_formats.to_read(str(tmp_path / "absent.abc"))
    with pytest.raises(OutputError, match=r"endings \.ome\.zarr, \.zarr, \.nii\.gz, \.nii, (?!.*plain)"):
        write_image(tmp_path / "a.plain", np.ones((3, 4, 5), np.float32), Grid((3, 4, 5)))


def test_an_exception_of_a_format_is_unreadable_and_names_the_file(tmp_path, plain):
    (tmp_path / "a.plain").write_bytes(b"plain text")
    with pytest.raises(Unreadable, match=r"a\.plain cannot be read: plain files are not decoded here"):
        open_volume(tmp_path / "a.plain")


@pytest.mark.parametrize("value", ["tests.unit.storage.test_registry:Plain", "no.such.package:Format", "os:path"])
def test_other_packages_declare_formats_and_a_broken_one_is_left_out(monkeypatch, caplog, value):
    registry._installed.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("plain", value, group)])
    try:
        assert (".plain" in image_formats.endings()) == ("Plain" in value)
        assert ("left out" in caplog.text) == ("Plain" not in value)
        assert ".nii" in image_formats.endings()
    finally:
        registry._installed.cache_clear()


def test_what_is_no_format_is_not_registered():
    with pytest.raises(TypeError, match="no format"):
        register_format(ImageRecord)
    with pytest.raises(TypeError, match="lower-case endings"):
        register_format(type("Shouted", (Plain,), {"endings": (".PLAIN",)}))
