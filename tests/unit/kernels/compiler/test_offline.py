"""Kernels for GPUs that are not there, and the folder of kernels that is only read."""

import os

import pytest

from daskreg.errors import ConfigError, RunError
from daskreg.kernels.compiler import offline, precompile
from daskreg.kernels.compiler.cache import read_cached
from daskreg.kernels.compiler.private_files import write
from tests.cuda_libraries import require_cuda_compiler


@pytest.mark.parametrize(("text", "number"), [("sm_80", (8, 0)), ("sm_90", (9, 0)), ("sm_120", (12, 0))])
def test_architectures_are_compute_capabilities(text, number):
    assert offline.capability(text) == number


@pytest.mark.parametrize("text", ["", "90", "sm_9", "sm_90a", "compute_90"])
def test_other_words_are_no_architectures(text):
    with pytest.raises(ConfigError, match="sm_NN was expected"):
        offline.compile_for([text])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The user's cache and the shared one."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("DASKREG_KERNEL_CACHE", str(tmp_path / "shared"))
    return tmp_path / "own" / "daskreg-cuda", tmp_path / "shared" / "daskreg-cuda"


def test_the_shared_folder_comes_first_and_is_not_written_to(folders):
    own, shared = folders
    write(own / "a.cubin", b"own", 9)
    assert read_cached(own / "a.cubin", "cuda") == b"own"
    assert not shared.exists()
    write(shared / "a.cubin", b"shared", 9)
    assert read_cached(own / "a.cubin", "cuda") == b"shared"


@pytest.mark.parametrize("fault", ["damaged", "open to others"])
def test_a_shared_file_that_is_not_to_be_trusted_is_left(folders, fault):
    own, shared = folders
    write(own / "a.cubin", b"own", 9)
    write(shared / "a.cubin", b"shared", 9)
    if fault == "damaged":
        (shared / "a.cubin").write_bytes((shared / "a.cubin").read_bytes()[:-1] + b"x")
    else:
        os.chmod(shared / "a.cubin", 0o666)
    assert read_cached(own / "a.cubin", "cuda") == b"own"


COUNTED = """
from daskreg.kernels.compiler.cache import missing
from daskreg.kernels.compiler.tally import TALLY

told = []
count = TALLY.begin_count(told.append)
precompile._STARTED.append(None)
pretend = offline.pretend_device
offline.pretend_device = lambda name: (pretend(name), told.append(precompile.listed_files()))
offline.main()
files = told.pop(0)
offline.pretend_device = lambda name: None
offline.main()  # compiles nothing
assert told == list(files) and len(files) == 1 and count.kernels == 1 and count.seconds > 0, (told, count)
assert not missing(files, "cuda"), files
"""


def test_a_kernel_is_compiled_without_a_gpu_and_read_where_it_was_put(folders, monkeypatch):
    require_cuda_compiler()
    one = [k for k in precompile.warm_up_signatures() if k[0] == "downsample_z"]
    monkeypatch.setattr(precompile, "SIGNATURES", folders[0].parent.parent / "signatures.txt")
    precompile.SIGNATURES.write_text("".join(f"{n}\t{c!r}\t{s}\n" for n, c, s in one))
    code = (
        "import sys; from pathlib import Path; from daskreg.kernels.compiler import offline, precompile;"
        f"precompile.SIGNATURES = Path({str(precompile.SIGNATURES)!r}); sys.argv = ['', 'sm_90', '1'];"
        f"exec({COUNTED!r})"
    )
    started = offline.subprocess.Popen
    monkeypatch.setattr(
        offline.subprocess, "Popen", lambda command, **options: started([command[0], "-P", "-c", code], **options)
    )
    reported = []
    made = offline.compile_for(["sm_90"], folders[1].parent, report=lambda *count: reported.append(count))
    assert reported == [(0, 1), (1, 1), (2, 1)]  # found by the second of the two
    kernels = list(made.glob("*.cubin"))
    assert made == folders[1]
    assert len(kernels) == 1
    assert kernels[0].stat().st_mode & 0o777 == 0o644
    assert b"\x7fELF" in read_cached(folders[0] / kernels[0].name, "cuda")
    assert (made / precompile.marker_name((9, 0))).exists()


def test_a_compiler_that_fails_is_one_sentence(folders, monkeypatch):
    pytest.importorskip("numba_cuda")
    started = offline.subprocess.Popen
    command = [offline.sys.executable, "-c", "raise SystemExit('ptxas is gone')"]
    monkeypatch.setattr(offline.subprocess, "Popen", lambda _, **options: started(command, **options))
    with pytest.raises(RunError, match="kernels for sm_80 were not compiled: ptxas is gone"):
        offline.compile_for(["sm_80"], folders[1].parent)


def test_one_kernel_stops_no_other_and_is_named(folders, monkeypatch, tmp_path):
    require_cuda_compiler()
    lines = {
        line[0]: line for line in precompile.warm_up_signatures() if line[0] in ("downsample_z", "downsample_y", "downsample_x")
    }
    name, constants, signature = lines["downsample_y"]
    lines[name] = name, constants, signature.replace("float32[:,:,::1]", "float32", 1)
    listed = tmp_path / "signatures.txt"
    listed.write_text("".join(f"{n}\t{c!r}\t{s}\n" for n, c, s in lines.values()))
    code = (
        "import sys; from pathlib import Path; from daskreg.kernels.compiler import offline, precompile;"
        f"precompile.SIGNATURES = Path({str(listed)!r}); offline.main()"
    )
    started = offline.subprocess.Popen
    command = [offline.sys.executable, "-c", code, "sm_90", "2"]
    monkeypatch.setattr(offline.subprocess, "Popen", lambda _, **options: started(command, **options))
    with pytest.raises(
        RunError, match=r"^kernels for sm_90 were not compiled: downsample_y \(\w.*\)\. Those that were are kept\.$"
    ) as raised:
        offline.compile_for(["sm_90"], folders[1].parent)
    assert "Failed in" not in str(raised.value)
    assert len(list(folders[1].glob("downsample_*"))) == 2


def test_who_interrupts_is_told_what_is_kept(folders, monkeypatch):
    pytest.importorskip("numba_cuda")
    started, running = offline.subprocess.Popen, []

    def begin(_, **options):
        running.append(started([offline.sys.executable, "-uc", "print('a\\nb\\nc'); import time; time.sleep(60)"], **options))
        return running[-1]

    def report(done, of):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(offline.subprocess, "Popen", begin)
    with pytest.raises(KeyboardInterrupt) as stopped:
        offline.compile_for(["sm_90"], folders[1].parent, report=report)
    usual = len(list(precompile.warm_up_signatures()))
    assert stopped.value.__notes__ == [f"2 of {usual} kernels are kept in {folders[1]}; run the same command to go on."]
    assert running[0].poll() is not None


def test_kernels_of_torch_are_found_without_it():
    code = """
import sys
from daskreg.kernels.compiler import precompile, registry
sys.modules["torch"] = None
registry.import_torch_kernels()
for name, constants, signature in precompile.warm_up_signatures(precompile.TORCH_SIGNATURES):
    registered = precompile.KERNELS if isinstance(constants, list) else precompile.COOPERATIVE_KERNELS
    assert name in registered, name
    types = precompile.parse_types(signature)
    assert precompile.find_kernel(name, constants).py_func.__code__.co_argcount == len(types), name
    assert precompile.format_types(precompile.parse_types(signature)) == signature
"""
    pytest.importorskip("numba_cuda")
    offline.subprocess.run([offline.sys.executable, "-c", code], check=True)


def test_the_slowest_kernels_come_first():
    names = [name for name, _, _ in offline._listed(torch=True)]
    assert set(offline.SLOW) <= set(names)
    seconds = [offline.SLOW.get(name, 1) for name in names]
    assert seconds == sorted(seconds, reverse=True)
