"""When a model may be released, and that a number nobody measured never lets it through."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest

from xhs_pipeline.judgement import gate, metrics
from xhs_pipeline.judgement.figures import figure
from xhs_pipeline.judgement.paired import compare
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, POLICY, frame

# Large enough for every gate: 3,100 harmless posts, 220 violations of severity 3.
TRUTH = (HARMLESS,) * 3100 + (FRAUD,) * 220 + (LURE,) * 100
PERFECT = TRUTH
HELD_OUT = {
    "macro_retention": figure(0.95, 400),
    "worst_retention": figure(0.85, 40),
    "benign_fpr_change": figure(0.002, 40),
}
FEW = (HARMLESS,) * 4 + (FRAUD,) * 4 + (LURE,) * 2


@functools.cache
def judged(truth: tuple[Any, ...], answers: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    predictions = frame(list(truth), list(answers), confidence=0.99)
    return predictions, metrics.evaluate(predictions, POLICY, times=50)


@functools.cache
def compared(truth: tuple[Any, ...], answers: tuple[Any, ...], champion: tuple[Any, ...]) -> dict[str, Any]:
    return compare(judged(truth, answers)[0], judged(truth, champion)[0], POLICY, 0)


def report(
    answers: tuple[Any, ...] = PERFECT,
    champion: tuple[Any, ...] | None = None,
    truth: tuple[Any, ...] = TRUTH,
    evasion: dict[str, Any] | None = None,
    **context: Any,
) -> dict[str, Any]:
    return {
        "figures": {
            "model": judged(truth, answers)[1],
            "floors": {"majority": judged(truth, (HARMLESS,) * len(truth))[1]},
            "champion": judged(truth, champion)[1] if champion else None,
        },
        "comparison": compared(truth, answers, champion) if champion else None,
        "evasion": HELD_OUT | (evasion or {}),
        "context": {
            "groups_across_splits": 0,
            "merge_agreement": figure(1.0, 64),
            "champion_version": "old" if champion else None,
            **context,
        },
    }


def of(verdict: gate.GateVerdict, name: str) -> gate.Gate:
    return next(g for g in verdict.gates if g.name == name)


def wrong(answer: Any, of_them: Any, count: int, answers: tuple[Any, ...] = PERFECT) -> tuple[Any, ...]:
    """`answers` where the first `count` posts that are truly `of_them` get `answer`."""
    places = [i for i, true in enumerate(TRUTH) if true == of_them][:count]
    return tuple(answer if i in places else given for i, given in enumerate(answers))


def test_a_sound_first_model_passes_every_gate() -> None:
    verdict = gate.decide(report(), POLICY)
    assert verdict.passed, verdict.summary
    assert verdict.summary == f"pass: all {len(verdict.gates)} gates passed"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("groups_across_splits", {"groups_across_splits": 1}),
        ("merge_agreement", {"merge_agreement": figure(0.99, 200)}),
        ("invalid_share", {"answers": wrong(None, HARMLESS, 30)}),
        ("severity3_recall", {"answers": wrong(HARMLESS, FRAUD, 12)}),
        ("false_positive_rate", {"answers": wrong(FRAUD, HARMLESS, 40)}),
        ("ece", {"answers": wrong(HARMLESS, LURE, 100, wrong(HARMLESS, FRAUD, 150))}),
        ("evasion_macro_retention", {"evasion": {"macro_retention": figure(0.89, 400)}}),
        ("evasion_worst_retention", {"evasion": {"worst_retention": figure(0.79, 40)}}),
        ("evasion_benign_fpr", {"evasion": {"benign_fpr_change": figure(0.011, 40)}}),
    ],
)
def test_each_limit_of_the_policy_holds_a_model_that_is_beyond_it(name: str, changed: dict[str, Any]) -> None:
    verdict = gate.decide(report(**changed), POLICY)
    found = of(verdict, name)
    assert (verdict.status, found.status) == ("fail", "fail"), verdict.summary
    assert name in verdict.summary and found.n >= 0 and found.observed is not None and found.limit is not None


def test_a_model_that_answers_pass_to_everything_is_held_even_on_a_test_set_that_flatters_it() -> None:
    verdict = gate.decide(report((HARMLESS,) * len(TRUTH)), POLICY)
    assert verdict.status == "fail"
    held = {g.name for g in verdict.gates if g.status == "fail"}
    assert held >= {"distinct_verdicts", "above_majority_floor", "severity3_recall"}


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("groups_across_splits", {"groups_across_splits": None}),
        ("merge_agreement", {"merge_agreement": None}),
        ("merge_agreement", {"merge_agreement": figure(None, 0, "no probe posts")}),
        ("champion_cost", {"champion_version": "old"}),
        ("champion_category_recall", {"champion_version": "old"}),
        ("champion_category_fpr", {"champion_version": "old"}),
        ("evasion_macro_retention", {"evasion": {"macro_retention": figure(None, 3, "too few posts")}}),
        ("evasion_worst_retention", {"evasion": {"worst_retention": None}}),
        ("evasion_benign_fpr", {"evasion": {"benign_fpr_change": figure(None, 0)}}),
    ],
)
def test_a_missing_number_is_insufficient_and_never_a_pass(name: str, context: dict[str, Any]) -> None:
    verdict = gate.decide(report(**context), POLICY)
    assert (verdict.status, of(verdict, name).status) == ("insufficient", "insufficient"), verdict.summary


def test_few_posts_ask_for_a_person_whatever_they_say() -> None:
    verdict = gate.decide(report(FEW, truth=FEW), POLICY)
    assert verdict.status == "insufficient"
    for name, n in (("severity3_recall", 4), ("false_positive_rate", 4)):
        assert (of(verdict, name).status, of(verdict, name).n, of(verdict, name).observed) == (
            "insufficient", n, 1.0 if name == "severity3_recall" else 0.0,
        )  # fmt: skip


def test_a_rate_within_its_limit_whose_interval_is_not_asks_for_a_person() -> None:
    rate = report()
    model = copy.deepcopy(rate["figures"]["model"])
    model["headline"]["false_positive_rate"] |= {"value": 0.009, "low": 0.004, "high": 0.016}
    rate["figures"] = rate["figures"] | {"model": model}
    found = of(gate.decide(rate, POLICY), "false_positive_rate")
    assert found.status == "insufficient" and "0.0160" in found.reason


def test_a_report_that_holds_nothing_is_insufficient() -> None:
    verdict = gate.decide({}, POLICY)
    assert verdict.status == "insufficient"
    assert {g.status for g in verdict.gates} == {"insufficient"}


def test_an_empty_test_split_is_insufficient() -> None:
    empty = metrics.evaluate(frame([], []), POLICY)
    nothing = report() | {"figures": {"model": empty, "floors": {"majority": empty}, "champion": None}}
    assert gate.decide(nothing, POLICY).status == "insufficient"


def test_a_failure_outweighs_what_is_missing() -> None:
    assert gate.decide(report(groups_across_splits=2, merge_agreement=None), POLICY).status == "fail"


def test_an_equal_model_passes_and_a_surely_worse_one_fails() -> None:
    assert gate.decide(report(champion=PERFECT), POLICY).passed
    worse = gate.decide(report(wrong(HARMLESS, FRAUD, 10), champion=PERFECT), POLICY)
    assert of(worse, "champion_cost").status == "fail"


def test_a_planted_regression_in_one_category_is_held_though_the_macro_f1_is_better() -> None:
    champion = wrong(HARMLESS, LURE, 100, wrong(HARMLESS, FRAUD, 10))  # finds no lure at all
    planted = wrong(HARMLESS, FRAUD, 60)  # finds them all, and loses a quarter of the frauds
    against = compared(TRUTH, planted, champion)
    assert against["category_macro_f1"]["low"] > 0.2, "by its averages the model is better"
    verdict = gate.decide(report(planted, champion=champion), POLICY)
    found = of(verdict, "champion_category_recall")
    assert (verdict.status, found.status) == ("fail", "fail")
    assert found.reason.startswith("诈骗") and found.n == 220


def test_more_harmless_posts_given_one_category_are_held() -> None:
    verdict = gate.decide(report(wrong(LURE, HARMLESS, 25), champion=PERFECT), POLICY)
    assert of(verdict, "champion_category_fpr").status == "fail"
    assert of(verdict, "champion_category_fpr").reason.startswith("私域引流")


def test_a_difference_that_the_posts_cannot_settle_asks_for_a_person() -> None:
    champion = wrong(HARMLESS, FRAUD, 3)
    other = tuple(HARMLESS if i in (3200, 3201, 3202) else true for i, true in enumerate(TRUTH))  # three other frauds
    verdict = gate.decide(report(other, champion=champion), POLICY)
    assert of(verdict, "champion_cost").status == "insufficient"
    assert of(verdict, "champion_cost").observed > 0, "the end of the interval, which is what the limit is for"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_category_of_few_posts_proves_nothing_whether_one_of_them_changes_or_none(lost: int) -> None:
    truth = (HARMLESS,) * 3100 + (FRAUD,) * 220 + (LURE,)
    answers = (*truth[:-1], HARMLESS) if lost else truth
    verdict = gate.decide(report(answers, champion=truth, truth=truth), POLICY)
    found = of(verdict, "champion_category_recall")
    assert found.status == "insufficient" and found.reason.startswith("私域引流：只有 1 帖，至少要 30 帖")
    assert "没有测试帖的类别：" in found.reason and "暴恐" in found.reason
    wide = replace(POLICY, gates=POLICY.gates | {"min_category_posts": 1})
    assert of(gate.decide(report(answers, champion=truth, truth=truth), wide), "champion_category_recall").status == (
        "fail" if lost else "pass"
    )


def test_a_category_of_few_posts_that_is_lost_altogether_fails_all_the_same() -> None:
    truth = (HARMLESS,) * 3100 + (FRAUD,) * 220 + (LURE,) * 12
    lost = (*truth[:-12], *(HARMLESS,) * 12)
    found = of(gate.decide(report(lost, champion=truth, truth=truth), POLICY), "champion_category_recall")
    assert found.status == "fail" and found.n == 12 and found.reason.startswith("私域引流")


def test_an_error_of_calibration_that_chance_alone_would_show_asks_for_a_person() -> None:
    def found(value: float, low: float, chance: float) -> gate.Gate:
        given = copy.deepcopy(report())
        model = given["figures"]["model"]
        model["headline"]["ece"] = {**figure(value, 285), "low": low, "high": 0.2}
        model["calibration"]["category"]["ece_if_calibrated"] = chance
        return of(gate.decide(given, POLICY), "ece")

    assert found(0.07, 0.01, 0.06).status == "insufficient" and "0.0600" in found(0.07, 0.01, 0.06).reason
    assert found(0.07, 0.01, 0.03).status == "fail", "enough posts to tell"
    assert found(0.3, 0.2, 0.06).status == "fail", "surely more than chance"
    assert found(0.04, 0.01, 0.06).status == "pass"


def test_a_disguise_that_could_not_be_made_is_passed_by_no_other() -> None:
    given = report(
        evasion={"unmade": {"text_in_image": "no font"}, "transforms": {"text_in_image": {"chinese": "图中文字"}}}
    )
    found = [g for g in gate.decide(given, POLICY).gates if g.name.startswith("evasion")]
    assert {g.status for g in found} == {"insufficient"} and all("图中文字（no font）" in g.reason for g in found)
    given["evasion"]["worst_retention"] = figure(0.7, 40)
    assert of(gate.decide(given, POLICY), "evasion_worst_retention").status == "fail"


def test_a_champion_that_answers_categories_that_are_no_more_is_not_compared_by_category() -> None:
    given = report(champion=PERFECT) | {"notes": {gate.CHAMPION_CATEGORIES: "在用模型还会回答博彩"}}
    verdict = gate.decide(given, POLICY)
    assert of(verdict, "champion_cost").status == "pass", "what a mistake costs goes by the verdict"
    for name in ("champion_category_recall", "champion_category_fpr"):
        assert of(verdict, name).status == "insufficient" and "博彩" in of(verdict, name).reason


def test_a_stored_verdict_is_judged_by_its_gates_and_not_by_what_its_status_claims() -> None:
    stored = gate.decide(report(groups_across_splits=3), POLICY).as_dict()
    edited = {**copy.deepcopy(stored), "status": "pass"}
    assert gate.GateVerdict.from_dict(stored).status == "fail"
    assert not gate.GateVerdict.from_dict(edited).passed


def test_a_verdict_without_gates_does_not_pass() -> None:
    assert gate.GateVerdict.from_dict({"status": "pass", "gates": []}).status == "insufficient"
