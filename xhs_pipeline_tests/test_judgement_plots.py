"""Pictures are small, the same every time, and keep their text as text."""

import base64
import warnings
import xml.etree.ElementTree as ElementTree

import pytest

from xhs_pipeline.judgement import charts, plots
from xhs_pipeline.judgement.figures import figure
from xhs_pipeline.policy import load_policy

SURE, MISSING = figure(0.5, 10, bounds=(0.3, 0.6)), figure(None, 0, "no posts")
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
        lambda: charts.intervals(
            [("甲", [(charts.BETTER, SURE)])], "%", 100, lines=[(0, "零")], legend={"好": charts.BETTER}
        ),
        lambda: charts.curves([("甲", charts.SERIES[0], [(0.1, 0.2), (0.9, 0.8)])], ("横", "纵"), logarithmic=True),
        lambda: charts.reliability([(0.5, SURE)], ("横", "纵")),
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


def test_an_interval_is_drawn_to_scale_and_a_missing_value_leaves_its_row_empty() -> None:
    drawn = charts.intervals([("甲", [(charts.BETTER, SURE)]), ("乙", [(charts.WORSE, MISSING)])], "%", 100, (0, 1))
    assert ">甲</text>" in drawn and ">乙</text>" in drawn
    assert charts.BETTER.colour in drawn and charts.WORSE.colour not in drawn
    with pytest.raises(ValueError, match="at least one row"):
        charts.intervals([], "%")


def test_better_worse_and_unclear_differ_without_colour() -> None:
    shapes = {(look.marker, look.filled) for look in (charts.BETTER, charts.WORSE, charts.UNCLEAR)}
    assert len(shapes) == 3
    assert (
        len({look.marker for look in charts.SERIES})
        == len({str(look.dash) for look in charts.SERIES})
        == len(charts.SERIES)
    )


def test_names_of_any_length_and_kind_are_drawn_as_they_are_within_a_phones_width() -> None:
    for name in ("名" * 500, "$a_b$ <script>&", "x" * 500):
        drawn = charts.intervals([(name, [(charts.BETTER, SURE)])], "%", 100)
        root = ElementTree.fromstring(drawn)
        assert float(root.attrib["width"].removesuffix("pt")) <= 252.0
        assert any((text.text or "").startswith(name[:12]) for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_a_curve_of_one_point_is_still_seen() -> None:
    assert "<use" in charts.curves([("甲", charts.SERIES[0], [(0.5, 0.5)])], ("横", "纵")).split("PathCollection")[0]
    many = charts.curves(
        [("", charts.SERIES[0], [(i / 100, 0.5) for i in range(101)])], ("", ""), "名", (charts.SMALL, 1.4)
    )
    assert len(many) < 12_000


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
