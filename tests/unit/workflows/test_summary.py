"""The lines that end a registration."""

import pytest

from daskreg.workflows.progress import lines_of


def report(before, after):
    """Of a run without levels; correlation and mutual information."""
    measures = [dict(zip(("ncc", "mi"), values, strict=True)) for values in (before, after)]
    return {
        "levels": [],
        "metrics": {"before": measures[0], "after": measures[1]},
        "seconds": {"total": 1.0},
        "machine": {"peak_bytes": 0},
    }


@pytest.mark.parametrize(
    ("after", "worse"),
    [((0.8, 0.7), True), ((0.8, 1.0), False), ((0.95, 0.7), False), ((-0.95, 0.7), False), ((0.9, 0.9), False)],
)
def test_that_both_measures_became_worse_is_said(after, worse):
    line = lines_of(report((0.9, 0.9), after))[0]
    assert line.startswith("correlation 0.900 -> ")
    assert line.endswith("(both lower than at the start)") == worse
