"""Every verb reads from and writes to an S3 server; profiles, endpoints and anonymous access as docs/archives.md says."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import fsspec
import numpy as np
import pytest

from daskreg.storage import open_volume
from tests.libraries.servers import object_store
from tests.unit.storage.stores import simple, voxels

pytestmark = pytest.mark.libraries
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL", "FSSPEC_S3", "AWS_DEFAULT_REGION")
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
STAGES = """
stages:
- stage: affine
  scales: [1]
  iterations: [2]
- stage: deformable
  scales: [1]
  iterations: [2]
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    with object_store() as url:
        folder = tmp_path_factory.mktemp("s3")
        public = {"ACL": "public-read"}
        system = fsspec.filesystem("s3", key="key", secret="secret", endpoint_url=url, s3_additional_kwargs=public)
        system.mkdir("bucket")
        system.put(simple(folder / "a.zarr"), "bucket/a.zarr", recursive=True)
        yield url


@pytest.fixture
def environment(tmp_path):
    """Without credentials, and without the files that might have some."""
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    return {**kept, **files, "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}


def daskreg(environment, *arguments, folder=None):
    command = [sys.executable, "-m", "daskreg", *map(str, arguments)]
    root = os.environ.get("PYTHONPATH", os.getcwd())
    return subprocess.run(
        command, env={**environment, "PYTHONPATH": root}, cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_keys_profiles_endpoints_and_anonymous_access(endpoint, environment, tmp_path):
    address = "s3://bucket/a.zarr"
    at = {"AWS_ENDPOINT_URL": endpoint}
    refused = daskreg({**environment, **at}, "info", address)
    assert refused.returncode == 2
    assert "no credentials were found; set a profile (AWS_PROFILE)" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {endpoint}\n")
    for given in ({**at, **KEYS}, {"AWS_PROFILE": "lab"}, {**at, "FSSPEC_S3": json.dumps({"anon": True})}):
        found = daskreg({**environment, **given}, "info", address)
        assert "6 x 7 x 8" in found.stdout, found.stderr
    missing = daskreg({**environment, **at, **KEYS}, "info", "s3://bucket/absent.zarr")
    assert "s3://bucket/absent.zarr does not exist" in missing.stderr


def test_every_verb_writes_there(endpoint, environment, tmp_path):
    given = {**environment, **KEYS, "AWS_ENDPOINT_URL": endpoint, "HOME": os.environ.get("HOME", str(tmp_path))}
    (tmp_path / "stages.yaml").write_text(STAGES)
    (tmp_path / "p.csv").write_text("x,y,z\n11,21,31\n")
    run, image, moved = (f"s3://bucket/{name}" for name in ("run.zarr", "a.zarr", "moved.nii.gz"))
    for command in (
        ("register", image, image, "-o", run, "--config", "stages.yaml"),
        ("register", image, image, "-o", run, "--config", "stages.yaml", "--overwrite"),
        ("info", run),
        ("apply", run, image, "-o", "s3://bucket/moved.ome.zarr"),
        ("apply", run, image, "-o", moved),
        ("apply", run, image, "-o", "s3://bucket/moved.mha"),
        ("register", moved, moved, "-o", "s3://bucket/again.zarr", "--config", "stages.yaml", "--initial-transform", run),
        ("jacobian", run, "-o", "s3://bucket/jacobian.nii"),
        ("invert", run, "-o", "s3://bucket/inverse.zarr"),
        ("export", run, "-o", "s3://bucket/field.nii.gz"),
        ("export", run, "-o", "s3://bucket/composite.h5"),
        ("points", run, "p.csv", "-o", "s3://bucket/p.csv"),
        ("report", run, "-o", "s3://bucket/report.html"),
    ):
        done = daskreg(given, *command, folder=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert not [name for name in os.listdir(tmp_path) if name.startswith("s3")]
    options = {"key": "key", "secret": "secret", "endpoint_url": endpoint}
    written = {name.rpartition("/")[2] for name in fsspec.filesystem("s3", **options).ls("bucket")}
    assert {"moved.ome.zarr", "moved.nii.gz", "moved.mha", "composite.h5", "p.csv", "report.html"} <= written


def test_several_workers_read_and_write_there(endpoint, environment, tmp_path, monkeypatch):
    given = {**environment, **KEYS, "AWS_ENDPOINT_URL": endpoint, "HOME": os.environ.get("HOME", str(tmp_path))}
    (tmp_path / "stages.yaml").write_text(STAGES)
    image, run = "s3://bucket/a.zarr", "s3://bucket/two.zarr"
    done = daskreg(given, "register", image, image, "-o", run, "--config", "stages.yaml", "--workers", 2, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    np.testing.assert_array_equal(open_volume(f"{run}/moved").read(), voxels())


@pytest.mark.parametrize(
    ("command", "variables", "said"),
    [
        (("info", "s3://bucket"), {}, "s3://bucket is a bucket; name what is in it, as in s3://bucket/image.ome.zarr."),
        (
            ("register", "a.zarr", "a.zarr", "--preset", "rigid", "-o", "s3://bucket/"),
            {},
            "is a bucket; name a place in it, as in s3://bucket/",
        ),
        (
            ("info", "s3://bucket/a.zarr"),
            {"AWS_PROFILE": "lab"},
            "(lab) could not be found; name one of ~/.aws/config in AWS_PROFILE",
        ),
        (
            ("info", "s3://bucket/a.zarr"),
            {"AWS_ENDPOINT_URL": "127.0.0.1:1"},
            "AWS_ENDPOINT_URL begins with http:// or https://.",
        ),
    ],
)
def test_mistakes_of_a_set_up_are_named(endpoint, environment, tmp_path, command, variables, said):
    simple(tmp_path / "a.zarr")
    given = {**environment, **KEYS, "AWS_ENDPOINT_URL": endpoint, **variables}
    refused = daskreg(given, *command, folder=tmp_path)
    assert refused.returncode == 2
    assert said in refused.stderr.replace("\n", " ")
    assert "unexpected" not in refused.stderr


def test_a_server_that_goes_away_before_the_result_is_written_is_named(environment, tmp_path):
    """All levels are computed by then: what to do is said, and nothing of a mistake in daskreg."""
    (tmp_path / "stages.yaml").write_text(STAGES)
    image, command = simple(tmp_path / "a.zarr"), [sys.executable, "-m", "daskreg", "register"]
    with object_store() as url, ExitStack() as later:
        fsspec.filesystem("s3", key="key", secret="secret", endpoint_url=url).mkdir("lab")
        home = os.environ.get("HOME", str(tmp_path))
        given = {
            **environment,
            **KEYS,
            "AWS_ENDPOINT_URL": url,
            "HOME": home,
            "PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd()),
        }
        command += [str(image), str(image), "-o", "s3://lab/run.zarr", "--config", "stages.yaml"]
        run = subprocess.Popen(command, env=given, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        later.callback(run.kill)
        said = ""
        while "deformable" not in said and (line := run.stderr.readline()):
            said += line
        closed = later.pop_all()
    with closed:
        said += run.communicate(timeout=200)[1]
    assert run.returncode == 2, said
    assert "s3://lab/run.zarr: the server cannot be reached" in said
    assert "'daskreg register --resume -o s3://lab/run.zarr' goes on from its last checkpoint, or begins again" in said
    assert "unexpected" not in said
