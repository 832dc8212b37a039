"""A transform format that is registered is exported to, read, applied and described as built-in ones are."""

import json

import numpy as np
import pytest

from daskreg.errors import GridError, OutputError
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform
from daskreg.storage import TransformFormat, register_format
from daskreg.storage.registry import transform_formats
from daskreg.storage.transform_record import StoredLink, TransformRecord
from daskreg.storage.transforms import read_affine, write_affine, write_links
from daskreg.workflows.export import export
from daskreg.workflows.info import describe
from tests.unit.workflows.runs import affine, displacement, make_run


class JsonAffine(TransformFormat):
    """An affine map as nested lists."""

    name = "JSON affine"
    endings = (".affine.json",)
    holds = "affine"
    unit = "micrometer"

    def open(self, path):
        with open(path, encoding="utf-8") as file:
            return TransformRecord((StoredLink(np.asarray(json.load(file), float)),), self.unit)

    def write(self, path, links):
        (link,) = links
        with open(path, "w", encoding="utf-8") as file:
            json.dump(link.affine.tolist(), file)


@pytest.fixture(autouse=True)
def registered():
    register_format(JsonAffine)
    yield
    transform_formats.unregister(JsonAffine)


def test_an_affine_is_exported_in_the_unit_of_the_format_and_read_again(tmp_path):
    run = make_run(tmp_path / "run.zarr", affine(), displacement())
    export(run, tmp_path / "w.affine.json", part="affine")
    stored = read_affine(tmp_path / "w.affine.json")
    np.testing.assert_allclose(stored[:3, 3], 1000 * affine()[:3, 3])
    back = load_transform(tmp_path / "w.affine.json").to_unit("millimeter")
    np.testing.assert_allclose(back.affine, affine(), atol=1e-12)


def test_it_is_described_by_its_name(tmp_path):
    write_affine(tmp_path / "w.affine.json", affine())
    found = describe(tmp_path / "w.affine.json")
    assert (found.format, found.unit, len(found.parts)) == ("JSON affine", "micrometer", 1)


def test_what_it_does_not_hold_is_refused(tmp_path):
    run = make_run(tmp_path / "run.zarr", affine(), displacement())
    with pytest.raises(OutputError, match="displacement field, written as"):
        export(run, tmp_path / "w.affine.json")
    field = StoredLink(np.eye(4), Grid((3, 4, 5)), np.zeros((3, 3, 4, 5), np.float32))
    with pytest.raises(OutputError, match="one displacement field was given"):
        write_links(tmp_path / "w.affine.json", [field])
    with pytest.raises(OutputError, match="a chain of maps was given"):
        write_links(tmp_path / "w.affine.json", [field, StoredLink(affine())])
    with pytest.raises(GridError, match="was expected"):
        write_links(tmp_path / "w.h5", [StoredLink(np.eye(4), Grid((3, 4, 6)), field.field)])
    assert list(tmp_path.glob("w.*")) == []
