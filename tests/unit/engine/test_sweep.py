"""Fields out of the device's memory: the bits of the loop that holds all of them."""

import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Deformable, Rigid
from daskreg.engine.groups import is_end, until_end
from daskreg.engine.report import SAVE, Watch
from daskreg.engine.sweep.loop import SweepLoop
from daskreg.errors import PlanTooLarge
from daskreg.grid import Grid, Span
from daskreg.models.displacement.composition import ComposedDisplacement
from daskreg.optimizers.adam import Adam
from daskreg.optimizers.sgd import SGD
from daskreg.optimizers.sgd.update import Momentum
from daskreg.planning.slabs import Reaches, extents, held_planes, schedule, spread_planes, sweeps
from daskreg.similarity import LNCC, MI, MSE, NGF
from daskreg.storage.scratch import ScratchField, ScratchFolder
from tests.phantoms import blobs
from tests.unit.engine.spread import Registration, assert_same_bits, on_ranks
from tests.unit.engine.test_invariance import Asking, Memory, resumed

SHAPE = (33, 20, 22)
WHOLE_BLOCKS = (33, 32, 32)  # planes that are whole blocks of a file
LOSSES = {"mse": MSE(), "lncc": LNCC(radius=1, noise=0.05), "center": LNCC(radius=2, gradient="center"), "mi": MI()}
LOSSES["ngf"] = NGF(smoothed=True)
FULL, HALF = (1, 1, 1), (2, 2, 2)  # shrink factors
FILTERS = {"wide": {"smooth_gradient": 2.5, "smooth_warp": 1.5}, "none": {"smooth_gradient": 0, "smooth_warp": 0}}
FILTERS |= {"wide displacement": {"similarity": MSE(), "smooth_gradient": 0.5, "smooth_warp": 2}}


def config(loss="mse", **given):
    stage = {"scales": (2, 1), "iterations": (6, 5), "tolerance": 0, "similarity": LOSSES[loss]}
    return Config(stages=(Deformable(**{**stage, **given}),))


def pair():
    return blobs(SHAPE, 1), blobs(SHAPE, 2)


def check(recipe, cuts=((1, 5), (2, 9), (3, 64)), masks=(None, None)):
    expected = Registration(*pair(), recipe, masks).run(1)
    for ranks, slab in cuts:
        for residency in ("replicate", "window")[:ranks]:
            assert_same_bits(Registration(*pair(), recipe, masks, state="host", slab=slab).run(ranks, residency), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_any_slab_on_any_number_of_ranks_gives_the_same_bits(loss):
    check(config(loss))


@pytest.mark.parametrize("filters", FILTERS)
def test_with_any_filters(filters):
    check(config("lncc", **FILTERS[filters]))


@pytest.mark.parametrize("loss", ["mse", "center", "mi"])
def test_with_masks(loss):
    rng = np.random.default_rng(0)
    check(config(loss), masks=tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2)))


@pytest.mark.parametrize("stored", [(HALF,), (FULL, HALF)], ids=["the coarse level", "both levels"])
def test_with_masks_and_images_out_of_memory(stored):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2))
    expected = Registration(*pair(), config(), masks).run(1)
    for residency in ("replicate", "window"):  # masks are looked at first, of fewer planes
        assert_same_bits(Registration(*pair(), config(), masks, state="host", slab=5, stored=stored).run(2, residency), expected)


def test_with_another_optimizer():
    check(config("lncc", optimizer=SGD()))


def test_with_moments_in_16_bits():
    recipe = config("center", storage="moments", optimizer=Adam(significance=1))
    check(recipe, cuts=((2, 9),))
    packed, plain = (Registration(*pair(), one).run(1).displacement for one in (recipe, recipe.without_storage("moments")))
    assert 0 < np.abs(packed - plain).mean() < 0.05 * np.abs(plain).mean()


@pytest.mark.parametrize("storage", ["float32", "moments"])
def test_with_coherence(storage):
    check(config("center", storage=storage, optimizer=Adam(coherence=0.5)), cuts=((1, 5), (2, 9)))


def test_with_an_optimizer_whose_direction_is_kept(monkeypatch):
    monkeypatch.setattr(Momentum, "restores_direction", False)
    check(config("lncc", optimizer=SGD()))


def test_a_level_without_iterations_changes_nothing():
    recipe = config(iterations=(0, 0))
    check(recipe)
    assert not Registration(*pair(), recipe).run(1).displacement.any()


def test_levels_end_at_the_same_plateau():
    recipe = config("mse", iterations=(60, 60), tolerance=1e-2)
    check(recipe)
    assert len(Registration(*pair(), recipe).run(1).losses[0]) < 60


def test_ranks_without_planes_take_part():
    """Long enough that the reach into the moving image is measured again on the way."""
    images = blobs((2, 20, 22), 1), blobs((6, 20, 22), 2)
    recipe = config("mse", scales=(1,), iterations=(19,))
    expected = Registration(*images, recipe).run(1)
    assert_same_bits(Registration(*images, recipe, state="host", slab=4).run(3, "window"), expected)


def test_images_that_match_stay_at_rest():
    image = blobs(SHAPE, 1)
    case = Registration(image, image, config(), state="host")
    case.grids = Grid(SHAPE), Grid(SHAPE)
    found = case.run(1)
    assert [len(losses) for losses in found.losses] == [1, 1]
    assert not found.displacement.any()


def test_behind_a_linear_stage_that_judges_the_result():
    linear = Rigid(similarity=MSE(), scales=(2,), iterations=(4,))
    check(Config(stages=(linear, *config("lncc").stages)))


@pytest.mark.parametrize("state", ["device", "host"])
@pytest.mark.parametrize("loss", ["center", "mi", "ngf"])
def test_an_interrupted_run_continues_with_the_same_bits_in_and_out_of_core(loss, state):
    recipe, memory = config(loss, storage="moments" if loss == "center" else "float32"), Memory()
    begun = Registration(*pair(), recipe, state="host", slab=8)
    expected = Registration(*pair(), recipe).run(1)
    on_ranks(2, lambda comm: begun.rank(comm, "window", Asking(SAVE), memory.of(comm)).run())
    later = Registration(*pair(), recipe, state=state, slab=5)
    assert len(memory.saved) > 4
    for saved in memory.saved[::3]:
        assert_same_bits(resumed(later, saved, 3, "replicate"), expected)


REACHES = Reaches(displacement=2, direction=1, window=4, gradient=2), Reaches(displacement=5, direction=4, window=0, gradient=1)
BLOCKS = (Span(0, 40), 40), (Span(11, 30), 40), (Span(0, 3), 3), (Span(2, 2), 9)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_schedule_visits_every_plane_once_and_holds_what_it_reads(iterations):
    for reaches, (own, planes), height in product(REACHES, BLOCKS, (1, 3, 8, 100)):
        steps = schedule(own, planes, height, reaches, iterations)
        for k, all_of in enumerate(extents(own, planes, reaches, iterations)):
            slabs = [step.slabs[k] for step in steps if step.slabs[k] is not None]
            for name in ("composed", "compared", "stepped"):
                done = [z for s in slabs for z in range(getattr(s, name).start, getattr(s, name).stop)]
                assert done == list(range(getattr(all_of, name).start, getattr(all_of, name).stop))
            assert max((len(s.held) for s in slabs), default=0) <= held_planes(height, planes, reaches, iterations)
            for s in slabs:
                window = s.compared.grow(reaches.window) & Span(0, planes)
                assert window & s.held == window
                assert window.stop <= max(s.composed.stop, window.start)
                older = Span(s.composed.stop - reaches.direction, s.composed.stop)  # moments that the next slab composes with
                assert s.composed.stop == all_of.composed.stop or not len(s.stepped) or s.stepped.stop <= older.start
                smoothed = s.stepped.grow(reaches.gradient) & Span(0, planes)
                assert smoothed.stop <= max(s.compared.stop, smoothed.start)
                assert smoothed & s.held == smoothed


@pytest.mark.parametrize("iterations", [2, 4])
def test_an_iteration_of_a_sweep_reads_what_the_one_before_has_made_and_still_holds(iterations):
    for reaches, (own, planes), height in product(REACHES, BLOCKS, (1, 3, 8, 100)):
        steps, whole = schedule(own, planes, height, reaches, iterations), extents(own, planes, reaches, iterations)
        read = [(one.u.start, one.state.start) for one in whole]
        made, kept = [None] * iterations, [None] * iterations
        for step in steps:
            assert len(step.images) <= held_planes(height, planes, reaches, iterations) + spread_planes(reaches, iterations)
            for k, slab in enumerate(step.slabs):
                if slab is None:
                    continue
                if k:
                    assert slab.u.stop <= made[k - 1][0]
                    assert slab.state.stop <= made[k - 1][1]
                    new = [Span(first, span.stop) for first, span in zip(read[k], (slab.u, slab.state), strict=True)]
                    assert all(span & kept[k - 1] == span for span in new if len(span))
                read[k], made[k], kept[k] = (slab.u.stop, slab.state.stop), (slab.composed.stop, slab.stepped.stop), slab.held
                assert slab.held & step.images == slab.held
        assert read == [(one.u.stop, one.state.stop) for one in whole]


@pytest.mark.parametrize("together", [2, 3, 4, 8])
def test_the_sweeps_of_a_level_are_counted(together):
    for iterations in range(20):
        k, counted = 0, 0
        while k < iterations:
            k, counted = k + until_end(k, together, iterations), counted + 1
            assert is_end(k, together, iterations)
        assert counted == sweeps(iterations, together)
        assert k == iterations


# --- several iterations a sweep ---------------------------------------------------------------------------------------

TOGETHER = {
    "mse": (2, {"smooth_gradient": 0, "smooth_warp": 0}),
    "lncc": (3, {}),
    "center": (4, {"storage": "moments", "optimizer": Adam(coherence=0.5)}),
    "ngf": (2, {"optimizer": SGD(), "smooth_warp": 1.5}),
}


@pytest.mark.parametrize("loss", TOGETHER)
def test_several_iterations_a_sweep_give_the_bits_of_the_loop_in_memory(loss):
    together, given = TOGETHER[loss]
    check(config(loss, iterations=(6, 11), iterations_per_sweep=together, **given))


@pytest.mark.slow
@pytest.mark.parametrize("together", [2, 3, 4, 8])
@pytest.mark.parametrize("storage", ["float32", "moments"])
@pytest.mark.parametrize("loss", ["mse", "lncc", "center", "ngf"])
def test_every_loss_in_every_storage_with_several_iterations_a_sweep(loss, storage, together):
    recipe = config(loss, storage=storage, iterations=(9, 19), iterations_per_sweep=together)
    check(recipe, cuts=((1, 5), (1, 64), (2, 9), (3, 4), (3, 64)))
    expected = Registration(*pair(), recipe).run(1)
    assert_same_bits(Registration(*pair(), recipe).run(3, "ring"), expected)
    for slab in (5, 64):
        assert_same_bits(Registration(*pair(), recipe, (None, None), "host", slab, (FULL, HALF)).run(1), expected)


def test_several_iterations_a_sweep_with_a_direction_that_is_kept(monkeypatch):
    monkeypatch.setattr(Momentum, "restores_direction", False)
    check(config("lncc", optimizer=SGD(), iterations_per_sweep=3), cuts=((2, 9),))


def test_several_iterations_a_sweep_with_masks_and_images_out_of_memory(tmp_path):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2))
    recipe = config("center", iterations=(6, 21), iterations_per_sweep=4)
    expected = Registration(*pair(), recipe, masks).run(1)
    with ScratchFolder(tmp_path) as folder:
        run = Registration(*pair(), recipe, masks, "disk", 8, (FULL, HALF))
        run.scratch = folder.allocate
        assert_same_bits(run.run(1), expected)
    assert_same_bits(Registration(*pair(), recipe, masks, state="host", slab=5, stored=(FULL,)).run(2, "window"), expected)


def moved_bytes(folder, together):
    """Of 8 iterations of a level of whole blocks of a file."""
    recipe = config("mse", scales=(1,), iterations=(8,), iterations_per_sweep=together)
    with ScratchFolder(folder) as scratch:
        case = Registration(blobs(WHOLE_BLOCKS, 1), blobs(WHOLE_BLOCKS, 2), recipe, state="disk", slab=6)
        case.scratch = scratch.allocate
        case.run(1)
        return scratch.moved


def test_fields_are_read_and_written_once_a_sweep(tmp_path):
    """8 iterations of a level in 8, 1 + 1 + 3 and 1 + 1 + 1 sweeps, and a composition at its end."""
    moved = {together: moved_bytes(tmp_path, together) for together in (1, 2, 4)}
    a_sweep = 2 * 36 * np.prod(WHOLE_BLOCKS)
    assert moved[1] - moved[2] == (8 - 5) * a_sweep
    assert moved[1] - moved[4] == (8 - 3) * a_sweep


def test_nothing_is_read_that_no_sweep_needs(tmp_path, monkeypatch):
    """Reads that are still waiting when a level ends are dropped: on a slow disk fewer bytes would be read."""
    expected, read = moved_bytes(tmp_path, 4), ScratchField.read
    monkeypatch.setattr(ScratchField, "read", lambda *given: (time.sleep(0.01), read(*given)))
    assert moved_bytes(tmp_path, 4) == expected


@pytest.mark.parametrize("state", ["device", "host"])
def test_a_run_that_is_interrupted_within_a_group_continues_with_the_same_bits(state):
    """In memory a checkpoint can fall there; what scales its steps is in it."""
    recipe, memory = config("center", iterations=(7, 10), iterations_per_sweep=4), Memory()
    begun, expected = Registration(*pair(), recipe), Registration(*pair(), recipe).run(1)
    on_ranks(2, lambda comm: begun.rank(comm, "window", Asking(SAVE), memory.of(comm)).run())
    later = Registration(*pair(), recipe, state=state, slab=5)
    within = [saved for saved in memory.saved if len(saved[0]["losses"]) % 4 > 1]
    assert len(within) > 4
    for saved in within[::2]:
        assert_same_bits(resumed(later, saved, 3, "replicate"), expected)


def test_several_iterations_a_sweep_end_at_the_plateau_that_the_loop_in_memory_finds():
    recipe = config("mse", iterations=(60, 60), tolerance=1e-2, iterations_per_sweep=4)
    check(recipe)
    alone = Registration(*pair(), config("mse", iterations=(60, 60), tolerance=1e-2)).run(1)
    for found, one in zip(Registration(*pair(), recipe).run(1).losses, alone.losses, strict=True):
        assert len(found) % 4 == 0
        assert len(found) < 60
        assert found[-1] == pytest.approx(one[-1], abs=0.02)


def test_steps_are_no_longer_than_the_recipe_allows_where_directions_grow_in_a_group(monkeypatch):
    steps, update = [], ComposedDisplacement.update

    def grown(model, fields, direction, on):
        fields.u[...] = 0  # so that the step is all that there is
        if steps:
            fields.d *= 3
        update(model, fields, direction, on)
        steps.append(float((fields.u**2).sum(axis=0).max()) ** 0.5)

    monkeypatch.setattr(ComposedDisplacement, "update", grown)
    recipe = config("mse", smooth_gradient=0, smooth_warp=0, scales=(1,), iterations=(8,), iterations_per_sweep=8)
    Registration(*pair(), recipe).run(1)
    assert steps == pytest.approx([0.25] * 8, rel=1e-6)


@pytest.mark.parametrize("loss", ["center", "mi"])
def test_fields_on_disk_give_the_same_bits(loss, tmp_path):
    expected = Registration(*pair(), config(loss)).run(1)
    with ScratchFolder(tmp_path) as folder:
        case = Registration(*pair(), config(loss), state="disk", slab=6)
        case.scratch = folder.allocate
        for ranks in (1, 2):
            assert_same_bits(case.run(ranks, "window"), expected)
        assert folder.moved > 10 * SHAPE[0] * SHAPE[1] * SHAPE[2] * 36
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_images_out_of_memory_give_the_same_bits(loss, masked, tmp_path):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2)) if masked else (None, None)
    recipe = config(loss, iterations=(6, 11))
    expected = Registration(*pair(), recipe, masks).run(1)
    for state, slab, kept in (("host", 5, (FULL, HALF)), ("disk", 64, (FULL,)), ("disk", 8, (FULL, HALF))):
        with ScratchFolder(tmp_path) as folder:
            run = Registration(*pair(), recipe, masks, state, slab, kept)
            run.scratch = folder.allocate if state == "disk" else None
            assert_same_bits(run.run(1), expected)


def test_slabs_become_lower_where_more_planes_of_the_moving_image_are_read_than_fit():
    recipe, loops = config("lncc", scales=(1,), iterations=(19,)), []
    expected = Registration(*pair(), recipe).run(1)

    class Tight(Registration):
        def moved(self, level):
            return replace(super().moved(level), window=18, traded=2)

    def watched(loop, *given):
        loops.append(loop)
        return prepare(loop, *given)

    prepare = SweepLoop._prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepLoop, "_prepare", watched)
        assert_same_bits(Tight(*pair(), recipe, (None, None), "host", 16, (FULL,)).run(1), expected)
    assert 4 <= loops[-1].height < 16
    assert loops[-1].sampler.most == 18 + 2 * (16 - loops[-1].height)


def test_a_map_that_reads_more_of_the_moving_image_than_fits_is_refused():
    class TooTight(Registration):
        def moved(self, level):
            return replace(super().moved(level), window=3)

    with pytest.raises(PlanTooLarge, match=r"read \d+ planes of the moving image, 3 of which fit"):
        TooTight(*pair(), config("mse"), (None, None), "host", 16, (FULL, HALF)).run(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_linear_stages_compare_images_out_of_memory_with_the_same_bits(loss, masked):
    rng = np.random.default_rng(0)
    masks = tuple((rng.random(SHAPE) > 0.3).astype(np.float32) for _ in range(2)) if masked else (None, None)
    stage = Affine(similarity=LOSSES[loss], scales=(2, 1), iterations=(5, 5), tolerance=0)
    recipe = Config(stages=(stage, *config("mse", scales=(1,), iterations=(3,)).stages))
    expected = Registration(*pair(), recipe, masks).run(1)
    for slab, kept in ((5, (FULL,)), (64, (FULL, HALF))):
        assert_same_bits(Registration(*pair(), recipe, masks, "host", slab, kept).run(1), expected)


def test_a_disk_that_an_iteration_mostly_waits_for_is_reported_once(tmp_path, monkeypatch):
    said = []

    class Recorder(Watch):
        def slow_disk(self, waited, seconds, rate):
            said.append((waited, seconds, rate))

    def slow(field, planes, into):
        time.sleep(0.02)
        read(field, planes, into)

    read = ScratchField.read
    with ScratchFolder(tmp_path) as folder:
        run = Registration(*pair(), config("mse", scales=(1,), iterations=(4,)), (None, None), "disk", 16)
        run.scratch = folder.allocate
        run.rank(SingleRank(), "replicate", Recorder()).run()
        assert not said
        monkeypatch.setattr(ScratchField, "read", slow)
        for name in ("LEAST_WAIT", "MOSTLY"):  # a busy machine computes long beside what it waits
            monkeypatch.setattr(f"daskreg.engine.sweep.loop.{name}", 0.0)
        run.rank(SingleRank(), "replicate", Recorder()).run()
    ((waited, seconds, rate),) = said
    assert 0.02 <= waited <= seconds
    assert rate * seconds > 2 * 36 * np.prod(SHAPE) * 0.9
