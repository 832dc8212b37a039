"""What an extra brings is named in the command that installs it."""

import pytest

from daskreg.errors import OutputError, Unreadable
from daskreg.storage.fs.errors import read_errors, write_errors


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


class NoCredentialsError(Exception):
    """As botocore has it."""


class Forbidden(Exception):
    """As aiohttp and botocore say that access is refused."""

    status = 403


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoCredentialsError("Unable to locate credentials"), "no credentials were found; set a profile (AWS_PROFILE)"),
        (Forbidden(), "access is refused (HTTP 403); set a profile"),
        (ConnectionRefusedError("refused"), "the server cannot be reached"),
        (ValueError("Protocol not known: s3"), "no file system is called s3; a path or a URL"),
        (type("NotImplementedByServer", (Exception,), {"status": 501})(), "the server takes no files; write to a disk"),
        (ImportError("Install s3fs"), "Install s3fs; pip install 'daskreg[remote]'."),
    ],
)
def test_a_server_that_refuses_to_be_written_to_is_a_sentence(error, said):
    with pytest.raises(OutputError) as found, write_errors("s3://bucket/run.zarr"):
        raise error
    assert str(found.value).startswith(f"s3://bucket/run.zarr: {said}")


def test_what_is_no_refusal_is_not_translated():
    with pytest.raises(KeyError), write_errors("s3://bucket/run.zarr"):
        raise KeyError("mistake")
