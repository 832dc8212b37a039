"""The page about a run: what is on it, what drops out, and how it lies."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from daskreg.config import Affine, Config, Deformable
from daskreg.engine.match_map import MatchMap
from daskreg.errors import ConfigError, IncompleteRun, OutputError, OutputExists
from daskreg.grid import Grid, Region
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.reporting import charts, matched, pictures, views
from daskreg.reporting.numbers import duration, memory
from daskreg.reporting.page import render
from daskreg.reporting.sampling import Source, Warp, informative_slices, read_planes, shown_level
from daskreg.storage import RunStore, write_image
from daskreg.workflows.invert import invert
from daskreg.workflows.report import report

GRID = Grid((10, 24, 32), (2.0, 1.0, 1.0), (-10.0, -12.0, -16.0), unit="millimeter", oriented=True)
NETWORK = re.compile(r"""(?:src|href)\s*=\s*["'](?!data:|#)|url\((?!#)|@import|<script""")


def bright(grid: Grid) -> np.ndarray[Any, Any]:
    """A ramp along world x, times a ball: an image whose orientation shows."""
    at = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.where(np.linalg.norm(at, axis=-1) < 9, at[..., 2] + 20, 0).astype(np.float32)


def make_run(
    folder: Path, *, names: tuple[str, str] = ("array", "array"), deformable: bool = True, grid: Grid = GRID, stretch: float = 0.1
) -> RunStore:
    """A finished run without registering: a moved image, an affine, and a displacement that stretches along x."""
    store = RunStore.create(folder / "run.zarr", fixed=grid, moving=grid)
    store.set_affine(np.diag([1.0, 1.1, 1.0, 1.0]))
    store.create_image("moved", grid)
    store.write("moved", grid.region, bright(grid))
    store.build_pyramid("moved")
    if deformable:
        u = np.zeros((3, *grid.shape), np.float32)
        u[2] = stretch * grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 2]
        store.create_image("transform/displacement", grid, np.float32, components=3)
        store.write("transform/displacement", Region((0, 0, 0), grid.shape), u)
        store.build_pyramid("transform/displacement")
    store.finish(reported(grid, names, deformable))
    return store


def reported(grid: Grid, names: tuple[str, str], deformable: bool) -> dict[str, Any]:
    stages = (Affine(), Deformable()) if deformable else (Affine(),)
    one = {"format": "NIfTI-1", "dtype": "float32", "shape": grid.shape, "spacing": grid.spacing, "unit": grid.unit}
    metrics: dict[str, Any] = {"before": {"ncc": 0.5, "mi": 0.25}, "after": {"ncc": 0.875, "mi": 0.75}}
    if deformable:
        metrics["jacobian"] = {"folded_percent": 0.125, "smallest": -0.5, "largest": 2.5}
    levels = [
        {"stage": s.stage, "scale": k, "shape": grid.shape, "losses": [1.0, 0.5, 0.25], "seconds": 0.5, "stopped": "plateau"}
        for s in stages
        for k in (2, 1)
    ]
    return {
        "config": Config(stages=stages).model_dump(mode="json"),
        "inputs": {role: {"name": n, **one} for role, n in zip(("fixed", "moving"), names, strict=True)},
        "versions": {"numpy": np.__version__},
        "levels": levels,
        "metrics": metrics,
        "seconds": {"read": 1.0, "optimise": 8.0, "total": 10.0},
        "machine": {"host": "here", "threads": 2, "peak_bytes": 2**31},
    }


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, str]:
    names = (str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz"))
    for name in names:
        write_image(name, bright(GRID), GRID)
    return names


def test_the_page_holds_everything_and_loads_nothing(tmp_path: Path, inputs: tuple[str, str]) -> None:
    page = report(make_run(tmp_path, names=inputs).path, tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert not NETWORK.search(text)
    assert page.stat().st_size < 3e6
    for word in (
        "moving.nii.gz",
        "fixed.nii.gz",
        "0.875",
        "0.12 %",
        "2.0 GiB",
        "Checkerboard, before",
        "Deformation",
        "plateau",
        "axial",
    ):
        assert word in text, word
    assert text.count("<img") == 9 + 12 + 6  # three columns, four overlays, two maps, each in three views


def test_a_run_of_arrays_says_so_and_shows_moved(tmp_path: Path) -> None:
    text = report(make_run(tmp_path), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The fixed image was an array in memory" in text
    assert text.count("<img") == 3 + 6


def test_inputs_that_are_gone_or_replaced_are_named(tmp_path: Path, inputs: tuple[str, str]) -> None:
    run = make_run(tmp_path, names=inputs)
    Path(inputs[0]).unlink()
    smaller = replace(GRID, shape=(8, 8, 8))
    write_image(inputs[1], np.ones(smaller.shape, np.float32), smaller, overwrite=True)
    text = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The fixed image is not shown" in text
    assert "The moving image is not shown" in text


def test_an_affine_run_has_no_deformation(tmp_path: Path) -> None:
    text = report(make_run(tmp_path, deformable=False), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Deformation" not in text
    assert "Folded" not in text


def test_the_configuration_on_the_page_can_be_loaded(tmp_path: Path) -> None:
    text = report(make_run(tmp_path), tmp_path / "report.html").read_text(encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(html.unescape(text.split("<summary>Configuration</summary><pre>")[1].split("</pre>")[0]))
    assert Config.load(recipe) == Config(stages=(Affine(), Deformable()))


def test_names_are_escaped(tmp_path: Path) -> None:
    text = report(make_run(tmp_path, names=("<b>&.nii", "array")), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>&.nii" not in text
    assert "&lt;b&gt;&amp;.nii" in text


def test_an_existing_page_stays_unless_overwritten(tmp_path: Path) -> None:
    run, page = make_run(tmp_path), tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(OutputExists, match="--overwrite"):
        report(run, page)
    assert page.read_text() == "mine"
    report(run, page, overwrite=True)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "run.zarr"]


def test_a_page_without_a_folder_and_an_unfinished_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        report(make_run(tmp_path), tmp_path / "no" / "report.html")
    unfinished = RunStore.create(tmp_path / "half.zarr", fixed=GRID, moving=GRID)
    with pytest.raises(IncompleteRun):
        report(unfinished.path, tmp_path / "report.html")


def test_labels_appear_as_dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = {"before": 0.25, "after": 0.625, "fixed_volume": 1.0, "moved_volume": 1.0, "missing": ""}
    measured = {"dice": {"before": 0.25, "after": 0.625, "labels": {"7": label}}, "warnings": ["labels of <another> grid"]}
    monkeypatch.setattr("daskreg.workflows.report._evaluated", lambda *_: measured)
    text = report(make_run(tmp_path), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Dice, mean of 1" in text
    assert "0.250 → 0.625" in text
    assert "labels of &lt;another&gt; grid" in text


# --- how it lies -------------------------------------------------------------------------------------------------------------


def flipped(grid: Grid) -> Grid:
    """The same voxels' places, stored with x first and backwards, and z backwards."""
    nz, ny, nx = grid.shape
    far = grid.to_world((nz - 1, 0, nx - 1))
    direction = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
    spacing = (grid.spacing[2], grid.spacing[1], grid.spacing[0])
    return Grid((nx, ny, nz), spacing, tuple(far), direction, grid.unit, oriented=True)  # type: ignore[arg-type]


def test_however_it_is_stored_the_page_is_the_same() -> None:
    one, other = (views.three_views(g, at, 1.0) for g, at in ((GRID, (5, 12, 16)), (flipped(GRID), (15, 12, 4))))
    for a, b in zip(one, other, strict=True):
        assert (a.name, a.edges, a.shape) == (b.name, b.edges, b.shape)
        assert_allclose(a.points(), b.points(), atol=1e-9)


def test_letters_stand_where_the_patient_is() -> None:
    axial, coronal, sagittal = views.three_views(GRID, (5, 12, 16), 1.0)
    assert (axial.edges, coronal.edges, sagittal.edges) == (("A", "L", "P", "R"), ("S", "L", "I", "R"), ("S", "P", "I", "A"))
    top, right = coronal.points()[0, 0, 0] - coronal.points()[-1, 0, 0], axial.points()[0, -1, 2] - axial.points()[0, 0, 2]
    assert top > 0  # S, the world's z, is up
    assert right > 0  # L, the world's x, is on the page's right


def test_without_an_orientation_axes_are_named() -> None:
    names = [v.name for v in views.three_views(replace(GRID, oriented=False), (5, 12, 16), 1.0)]
    assert names == ["xy", "xz", "zy"]


def test_pictures_have_physical_proportions() -> None:
    coronal = views.three_views(GRID, (5, 12, 16), 1.0)[1]
    assert coronal.shape == (20, 32)  # 10 voxels of 2 mm, 32 of 1 mm


def test_a_plane_is_the_image_there() -> None:
    import dask.array as da

    three = views.three_views(GRID, (5, 12, 16), 1.0)
    stored = bright(GRID)
    other = flipped(GRID)
    same = stored[::-1, :, ::-1].transpose(2, 1, 0)
    a, b = read_planes([Source(da.from_array(stored), GRID), Source(da.from_array(same), other)], three)
    assert_allclose(a[0], stored[5])
    for one, two in zip(a, b, strict=True):
        assert_allclose(one, two, atol=1e-4)


def test_a_large_image_is_averaged_to_the_page() -> None:
    import dask.array as da

    fine = Grid((16, 16, 16))
    view = views.three_views(fine.coarsen((4, 4, 4)), (1, 1, 1), 4.0)[0]
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), fine.shape)
    ((plane,),) = read_planes([Source(da.from_array(ramp), fine)], [view])
    assert_allclose(plane[0], [1.5, 5.5, 9.5, 13.5])


def test_outside_the_image_is_black() -> None:
    import dask.array as da

    away = replace(GRID, origin=(1e3, 0.0, 0.0))
    planes = read_planes([Source(da.ones(GRID.shape, dtype=np.float32), away)], views.three_views(GRID, (5, 12, 16), 1.0))[0]
    assert not any(p.any() for p in planes)


def test_slices_go_through_the_structure(tmp_path: Path) -> None:
    z, y, x = informative_slices(make_run(tmp_path), GRID)
    assert abs(z - 5) <= 3
    assert abs(y - 12) <= 5
    assert abs(x - 16) <= 5


def test_a_large_run_is_read_at_a_coarse_level(tmp_path: Path) -> None:
    run = make_run(tmp_path, grid=Grid((4, 8, 300)))
    assert shown_level(run, 384) == 0
    assert shown_level(run, 100) == 2


# --- colours and curves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [GRID, flipped(GRID), replace(GRID, oriented=False)], ids=["plain", "flipped", "unoriented"])
def test_the_jacobian_of_a_stretch_is_its_factor(tmp_path: Path, grid: Grid) -> None:
    run = make_run(tmp_path, grid=grid)
    for view in views.three_views(grid, (4, 9, 7), 1.0):
        warp = Warp.read(run, 0, view)
        assert_allclose(warp.determinant, 1.1, atol=1e-5)
        assert warp.on_page(warp.determinant).shape == view.shape


def test_the_length_lies_on_the_page_as_the_image_does(tmp_path: Path) -> None:
    for k, grid in enumerate((GRID, flipped(GRID))):
        (tmp_path / str(k)).mkdir()
        run = make_run(tmp_path / str(k), grid=grid)
        for view in views.three_views(grid, (4, 9, 7), 1.0):
            warp = Warp.read(run, 0, view)
            shown = warp.on_page(np.linalg.norm(warp.u, axis=0))
            inside = np.s_[2:-2, 2:-2]  # the page's pixels at the rim lie outside the voxels' centres
            assert_allclose(shown[inside], 0.1 * np.abs(view.points()[..., 2])[inside], atol=0.11)


def test_the_grid_is_moved_by_the_displacement(tmp_path: Path) -> None:
    view = views.three_views(GRID, (5, 12, 16), 1.0)[0]
    warp = Warp.read(make_run(tmp_path), 0, view)
    columns = np.array([[float(v) for v in p.split(",")] for line in pictures.grid_lines(warp) for p in line.split()])[:, 0]
    at = np.arange(32) - 16.0
    assert_allclose([columns.min(), columns.max()], [1.1 * at[0] + 16.5, 1.1 * at[-1] + 16.5], atol=0.06)


def test_folds_are_painted_apart() -> None:
    pixels = pictures.Scale("RdBu_r", -1.0, 1.0, logarithmic=True)(np.array([[-0.5, 0.0, 1.0]]))
    assert pixels[0, 0].tolist() == pixels[0, 1].tolist() == list(pictures.FOLDED)
    assert pixels[0, 2].min() > 240  # 1 is the neutral middle


def test_equal_images_overlay_in_grey() -> None:
    same = np.linspace(0, 1, 12).reshape(3, 4)
    pixels = pictures.overlay(same, same)
    assert np.ptp(pixels, axis=-1).max() == 0


@pytest.mark.parametrize("voxels", [np.zeros((4, 4)), np.full((4, 4), 7.0), np.full((4, 4), -3.0)])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_constant_image_has_a_window(voxels: np.ndarray[Any, Any], logarithmic: bool) -> None:
    shade = pictures.IntensityWindow.of([voxels.astype(np.float32)], logarithmic)(voxels.astype(np.float32))
    assert np.isfinite(shade).all()


def test_a_stage_that_comes_again_has_its_own_panel() -> None:
    levels = [{"stage": "affine", "scale": k, "losses": [2.0, None, 1.0]} for k in (4, 2, 4, 2)]
    panels = charts.loss_panels(levels, [])
    assert [p["plots"] for p in panels] == [2, 2]
    assert all(p["svg"].startswith("<svg") and "currentColor" in p["svg"] for p in panels)
    ids = [set(re.findall(r'\bid="([^"]+)"', p["svg"])) for p in panels]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(("kind", "label"), [("ngf", "− NGF"), ("mi", "− mutual information"), ("of another package", "loss")])
def test_a_similarity_names_its_loss(kind: str, label: str) -> None:
    levels = [{"stage": "affine", "scale": 1, "losses": [2.0, 1.0]}]
    panels = charts.loss_panels(levels, [{"stage": "affine", "similarity": {"kind": kind}}])
    assert f">{label}</text>" in panels[0]["svg"]


@pytest.mark.parametrize(("length", "bar"), [(200.0, 50.0), (100.0, 20.0), (0.9, 0.2), (8.0, 2.0), (4000.0, 1000.0)])
def test_bars_are_round(length: float, bar: float) -> None:
    assert views.bar_length(length) == pytest.approx(bar)


def test_amounts_read_well() -> None:
    assert [duration(s) for s in (0.048, 12.34, 245, 7620)] == ["48 ms", "12.3 s", "4 min 05 s", "2 h 07 min"]
    assert [memory(b) for b in (404 * 2**20, 3 * 2**29)] == ["404 MiB", "1.5 GiB"]


def test_the_certificate_of_an_inverse_is_on_the_page(tmp_path):
    run = make_run(tmp_path)
    assert "Inverse" not in render(run)
    page = render(run, None, {"proven error": "at most 0.0014 voxel"})
    assert "<summary>Inverse</summary>" in page
    assert "<dt>proven error</dt><dd>at most 0.0014 voxel</dd>" in page


def test_the_page_does_not_take_the_place_of_the_inverse_it_shows(tmp_path):
    run = make_run(tmp_path)
    invert(run.path, tmp_path / "i.zarr")
    with pytest.raises(OutputError, match="is, or holds, an input"):
        report(run.path, tmp_path / "i.zarr", inverse=tmp_path / "i.zarr", overwrite=True)
    with pytest.raises(OutputError, match=r"name it \.html"):
        report(run.path, tmp_path / "r.pdf")
    assert load_transform(tmp_path / "i.zarr").moving == run.fixed_grid


def test_the_inverse_of_another_run_is_refused(tmp_path):
    run = make_run(tmp_path)
    away = replace(GRID, origin=(0.0, 0.0, 0.0))
    invert(Transform.of(np.eye(4), away, np.zeros((3, *away.shape), np.float32)), tmp_path / "i.zarr")
    with pytest.raises(ConfigError, match="inverse of another transform"):
        report(run.path, tmp_path / "r.html", inverse=tmp_path / "i.zarr")
    invert(run.path, tmp_path / "own.zarr")
    report(run.path, tmp_path / "r.html", inverse=tmp_path / "own.zarr")


def test_a_verdict_is_shown_with_where_the_images_do_not_match(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    states = np.ones((5, 12, 16), np.uint8)
    states[:, :, 8:] = 2
    verdict = {"status": "doubtful", "reasons": ["only 37 % of the image matches"], "evidence": {},
               "matched": MatchMap(states, (2, 2, 2)).as_dict()}  # fmt: skip
    record = run.provenance | {"verdict": verdict}
    three = views.three_views(GRID, (5, 12, 16), 1.0)
    axial = three[0]
    painted = matched._painted(np.zeros(axial.shape), MatchMap.of_record(verdict["matched"]), GRID, axial)
    orange = painted[..., 0] > painted[..., 2]
    x = axial.points()[..., 2]
    assert orange[x > 1].all()
    assert not orange[x < -1].any()
    shown = matched.verdict(record, GRID, three, [np.zeros(v.shape) for v in three])
    assert (shown["status"], len(shown["pictures"])) == ("doubtful", 3)
    assert matched.verdict(run.provenance, GRID, three, []) is None
    damaged = {"verdict": verdict | {"matched": {**verdict["matched"], "states": "AAAA"}}}
    assert matched.verdict(damaged, GRID, three, [])["pictures"] == []
