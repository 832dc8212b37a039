"""The cost of mixed storage in accuracy: the deformable stage in float32 and, emulated on a CPU, with rounded fields.

    python benchmarks/mixed_storage.py                   # the bundled pair at 2 mm: each loss
    python benchmarks/mixed_storage.py --data DIR        # also the labelled pair at 1 mm (OASIS to MNI), Dice of 12 structures
    python benchmarks/mixed_storage.py --kinds moments   # only what a CPU offers

Emulated: images rounded to float16, the gradient to bfloat16, Adam's m to bfloat16, v stochastically to 8 bits of fraction,
and the direction from the rounded moments. ``moments``: not emulated, what a CPU does with ``storage: moments``. ``control`` is
float32 without the last two bits of the gradient: how much a registration diverges by itself. ``loss``: relative difference of
the last loss at full resolution;  ``mean``, ``p99``: distance of the two displacements, voxels;  ``length``: mean length of the
displacement. Prints one JSON line per case and writes ``mixed_storage.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from brain import OASIS_TO_MNI, STRUCTURES

import daskreg
from daskreg.comm import SingleRank
from daskreg.config import Affine, Config, Deformable, Moments
from daskreg.engine.evaluation import LossEvaluation
from daskreg.engine.images import Image, normalise
from daskreg.engine.planes import on
from daskreg.engine.rank import Rank
from daskreg.engine.report import Outcome, Watch
from daskreg.kernels.device import CPU
from daskreg.kernels.sampling.cpu import sample_nearest
from daskreg.optimizers.adam import update as optimizer
from daskreg.planning import Plan
from daskreg.similarity import LNCC, MI, MSE
from daskreg.transforms.linear import index_map, linear_part, to_fixed_point
from daskreg.workflows.inputs import open_inputs
from daskreg.workflows.presets import preset

OUT = Path(__file__).parent / "results" / "mixed_storage.json"
BUNDLED = Path(daskreg.__file__).parent / "data"
LOSSES: dict[str, Any] = {"lncc": LNCC(radius=3), "mse": MSE(), "mi": MI()}
Array = NDArray[np.float32]


def nearest(values: Array, bits: int) -> Array:
    """Round off the last ``bits`` of 32, to nearest, ties to even."""
    whole = values.view(np.uint32)
    half = np.uint32((1 << bits - 1) - 1) + (whole >> np.uint32(bits) & np.uint32(1))
    return ((whole + half) >> np.uint32(bits) << np.uint32(bits)).view(np.float32)


def up_or_down(values: Array, bits: int, rng: np.random.Generator) -> Array:
    """The same, stochastically, with the probabilities of the value between both."""
    whole = values.view(np.uint32) + rng.integers(0, 1 << bits, values.shape, np.uint32)
    return (whole >> np.uint32(bits) << np.uint32(bits)).view(np.float32)


@contextmanager
def rounded(kind: str) -> Iterator[None]:
    """Make the loop store as ``kind`` says: float32, moments, control, mixed, or mixed nearest (v to nearest, too)."""
    plain_adam, plain_gradient, rng = optimizer.adam, LossEvaluation.gradient, np.random.default_rng(0)

    def gradient(self: Any, state: Any, backend: Any) -> None:
        plain_gradient(self, state, backend)
        state.g[...] = nearest(state.g, 2 if kind == "control" else 16)

    def adam(box: Any, reach: Any, table: Any, weights: Any, rates: Any, g: Any, m: Any, v: Any, d: Any) -> Any:
        longest = plain_adam(box, reach, table, weights, rates, g, m, v, d)
        if kind == "control":
            return longest
        m[...], v[...] = nearest(m, 16), nearest(v, 15) if kind == "mixed nearest" else up_or_down(v, 15, rng)
        d[...] = -(m * rates[2]) / (np.sqrt(v * rates[3]) + rates[4])
        return np.square(d).sum(axis=0).max(axis=-1)[None]

    if kind in ("float32", "moments"):
        yield
        return
    with mock.patch.object(optimizer, "adam", adam), mock.patch.object(LossEvaluation, "gradient", gradient):
        yield


def run(fixed: Path, moving: Path, config: Config, kind: str) -> tuple[Plan, Outcome]:
    """One registration in this thread."""
    if kind == "moments":
        stored = (s.model_copy(update={"storage": kind}) if isinstance(s, Deformable) else s for s in config.stages)
        config = config.model_copy(update={"stages": tuple(stored)})
    inputs = open_inputs(str(fixed), str(moving), config, None, None, None)
    plan, images = inputs.plan(1, None, "auto"), []
    for volume, grid in zip(inputs.cut()[:2], (plan.fixed, plan.moving), strict=True):
        image = Image.whole(np.array(volume.read(), np.float32), grid)
        normalise(image.voxels, config, SingleRank(), "an image")
        if kind.startswith("mixed"):
            image.round()
        images.append(image)
    with rounded(kind):
        return plan, Rank(plan, (images[0], images[1]), np.eye(4), SingleRank(), Watch()).run()


def _field(found: Outcome) -> Any:
    """The displacement, in the machine's memory."""
    assert found.displacement is not None
    return on(CPU, found.displacement, found.block.own)


def dice(plan: Plan, found: Outcome, data: Path, config: Config) -> float:
    """Mean over the structures of the labelled pair; labels to the nearest voxel."""
    names = OASIS_TO_MNI.fixed_labels, OASIS_TO_MNI.moving_labels
    inputs = open_inputs(str(data / str(names[0])), str(data / str(names[1])), config, None, None, None)
    fixed, moving = (np.array(v.read()) for v in inputs.cut()[:2])
    matrix = index_map(found.affine, plan.fixed, plan.moving)
    moved = np.zeros(plan.fixed.shape, moving.dtype)
    sample_nearest(moved.shape, 0, to_fixed_point(matrix), linear_part(matrix), _field(found), moving, moved)
    both = [(fixed == k, moved == k) for k in STRUCTURES]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both]))


def compared(
    kinds: list[str], name: str, fixed: Path, moving: Path, config: Config, data: Path | None = None
) -> Iterator[dict[str, Any]]:
    """One row per kind of storage."""
    plan, expected = run(fixed, moving, config, "float32")
    u, loss = _field(expected), expected.levels[-1].losses[-1]
    length = round(float(np.sqrt(np.square(u).sum(axis=0)).mean()), 2)
    yield {"case": name, "storage": "float32", "last": loss, "length": length, **_scored(plan, expected, data, config)}
    for kind in kinds:
        plan, found = run(fixed, moving, config, kind)
        apart = np.sqrt(np.square(_field(found) - u).sum(axis=0))
        row = {"loss": round(found.levels[-1].losses[-1] / loss - 1, 6), "mean": round(float(apart.mean()), 4)}
        row |= {"p99": round(float(np.percentile(apart, 99)), 3), **_scored(plan, found, data, config)}
        yield {"case": name, "storage": kind, **row}


def _scored(plan: Plan, found: Outcome, data: Path | None, config: Config) -> dict[str, float]:
    return {} if data is None else {"dice": round(dice(plan, found, data, config), 4)}


def cases(kinds: list[str], data: Path | None) -> Iterator[dict[str, Any]]:
    fixed, moving = BUNDLED / "quickstart_mni2009c_T1_2mm.nii.gz", BUNDLED / "quickstart_colin27_T1_2mm.nii.gz"
    for betas in ((0.9, 0.99), (0.9, 0.999)):
        for name, loss in LOSSES.items():
            stage = Deformable(similarity=loss, iterations=(100, 100, 50), tolerance=0, betas=betas)
            yield from compared(kinds, f"{name}, betas {betas}", fixed, moving, Config(stages=(Moments(), Affine(), stage)))
    if data is not None:
        pair = OASIS_TO_MNI
        yield from compared(kinds, pair.case, data / pair.fixed, data / pair.moving, preset("brain"), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=None, help="folder of the labelled pair")
    parser.add_argument("--kinds", default="control,mixed,mixed nearest,moments")
    parser.add_argument("--out", type=Path, default=OUT)
    given, rows = parser.parse_args(), []
    for row in cases(given.kinds.split(","), given.data):
        rows.append(row)
        print(json.dumps(row), flush=True)
    given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
