"""Pictures are small, the same every time, and keep their text as text."""

import base64
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from xhs_pipeline.judgement import plots
from xhs_pipeline.policy import load_policy

NAMES = load_policy().category_names
HISTORY = [{"step": i, "loss": 3 / (1 + i / 50)} for i in range(2000)] + [
    {"step": i, "eval_verdict_macro_f1": i / 2000} for i in range(0, 2000, 200)
]


def test_the_fullest_confusion_matrix_stays_small_and_shows_chinese_labels_as_text():
    svg = plots.confusion_matrix([[5] * len(NAMES)] * len(NAMES), NAMES)
    assert len(svg) < 60_000
    for name in NAMES:
        assert f">{name}</text>" in svg
    ElementTree.fromstring(svg)


def test_pictures_are_the_same_bytes_every_time_and_carry_no_date():
    for draw in (
        lambda: plots.loss_curve(HISTORY),
        lambda: plots.confusion_matrix([[1, 2], [0, 4]], ["甲", "乙"]),
        lambda: plots.comparison_bars({"模型": {"指标": 0.5}, "基线": {"指标": None}}),
    ):
        assert draw() == draw()
        assert "date" not in draw().lower()


def test_drawing_chinese_warns_nobody_and_leaves_other_warnings_alone():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plots.confusion_matrix([[1]], ["正常"])
        warnings.warn("kept", stacklevel=1)
    assert [str(w.message) for w in caught] == ["kept"]


def test_a_long_loss_history_is_thinned_and_an_empty_one_says_so():
    assert len(plots.loss_curve(HISTORY * 20)) < 60_000
    assert "no loss was recorded" in plots.loss_curve([])
    assert "no loss was recorded" in plots.loss_curve([{"step": 1, "grad_norm": 2.0}])


def test_a_loss_that_is_not_a_number_is_named_and_not_drawn():
    assert "1 non-finite values left out" in plots.loss_curve(
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]
    )


def test_values_in_a_bar_chart_keep_three_decimals():
    svg = plots.comparison_bars({"a": {"m": 0.8765}})
    assert ">0.876</text>" in svg or ">0.877</text>" in svg


def test_a_matrix_that_does_not_fit_its_labels_is_refused():
    with pytest.raises(ValueError, match="expected 3 x 3"):
        plots.confusion_matrix([[1, 2], [3, 4]], ["a", "b", "c"])


def test_pictures_become_data_uris_of_their_own_kind():
    png = plots.loss_curve_png([{"step": 1, "loss": 1.0}])
    assert plots.as_data_uri(png).startswith("data:image/png;base64,")
    svg = plots.loss_curve(HISTORY)
    kind, _, data = plots.as_data_uri(svg).partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == svg
