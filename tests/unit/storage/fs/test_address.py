from pathlib import Path

import pytest

from daskreg.errors import ConfigError, UnitsError
from daskreg.storage.fs.address import parent, parse_address, parse_spacing, with_missing


def test_a_plain_path_has_no_options():
    a = parse_address("/data/a.zarr/")
    assert (a.path, a.level, a.channel, a.spacing) == ("/data/a.zarr", None, None, None)


def test_options_come_after_double_colons_and_commas():
    a = parse_address("a.zarr::level=1,channel=DAPI::spacing=2x1x0.5,unit=um,time=3,array=x/y")
    assert (a.path, a.level, a.channel, a.time, a.node) == ("a.zarr", 1, "DAPI", 3, "a.zarr/x/y")
    assert a.spacing == (2.0, 1.0, 0.5)
    assert a.unit == "micrometer"


def test_chained_urls_keep_their_colons():
    a = parse_address("simplecache::s3://bucket/a.zarr::level=s1")
    assert (a.path, a.level) == ("simplecache::s3://bucket/a.zarr", "s1")


def test_one_number_is_the_spacing_of_all_axes():
    assert parse_spacing("2.5") == parse_spacing(2.5) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a::levle=1", "did you mean 'level'"),
        ("a::colour=1", "known are level"),
        ("a::level", "has no value"),
        ("a::level=", "has no value"),
        ("a::time=x", "whole number"),
        ("a::spacing=1x2", "three as in"),
        ("a::spacing=1x0x2", "positive"),
        ("a::spacing=nan", "positive"),
        ("a::spacing=axbxc", "three as in"),
        ("a::level=1,spacing=2,0.5,0.5,unit=um", "unknown key '0.5' behind '::'; a comma .* write spacing=2x0.5x0.5"),
    ],
)
def test_mistyped_options_are_explained(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_address(text)


def test_an_unknown_unit_is_refused():
    with pytest.raises(UnitsError, match="parsec"):
        parse_address("a::unit=parsec")


def test_what_missing_chunks_are_is_added_to_an_address_that_does_not_say_so():
    for address in ("a.zarr", "a.zarr::level=1", "s3://b/a.zarr::level=1,channel=0"):
        assert parse_address(with_missing(address, "fill")).missing == "fill"
        assert parse_address(with_missing(address, "error")).missing is None
    assert with_missing("a.zarr::missing=error", "fill") == "a.zarr::missing=error"


def test_a_url_that_lost_a_slash_is_refused(tmp_path, monkeypatch):
    for lost in (Path("s3://bucket/a.zarr"), "s3:/bucket/a.zarr"):
        with pytest.raises(ConfigError, match=r"s3:/bucket/a\.zarr is no URL: s3://bucket/a\.zarr\?"):
            parse_address(lost)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert parse_address("s3:/a.zarr").path == "s3:/a.zarr"


def test_the_parent_of_the_top_is_the_top():
    assert [parent(p) for p in ("a/b", "/a", "memory://a/b", "memory://a")] == ["a", "/a", "memory://a", "memory://a"]
