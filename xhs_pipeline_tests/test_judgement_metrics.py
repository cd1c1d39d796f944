"""What the figures mean, checked against small tables counted by hand."""

import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from xhs_pipeline.judgement import metrics
from xhs_pipeline.policy import load_policy

POLICY = load_policy()
PASS, EDIT, REMOVE, REVIEW = POLICY.verdict_ids
HARMLESS = (PASS, "正常")
FRAUD = (REMOVE, "诈骗")
LURE = (EDIT, "私域引流")


def posts_table(answers: list[tuple[str, str]], **columns: list) -> pa.Table:
    """Posts whose true answers are `answers`; any column can be given instead of its default."""
    n = len(answers)
    return pa.table(
        {
            "post_id": [f"p{i}" for i in range(n)],
            "group_id": [f"g{i}" for i in range(n)],
            "week": ["2026-02-16"] * n,
            "label_source": ["source"] * n,
            "title": ["标题"] * n,
            "body": ["正文"] * n,
            "verdict": [v for v, _ in answers],
            "category": [c for _, c in answers],
            **columns,
        }
    )


def frame(
    truth: list[tuple[str, str]], answers: list[tuple[str, str] | None], confidence: float = 0.9, **columns: list
) -> pd.DataFrame:
    """A predictions frame; None is an unusable answer, `confidence` the probability of the answer given."""
    posts = posts_table(truth, **columns)
    verdicts = np.full((len(truth), len(POLICY.verdict_ids)), (1 - confidence) / (len(POLICY.verdict_ids) - 1))
    categories = np.full((len(truth), len(POLICY.category_names)), (1 - confidence) / (len(POLICY.category_names) - 1))
    for i, answer in enumerate(answers):
        if answer:
            verdicts[i, POLICY.verdict_ids.index(answer[0])] = confidence
            categories[i, POLICY.category_names.index(answer[1])] = confidence
        else:
            verdicts[i], categories[i] = np.nan, np.nan
    return metrics.predictions_frame(
        posts,
        [a[0] if a else None for a in answers],
        [a[1] if a else None for a in answers],
        verdicts,
        categories,
        [a is not None for a in answers],
        POLICY,
    )


def value(figures: dict, name: str) -> float | None:
    return figures["headline"][name]["value"]


def test_a_violation_is_any_category_but_the_harmless_one():
    figures = metrics.evaluate(
        frame([HARMLESS, HARMLESS, FRAUD, LURE], [HARMLESS, FRAUD, LURE, HARMLESS]),
        POLICY,
    )
    assert value(figures, "binary_accuracy") == 0.5
    assert value(figures, "category_accuracy") == 0.25
    assert value(figures, "false_positive_rate") == 0.5
    assert figures["headline"]["false_positive_rate"]["n"] == 2
    # both classes: 1 right of 2 true and 2 answered
    assert value(figures, "binary_macro_f1") == 0.5


def test_macro_f1_averages_over_the_classes_that_occur_in_the_truth_only():
    figures = metrics.evaluate(frame([FRAUD, FRAUD, LURE], [FRAUD, HARMLESS, LURE]), POLICY)
    fraud, lure = 2 * 1 / (2 * 1 + 0 + 1), 1.0
    assert value(figures, "category_macro_f1") == pytest.approx((fraud + lure) / 2)


def test_an_unusable_answer_is_wrong_in_every_share_and_is_counted():
    figures = metrics.evaluate(frame([HARMLESS, FRAUD, FRAUD], [None, None, FRAUD]), POLICY)
    assert figures["counts"]["invalid"] == 2
    assert value(figures, "invalid_share") == pytest.approx(2 / 3)
    assert value(figures, "binary_accuracy") == pytest.approx(1 / 3)
    assert value(figures, "false_positive_rate") == 1.0
    assert figures["confusion"]["category"]["invalid"][0] == 1
    assert figures["headline"]["category_log_loss"]["n"] == 1


def test_an_answer_outside_the_policy_is_unusable_even_when_it_calls_itself_valid():
    predictions = frame([HARMLESS, FRAUD], [HARMLESS, FRAUD])
    predictions.loc[0, metrics.VERDICT] = REMOVE  # a harmless post cannot be removed
    predictions.loc[1, metrics.category_columns(POLICY)[3]] = math.inf
    assert metrics.evaluate(predictions, POLICY)["counts"]["invalid"] == 2


def test_costs_follow_the_policy_for_every_kind_of_mistake():
    review = (REVIEW, "诈骗")
    removed_lure = (REMOVE, "私域引流")
    truth = [HARMLESS, HARMLESS, HARMLESS, HARMLESS, FRAUD, LURE, FRAUD, removed_lure, FRAUD]
    answers = [HARMLESS, LURE, FRAUD, review, HARMLESS, HARMLESS, review, LURE, None]
    costs = metrics.costs(frame(truth, answers), POLICY)
    assert costs.tolist() == [0, 1, 5, 0.5, 50, 2, 0.5, 0, 0.5]
    figures = metrics.evaluate(frame(truth, answers), POLICY)
    assert value(figures, "cost_per_1000") == pytest.approx(1000 * sum(costs) / 9)


def test_log_loss_is_the_mean_of_minus_ln_p_and_stays_finite_for_an_impossible_truth():
    figures = metrics.evaluate(frame([FRAUD, FRAUD], [FRAUD, FRAUD], confidence=0.5), POLICY)
    assert value(figures, "category_log_loss") == pytest.approx(math.log(2))
    certain = metrics.evaluate(frame([FRAUD], [HARMLESS], confidence=1.0), POLICY)
    assert value(certain, "category_log_loss") == pytest.approx(-math.log(1e-12))


def test_confusion_matrices_are_in_policy_order_with_the_truth_in_rows():
    figures = metrics.evaluate(frame([FRAUD, FRAUD, HARMLESS], [HARMLESS, FRAUD, HARMLESS]), POLICY)
    stored = figures["confusion"]["category"]
    assert tuple(stored["labels"]) == POLICY.category_names
    fraud, harmless = POLICY.category_names.index("诈骗"), POLICY.category_names.index("正常")
    assert stored["matrix"][fraud][harmless] == 1
    assert stored["matrix"][harmless][fraud] == 0
    assert sum(map(sum, stored["matrix"])) == 3
    assert figures["confusion"]["verdict"]["labels"] == list(POLICY.verdict_ids)


def test_every_source_gets_its_own_figures_and_a_one_sided_source_says_why_f1_is_missing():
    figures = metrics.evaluate(
        frame([FRAUD, LURE, HARMLESS, FRAUD], [FRAUD, FRAUD, HARMLESS, HARMLESS], label_source=["a", "a", "b", "b"]),
        POLICY,
    )
    a, b = figures["slices"]["label_source"]["a"], figures["slices"]["label_source"]["b"]
    assert (a["n"], b["n"]) == (2, 2)
    assert a["binary_accuracy"]["value"] == 1.0
    assert a["binary_macro_f1"] == metrics.figure(None, 2, "the truth holds violation posts only")
    assert b["binary_macro_f1"]["value"] is not None


def test_per_class_figures_say_why_they_are_missing():
    figures = metrics.evaluate(frame([FRAUD], [HARMLESS]), POLICY)
    fraud = figures["per_category"]["诈骗"]
    assert (fraud["true"], fraud["answered"], fraud["correct"]) == (1, 0, 0)
    assert fraud["precision"] == {"value": None, "n": 0, "reason": "never answered", "low": None, "high": None}
    assert fraud["recall"]["value"] == 0.0
    assert figures["per_category"]["赌博"]["f1"]["reason"] == "neither true nor answered"


@pytest.mark.parametrize("truth", [[], [FRAUD], [HARMLESS, FRAUD]])
def test_no_figure_is_ever_nan_in_json(truth):
    answers = [None] * len(truth)
    text = json.dumps(metrics.evaluate(frame(truth, answers), POLICY), allow_nan=False)
    assert "NaN" not in text


def test_all_faults_of_a_frame_are_listed_at_once():
    predictions = frame([FRAUD, HARMLESS], [FRAUD, HARMLESS]).drop(columns=["week"])
    predictions.loc[0, metrics.TRUE_CATEGORY] = "不存在"
    predictions[metrics.POST_ID] = "same"
    with pytest.raises(ValueError, match=r"week.*不存在.*judged more than once"):
        metrics.evaluate(predictions, POLICY)


def test_posts_become_a_frame_without_their_text_and_with_image_flags_and_lengths():
    images = [[{"bytes": b"x", "path": "a.jpg"}], []]
    predictions = frame([FRAUD, HARMLESS], [FRAUD, HARMLESS], images=images, title=["一二", None])
    assert predictions[metrics.HAS_IMAGES].tolist() == [True, False]
    assert predictions[metrics.TEXT_LENGTH].tolist() == [4, 2]
    assert predictions[metrics.SEVERITY].tolist() == [3, 0]
    assert not {"title", "body"} & set(predictions.columns)


def test_probabilities_of_the_wrong_shape_are_refused():
    posts = posts_table([FRAUD])
    with pytest.raises(ValueError, match=r"verdict_probabilities has shape \(1, 2\), expected \(1, 4\)"):
        metrics.predictions_frame(posts, [REMOVE], ["诈骗"], np.zeros((1, 2)), np.zeros((1, 13)), [True], POLICY)
