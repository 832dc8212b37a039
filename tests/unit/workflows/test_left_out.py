"""What a run says of its search when it is done."""

import pytest

from daskreg import PRESETS
from daskreg.engine.filling import Filling
from daskreg.workflows.ready_run import _tell_what_was_left_out


def messages(caplog, filling, *stages, config=PRESETS["multimodal"]):
    levels = [{"stage": "search", "detail": filling}, *({"stage": name, "detail": {}} for name in stages)]
    with caplog.at_level("INFO", "daskreg"):
        _tell_what_was_left_out({"levels": levels}, config)
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize(
    ("filling", "images"),
    [(Filling(0.0), "fixed image"), (Filling(None, 0.5), "moving image"), (Filling(0.0, 0.0), "fixed and moving image")],
)
def test_filling_that_a_deformable_stage_compares_is_reported_with_what_to_do(caplog, filling, images):
    ((level, text),) = messages(caplog, filling.report(), "rigid", "deformable")
    assert level == "WARNING"
    assert f"areas of one value in the {images} out" in text
    assert "--background auto" in text


def test_filling_that_all_stages_left_out_is_reported(caplog):
    assert messages(caplog, Filling(0.0).report(), "rigid") == [
        ("INFO", "the search and the stages after it left areas of one value in the fixed image out")
    ]


def test_nothing_is_said_where_a_search_left_nothing_out(caplog):
    assert messages(caplog, {}, "rigid", "deformable") == []


def test_nothing_is_said_of_an_image_with_a_background_which_all_stages_leave_out(caplog):
    config = PRESETS["multimodal"].model_copy(update={"moving_background": "auto"})
    assert messages(caplog, Filling(None, 0.0).report(), "rigid", "deformable", config=config) == []
    ((_, text),) = messages(caplog, Filling(0.0, 0.0).report(), "rigid", "deformable", config=config)
    assert "in the fixed image out" in text
