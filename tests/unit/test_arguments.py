"""Public functions refuse arguments of wrong types with a DaskregError, and name what they expected."""

import numpy as np
import pytest

import daskreg
from daskreg import DaskregError, Deformable, Grid, Transform

GRID = Grid((16, 16, 16), unit="mm")
IMAGE = daskreg.open_volume(np.random.default_rng(0).random((16, 16, 16)).astype(np.float32), grid=GRID)
SHIFT = Transform.of(unit="mm")
NONSENSE = [5, -1, 2.5, float("nan"), "nonsense", "", "a\0b", b"x", [[1]], {"a": 1}, object(), np.zeros((2, 2)), float]
STAGES = [Deformable(scales=(1,), iterations=(1,))]

CALLS = {
    "register config": lambda v: daskreg.register(IMAGE, IMAGE, v),
    "apply output": lambda v: daskreg.apply(SHIFT, IMAGE, [v], like=IMAGE),
    "register fixed": lambda v: daskreg.register(v, IMAGE),
    "register mask": lambda v: daskreg.register(IMAGE, IMAGE, fixed_mask=v),
    "register background": lambda v: daskreg.register(IMAGE, IMAGE, background={"x": v}),
    "register memory": lambda v: daskreg.register(IMAGE, IMAGE, memory=[v]),
    "plan device": lambda v: daskreg.plan(IMAGE, IMAGE, device=v),
    "plan config": lambda v: daskreg.plan(IMAGE, IMAGE, v),
    "apply interpolation": lambda v: daskreg.apply(SHIFT, IMAGE, like=IMAGE, interpolation=v),
    "apply transform": lambda v: daskreg.apply(str(v), IMAGE, like=IMAGE),
    "apply image": lambda v: daskreg.apply(SHIFT, v, like=IMAGE),
    "points to": lambda v: daskreg.points(SHIFT, "p.csv", to=v),
    "open_volume grid": lambda v: daskreg.open_volume(IMAGE, grid=v),
    "open_volume unit": lambda v: daskreg.open_volume(IMAGE, unit=[v]),
    "refine region": lambda v: daskreg.refine(SHIFT, IMAGE, IMAGE, "out.zarr", v),
    "refine stages": lambda v: daskreg.refine(SHIFT, IMAGE, IMAGE, "out.zarr", "0:16,0:16,0:16", stages=v, blend=2),
    "report run": lambda v: daskreg.report(v, "out.html"),
    "Transform.of affine": lambda v: Transform.of(v),
    "Transform.of grid": lambda v: Transform.of(grid=v),
    "Transform.of displacement": lambda v: Transform.of(grid=GRID, displacement=v),
    "points": lambda v: SHIFT.fixed_to_moving_points(v),
    "Grid shape": lambda v: Grid(v),
    "Grid spacing": lambda v: Grid((2, 2, 2), spacing=v),
    "Grid origin": lambda v: Grid((2, 2, 2), origin=v),
    "Grid direction": lambda v: Grid((2, 2, 2), direction=v),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", NONSENSE, ids=lambda v: repr(v)[:12])
def test_nonsense_is_a_daskreg_error(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DaskregError):
        CALLS[name](value)
    assert list(tmp_path.iterdir()) == []
