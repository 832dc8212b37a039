"""What is said of a path that is not there."""

import pytest

from daskreg.storage.fs.errors import not_found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("http://127.0.0.1:5098/", "is a server; name what is on it, as in http://127.0.0.1:5098/image.ome.zarr."),
        ("https://host", "is a server; name what is on it, as in https://host/image.ome.zarr."),
        ("https://host/a.zarr", "does not exist."),
        ("s3://bucket", "is a bucket; name what is in it, as in s3://bucket/image.ome.zarr."),
    ],
)
def test_a_server_or_bucket_is_told_as_what_it_is(path, said):
    assert str(not_found(path)) == f"{path} {said}"
