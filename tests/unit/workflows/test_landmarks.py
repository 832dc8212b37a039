"""Tables of landmarks, and what is wrong with them."""

import numpy as np
import pytest

from daskreg.errors import ConfigError, NotFound, Unreadable
from daskreg.workflows.landmarks import COLUMNS, read_landmarks

HEADER = ",".join(COLUMNS)


def table(tmp_path, text):
    path = tmp_path / "landmarks.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n1,2,3,4,5,6\n",
        "1,2,3,4,5,6",
        "# comment\n\n1; 2; 3; 4; 5; 6\n",
        "1\t2\t3\t4\t5\t6\n",
        'name,"MOVING_X",moving_y,moving_z,fixed_z,fixed_y,fixed_x\nnose,4,5,6,3,2,1\n',
        "# of head 3\n# moving_x,moving_y,moving_z,fixed_x,fixed_y,fixed_z\n4,5,6,1,2,3\n",
        "# moving_x moving_y moving_z fixed_x fixed_y fixed_z\n4 5 6 1 2 3\n",
        "# six words that are a sentence\n1 2 3 4 5 6\n",
    ],
)
def test_any_order_and_no_header(tmp_path, text):
    fixed, moving, _ = read_landmarks(table(tmp_path, text))
    assert fixed.tolist() == [[3, 2, 1]]
    assert moving.tolist() == [[6, 5, 4]]


def test_ras_is_turned_to_lps(tmp_path):
    fixed, moving, lines = read_landmarks(table(tmp_path, "1,2,3,4,5,6"), "RAS")
    assert lines == (1,)
    np.testing.assert_array_equal([*fixed, *moving], [[3, -2, -1], [6, -5, -4]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed_x,fixed_y,z\n1,2,3\n", "lacks the columns fixed_z, moving_x"),
        ("# T1_x,T1_y,T1_z,EPI_x,EPI_y,EPI_z\n1,2,3,4,5,6\n", "lacks the columns fixed_x, .* its header is t1_x, t1_y"),
        ("# a, b, c, d, e, f\n1,2,3,4,5,6\n", "lacks the columns fixed_x"),
        ("# x1 y1 z1 x2 y2 z2\n1 2 3 4 5 6\n", "its header is x1, y1"),
        ("1,2,3\n", "has 3 columns and no header; six"),
        (f"{HEADER}\n1,2,3,4,5,6\n1,2,x,4,5,6\n", "row 3: found '1, 2, x, 4, 5, 6'; six numbers"),
        (f"{HEADER}\n1,2,3,4,5\n", "row 2: .*six numbers"),
        ("1,2,3,4,5,a\n", "row 1"),
        ("1,2,3,4,5,nan\n", "row 1: .*finite"),
        (f"{HEADER}\n", "holds no landmarks"),
        ("", "holds no landmarks"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    with pytest.raises(Unreadable, match=message):
        read_landmarks(table(tmp_path, text))


def test_a_wrong_space_or_file(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'lps'"):
        read_landmarks(table(tmp_path, "1,2,3,4,5,6"), "lpss")
    with pytest.raises(NotFound):
        read_landmarks(tmp_path / "none.csv")
