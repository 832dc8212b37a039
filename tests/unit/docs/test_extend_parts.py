"""The examples of docs/extend run as they stand: as instances in one process and on workers, and by entry points."""

import os
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.phantoms import body_mask, known_warp_pair, target_registration_error

ROOT = Path(__file__).parents[3]
PAGES = {
    "similarity": ("Huber", "similarities", "huber"),
    "optimizer": ("SignDescent", "optimizers", "sign"),
    "model": ("AdditiveDisplacement", "models", "additive"),
}
SHAPE = (24, 22, 26)


def blocks(page):
    """The Python code of a page, block by block."""
    text = (ROOT / "docs" / "extend" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_the_example_runs_as_it_stands(page, tmp_path, monkeypatch):
    fixed, moving, warp = known_warp_pair(SHAPE, 1.5, 2)
    module = types.ModuleType(f"example_{page}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    vars(module).update(fixed=fixed, moving=moving)
    for block in blocks(page):
        exec(compile(block, page, "exec"), vars(module))
    u = module.result.displacement.compute(scheduler="synchronous")
    before, after = (target_registration_error(v, warp, body_mask(SHAPE, warp)).mean() for v in (0 * u, u))
    assert after < 0.6 * before


def test_the_kernel_of_the_overview_runs_as_it_stands():
    scope = {"__name__": "example_overview"}
    exec(compile(blocks("README")[0], "README", "exec"), scope)
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(scope["halve"]((range(1, 2), 3, 4), image)[0], [[27, 35, 43]] / np.float32(1))
    np.testing.assert_array_equal(image.ravel()[[0, 11, 12, 23]], [0, 11, 6, 11.5])


# Runs in a process of its own: entry points are read once, and workers are processes that import nothing of the tests.
SCRIPT = """
import sys
import numpy as np
import daskreg
{code}
def stage(similarity, optimizer, model):
    return [{{"stage": "deformable", "similarity": similarity, "optimizer": optimizer, "model": model, "scales": [1],
             "iterations": [6], "tolerance": 0}}]

if __name__ == "__main__":
    pair = [np.load(f"{{name}}.npy") for name in ("fixed", "moving")]
    for name, stages in {stages}.items():
        found = daskreg.register(*pair, {{"stages": stages}}, output=f"{{name}}.zarr", workers=2, residency="window")
        np.save(f"{{name}}.npy", found.displacement.compute(scheduler="synchronous"))
"""
BY_NAME = {"named": 'stage("huber", "sign", "additive")'}
BY_INSTANCE = {"given": "stage(Huber(), SignDescent(), AdditiveDisplacement())"}


def run_script(folder, code, stages, path):
    """Register ``fixed.npy`` and ``moving.npy`` on two workers; stages: expressions by the name of the result."""
    table = "{" + ", ".join(f"{name!r}: {made}" for name, made in stages.items()) + "}"
    script = folder / f"{'_'.join(stages)}.py"
    script.write_text(SCRIPT.format(code=code, stages=table))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *path])}
    run = subprocess.run(
        [sys.executable, script.name], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_other_packages_and_scripts_extend_workers_too(tmp_path):
    """By name through entry points of an installed package, and by instances of classes that a script defines: the same bits."""
    for name, array in zip(("fixed", "moving"), known_warp_pair(SHAPE, 1.5, 2)[:2], strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    site = tmp_path / "site"
    metadata = site / "more_parts-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: more-parts\nVersion: 1.0\n")
    lines = []
    for page, (kind, group, name) in PAGES.items():
        (site / f"more_{page}.py").write_text(blocks(page)[0])
        lines += [f"[daskreg.{group}]", f"{name} = more_{page}:{kind}"]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    scripts = ("", BY_NAME, [str(site)]), ("\n".join(blocks(page)[0] for page in PAGES), BY_INSTANCE, [])
    with ThreadPoolExecutor() as both:
        list(both.map(lambda script: run_script(tmp_path, *script), scripts))
    named, given = (np.load(tmp_path / f"{name}.npy") for name in ("named", "given"))
    assert np.abs(named).max() > 0.3
    np.testing.assert_array_equal(given, named)
