"""CuPy's kernels travel through the shared folder, and only from one that nobody else can write to."""

import pytest

from daskreg.kernels.compiler import cupy_kernels
from daskreg.kernels.compiler.cupy_kernels import restore, save

KERNELS = {"a1.cubin": b"one", "b2.cubin": b"two"}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """CuPy's own folder, which is not there yet, and a shared one with two kernels."""
    own, made, shared = tmp_path / "own", tmp_path / "made", tmp_path / "shared"
    made.mkdir()
    for name, content in KERNELS.items():
        (made / name).write_bytes(content)
    (made / "c3.lock").write_bytes(b"no kernel")
    save(made, shared)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(own))
    monkeypatch.setenv("DASKREG_KERNEL_CACHE", str(shared))
    cupy_kernels.restore.cache_clear()
    yield own, shared / "daskreg-cupy"
    cupy_kernels.restore.cache_clear()


def found(folder):
    """Files and their content."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_what_was_saved_is_there_for_cupy(folders):
    restore()
    assert found(folders[0]) == KERNELS


def test_what_is_there_stays(folders):
    folders[0].mkdir()
    (folders[0] / "a1.cubin").write_bytes(b"newer")
    restore()
    assert found(folders[0]) == KERNELS | {"a1.cubin": b"newer"}


def test_a_damaged_file_is_not_taken(folders):
    (folders[1] / "a1.cubin").write_bytes(b"another")
    restore()
    assert "a1.cubin" not in found(folders[0])


def test_a_file_that_others_may_write_is_not_taken(folders):
    (folders[1] / "a1.cubin").chmod(0o666)
    restore()
    assert found(folders[0]) == {}


def test_without_a_shared_folder_nothing_happens(folders, monkeypatch):
    monkeypatch.delenv("DASKREG_KERNEL_CACHE")
    restore()
    assert found(folders[0]) == {}
