"""What an extra brings is named in the command that installs it."""

import pytest

from daskreg.errors import Unreadable
from daskreg.storage.fs.errors import read_errors


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/a.zarr", "Install s3fs; pip install 'daskreg[remote]'."),
        ("gs://bucket/a.zarr", "Install s3fs; install the missing package."),
    ],
)
def test_a_package_that_is_missing_is_in_an_extra_or_not(address, said):
    with pytest.raises(Unreadable) as error, read_errors(address):
        raise ImportError("Install s3fs")
    assert str(error.value) == f"{address}: {said}"
