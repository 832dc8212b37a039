"""Classes by the names of entry points."""

import logging
from types import SimpleNamespace
from typing import Literal

import pytest

from daskreg import registry
from daskreg.config import Deformable
from daskreg.errors import ConfigError
from daskreg.registry import SIMILARITIES, Registry
from daskreg.similarity import MSE


class Other(MSE):
    """Of another package."""

    kind: Literal["other"] = "other"


def missing():
    raise ImportError("no module named 'absent'")


def classes(monkeypatch, **points):
    """Those of a registry in an environment with entry points by name."""
    made = [SimpleNamespace(name=name, value=f"package:{name}", load=load) for name, load in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: made)
    return Registry("similarity", SIMILARITIES.group, SIMILARITIES.builtin).classes()


def test_an_entry_point_adds_a_class_and_replaces_none(monkeypatch):
    found = classes(monkeypatch, other=lambda: Other, mse=lambda: Other)
    assert found["other"] is Other
    assert found["mse"] is MSE
    assert list(found)[: len(SIMILARITIES.builtin)] == list(SIMILARITIES.builtin)


def test_a_name_that_is_taken_is_told(monkeypatch, caplog):
    points = [SimpleNamespace(name="other", value=f"{module}:Other", load=lambda: Other) for module in ("first", "later")]
    points += [points[0], SimpleNamespace(name="mse", value="later:MSE", load=lambda: Other)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with caplog.at_level(logging.WARNING, "daskreg"):
        assert Registry("similarity", SIMILARITIES.group, SIMILARITIES.builtin).classes()["other"] is Other
    assert [record.getMessage() for record in caplog.records] == [
        "the similarity 'other' of later:Other is not used: first:Other has that name.",
        "the similarity 'mse' of later:MSE is not used: daskreg.similarity.mse:MSE has that name.",
    ]


@pytest.mark.parametrize(
    ("name", "load", "words"),
    [
        ("absent", missing, "no module named 'absent'"),
        ("else", lambda: Other, "its field 'kind' is 'other', not 'else'"),
        ("text", lambda: str, "its field 'kind' is None"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(monkeypatch, caplog, name, load, words):
    with caplog.at_level(logging.WARNING, "daskreg"):
        assert name not in classes(monkeypatch, **{name: load})
    assert f"the similarity {name!r} of package:{name} cannot be used" in caplog.text
    assert words in caplog.text


def test_a_class_with_the_kind_of_another_is_refused():
    """A run records the kind, and would go on with the other one."""

    class Mine(MSE):
        pass

    with pytest.raises(ConfigError, match=r"Mine has the kind 'mse' of daskreg\.similarity\.mse\.MSE; give it another kind"):
        Deformable(similarity=Mine())
    assert Deformable(similarity=Other()).similarity == Other()
