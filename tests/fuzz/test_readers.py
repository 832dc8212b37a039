"""Damaged files of every format end in success with the right geometry or in one sentence that names the file, soon and small.

``DASKREG_FUZZ`` says how many files are damaged in all: 500 by default, always the same ones; 10000 each night, others each time.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskreg.errors import DaskregError
from tests.fuzz.corpus import CASES
from tests.fuzz.limits import address_space, bounded

TOTAL = int(os.environ.get("DASKREG_FUZZ", "500"))
OF_VALUES = "the displacement is not finite"  # of a transform that was opened: in memory it has no file
LONGEST = 1500  # characters of a sentence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One undamaged file of each format, read once: what is imported and compiled then does not count later."""
    folder = tmp_path_factory.mktemp("corpus")
    for case in CASES.values():
        case.make(folder / case.name)
        found, expected = case.read(str(folder / case.name)), case.expected(str(folder / case.name))
        compare(found, expected)
    return folder


def compare(found, expected):
    """Both are arrays, or tuples of them; None is not known."""
    if expected is None:
        return
    for a, b in zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b[np.isfinite(b)]).max(initial=1e-30))


def read_bounded(case, path):
    """What is read, or None after a sentence that names the file."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case.read(path)
    except DaskregError as error:
        said = str(error)
        assert case.name.partition(".")[0] in said or said.startswith(OF_VALUES), said
        assert "\n" not in said, said
        assert len(said) < LONGEST, said
        return None


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_read_right_or_refused(name, folder):
    case, path = CASES[name], folder / name

    @settings(
        max_examples=max(1, TOTAL // len(CASES)),
        derandomize="DASKREG_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(change=st.one_of(*(st.tuples(st.just(place), kind) for place, kind in case.changed)))
    def check(change):
        place, mutate = change
        target = path / place if place else path
        content = target.read_bytes()
        target.write_bytes(mutate(content))
        try:
            found = read_bounded(case, str(path))
            if found is not None:
                compare(found, case.expected(str(path)))
        finally:
            target.write_bytes(content)

    with address_space():
        check()
