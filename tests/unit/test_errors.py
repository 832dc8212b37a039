"""Names that are misspelt are answered with the closest known one."""

import pytest

from daskreg.errors import ConfigError, closest, require_known, suggestion

KNOWN = ("linear", "nearest", "cubic", "label")


@pytest.mark.parametrize(
    ("word", "near"), [("labels", "label"), ("Linear", "linear"), ("CUBIC", "cubic"), ("xyz", None), (3, None)]
)
def test_the_closest_name_is_the_most_similar_one(word, near):
    assert closest(word, KNOWN) == near


def test_a_suggestion_is_the_closest_name_or_all_of_them():
    assert suggestion("cubical", KNOWN) == "did you mean 'cubic'?"
    assert suggestion("xyz", KNOWN) == "known are linear, nearest, cubic, label."


def test_a_known_name_passes_and_an_unknown_one_is_refused():
    require_known("interpolation", "linear", KNOWN)
    with pytest.raises(ConfigError, match=r"^unknown interpolation 'liner'; did you mean 'linear'\?$"):
        require_known("interpolation", "liner", KNOWN)
