"""The example of docs/extend/format.md runs as it stands, and the rest of daskreg takes its format."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from daskreg.errors import OutputError, Unreadable
from daskreg.grid import Grid
from daskreg.storage import describe, open_volume, write_image
from daskreg.storage.format import Format, ImageFormat, PointFormat, TransformFormat
from daskreg.storage.registry import image_formats, point_formats, transform_formats
from daskreg.workflows.apply import apply
from daskreg.workflows.jacobian import jacobian
from tests.unit.workflows.runs import FIXED, affine, displacement, make_run

PAGE = Path(__file__).parents[3] / "docs" / "extend" / "format.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's first block as a module: its functions can be pickled."""
    module = types.ModuleType("plain_example")
    monkeypatch.setitem(sys.modules, "plain_example", module)
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], str(PAGE), "exec"), vars(module))
    yield module
    image_formats.unregister(module.PlainImage)


def test_the_page_on_file_formats_names_every_ending():
    page = (PAGE.parents[1] / "formats.md").read_text(encoding="utf-8")
    built_in = [e for r in (image_formats, transform_formats, point_formats) for e in r.endings()]
    assert [e for e in built_in if f"`{e}`" not in page] == []


def test_the_page_on_extending_names_every_capability():
    page = PAGE.read_text(encoding="utf-8")
    declared = [n for kind in (Format, ImageFormat, TransformFormat, PointFormat) for n in vars(kind).get("__annotations__", ())]
    assert [n for n in declared if f"`{n}`" not in page and f"{n} =" not in page] == []


def test_the_example_runs_as_it_stands(example, tmp_path):
    exec(compile(BLOCKS[1], str(PAGE), "exec"), vars(example))
    assert os.listdir(tmp_path) == ["ones.plain"]
    assert describe("ones.plain").lines()[1].split() == ["format", "PLAIN"]


def test_the_example_takes_and_makes_images_as_other_formats_do(example, tmp_path):
    values = np.random.default_rng(0).normal(size=FIXED.shape).astype(np.float32)
    run = make_run(tmp_path / "run.zarr", affine(), displacement())
    straight = Grid(FIXED.shape, FIXED.spacing, FIXED.origin, unit=FIXED.unit)
    for ending in ("plain", "nii"):
        write_image(f"moving.{ending}", values, straight)
        apply(run, f"moving.{ending}", f"moved.{ending}", like=f"moving.{ending}")
        jacobian(run, f"determinant.{ending}", like=f"moving.{ending}")
    for name in ("moved", "determinant"):
        np.testing.assert_array_equal(open_volume(f"{name}.plain").read(), open_volume(f"{name}.nii").read())


def test_an_installed_package_adds_the_example_to_the_command_line(tmp_path):
    source = BLOCKS[0].replace("@register_format\n", "")
    (tmp_path / "site" / "plain-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "plain.py").write_text(source)
    (tmp_path / "site" / "plain-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    declared = "[daskreg.formats]\nplain = plain:PlainImage\n"
    (tmp_path / "site" / "plain-1.0.dist-info" / "entry_points.txt").write_text(declared)
    header = b'{"plain":1,"shape":[2,3,4],"spacing":[2,1,1],"origin":[0,0,0]}\n'
    (tmp_path / "a.plain").write_bytes(header + bytes(96))
    paths = os.pathsep.join([str(tmp_path / "site"), str(PAGE.parents[2])])
    command = [sys.executable, "-m", "daskreg.cli", "info", str(tmp_path / "a.plain")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PLAIN" in done.stdout


def test_capabilities_are_kept_when_the_example_is_written(example):
    micrometres = Grid((3, 4, 5), (2000.0, 1000.0, 1000.0), unit="micrometer")
    write_image("a.plain", np.ones((3, 4, 5), np.float32), micrometres)
    assert open_volume("a.plain").grid == Grid((3, 4, 5), (2.0, 1.0, 1.0), unit="millimeter")
    with pytest.raises(OutputError, match=r"PLAIN states no direction of the axes.*write \.nii"):
        write_image("b.plain", np.ones(FIXED.shape, np.float32), FIXED)
    with pytest.raises(OutputError, match=r"do not go into one file"):
        write_image("c.plain", np.ones((2, 3, 4, 5), np.float32), micrometres, axes=("c",))


def test_the_example_refuses_what_is_damaged(example, tmp_path):
    write_image("a.plain", np.ones((3, 4, 5), np.float32), Grid((3, 4, 5)))
    whole = (tmp_path / "a.plain").read_bytes()
    (tmp_path / "a.plain").write_bytes(whole[:-1])
    with pytest.raises(Unreadable, match="cut short"):
        open_volume("a.plain")
    (tmp_path / "a.plain").write_bytes(b"{")
    with pytest.raises(Unreadable, match=r"a\.plain cannot be read"):
        open_volume("a.plain")
