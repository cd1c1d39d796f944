"""The model against the one in use, post by post: what is better, what is worse, and whether chance explains it."""

import json
from statistics import mean

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from xhs_pipeline.judgement import metrics
from xhs_pipeline.judgement.paired import compare, holm, mcnemar, regressions
from xhs_pipeline_tests.simulated import POLICY, simulated
from xhs_pipeline_tests.test_judgement_metrics import EDIT, FRAUD, HARMLESS, LURE, PASS, REMOVE, REVIEW, frame

QUICK = 300


def test_a_model_compared_with_itself_differs_in_nothing() -> None:
    predictions = simulated(300)
    found = compare(predictions, predictions, POLICY, times=QUICK)
    for name in ("category_macro_f1", "verdict_macro_f1", "cost_per_1000"):
        assert (found[name]["value"], found[name]["low"], found[name]["high"]) == (0, 0, 0)
    assert found["mcnemar"]["category"] == {"only_model": 0, "only_champion": 0, "p": 1.0}
    assert found["regressions"] == [] and found["changed"]["right_to_wrong"] == 0


def test_differences_are_those_of_the_figures_of_each_model() -> None:
    model, champion = simulated(600), _worsened(simulated(600), 0.3)
    found = compare(model, champion, POLICY, times=QUICK)
    ours, theirs = (metrics.evaluate(f, POLICY, times=0) for f in (model, champion))
    for name in ("category_macro_f1", "verdict_macro_f1", "cost_per_1000"):
        expected = ours["headline"][name]["value"] - theirs["headline"][name]["value"]
        assert found[name]["value"] == pytest.approx(expected)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    for name, row in found["categories"].items():
        for rate in ("recall", "false_positive_rate"):
            expected = ours["per_category"][name][rate]["value"] - theirs["per_category"][name][rate]["value"]
            assert row[rate]["value"] == pytest.approx(expected)
            assert row[rate]["n"] == ours["per_category"][name][rate]["n"]
    recall = ours["headline"]["recall"]["value"] - theirs["headline"]["recall"]["value"]
    assert found["violation"]["recall"]["value"] == pytest.approx(recall)
    assert found["cost_per_1000"]["high"] < 0  # the worsened champion is dearer, beyond doubt
    json.dumps(found, allow_nan=False)


def _worsened(predictions: pd.DataFrame, share: float) -> pd.DataFrame:
    """Every so many violations pass."""
    rows = np.random.default_rng(0).random(len(predictions)) < share
    predictions.loc[rows, [metrics.VERDICT, metrics.CATEGORY]] = list(HARMLESS)
    return predictions


def test_comparing_pairs_sees_more_than_comparing_two_intervals() -> None:
    model, champion = simulated(600), _worsened(simulated(600), 0.06)
    paired = compare(model, champion, POLICY, times=QUICK)["cost_per_1000"]
    ours, theirs = (metrics.evaluate(f, POLICY, times=QUICK)["headline"]["cost_per_1000"] for f in (model, champion))
    assert paired["high"] - paired["low"] < 0.6 * ((ours["high"] - ours["low"]) + (theirs["high"] - theirs["low"]))
    assert paired["high"] < 0 and ours["high"] > theirs["low"]


def test_a_regression_planted_in_one_category_shows_though_macro_f1_rises() -> None:
    truth = [HARMLESS] * 200 + [FRAUD] * 100 + [LURE] * 100
    model = [HARMLESS] * 200 + [HARMLESS] * 15 + [FRAUD] * 85 + [LURE] * 100
    champion = [HARMLESS] * 200 + [FRAUD] * 100 + [HARMLESS] * 40 + [LURE] * 60
    found = compare(frame(truth, model), frame(truth, champion), POLICY)
    assert found["category_macro_f1"]["low"] > 0
    fraud, lure = found["categories"]["诈骗"], found["categories"]["私域引流"]
    assert fraud["recall"]["value"] == pytest.approx(-0.15) and fraud["recall"]["high"] < 0
    assert fraud["recall"]["low"] < -0.15
    assert lure["recall"]["low"] > 0
    assert fraud["mcnemar"]["p_holm"] < 0.01
    assert found["cost_per_1000"]["value"] > 0  # fifteen missed frauds at 50 outweigh forty lures at 2


def test_mcnemar_is_the_exact_test_on_the_posts_that_one_alone_gets_right() -> None:
    ours = np.array([True] * 50 + [True] * 9 + [False] * 2 + [False] * 10)
    theirs = np.array([True] * 50 + [False] * 9 + [True] * 2 + [False] * 10)
    found = mcnemar(ours, theirs)
    assert (found["only_model"], found["only_champion"]) == (9, 2)
    # 2 (C(11,0) + C(11,1) + C(11,2)) / 2^11
    assert found["p"] == pytest.approx(2 * (1 + 11 + 55) / 2**11) == binomtest(9, 11).pvalue


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_keeps_false_alarms_over_thirteen_equal_categories_below_five_in_a_hundred() -> None:
    rng = np.random.default_rng(2)
    alarms = []
    for _ in range(100):
        right = rng.random((2, 13, 120)) < 0.8
        alarms.append(min(holm([mcnemar(a, b)["p"] for a, b in zip(*right, strict=True)])) < 0.05)
    assert mean(alarms) <= 0.05


def test_posts_that_got_worse_come_dearest_first_then_surest_and_carry_ids_only() -> None:
    truth = [FRAUD, FRAUD, LURE, HARMLESS, HARMLESS, FRAUD]
    champion = [FRAUD, FRAUD, LURE, HARMLESS, FRAUD, (REVIEW, "诈骗")]
    model = [(REMOVE, "赌博"), HARMLESS, HARMLESS, FRAUD, FRAUD, FRAUD]
    ours, theirs = frame(truth, model), frame(truth, champion)
    rows = regressions(ours, theirs, POLICY)
    assert [(row["post_id"], row["cost"]) for row in rows] == [("p1", 50), ("p3", 5), ("p2", 2), ("p0", 0)]
    assert all(set(row) == {"post_id", "cost", "probability"} and row["probability"] == 0.9 for row in rows)
    assert compare(ours, theirs, POLICY, times=0)["changed"] == {
        "right_to_wrong": 4, "wrong_to_right": 1, "wrong_both": 1,
    }  # fmt: skip
    surer = ours.copy()
    surer.loc[2, metrics.VERDICT_PROBABILITY + PASS] = 0.95
    surer.loc[2, metrics.CATEGORY_PROBABILITY + HARMLESS[1]] = 0.93
    assert regressions(surer, theirs, POLICY)[2]["probability"] == 0.93
    assert len(regressions(ours, theirs, POLICY, limit=2)) == 2


def test_an_answer_that_became_unusable_is_a_regression_without_a_probability() -> None:
    rows = regressions(frame([LURE], [None]), frame([LURE], [LURE]), POLICY)
    assert rows == [{"post_id": "p0", "cost": 0.5, "probability": None}]


def test_an_edit_instead_of_removal_is_a_regression_that_costs_nothing() -> None:
    rows = regressions(frame([FRAUD], [(EDIT, "诈骗")]), frame([FRAUD], [FRAUD]), POLICY)
    assert rows == [{"post_id": "p0", "cost": 0.0, "probability": 0.9}]


def test_the_champions_rows_are_brought_into_the_models_order() -> None:
    model, champion = simulated(200), _worsened(simulated(200), 0.3)
    shuffled = champion.sample(frac=1, random_state=1)
    assert compare(model, shuffled, POLICY, times=50) == compare(model, champion, POLICY, times=50)


def test_other_posts_or_other_labels_are_refused() -> None:
    model = frame([FRAUD, LURE], [FRAUD, LURE])
    with pytest.raises(ValueError, match="judged on 2 posts and the champion on 1, 1 and 0 of which the other lacks"):
        compare(model, model.head(1), POLICY)
    other = frame([HARMLESS, LURE], [FRAUD, LURE])
    with pytest.raises(ValueError, match="true_verdict and true_category differ"):
        compare(model, other, POLICY)


def test_no_posts_give_no_figures_and_say_so() -> None:
    found = compare(frame([], []), frame([], []), POLICY)
    assert found["category_macro_f1"]["value"] is None and found["n"] == 0
    assert found["categories"]["诈骗"]["recall"]["reason"] == "no true posts"
    json.dumps(found, allow_nan=False)


def test_a_slice_tells_what_the_change_costs_there_and_the_slices_of_a_cut_add_up_to_all_posts() -> None:
    model, champion = simulated(600, 3, 2.0), simulated(600, 3)
    champion[metrics.VERDICT] = champion[metrics.VERDICT].where(
        champion["week"] != "2026-02-02", POLICY.verdict_ids[-1]
    )
    found = compare(model, champion, POLICY, times=200)
    for rows in found["slices"].values():
        assert sum(row["n"] for row in rows.values()) == 600
        total = sum(row["n"] * row["cost_per_1000"]["value"] for row in rows.values())
        assert total / 600 == pytest.approx(found["cost_per_1000"]["value"])
    weeks = {name: row["cost_per_1000"] for name, row in found["slices"]["week"].items()}
    # elsewhere both give the same answers, so nothing there costs more or less
    assert {name for name, cost in weeks.items() if cost["value"]} == {"2026-02-02"}
    assert weeks["2026-02-02"]["low"] <= weeks["2026-02-02"]["value"] <= weeks["2026-02-02"]["high"]
