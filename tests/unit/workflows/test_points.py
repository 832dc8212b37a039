"""Points through a transform, from file to file; the components' order and the space are stated, never guessed."""

import csv
import logging

import meshio
import numpy as np
import pytest

from daskreg.errors import ArrayError, ConfigError, NotFound, OutputError, OutputExists, Unreadable
from daskreg.lazy.transform import Transform
from daskreg.workflows.points import points
from tests.unit.workflows.runs import FIXED, MOVING, affine, displacement

INDEX = np.array([[3.0, 4.5, 5.0], [20.0, 30.0, 35.5], [11.25, 8.0, 17.0]])


@pytest.fixture(scope="module")
def transform():
    return Transform.of(affine(), FIXED, displacement(), MOVING)


def table(path, rows, header="x,y,z"):
    path.write_text("\n".join([header] * bool(header) + [",".join(map(str, r)) for r in rows]) + "\n")
    return path


def test_a_table_keeps_its_other_columns(transform, tmp_path):
    world = FIXED.to_world(INDEX)
    rows = [(f"p{k}", z, x, y, "left") for k, (z, y, x) in enumerate(world.tolist())]
    source = table(tmp_path / "in.csv", rows, "name,Z,X,Y,side")
    moved = points(transform, source, tmp_path / "out.csv")
    np.testing.assert_allclose(moved, transform.points(world))
    head, *lines = (tmp_path / "out.csv").read_text().splitlines()
    assert head == "name,Z,X,Y,side"
    cells = [line.split(",") for line in lines]
    assert [c[0] + c[4] for c in cells] == ["p0left", "p1left", "p2left"]
    np.testing.assert_allclose([[float(c[1]), float(c[3]), float(c[2])] for c in cells], moved, rtol=1e-15)


@pytest.mark.parametrize(
    ("comments", "order"),
    [
        ("# z,y,x", "zyx"),
        ("#Z, Y, X", "zyx"),
        ("# of Friday\n# y,x,z", "yxz"),
        ("# x and y and z", "xyz"),
        ("# z,y", "xyz"),
    ],
)
def test_a_header_behind_a_comment_sign_names_the_columns(transform, tmp_path, comments, order):
    world = FIXED.to_world(INDEX)
    rows = [[row["zyx".index(name)] for name in order] for row in world.tolist()]
    source = table(tmp_path / "in.csv", rows, comments)
    np.testing.assert_allclose(points(transform, source, tmp_path / "out.csv"), transform.points(world))


def test_an_array_is_mapped_as_the_file_that_holds_it(transform, tmp_path):
    world = FIXED.to_world(INDEX)
    np.save(tmp_path / "in.npy", world)
    moved = points(transform, world, tmp_path / "out.csv")
    np.testing.assert_array_equal(moved, points(transform, tmp_path / "in.npy"))
    np.testing.assert_array_equal(moved, points(transform, world[:, ::-1].tolist(), order="xyz"))
    np.testing.assert_allclose(points(transform, tmp_path / "out.csv", to="fixed"), world, atol=1e-3)
    for wrong in (world[0], world[:, :2], [["a", "b", "c"]], [[1.0, 2.0, 3.0], [4.0]]):
        with pytest.raises(ArrayError, match=r"the path of a file, or real numbers of shape \(N, 3\)"):
            points(transform, wrong)


@pytest.mark.parametrize(
    ("name", "separator", "output", "kept"),
    [
        ("in.csv", ";", "out.csv", ";"), ("in.csv", "\t", "out.txt", "\t"), ("in.txt", " ", "out.txt", " "),
        ("in.txt", " ", "out.csv", ","), ("in.tsv", "\t", "out.csv", ","), ("in.csv", ";", "out.tsv", "\t"),
    ],
)  # fmt: skip
def test_a_table_keeps_its_separator(transform, tmp_path, name, separator, output, kept):
    (tmp_path / name).write_text("x,y,z,n\n1,2,3,a\n4,5,6,b\n".replace(",", separator))
    moved = points(transform, tmp_path / name, tmp_path / output)
    head, *rows = (line.split(kept) for line in (tmp_path / output).read_text().splitlines())
    assert (head, [r[3] for r in rows]) == (["x", "y", "z", "n"], ["a", "b"])
    np.testing.assert_array_equal([[float(v) for v in r[2::-1]] for r in rows], moved)


def test_there_and_back_through_files(transform, tmp_path):
    source = table(tmp_path / "in.csv", FIXED.to_world(INDEX)[:, ::-1].tolist(), "")
    points(transform, source, tmp_path / "there.tsv")
    back = points(transform, tmp_path / "there.tsv", tmp_path / "back.npy", to="fixed")
    assert np.linalg.norm(FIXED.to_index(back) - INDEX, axis=1).max() < 1e-3
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), back[:, ::-1])


def test_points_outside_the_image_that_they_are_in_are_told_of(transform, tmp_path, caplog):
    world = FIXED.to_world(INDEX)
    points(transform, table(tmp_path / "in.csv", world[:, ::-1].tolist()))
    assert "lie outside" not in caplog.text
    points(transform, table(tmp_path / "um.csv", [*(world * 1000)[:2, ::-1].tolist(), world[2, ::-1].tolist()]))
    assert (
        f"um.csv: 2 of 3 points lie outside of the fixed image (rows 2, 3); check --space and the unit ({FIXED.unit})."
        in caplog.text
    )
    np.save(tmp_path / "a.npy", [np.array(MOVING.shape) - 0.5, np.array(MOVING.shape), [0, -0.5, 0]])
    points(transform, tmp_path / "a.npy", to="fixed", space="index")
    assert "a.npy: 1 of 3 points lie outside of the moving image (point 1); check --space and the unit (voxels)." in caplog.text


def test_points_outside_are_named_by_the_lines_of_their_table(transform, tmp_path, caplog):
    inside, outside = FIXED.to_world(INDEX)[0, ::-1].tolist(), [1e6, 0.0, 0.0]
    source = table(tmp_path / "in.csv", [inside, outside], "# measured on Friday\n\nx,y,z")
    points(transform, source)
    assert "1 of 2 points lie outside of the fixed image (row 5)" in caplog.text
    source = table(tmp_path / "in.csv", [inside, *[outside] * 7], "")
    points(transform, source)
    assert "7 of 8 points lie outside of the fixed image (rows 2, 3, 4, 5, 6 and 2 more)" in caplog.text


def test_ras_turns_two_axes(transform, tmp_path):
    world = FIXED.to_world(INDEX)
    lps = points(transform, table(tmp_path / "lps.csv", world[:, ::-1].tolist()))
    ras = points(transform, table(tmp_path / "ras.csv", (world[:, ::-1] * [-1, -1, 1]).tolist()), space="ras")
    np.testing.assert_allclose(ras[:, ::-1] * [-1, -1, 1], lps[:, ::-1])


def test_an_array_is_zyx_unless_it_is_said_otherwise(transform, tmp_path):
    np.save(tmp_path / "a.npy", INDEX)
    np.save(tmp_path / "b.npy", INDEX[:, ::-1])
    moved = points(transform, tmp_path / "a.npy", tmp_path / "out.npy", space="index")
    np.testing.assert_allclose(moved, transform.fixed_to_moving_points(INDEX, "index"))
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), moved)
    np.testing.assert_array_equal(points(transform, tmp_path / "b.npy", space="index", order="xyz"), moved)


@pytest.mark.parametrize("order", ["zyx", "xyz"])
def test_a_table_of_what_was_in_an_array_says_its_order(transform, tmp_path, order):
    np.save(tmp_path / "in.npy", FIXED.to_world(INDEX)[:, :: 1 if order == "zyx" else -1])
    moved = points(transform, tmp_path / "in.npy", tmp_path / "out.csv", order=order)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == ",".join(order)
    back = points(transform, tmp_path / "out.csv", to="fixed")
    np.testing.assert_allclose(back, FIXED.to_world(INDEX), atol=1e-3)
    assert moved.shape == back.shape


def test_a_mesh_stays_a_mesh(transform, tmp_path):
    mesh = meshio.Mesh(FIXED.to_world(INDEX)[:, ::-1], [("triangle", np.array([[0, 1, 2]]))])
    meshio.write(tmp_path / "in.vtk", mesh)
    moved = points(transform, tmp_path / "in.vtk", tmp_path / "out.vtk")
    back = meshio.read(tmp_path / "out.vtk")
    np.testing.assert_allclose(back.points, moved[:, ::-1], rtol=1e-6)
    np.testing.assert_array_equal(back.cells[0].data, [[0, 1, 2]])
    with pytest.raises(OutputError, match="a mesh becomes a mesh"):
        points(transform, tmp_path / "in.vtk", tmp_path / "out.csv")


def test_points_whose_source_is_not_found_are_told_of(tmp_path, caplog):
    """A field as rough as it is long folds everywhere: no iteration settles there."""
    rough = np.random.default_rng(0).normal(0, 5, (3, *FIXED.shape)).astype(np.float32)
    np.save(tmp_path / "p.npy", FIXED.to_world(np.random.default_rng(1).uniform(8, 22, (20, 3))))
    with caplog.at_level(logging.WARNING, "daskreg"):
        points(Transform.of(None, FIXED, rough), tmp_path / "p.npy", to="fixed")
    assert "of 20 points have no source found within 0.01 voxel (points " in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y,z\n1,2,oops\n", "row 2: found '1, 2, oops'"),
        ("", "is empty"),
        ("# nothing\n\n", "is empty"),
        ("a,b,c\n1,2,3\n", "columns a, b, c; x, y and z"),
        ("1 2 3 4\n", "row 1"),
        ("name;x;y;z\nc;1,5;2,5;3\n", "row 2: found 'c, 1,5, 2,5, 3'"),  # decimal commas are no separators
        ("x,y,z\n1,nan,3\n", "row 2"),
    ],
)
def test_a_bad_table_says_where(transform, tmp_path, text, words):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(Unreadable, match=words):
        points(transform, tmp_path / "bad.csv")


@pytest.mark.parametrize(
    "text",
    [
        'name,x,y,z\n"soma, left",10,12.5,9\n',
        "name;x;y;z\nsoma, left;10;12.5;9\n",
        "name\tx\ty\tz\nsoma, left\t10\t12.5\t9\n",
        '"name" "x" "y" "z"\n"soma, left"   10 12.5  9\n',
    ],
)
def test_a_cell_may_hold_what_separates_others(transform, tmp_path, text):
    (tmp_path / "in.csv").write_text(text)
    moved = points(transform, tmp_path / "in.csv", tmp_path / "out.csv")
    np.testing.assert_allclose(moved, transform.points([[9, 12.5, 10]]))
    with open(tmp_path / "out.csv", newline="") as file:
        head, row = csv.reader(file, delimiter=next((s for s in "\t;" if s in text), ","))
    assert head == ["name", "x", "y", "z"]
    assert row[0] == "soma, left"


def test_bad_input_is_refused(transform, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    np.save(tmp_path / "inf.npy", np.full((1, 3), np.inf))
    (tmp_path / "x.doc").write_text("")
    for name, words in (("a.npy", r"shape \(3, 4\)"), ("inf.npy", "point 0 is not finite"), ("x.doc", "endings")):
        with pytest.raises(Unreadable, match=words):
            points(transform, tmp_path / name)
    with pytest.raises(NotFound):
        points(transform, tmp_path / "absent.csv")
    good = table(tmp_path / "good.csv", [(1, 2, 3)])
    with pytest.raises(ConfigError, match="did you mean 'index'"):
        points(transform, good, space="indices")
    with pytest.raises(ConfigError, match="'xyz' or 'zyx'"):
        points(transform, good, order="yxz")
    with pytest.raises(OutputExists):
        points(transform, good, good)
    with pytest.raises(OutputError, match="endings"):
        points(transform, good, tmp_path / "out.doc")


@pytest.mark.parametrize("to", ["moving", "fixed"])
def test_no_points_are_no_points_whatever_holds_them(transform, tmp_path, to):
    table(tmp_path / "in.csv", [], "x,y,z,name")
    np.save(tmp_path / "in.npy", np.empty((0, 3)))
    for ending in ("csv", "npy"):
        assert points(transform, tmp_path / f"in.{ending}", tmp_path / f"out.{ending}", to=to).shape == (0, 3)
    assert (tmp_path / "out.csv").read_text() == "x,y,z,name\n"
    assert np.load(tmp_path / "out.npy").shape == (0, 3)


def test_a_table_of_napari_is_read_where_its_order_is_said(transform, tmp_path):
    rows = [f"{k},{z},{y},{x}" for k, (z, y, x) in enumerate(INDEX.tolist())]
    (tmp_path / "in.csv").write_text("\n".join(["index,axis-0,axis-1,axis-2", *rows]) + "\n")
    moved = points(transform, tmp_path / "in.csv", tmp_path / "out.csv", space="index", order="zyx")
    np.testing.assert_allclose(moved, transform.fixed_to_moving_points(INDEX, "index"))
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert written[0] == "index,axis-0,axis-1,axis-2"
    np.testing.assert_array_equal(np.loadtxt(written[1:], delimiter=","), np.c_[np.arange(len(moved)), moved])
    turned = points(transform, tmp_path / "in.csv", space="index", order="xyz")
    np.testing.assert_allclose(turned, transform.fixed_to_moving_points(INDEX[:, ::-1], "index"))
    with pytest.raises(Unreadable, match=r"as napari writes them.* add --order zyx"):
        points(transform, tmp_path / "in.csv", space="index")
    (tmp_path / "in.csv").write_text("index,axis-0,axis-1,axis-2,axis-3\n0,1,2,3,4\n")
    with pytest.raises(Unreadable, match="x, y and z were expected"):
        points(transform, tmp_path / "in.csv", space="index", order="zyx")
