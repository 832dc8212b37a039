"""Any number of worker processes, over any connection, wherever the moving image lives: not a bit of the result differs."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import zarr
from distributed.comm import tcp
from distributed.diagnostics.plugin import SchedulerPlugin

import daskreg
from daskreg import LNCC, MI, MSE, Affine, Deformable, Moments, Rigid
from daskreg.cli import main
from daskreg.cluster import timeouts
from daskreg.config import Config, Search
from daskreg.errors import ConfigError, InputError
from daskreg.grid import Grid
from daskreg.planning import RESIDENCIES
from daskreg.storage import open_volume, write_image
from daskreg.storage.transforms import write_affine
from tests.integration.workers import COMMS, SOCKETS, addresses, cluster, require, run, same
from tests.phantoms import body_mask, known_warp_pair, rotation, turned
from tests.unit.workflows.test_background import GRID as MOSAIC
from tests.unit.workflows.test_background import filled, texture
from tests.unit.workflows.test_masks import shares_are_told

pytestmark = SOCKETS


@pytest.fixture(scope="module")
def client():
    with cluster(4) as found:
        yield found


def affine(loss, scales=(2,)):
    return Affine(similarity=loss, scales=scales, iterations=[3] * len(scales))


def deformable(loss, scales=(2, 1), iterations=4, **options):
    return Deformable(similarity=loss, scales=scales, iterations=[iterations] * len(scales), **options)


@dataclass
class Case:
    """What is registered, and how; ``blocks`` that do work when there are four workers."""

    images: tuple[Any, Any]
    stages: Any
    options: dict[str, Any] = field(default_factory=dict)
    blocks: int = 4


def images(shape, seed=0, grids=(None, None)):
    fixed, moving, _ = known_warp_pair(shape, 2.0, seed)
    return tuple(v if g is None else open_volume(v, grid=g) for v, g in zip((fixed, moving), grids, strict=True))


def mean_squares(folder):
    return Case(images((33, 30, 28)), [affine(MSE()), deformable(MSE())])


def local_correlation(folder):
    return Case(images((34, 29, 31), 1), [affine(LNCC()), deformable(LNCC())])


def center_gradient(folder):
    return Case(images((37, 26, 30), 2), [deformable(LNCC(radius=2, gradient="center"))])


def mutual_information(folder):
    return Case(images((35, 28, 27), 3), [Moments(), affine(MI()), deformable(MI())])


def only_an_affine(folder):
    """Ends with a coarse level, whose halos are not those of the images."""
    return Case(
        images((36, 32, 32), 4), [Moments(orientation=True), Rigid(similarity=MI(), scales=(4,), iterations=(4,)), affine(MI())]
    )


def blocks_thinner_than_their_halos(folder):
    """Two to three planes a block, filters and windows that read seven around it."""
    stages = [deformable(LNCC(radius=2), scales=(1,), smooth_gradient=2.5, smooth_warp=1.0)]
    return Case(images((11, 26, 24), 5), stages, {"minimum_planes": 1})


def blocks_that_are_idle(folder):
    """At the coarsest level there is work for one rank of four, then for two."""
    return Case(images((21, 26, 24), 6), [affine(MSE(), (4, 2)), deformable(MSE(), (4, 2, 1))], blocks=2)


def different_oblique_grids(folder):
    fixed = Grid((29, 31, 27), (1.5, 1.0, 1.2), (3.0, -4.0, 5.0), tuple(map(tuple, rotation((5, 12, -9)))), "mm", True)
    moving = Grid((37, 26, 33), (1.1, 1.3, 1.0), (2.0, -3.0, 4.0), tuple(map(tuple, rotation((-7, 4, 15)))), "mm", True)
    parts = known_warp_pair(fixed.shape, 2.0, 7)[0], known_warp_pair(moving.shape, 2.0, 7)[1]
    return Case(
        tuple(open_volume(v, grid=g) for v, g in zip(parts, (fixed, moving))), [affine(MI()), deformable(LNCC())], blocks=3
    )


def a_quarter_turn(folder):
    """Planes of the fixed image lie across those of the moving one: every block reads every shard."""
    fixed, moving = images((32, 32, 32), 8)
    grid, path = Grid((32, 32, 32)), folder / "turn.txt"
    turn = np.eye(4)
    turn[:3, :3] = rotation((0, 0, 85))
    turn[:3, 3] = grid.center - turn[:3, :3] @ grid.center
    write_affine(path, turn)
    stages = [affine(MSE()), deformable(MSE())]
    return Case((fixed, moving), Config(stages=stages, initial_transform=str(path)))


def a_turned_grid(folder):
    fixed, moving = images((31, 30, 29), 9)
    grid = Grid((31, 30, 29))
    return Case((fixed, open_volume(moving, grid=turned(grid, (0, 60, 40)))), [affine(MI()), deformable(MI())], blocks=3)


def thin_along_z(folder):
    """Nine planes: another axis is cut."""
    return Case(images((9, 20, 44), 10), [affine(MSE()), deformable(LNCC(radius=1))])


def masks(folder):
    fixed, moving, warp = known_warp_pair((32, 28, 30), 2.0, 11)
    options = {
        "fixed_mask": body_mask(fixed.shape, warp).astype(np.float32),
        "moving_mask": body_mask(fixed.shape).astype(np.float32),
    }
    return Case((fixed, moving), [affine(MSE()), deformable(LNCC())], options)


def a_global_search(folder):
    stages = [Search(size=16, rotations="right-angles"), affine(MSE())]
    return Case(images((33, 27, 30), 12), stages)


CASES = [
    mean_squares,
    local_correlation,
    center_gradient,
    mutual_information,
    only_an_affine,
    blocks_thinner_than_their_halos,
    blocks_that_are_idle,
    different_oblique_grids,
    a_quarter_turn,
    a_turned_grid,
    thin_along_z,
    masks,
    a_global_search,
]


def spread():
    """Two runs for each case; over all of them every pair of workers, residency and connection meets."""
    for k, case in enumerate(CASES):
        for j, workers in enumerate(((2, 4), (3, 4), (3, 2))[k % 3]):
            yield case, workers, RESIDENCIES[(j + k // 3) % 3], COMMS[(j + k // 2) % 2]


@pytest.fixture(scope="module")
def alone(client, tmp_path_factory):
    """A case and its result on one worker, made once."""
    known = {}

    def of(make):
        if make not in known:
            case = make(tmp_path_factory.mktemp(make.__name__))
            known[make] = case, run(client, *case.images, case.stages, workers=1, **case.options)
        return known[make]

    return of


def mostly_slow(cases):
    """Every fifth case in the usual run, all of them nightly."""
    return [pytest.param(*case, marks=[pytest.mark.slow] if k % 5 else []) for k, case in enumerate(cases)]


@pytest.mark.parametrize(
    ("make", "workers", "residency", "comm"), mostly_slow(spread()), ids=lambda v: getattr(v, "__name__", str(v))
)
def test_a_run_is_the_same_on_any_number_of_workers(client, alone, make, workers, residency, comm):
    require(comm)
    case, first = alone(make)
    found = run(client, *case.images, case.stages, workers=workers, residency=residency, comm=comm, **case.options)
    assert same(first, found).bits, same(first, found).line()
    assert np.asarray(found.moved.data).tobytes() == np.asarray(first.moved.data).tobytes()
    assert found.report["metrics"] == first.report["metrics"]
    assert sum(b > a for a, b in found.report["blocks"]) == min(workers, case.blocks)


@pytest.mark.parametrize("make", mostly_slow([[make] for make in CASES]))
def test_the_runs_that_are_compared_do_something(alone, make):
    _, found = alone(make)
    assert any(len(set(level["losses"])) > 1 for level in found.report["levels"])
    if found.displacement is not None:
        assert np.abs(np.asarray(found.displacement)).max() > 0.3


def test_every_pair_of_workers_residency_and_transport_is_covered():
    met = {pair for _, *choice in spread() for pair in itertools.combinations(enumerate(choice), 2)}
    assert len(met) == 3 * 3 + 3 * 2 + 3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("comm", COMMS)
@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_every_case_with_every_residency_and_transport(client, alone, make, residency, comm):
    require(comm)
    case, first = alone(make)
    for workers in (2, 3, 4):
        found = run(client, *case.images, case.stages, workers=workers, residency=residency, comm=comm, **case.options)
        assert same(first, found).bits, same(first, found).line()


def test_background_that_is_left_out_is_the_same_on_two_workers(client):
    pair = [open_volume(filled(texture(shift), np.nan), grid=MOSAIC) for shift in (2, 0)]
    options = {"background": "auto", "comm": "tcp", "minimum_planes": 4}
    one, two = (
        run(client, *pair, config=[Rigid(similarity=MSE(), scales=(2, 1), iterations=(5, 3))], workers=n, **options)
        for n in (1, 2)
    )
    assert one.affine.tobytes() == two.affine.tobytes()
    assert one.moved.data.compute().tobytes() == two.moved.data.compute().tobytes()
    assert one.report["left_out"] == two.report["left_out"] != [0, 0]


def test_a_run_that_starts_from_a_displacement_is_the_same_on_two_workers(client, alone):
    case, first = alone(mean_squares)
    config = Config(stages=[deformable(LNCC(), (2,), 3)], initial_transform=first.path)
    one, two = (run(client, *case.images, config=config, workers=n, comm="tcp") for n in (1, 2))
    assert same(one, two).bits, same(one, two).line()
    assert one.report["metrics"] == two.report["metrics"]
    assert one.report["metrics"]["before"]["ncc"] == pytest.approx(first.report["metrics"]["after"]["ncc"], abs=1e-3)


def test_the_share_that_a_mask_leaves_is_told_once_of_all_workers(client, caplog):
    shares_are_told(caplog, client=client, workers=2)


def test_a_rotated_image_needs_planes_of_distant_shards(client, alone):
    """With blocks across the shards, the ring carries planes that a block's own place in the row would not need."""
    case, _ = alone(a_quarter_turn)
    carried = {}
    for make in (a_quarter_turn, mean_squares):
        case, _ = alone(make)
        found = run(client, *case.images, case.stages, workers=4, residency="ring", comm="tcp", **case.options)
        carried[make] = sum(r["traffic"]["ring"] for r in found.report["ranks"])
    assert carried[a_quarter_turn] > 2 * carried[mean_squares]


# --- nothing iterates through the scheduler -----------------------------------------------------------------------------


class Tasks(SchedulerPlugin):
    """Counts the tasks that a scheduler has seen finish."""

    name = "tasks that finished"

    def __init__(self):
        self.done = Counter()

    def transition(self, key, start, finish, *args, **kwargs):
        if (start, finish) == ("processing", "memory"):
            self.done[str(key)] += 1


@pytest.fixture
def scheduler(client, monkeypatch):
    """Tasks done so far, and the size of every message that this process, client and scheduler, sends to a worker or gets."""
    plugin, messages, real = Tasks(), [], (tcp.to_frames, tcp.from_frames)

    def size(frames):
        messages.append(sum(memoryview(f).nbytes for f in frames))
        return frames

    async def outgoing(*args, **options):
        return size(await real[0](*args, **options))

    async def incoming(frames, *args, **options):
        return await real[1](size(frames), *args, **options)

    monkeypatch.setattr(tcp, "to_frames", outgoing)
    monkeypatch.setattr(tcp, "from_frames", incoming)
    client.cluster.scheduler.add_plugin(plugin)
    yield plugin.done, messages
    client.cluster.scheduler.remove_plugin(name=plugin.name)


def test_the_scheduler_sees_one_task_per_worker_and_no_voxels(client, scheduler):
    """However many iterations: heartbeats and progress are small, so whatever is large must be few planes of the image."""
    tasks, messages = scheduler
    fixed, moving = images((64, 64, 64), 13)
    plane = fixed[0].nbytes
    for iterations in (2, 30):
        tasks.clear()
        messages.clear()
        stages = [affine(MSE()), deformable(MSE(), (1,), iterations, tolerance=0)]
        found = run(client, fixed, moving, stages, workers=3, residency="ring", comm="tcp")
        assert len(found.report["levels"][-1]["losses"]) == iterations
        assert len(tasks) == sum(tasks.values()) == 3
        assert sum(m for m in messages if m > 4096) < 20 * plane  # 64 planes each: u has 192, and every iteration changes them
        assert max(messages) < 4 * plane


# --- a worker that cannot -----------------------------------------------------------------------------------------------


def without_ucx():
    from daskreg.comm import endpoint

    def fail():
        raise OSError("libucp.so.0: cannot open shared object file")

    endpoint._ucx_links, fail.real = fail, endpoint._ucx_links


def with_ucx():
    from daskreg.comm import endpoint

    endpoint._ucx_links = endpoint._ucx_links.real


def test_ucx_is_refused_if_a_worker_lacks_it_and_auto_uses_tcp(client):
    require("ucx")
    fixed, moving = images((24, 20, 20), 14)
    one = addresses(client)[:1]
    client.run(without_ucx, workers=one)
    try:
        with pytest.raises(InputError, match=r"--comm ucx: not every worker can.*\(OSError: libucp.*--comm tcp"):
            run(client, fixed, moving, [affine(MSE())], workers=2, comm="ucx")
        assert run(client, fixed, moving, [affine(MSE())], workers=2, comm="auto").report["blocks"][1]
    finally:
        client.run(with_ucx, workers=one)


def test_an_unknown_transport_is_refused(client):
    with pytest.raises(ConfigError, match="known are auto, tcp, ucx"):
        run(client, *images((24, 20, 20), 14), [affine(MSE())], comm="mpi")


def test_more_workers_than_there_are_is_refused(client, monkeypatch):
    monkeypatch.setattr(timeouts, "WORKER_START_TIMEOUT", 0.2)
    with pytest.raises(InputError, match="has 4 of 5 workers after 0 s; start more"):
        run(client, *images((24, 20, 20), 14), [affine(MSE())], workers=5)


# --- the command line ---------------------------------------------------------------------------------------------------

QUICK = """
stages:
- moments
- {stage: affine, similarity: mse, scales: 4, iterations: 3}
- {stage: deformable, similarity: mse, scales: 2x1, iterations: 5x3}
"""


@pytest.fixture
def pair(tmp_path):
    """Two images in files, and a configuration."""
    names = [str(tmp_path / f"{name}.zarr") for name in ("fixed", "moving")]
    for name, voxels in zip(names, images((33, 30, 28), 15), strict=True):
        write_image(name, voxels, Grid(voxels.shape))
    (tmp_path / "quick.yaml").write_text(QUICK)
    return [*names, "--config", str(tmp_path / "quick.yaml")]


def command(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of one command line."""
    monkeypatch.setattr(sys, "argv", ["daskreg", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


def test_verify_reports_identical_results(pair, monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, "verify", *pair, "--workers", "1,2", "--residency", "ring")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[:-1]] == [
        ["1", "worker", "ring"],
        ["2", "workers", "ring"],
    ]
    assert out.count("identical") == 2
    assert "largest difference of the displacement: 0 voxel" in out


def test_verify_reports_differences_and_fails(pair, monkeypatch, capsys):
    """Another recipe on the second run stands for an engine that gets it wrong."""
    from daskreg.workflows import verify

    def wrong(fixed, moving, config, **options):
        shorter = config.stages[-1].model_copy(update={"iterations": (5, 2)})
        stages = (*config.stages[:-1], shorter) if options.pop("workers") > 1 else config.stages
        return daskreg.register(fixed, moving, config.model_copy(update={"stages": stages}), **options)

    monkeypatch.setattr(verify, "register", wrong)
    code, out, _ = command(monkeypatch, capsys, "verify", *pair, "--workers", "1,2")
    assert code == 1
    assert "differs by" in out


# --- where images are ---------------------------------------------------------------------------------------------------


def test_the_result_does_not_depend_on_the_chunks_of_the_images(client, alone, tmp_path):
    """NumPy arrays, NIfTI, and OME-Zarr in chunks that have nothing to do with the blocks."""
    case, first = alone(local_correlation)
    kinds = {"small.zarr": 7, "flat.zarr": (3, 29, 31), "deep.zarr": (34, 5, 4), "whole.nii.gz": None}
    for k, (name, chunk) in enumerate(kinds.items()):
        places = [str(tmp_path / f"{role}-{name}") for role in ("fixed", "moving")]
        for place, voxels in zip(places, case.images, strict=True):
            store(place, voxels, chunk)
        found = run(client, *places, case.stages, workers=2 + k % 3, residency=RESIDENCIES[k % 3], comm="tcp")
        assert same(first, found).bits, name


def store(place, voxels, chunk):
    write_image(place, voxels, Grid(voxels.shape))
    if chunk is not None:
        cut = chunk if isinstance(chunk, tuple) else (chunk,) * 3
        zarr.create_array(f"{place}/0", data=voxels, chunks=cut, overwrite=True)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_workers_with_a_nanny_use_the_memory_of_freed_chunks_again(client):
    run(client, *images((20, 18, 22)), [deformable(MSE(), (2,), 2)], workers=2)

    def faults(arrays=20, size=8 << 20):  # larger than holes that a heap happens to have
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(arrays):
            bytearray(size)  # zeros
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * 4096 / (arrays * size)

    assert sorted(client.run(faults).values())[1] < 0.2  # on both that had a rank; else 1: the pages of each array are new
