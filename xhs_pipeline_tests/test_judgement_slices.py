"""For whom a model is right: every post is in one slice of each kind, and a slice that suffers is flagged."""

import pytest

from xhs_pipeline.judgement import metrics
from xhs_pipeline.judgement.frame import language
from xhs_pipeline.judgement.slices import slice_names
from xhs_pipeline_tests.simulated import POLICY, simulated
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, frame

CUTS = {"category", "label_source", "images", "disguised", "appeal", "length", "language", "week"}


def test_the_slices_of_each_kind_hold_every_post_once() -> None:
    predictions = simulated(900)
    figures = metrics.evaluate(predictions, POLICY, times=50)["slices"]
    assert set(figures) == CUTS
    for rows in figures.values():
        assert sum(row["n"] for row in rows.values()) == 900
        assert sum(row["harmless"] for row in rows.values()) == (predictions[metrics.SEVERITY] == 0).sum()
    assert set(figures["appeal"]) == {"yes", "no"} and figures["appeal"]["yes"]["n"] == 300
    assert set(figures["length"]) == {"0-20", "21-100", "101-500", "over 500"}
    assert set(figures["week"]) == {"2026-02-02", "2026-02-09", "2026-02-16"}


def test_the_figures_of_a_slice_are_those_of_its_posts_alone() -> None:
    predictions = simulated(900)
    row = metrics.evaluate(predictions, POLICY, times=100)["slices"]["label_source"]["volunteers"]
    alone = metrics.evaluate(predictions[predictions[metrics.LABEL_SOURCE] == "volunteers"], POLICY, times=0)
    for name in ("recall", "false_positive_rate", "binary_accuracy"):
        assert row[name] == alone["headline"][name]
    for name in ("binary_macro_f1", "category_macro_f1"):
        assert row[name]["value"] == pytest.approx(alone["headline"][name]["value"])
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]
    precision, recall = alone["violation"]["precision"]["value"], row["recall"]["value"]
    assert row["f1"]["value"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert row["f1"]["low"] < row["f1"]["value"] < row["f1"]["high"]


def test_resamples_of_a_slice_are_those_of_its_posts_alone() -> None:
    """Where all posts are one slice, its intervals are the overall ones."""
    predictions = simulated(300)
    predictions[metrics.LABEL_SOURCE] = "one"
    figures = metrics.evaluate(predictions, POLICY, times=200)
    row = figures["slices"]["label_source"]["one"]
    for name in ("binary_macro_f1", "category_macro_f1"):
        assert row[name] == figures["headline"][name]


def test_a_slice_whose_harmless_posts_suffer_twice_as_often_is_flagged() -> None:
    truth = [HARMLESS] * 400 + [FRAUD] * 20
    answers = [FRAUD] * 8 + [HARMLESS] * 92 + [FRAUD] * 2 + [HARMLESS] * 298 + [FRAUD] * 20
    sources = ["new"] * 100 + ["old"] * 300 + ["new"] * 20
    rows = metrics.evaluate(frame(truth, answers, label_source=sources), POLICY, times=0)["slices"]["label_source"]
    assert rows["new"]["false_positive_rate"]["value"] == 0.08  # overall 0.025
    assert (rows["new"]["flagged"], rows["new"]["excludes_overall"]) == (True, True)
    assert (rows["old"]["flagged"], rows["old"]["excludes_overall"]) == (False, False)


def test_a_flag_on_few_posts_says_that_chance_may_explain_it() -> None:
    truth = [HARMLESS] * 40
    answers = [FRAUD] + [HARMLESS] * 9 + [FRAUD] + [HARMLESS] * 29
    rows = metrics.evaluate(frame(truth, answers, label_source=["few"] * 10 + ["many"] * 30), POLICY, times=0)
    row = rows["slices"]["label_source"]["few"]
    assert (row["harmless"], row["flagged"], row["excludes_overall"]) == (10, True, False)


def test_a_slice_without_harmless_posts_is_neither_flagged_nor_cleared() -> None:
    rows = metrics.evaluate(frame([FRAUD, HARMLESS], [FRAUD, FRAUD]), POLICY, times=0)["slices"]["category"]
    assert rows["诈骗"]["false_positive_rate"]["reason"] == "no harmless posts"
    assert (rows["诈骗"]["flagged"], rows["诈骗"]["excludes_overall"]) == (None, None)
    assert rows["诈骗"]["recall"]["value"] == 1.0
    nobody = metrics.evaluate(frame([HARMLESS], [HARMLESS]), POLICY, times=0)["slices"]["category"]["正常"]
    assert nobody["flagged"] is False and nobody["recall"]["reason"] == "no violation posts"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气真好，去公园！123", "zh"),
        ("新买的iPhone很好用，拍照清楚，续航也不错，推荐给大家", "zh"),
        ("OOTD 今日穿搭 look", "mixed"),
        ("just a sunny day", "other"),
        ("こんにちは、元気です", "mixed"),
        ("12345 !!! 😀", "other"),
        ("", "other"),
        ("오늘 날씨가 좋다", "other"),
        ("<微信号:谐音>hello world", "other"),
    ],
)
def test_the_language_is_the_share_of_chinese_characters_among_the_words(text: str, expected: str) -> None:
    assert language(text) == expected


def test_an_identifier_in_disguise_is_seen_in_the_text_that_cleaning_left() -> None:
    from xhs_pipeline.curation.identifiers import mask

    disguised, plain = mask("加薇❤：abc12345")[0], mask("加微信：abc12345")[0]
    assert ":" in disguised[disguised.index("<") :] and ":" not in plain[plain.index("<") :]
    predictions = frame([LURE, LURE, HARMLESS], [LURE, LURE, HARMLESS], body=[disguised, plain, "早安"])
    assert slice_names(predictions)["disguised"].tolist() == ["yes", "no", "no"]


def test_a_post_that_does_not_say_is_in_a_slice_of_its_own() -> None:
    names = slice_names(frame([FRAUD, FRAUD], [FRAUD, FRAUD], label_source=[None, ""], week=[None, "2026-02-16"]))
    assert names["label_source"].tolist() == ["(none)", "(none)"]
    assert names["week"].tolist() == ["(none)", "2026-02-16"]
