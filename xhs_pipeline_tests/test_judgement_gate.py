"""When a model may be released, and that a number nobody measured never lets it through."""

import copy

import pytest

from xhs_pipeline.judgement import gate, metrics
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, POLICY, frame

TRUTH = [HARMLESS] * 4 + [FRAUD] * 4 + [LURE] * 2
GOOD = [HARMLESS] * 4 + [FRAUD] * 4 + [HARMLESS, LURE]


def report(answers=GOOD, champion=None, **context):
    figures = {
        "model": metrics.evaluate(frame(TRUTH, answers), POLICY),
        "floors": {"majority": metrics.evaluate(frame(TRUTH, [HARMLESS] * 10), POLICY)},
        "champion": metrics.evaluate(frame(TRUTH, champion), POLICY) if champion else None,
    }
    agreement = metrics.figure(1.0, 64)
    return {
        "figures": figures,
        "context": {
            "groups_across_splits": 0,
            "merge_agreement": agreement,
            "champion_version": "old" if champion else None,
            **context,
        },
    }


def status_of(verdict: gate.GateVerdict, name: str) -> str:
    return next(g.status for g in verdict.gates if g.name == name)


def test_a_sound_first_model_passes_every_gate():
    verdict = gate.decide(report(), POLICY)
    assert verdict.status == "pass", verdict.summary
    assert verdict.passed


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("groups_across_splits", {"groups_across_splits": 1}),
        ("merge_agreement", {"merge_agreement": metrics.figure(0.99, 200)}),
    ],
)
def test_a_leaking_split_or_a_bad_merge_fails(name, context):
    verdict = gate.decide(report(**context), POLICY)
    assert verdict.status == "fail"
    assert status_of(verdict, name) == "fail"
    assert name in verdict.summary


def test_more_unusable_answers_than_the_policy_allows_fail():
    verdict = gate.decide(report([None, *GOOD[1:]]), POLICY)
    assert status_of(verdict, "invalid_share") == "fail"


def test_a_model_that_answers_pass_to_everything_is_held_even_on_a_test_set_that_flatters_it():
    verdict = gate.decide(report([HARMLESS] * 10), POLICY)
    assert verdict.status == "fail"
    assert status_of(verdict, "distinct_verdicts") == "fail"
    assert status_of(verdict, "above_majority_floor") == "fail"


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("groups_across_splits", {"groups_across_splits": None}),
        ("merge_agreement", {"merge_agreement": None}),
        ("merge_agreement", {"merge_agreement": metrics.figure(None, 0, "no probe posts")}),
        ("champion_category_macro_f1", {"champion_version": "old"}),
    ],
)
def test_a_missing_number_is_insufficient_and_never_a_pass(name, context):
    verdict = gate.decide(report(**context), POLICY)
    assert verdict.status == "insufficient"
    assert status_of(verdict, name) == "insufficient"


def test_a_report_that_holds_nothing_is_insufficient():
    verdict = gate.decide({}, POLICY)
    assert verdict.status == "insufficient"
    assert {g.status for g in verdict.gates} == {"insufficient"}


def test_an_empty_test_split_is_insufficient():
    empty = metrics.evaluate(frame([], []), POLICY)
    judged = report()
    judged["figures"] = {"model": empty, "floors": {"majority": empty}, "champion": None}
    assert gate.decide(judged, POLICY).status == "insufficient"


def test_a_failure_outweighs_what_is_missing():
    assert gate.decide(report(groups_across_splits=2, merge_agreement=None), POLICY).status == "fail"


def test_a_model_below_the_model_in_use_fails_and_an_equal_one_passes():
    worse = gate.decide(report(GOOD, champion=TRUTH), POLICY)
    assert status_of(worse, "champion_category_macro_f1") == "fail"
    assert status_of(worse, "champion_cost_per_1000") == "fail"
    assert gate.decide(report(GOOD, champion=GOOD), POLICY).status == "pass"


def test_a_better_macro_f1_does_not_buy_a_higher_cost():
    # misses one fraud (50) instead of two lures (2 each), and gets both lures right
    answers = [HARMLESS] * 4 + [HARMLESS] + [FRAUD] * 3 + [LURE] * 2
    champion = [HARMLESS] * 4 + [FRAUD] * 4 + [HARMLESS] * 2
    verdict = gate.decide(report(answers, champion=champion), POLICY)
    assert status_of(verdict, "champion_category_macro_f1") == "pass"
    assert status_of(verdict, "champion_cost_per_1000") == "fail"


def test_a_stored_verdict_is_judged_by_its_gates_and_not_by_what_its_status_claims():
    stored = gate.decide(report(groups_across_splits=3), POLICY).as_dict()
    edited = {**copy.deepcopy(stored), "status": "pass"}
    assert gate.GateVerdict.from_dict(stored).status == "fail"
    assert not gate.GateVerdict.from_dict(edited).passed


def test_a_verdict_without_gates_does_not_pass():
    assert gate.GateVerdict.from_dict({"status": "pass", "gates": []}).status == "insufficient"
