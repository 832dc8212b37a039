"""Images of HTTP servers that list nothing, and answer 404 or 403 for what they do not have."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from daskreg import Config, Moments, register
from daskreg.errors import NotFound, Unreadable
from daskreg.grid import Grid
from daskreg.storage import describe, open_volume, write_image
from daskreg.storage.digest import digest
from daskreg.storage.recorded_images import recorded_image
from daskreg.storage.transforms import write_affine
from tests.libraries.servers import serving
from tests.unit.storage import n5
from tests.unit.storage.stores import simple, voxels
from tests.unit.storage.zarr.test_archives import converted, plate

pytestmark = pytest.mark.libraries


@pytest.fixture(params=[404, 403])
def url(request, tmp_path):
    for version in ("0.4", "0.5"):
        simple(tmp_path / f"{version}.zarr", version=version)
    converted(tmp_path / "converted.zarr")
    converted(tmp_path / "unlisted.zarr", listed=False)
    plate(tmp_path / "plate.zarr")
    n5.write(tmp_path / "a.n5" / "raw", voxels(), resolution=[0.5, 1, 2])
    with zipfile.ZipFile(tmp_path / "a.ozx", "w") as packed:
        for path in sorted(p for p in Path(tmp_path / "0.5.zarr").rglob("*") if p.is_file()):
            packed.write(path, path.relative_to(tmp_path / "0.5.zarr"))
    with serving(tmp_path, request.param) as found:
        yield found


def test_images_are_read(url):
    for name in (
        "0.4.zarr",
        "0.5.zarr",
        "0.4.zarr/0",
        "a.ozx",
        "converted.zarr::array=1",
        "plate.zarr::array=B/2/1",
        "a.n5::array=raw",
    ):
        np.testing.assert_array_equal(open_volume(f"{url}/{name}").read(), voxels())
        assert digest(f"{url}/{name}") == digest(f"{url}/{name}")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_files_are_registered_from_there(url, tmp_path, name):
    write_image(tmp_path / name, voxels(), Grid(voxels().shape, unit="millimeter"))
    write_affine(tmp_path / "start.tfm", np.eye(4))
    image, config = f"{url}/{name}", Config(stages=(Moments(),))
    given = {"fixed_mask": image, "initial_transform": f"{url}/start.tfm", "output": tmp_path / "run.zarr"}
    run = register(image, image, config, **given).store
    assert {v["kind"] for v in run.recipe["inputs"].values()} == {"object"}
    assert register(output=tmp_path / "run.zarr", resume=True).store.complete
    assert recorded_image(run, "moving") == image


def test_wells_fields_and_series_are_listed(url):
    assert describe(f"{url}/converted.zarr").contents == {"series": ("0 (scan 0)", "1 (scan 1)")}
    assert describe(f"{url}/unlisted.zarr").contents == {"series": ("0", "1")}
    assert describe(f"{url}/plate.zarr").contents == {"wells": ("A/1", "B/2"), "fields of A/1": ("0", "1")}


def test_a_missing_chunk_is_named(url, tmp_path):
    (tmp_path / "0.5.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    with pytest.raises(Unreadable, match="the chunk c/1/1/1 is missing, and 1 of 8 chunks are"):
        open_volume(f"{url}/0.5.zarr").read()
    assert open_volume(f"{url}/0.5.zarr::missing=fill").read()[-1, -1, -1] == 0


def test_what_is_not_there_and_a_server_that_is_not_are_one_sentence(url):
    for name in ("absent.zarr", "absent.ozx"):
        with pytest.raises((NotFound, Unreadable), match=r"does not exist|access is refused \(HTTP 403\)"):
            open_volume(f"{url}/{name}")
    with pytest.raises(Unreadable, match="the server cannot be reached"):
        open_volume("http://127.0.0.1:9/a.zarr")
