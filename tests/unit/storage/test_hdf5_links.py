"""Transforms in HDF5 whose numbers are in other files: a file must not choose which ones are read."""

import h5py
import numpy as np
import pytest

from daskreg.errors import Unreadable
from daskreg.storage.formats.itk_composite import read_composite

GROUP, ONE = "TransformGroup", "TransformGroup/0"
PARAMETERS = f"{ONE}/TransformParameters"


def write(path):
    """An affine transform."""
    with h5py.File(path, "w") as file:
        one = file.create_group(ONE)
        one["TransformType"] = np.array([b"AffineTransform_double_3_3"])
        one["TransformParameters"] = np.r_[np.eye(3).ravel(), 1, 2, 3.0]
        one["TransformFixedParameters"] = np.zeros(3)


def link(path, name):
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", f"/{name}")


def group_elsewhere(path):
    link(path, GROUP)


def transform_elsewhere(path):
    link(path, ONE)


def parameters_elsewhere(path):
    link(path, PARAMETERS)


def stored_elsewhere(path):
    (path.parent / "raw").write_bytes(np.arange(12.0).tobytes())
    with h5py.File(path, "a") as file:
        del file[PARAMETERS]
        file[ONE].create_dataset("TransformParameters", (12,), "f8", external=[(str(path.parent / "raw"), 0, 96)])


def virtual(path):
    layout = h5py.VirtualLayout((12,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", PARAMETERS, (12,))
    with h5py.File(path, "a") as file:
        del file[PARAMETERS]
        file[ONE].create_virtual_dataset("TransformParameters", layout)


@pytest.mark.parametrize("change", [group_elsewhere, transform_elsewhere, parameters_elsewhere, stored_elsewhere, virtual])
def test_numbers_in_another_file_are_refused(tmp_path, change):
    write(tmp_path / "other.h5")
    write(tmp_path / "one.h5")
    assert len(read_composite(tmp_path / "one.h5")) == 1
    change(tmp_path / "one.h5")
    with pytest.raises(Unreadable, match="another file"):
        read_composite(tmp_path / "one.h5")
