"""The human-readable table of a plan."""

from dataclasses import replace

import pytest

from daskreg.config import Config, Deformable, Search
from daskreg.errors import PlanTooLarge
from daskreg.grid import Grid
from daskreg.planning import make_plan
from daskreg.planning.memory import swept_bytes
from daskreg.planning.slabs import HEIGHTS
from daskreg.planning.table import SPEEDS, duration, seconds


def plan(edge, workers=1, **given):
    stage = Deformable(scales=(1,), iterations=(50,), **given)
    return make_plan(Grid((edge,) * 3), Grid((edge,) * 3), Config(stages=(stage,)), workers=workers)


@pytest.mark.parametrize(("loss", "milliseconds"), [("mse", 5.9), ("lncc", 9.4), ("mi", 7.5)])
def test_the_time_of_a_gpu_iteration_is_the_measured_one(loss, milliseconds):
    made = plan(512, similarity=loss)
    found = seconds(made, 0, made.levels[0][0], 1, "cuda") / 50 * 1e3
    assert found == pytest.approx(milliseconds, rel=0.07)


def test_a_plan_for_a_gpu_names_it_and_is_faster():
    made = plan(256)
    cpu, cuda = made.lines(), made.lines("cuda")
    assert "memory of a worker" in cpu[-3]
    assert "memory of a GPU" in cuda[-3]
    assert "on 1 worker of 1 GPU like an H200," in cuda[-1]
    assert seconds(made, 0, made.levels[0][0], 2, "cpu") > 100 * seconds(made, 0, made.levels[0][0], 1, "cuda")
    assert len(cpu) == len(cuda)


def test_several_workers_spend_time_on_messages():
    alone, four = plan(256), plan(256, workers=4)
    one, quarter = (seconds(p, 0, p.levels[0][0], 1, "cuda") for p in (alone, four))
    assert quarter > 50 * 6 * SPEEDS["cuda"].latency
    assert quarter < one


def test_shapes_are_those_of_the_stored_images_whatever_axis_is_cut():
    fixed, moving = Grid((6, 40, 8)), Grid((9, 7, 50))
    orders = (1, 0, 2), (2, 1, 0)
    stage = Deformable(scales=(1,), iterations=(5,))
    made = make_plan(fixed.permute(orders[0]), moving.permute(orders[1]), Config(stages=(stage,)), workers=2, orders=orders)
    row, said = made.lines()[1:3]
    assert row.split()[2:4] == ["6x40x8", "9x7x50"]
    assert "voxels, z x y x x; blocks: workers, and the most planes of one, along y" in said
    with pytest.raises(PlanTooLarge, match=r"fixed 6 x 40 x 8, moving 9 x 7 x 50"):
        made.validate(1)


def test_the_time_leaves_out_a_search_which_is_said():
    stage, grid = Deformable(scales=(1,), iterations=(5,)), Grid((16, 16, 16))
    with_search, without = (make_plan(grid, grid, Config(stages=(*first, stage))) for first in ((Search(),), ()))
    assert with_search.lines()[-1].endswith("; the search, reading, writing and compiling apart")
    assert without.lines()[-1].endswith("; reading, writing and compiling apart")


def test_several_iterations_a_sweep_move_fewer_bytes_and_take_more_memory():
    """50 iterations in 50, and in 1 + 1 + 12 sweeps."""
    plans = [make_plan(Grid((256,) * 3), Grid((256,) * 3), recipe(n), state="disk", memory=800_000_000) for n in (1, 4)]
    (alone, together), (_, slabs) = plans, [p.levels[0][0].slab for p in plans]
    moved = [swept_bytes(p, p.config.stages[0], p.levels[0][0]) for p in plans]
    assert moved == [36 * 256**3, 36 * 256**3 * 14 // 50]
    assert "161 MiB read and 161 MiB written an iteration, 4 iterations a sweep" in "".join(together.lines())
    assert "576 MiB read and 576 MiB written an iteration" in "".join(alone.lines())
    assert 4 <= slabs < alone.levels[0][0].slab
    memory = 1 + sum(p.memory_use(0, replace(p.levels[0][0], slab=HEIGHTS[0])).total for p in plans) // 2
    tight = [make_plan(Grid((256,) * 3), Grid((256,) * 3), recipe(n), state="disk", memory=memory) for n in (1, 4)]
    tight[0].validate(memory)
    with pytest.raises(
        PlanTooLarge, match=r"this run needs (\d+) MiB a worker .*allow \1 MiB on machines that have it \(--memory \1MiB\)"
    ):
        tight[1].validate(memory)


def recipe(together):
    return Config(stages=(Deformable(scales=(1,), iterations=(50,), iterations_per_sweep=together),))


def test_short_times_are_in_milliseconds():
    assert [duration(s) for s in (0.004, 0.0994, 0.1, 11.6)] == ["4 ms", "99 ms", "0.1 s", "12 s"]
