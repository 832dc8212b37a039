"""Another user of this machine, while a registration runs on two workers: every port, every folder, every process.

As root the attacker has another uid. Without root he has ours, and only what needs no uid is tried: ports.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from daskreg import MSE, Deformable
from daskreg.config import Config
from daskreg.grid import Grid
from daskreg.storage import write_image
from tests.hostile import listening
from tests.integration.workers import SOCKETS, require
from tests.phantoms import known_warp_pair

pytestmark = [SOCKETS, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
ROOT = Path(__file__).parents[2]
STRANGER = 54321
AS_STRANGER = os.geteuid() == 0
ATTACK = r"""
import json, os, pickle, socket, ssl, struct, sys, urllib.error, urllib.request

from concurrent.futures import ThreadPoolExecutor
import concurrent.futures.thread, email.parser, encodings.idna, http.client  # while Python's own folder can be read

given = json.load(sys.stdin)
try:
    urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
except OSError:
    pass
if given["uid"]:
    os.setgroups([]); os.setgid(given["uid"]); os.setuid(given["uid"])
found = []


class Executes:
    def __reduce__(self):
        return os.open, (given["marker"], os.O_CREAT | os.O_WRONLY, 0o666)


def dask(message):
    frames = struct.pack("<QQ", 1, len(message)) + message
    return struct.pack("<Q", len(frames)) + frames


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


payload = pickle.dumps(Executes())
texts = [payload * 50, dask(payload), dask(b"\x82\xaa__pickle__\xc4" + bytes([len(payload)]) + payload), bytes(4096)]
def attack(address):
    host, port = address
    for text in texts:
        for wrap in (lambda s: s, tls().wrap_socket):
            try:
                with socket.create_connection((host, port), timeout=3) as plain, wrap(plain) as stream:
                    stream.settimeout(0.3)
                    stream.sendall(text)
                    while stream.recv(4096):
                        pass
            except OSError:
                pass
    for path in given["paths"]:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=3) as answer:
                text = answer.read()
                if text != b'{"paths": ["/sitemap.json"]}':  # a worker's, which has nothing else
                    found.append(f"HTTP {port} /{path}: {text[:60]!r}")
        except (OSError, ValueError, urllib.error.HTTPError, Exception):
            pass


with ThreadPoolExecutor(len(given["ports"])) as pool:
    list(pool.map(attack, given["ports"]))

if given["uid"]:
    for folder in given["folders"]:
        try:
            os.listdir(folder)
            found.append(f"list {folder}")
        except OSError:
            pass
        for name, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
            for file in given["files"].get(folder, []):
                try:
                    os.close(os.open(file, flags))
                    found.append(f"{name} {file}")
                except OSError:
                    pass
        try:
            os.close(os.open(f"{folder}/planted.py", os.O_CREAT | os.O_WRONLY))
            found.append(f"create in {folder}")
        except OSError:
            pass
    for pid in given["pids"]:
        for name in ("mem", "environ", "maps", "fd"):
            try:
                os.listdir(f"/proc/{pid}/fd") if name == "fd" else open(f"/proc/{pid}/{name}", "rb").read(1)
                found.append(f"process {pid} {name}")
            except OSError:
                pass
        try:
            os.kill(pid, 0)
            found.append(f"signal {pid}")
        except OSError:
            pass
print(json.dumps(found))
"""
PATHS = ["", "status", "sitemap.json", "info/main/workers.html", "json/identity.json", "metrics", "static/js/bokeh.min.js"]


@pytest.fixture
def place():
    """A folder that everybody can reach, with a folder like /tmp in it."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def victim(place, request):
    """The process of a registration on two workers that has begun."""
    require(request.param)
    fixed, moving, _ = known_warp_pair((24, 20, 20), 1.0, 0)
    for name, voxels in (("fixed", fixed), ("moving", moving)):
        write_image(place / f"{name}.zarr", voxels, Grid(voxels.shape))
    stages = [Deformable(similarity=MSE(), scales=(1,), iterations=(100_000,), tolerance=0)]
    (place / "recipe.yaml").write_text(Config.of_stages(stages).dump())
    words = ["register", "fixed.zarr", "moving.zarr", "-o", "run.zarr", "--config", "recipe.yaml", "--workers", "2"]
    command = [sys.executable, "-m", "daskreg.cli", *words, "--comm", request.param, "--checkpoint-every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "tmp")}
    with subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, start_new_session=True) as child:
        while child.poll() is None and not list(place.glob("*run.zarr*/checkpoint/latest.json")):
            time.sleep(0.1)
        assert child.poll() is None, child.stderr.read().decode()
        yield psutil.Process(child.pid)
        child.kill()


def shared_by_name(process):
    """Segments of shared memory that a process has, and that others can open: those of other tests are theirs."""
    return [m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/") and os.path.exists(m.path)]


@pytest.mark.parametrize("victim", ["tcp", pytest.param("ucx", marks=pytest.mark.slow)], indirect=True)
def test_another_user_gets_in_nowhere(victim, place):
    processes = [victim, *victim.children(recursive=True)]
    ports = sorted({address for p in processes for address in listening(p.pid)})
    assert len(ports) >= 6
    assert {host for host, _ in ports} == {"127.0.0.1"}
    folders = [str(p) for p in (place / "tmp").rglob("*") if p.is_dir()]
    assert any("dask-scratch-space" in folder for folder in folders)
    files = {folder: [str(p) for p in Path(folder).iterdir() if p.is_file()] for folder in folders}
    marker = place / "tmp" / "executed"
    given = {"ports": ports, "paths": PATHS, "folders": folders, "files": files, "marker": str(marker),
             "pids": [p.pid for p in processes], "uid": STRANGER if AS_STRANGER else 0}  # fmt: skip
    attack = subprocess.run(
        [sys.executable, "-P", "-c", ATTACK], input=json.dumps(given), capture_output=True, text=True, timeout=300
    )
    assert attack.returncode == 0, attack.stderr
    assert json.loads(attack.stdout) == []
    assert not marker.exists()
    before = sum(p.cpu_times().user for p in processes)
    time.sleep(1)
    assert victim.is_running()
    assert sum(p.cpu_times().user for p in processes) > before, "the registration goes on"
    assert [p for process in processes for p in shared_by_name(process) if "ucx" in p] == []
