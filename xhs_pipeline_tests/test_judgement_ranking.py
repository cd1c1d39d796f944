"""Scores are compared with thresholds chosen elsewhere, and precision with how common violations really are."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from xhs_pipeline.judgement import metrics, ranking
from xhs_pipeline.judgement.frame import Question, answers
from xhs_pipeline.judgement.intervals import Resamples
from xhs_pipeline.judgement.ranking import MIN_NEGATIVES, Threshold, deployment_precision, threshold
from xhs_pipeline_tests.simulated import POLICY, simulated


def scored(true: list[int], p: list[float]) -> Question:
    """The binary question with p the probability of the second class."""
    second = np.array(p)
    return Question(("a", "b"), np.array(true), (second > 0.5).astype(int), np.column_stack([1 - second, second]))


def test_average_precision_by_hand_and_by_sklearn() -> None:
    asked = scored([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    found = ranking.average_precision(asked, 1, Resamples(range(4), 0))
    # recall 1/2 at precision 1, then 1 at precision 2/3
    assert found["value"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3) and found["n"] == 2
    assert found["low"] <= found["value"] <= found["high"]
    frame = simulated(600)
    figures = metrics.evaluate(frame, POLICY, times=0)
    for name in POLICY.category_names:
        theirs = average_precision_score(frame[metrics.TRUE_CATEGORY] == name, frame["p_category_" + name])
        assert figures["per_category"][name]["average_precision"]["value"] == pytest.approx(theirs)
    assert ranking.average_precision(scored([0, 0], [0.1, 0.2]), 1, Resamples(range(2), 0))["reason"] == "no true posts"


def test_an_unusable_answer_ranks_as_wrongly_as_can_be() -> None:
    asked = scored([1, 1, 0, 0], [0.9, np.nan, np.nan, 0.1])
    expected = average_precision_score([1, 1, 0, 0], [0.9, -1, 2, 0.1])
    assert ranking.average_precision(asked, 1, Resamples(range(4), 0, 0))["value"] == pytest.approx(expected)


def test_rates_of_every_class_are_sklearns() -> None:
    frame = simulated(500)
    figures = metrics.evaluate(frame, POLICY, times=0)
    for key, truth, answer in (
        ("per_verdict", metrics.TRUE_VERDICT, metrics.VERDICT),
        ("per_category", metrics.TRUE_CATEGORY, metrics.CATEGORY),
    ):
        names = list(figures[key])
        theirs = precision_recall_fscore_support(frame[truth], frame[answer], labels=names, zero_division=np.nan)
        for i, name in enumerate(names):
            row = figures[key][name]
            for j, figure in enumerate(("precision", "recall", "f1")):
                if row[figure]["value"] is not None:
                    assert row[figure]["value"] == pytest.approx(theirs[j][i])
            others = frame[truth] != name
            assert row["false_positive_rate"]["value"] == pytest.approx((frame[answer][others] == name).mean())


def test_a_threshold_lets_at_most_one_in_a_hundred_of_the_others_pass_and_no_fewer_than_it_may() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(1000)
    cut = threshold(scored([0] * 900 + [1] * 100, list(p)), 1)
    assert cut.n == 900 and cut.value is not None
    assert (p[:900] > cut.value).sum() == 9
    # where many are equally likely, none of them is let through
    tied = threshold(scored([0] * 200, [0.5] * 100 + [0.1] * 100), 1)
    assert tied.value == 0.5


def test_recall_at_a_rate_uses_the_calibration_splits_threshold_and_tells_the_rate_it_has_here() -> None:
    test, calibration = simulated(1500, seed=1), simulated(1500, seed=2)
    figures = metrics.evaluate(test, POLICY, calibration, times=0)
    cuts = ranking.thresholds(answers(calibration, POLICY))
    chosen = cuts["binary"][1].value
    assert chosen is not None and figures["violation"]["at_fpr"]["threshold"] == chosen
    p = 1 - test["p_category_" + POLICY.normal_category]
    violation = test[metrics.TRUE_CATEGORY] != POLICY.normal_category
    assert figures["headline"]["recall_at_fpr"]["value"] == pytest.approx((p[violation] > chosen).mean())
    rate = figures["violation"]["at_fpr"]["fpr"]
    assert rate["value"] == pytest.approx((p[~violation] > chosen).mean()) and rate["value"] < 0.04
    # the same posts changed in the test set do not move it
    again = metrics.evaluate(test.head(700), POLICY, calibration, times=0)
    assert again["violation"]["at_fpr"]["threshold"] == chosen
    category = figures["per_category"]["诈骗"]["at_fpr"]
    assert category["recall"]["low"] <= category["recall"]["value"] <= category["recall"]["high"]


def test_without_a_calibration_split_or_with_too_few_others_there_is_no_recall_at_a_rate() -> None:
    figures = metrics.evaluate(simulated(300), POLICY, times=0)
    assert "no calibration split" in figures["headline"]["recall_at_fpr"]["reason"]
    few = metrics.evaluate(simulated(300), POLICY, simulated(20, seed=3), times=0)
    reason = few["per_category"]["诈骗"]["at_fpr"]["recall"]["reason"]
    assert f"at least {MIN_NEGATIVES} are needed" in reason
    assert threshold(scored([0] * 200, [1.0] * 200), 1) == Threshold(
        None, 200, "more than 1% of the other posts have probability 1 or no answer"
    )


def test_a_balanced_test_set_flatters_precision() -> None:
    recall, fpr = metrics.figure(0.9, 1000), metrics.figure(0.01, 1000)
    assert deployment_precision(recall, fpr, 0.5)["value"] == pytest.approx(0.989, abs=5e-4)
    assert deployment_precision(recall, fpr, 0.02)["value"] == pytest.approx(0.647, abs=5e-4)


def test_precision_in_use_joins_the_worst_ends_of_both_intervals() -> None:
    recall, fpr = metrics.figure(0.9, 500, bounds=(0.8, 0.95)), metrics.figure(0.0, 300, bounds=(0.0, 0.01))
    found = deployment_precision(recall, fpr, 0.02)
    assert (found["value"], found["high"], found["n"]) == (1.0, 1.0, 800)
    assert found["low"] == pytest.approx(0.02 * 0.8 / (0.02 * 0.8 + 0.98 * 0.01))
    missing = deployment_precision(recall, metrics.figure(None, 0, "no harmless posts"), 0.02)
    assert missing["value"] is None and missing["reason"] == "no harmless posts"
    silent = deployment_precision(metrics.figure(0.0, 5), metrics.figure(0.0, 5), 0.02)
    assert silent["reason"] == "no post is called a violation"


def test_the_report_gives_precision_for_the_policys_prevalences() -> None:
    rows = metrics.evaluate(simulated(300), POLICY, times=0)["deployment"]
    assert [row["prevalence"] for row in rows] == POLICY.deployment["prevalence"]
    values = [row["precision"]["value"] for row in rows]
    assert values == sorted(values)


def test_the_curve_to_draw_is_short_and_its_steps_sum_to_the_average_precision() -> None:
    few = scored([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1])
    assert ranking.precision_recall(few, 1) == [{"recall": 0.5, "precision": 1.0}, {"recall": 1.0, "precision": 0.6667}]
    assert ranking.precision_recall(scored([0, 0], [0.1, 0.2]), 1) == []
    asked = answers(simulated(3000), POLICY).binary
    curve = ranking.precision_recall(asked, 1)
    recalls = [point["recall"] for point in curve]
    assert len(curve) == ranking.CURVE_POINTS and recalls == sorted(recalls) and recalls[-1] == 1.0
    area = sum(p["precision"] * (p["recall"] - before) for p, before in zip(curve, [0.0, *recalls], strict=False))
    exact = ranking.average_precision(asked, 1, Resamples(range(3000), 0, 0))["value"]
    assert exact is not None and area == pytest.approx(exact, abs=0.01)
