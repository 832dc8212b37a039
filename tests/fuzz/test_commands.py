"""Command lines with wrong words end in an exit code and a sentence, and write nothing."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daskreg.cli import main
from tests.fuzz.corpus import CASES
from tests.fuzz.limits import bounded
from tests.fuzz.mutations import NUMBERS, WORDS

FILES = ("image.nii.gz", "v05.zarr", "run.zarr", "affine.tfm", "points.csv", "config.yaml")
COMMANDS = (
    ["info", "image.nii.gz"],
    ["info", "v05.zarr::level=1,spacing=2x1x1", "--json"],
    ["points", "affine.tfm", "points.csv", "-o", "new.csv", "--to", "moving", "--space", "lps"],
    ["export", "run.zarr", "-o", "new.tfm", "--part", "affine"],
    ["plan", "image.nii.gz", "v05.zarr::level=1", "--config", "config.yaml", "--workers", "2"],
)
TAILS = ["", "::", "::level=9", "::channel=x", "::time=1", "::spacing=0", "::spacing=1x1", "::spacing=1e300", "::unit=gram"]
TAILS += ["::levl=1", "::array=../..", "\0", "\n", "\udcff", "/", "x" * 300]
WORD = st.sampled_from([str(v) for v in NUMBERS + WORDS] + list(FILES) + ["--", "-o", "--nothing", "-"])
TOTAL = int(os.environ.get("DASKREG_FUZZ", "500")) // 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    for name in FILES:
        CASES[name].make(folder / name)
    return folder


def changed(words, at, kind, word, tail):
    place = at % len(words)
    new = {"replace": [word], "append": [words[place] + tail], "remove": [], "insert": [words[place], word]}[kind]
    return [*words[:place], *new, *words[place + 1 :]]


def run(words, folder, monkeypatch):
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["daskreg", *words])
    monkeypatch.chdir(folder)
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_wrong_word_ends_in_an_exit_code_and_a_sentence(words, folder, monkeypatch, capfd):
    kept = sorted(p.name for p in folder.iterdir())

    @settings(
        max_examples=max(1, TOTAL // len(COMMANDS)),
        derandomize="DASKREG_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        at=st.integers(0, 20),
        kind=st.sampled_from(["replace", "append", "remove", "insert"]),
        word=WORD,
        tail=st.sampled_from(TAILS),
    )
    def check(at, kind, word, tail):
        code = run(changed(words, at, kind, word, tail), folder, monkeypatch)
        said = capfd.readouterr().err
        assert code in (0, 2), said
        assert "raceback" not in said
        new = {p.name for p in folder.iterdir()} - set(kept)
        assert not new or code == 0
        for name in new:
            (folder / name).unlink()

    check()
