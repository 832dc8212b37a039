"""A registration in the kernel of a notebook: its display is in the cell that runs, and an interrupt keeps what was reached."""

import textwrap

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

SETUP = """
import os, signal, threading
import daskreg
pair = daskreg.demo_pair(3)
endless = [daskreg.Deformable(scales=1, iterations=100000, tolerance=0)]
def interrupt(progress=None):  # as Jupyter does: all processes of the kernel's group
    os.killpg(os.getpgid(0), signal.SIGINT)
"""
CLUSTER = """
from dask.distributed import Client, LocalCluster
client = Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0"))
"""
INTERRUPTED = """
from daskreg.reporting import notebook
told = notebook.NotebookDisplay.__call__
def once(self, progress):
    told(self, progress)
    if progress.iteration > 3 and not globals().get("done"):
        globals()["done"] = True
        threading.Timer(0.0, interrupt).start()
notebook.NotebookDisplay.__call__ = once
daskreg.register(*pair, endless, output="run.zarr", checkpoint=1e6)
"""


def executed(folder, *cells):
    """The outputs of each cell: what it displays, prints and raises, as text."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(c)) for c in cells])
    NotebookClient(book, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in book.cells]


def text(outputs):
    """All that is displayed and printed."""
    return "\n".join(str(o.get("data", o.get("text", o.get("traceback", "")))) for o in outputs)


@pytest.mark.parametrize("before", ["", CLUSTER], ids=["own workers", "the user's client"])
def test_the_display_is_in_the_cell_that_runs(tmp_path, before):
    stages = "[daskreg.Affine(scales=4, iterations=5), daskreg.Deformable(scales=4, iterations=5)]"
    register = f"result = daskreg.register(*pair, {stages}, output='run.zarr')"
    first, second, ran, shown, closed = executed(
        tmp_path, SETUP, before, register, "result", "client.close(); client.cluster.close()" if before else ""
    )
    assert "daskreg" not in text(first) + text(second)
    displays = [o for o in ran if o.output_type == "display_data"]
    assert len(displays) == 1
    for part in ("<b>daskreg</b>: done", "deformable", "<svg", "worker 0", "dashboard"):
        assert part in displays[0].data["text/html"]
    assert shown[0].data["text/html"].count("<img") == 6
    assert shown[0].data["text/plain"].startswith("Result(")
    assert not closed


@pytest.mark.parametrize("before", ["", CLUSTER], ids=["own workers", "the user's client"])
def test_an_interrupt_keeps_a_checkpoint_and_the_workers(tmp_path, before):
    alive = "len(client.scheduler_info(n_workers=-1)['workers'])" if before else "2"
    *_, stopped, left = executed(tmp_path, SETUP, before, INTERRUPTED, f"print(os.listdir('run.zarr'), {alive})")
    error = next(o for o in stopped if o.output_type == "error")
    assert error.ename == "KeyboardInterrupt"
    assert "resume=True)" in text(stopped)
    assert "stopped (KeyboardInterrupt)" in text(stopped)
    assert "checkpoint" in text(left)
    assert text(left).strip().endswith("2")
