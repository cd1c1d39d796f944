"""When appeals ask for a new model: enough of both kinds of evidence, once for the same, never beside another run or too soon."""

import dataclasses
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from xhs_pipeline.appeals.decision import RetrainDecision, decide_retrain
from xhs_pipeline.appeals.evidence import Evidence
from xhs_pipeline.appeals.outcomes import effective_digest
from xhs_pipeline_tests.test_appeals_events import POLICY, event
from xhs_pipeline_tests.test_appeals_outcomes import derive

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def policy(adjudicated: int, audit: int, ratio: float = 0) -> Any:
    return dataclasses.replace(
        POLICY,
        appeals=POLICY.appeals
        | {"min_adjudicated": adjudicated, "min_audit": audit, "audits_per_appeal": ratio, "cooldown_hours": 24},
    )


THREE_AND_TWO = policy(3, 2)


def outcomes(appeals: int, audits: int = 0) -> pa.Table:
    """Appeals get the events 1 to 2 * appeals, audits those after them; the second of each two decides."""
    events = []
    for i in range(appeals + audits):
        name = {"appeal": f"c-{i}", "post": f"p-{i}"}
        events += [event(2 * i + 1, "filed" if i < appeals else "sampled", **name), event(2 * i + 2, "upheld", **name)]
    return derive(*events).outcomes


def decide(
    table: pa.Table, trained: Collection[int] = (), rules: Any = THREE_AND_TWO, running: bool = False, **more: Any
) -> RetrainDecision:
    evidence = Evidence(table, more.pop("missing", 0), more.pop("edited", 0))
    settings = {"largest_event_id": max(table["event_id"].to_pylist(), default=0), "now": NOW} | more
    return decide_retrain(evidence, trained, rules, running=running, **settings)


def test_too_little_evidence_waits_and_the_reason_says_the_numbers_of_both_kinds():
    decision = decide(outcomes(14, 3), rules=policy(50, 20))
    assert not decision.run and decision.run_key is None
    assert decision.reason == (
        "14 of 50 adjudicated, 3 of 20 audit: waiting for 36 more decided appeals and 17 more decided audit cases"
    )
    assert decision.cursor == 34


def test_appeals_alone_never_run_however_many_they_are():
    decision = decide(outcomes(500))
    assert not decision.run
    assert decision.reason == "500 of 3 adjudicated, 0 of 2 audit: waiting for 2 more decided audit cases"
    assert decide(outcomes(0, 500)).reason.endswith("waiting for 3 more decided appeals")


def test_the_more_appeals_were_decided_the_more_audits_it_takes():
    rules = policy(3, 2, ratio=1.25)
    assert decide(outcomes(10, 12), rules=rules).reason == (
        "10 of 3 adjudicated, 12 of 13 audit: waiting for 1 more decided audit case"
    )
    assert decide(outcomes(10, 13), rules=rules).run
    assert decide(outcomes(10, 13), trained=range(1, 3), rules=rules).reason.startswith("9 of 3 adjudicated, 13 of 12")


def test_enough_evidence_runs_under_the_digest_of_its_labels():
    table = outcomes(3, 2)
    decision = decide(table)
    assert decision.run
    assert decision.run_key == f"appeals-{effective_digest(table)}"
    assert decision.reason == "3 of 3 adjudicated, 2 of 2 audit: retraining"


def test_what_a_model_was_trained_on_does_not_count_again():
    table = outcomes(5, 2)
    appeals = table.filter(pa.array([kind == "appeal" for kind in table["case_kind"].to_pylist()]))[
        "event_id"
    ].to_pylist()
    decision = decide(table, trained=appeals[:3])
    assert not decision.run
    assert decision.reason.startswith("2 of 3 adjudicated, 2 of 2 audit")
    assert decide(table, trained=appeals[:2]).run


def test_a_decision_that_its_reviewer_corrected_is_new_evidence():
    one = policy(1, 0)
    before = derive(event(1), event(2, "upheld", actor="judge")).outcomes
    after = derive(event(1), event(2, "upheld", actor="judge"), event(3, "overturned", actor="judge")).outcomes
    assert not decide(before, [2], one).run
    assert decide(after, [2], one).run


def test_nothing_runs_beside_a_run_and_the_evidence_waits_for_it():
    waiting = decide(outcomes(3, 2), running=True)
    assert not waiting.run
    assert "under way" in waiting.reason
    assert decide(outcomes(3, 2), cursor=waiting.cursor).run


def test_the_cool_down_is_waited_for_and_the_reason_says_until_when():
    decision = decide(outcomes(3, 2), last_asked=NOW - timedelta(hours=23))
    assert not decision.run
    assert decision.reason == "3 of 3 adjudicated, 2 of 2 audit: enough, cooling down until 2026-03-02 13:00 UTC"
    assert decide(outcomes(3, 2), last_asked=NOW - timedelta(hours=24)).run


def test_a_clock_that_was_set_back_delays_by_the_cool_down_and_not_for_ever():
    assert not decide(outcomes(3, 2), last_asked=NOW + timedelta(hours=23)).run
    assert decide(outcomes(3, 2), last_asked=NOW + timedelta(days=365)).run


def test_a_replay_or_a_second_daemon_asks_for_the_same_run():
    table = outcomes(4, 2)
    first = decide(table)
    again = decide(table.take([5, 3, 1, 0, 2, 4]), cursor=first.cursor)
    assert first == again


def test_the_cursor_is_the_largest_event_read_and_never_goes_back():
    assert decide(outcomes(2), largest_event_id=77).cursor == 77
    assert decide(outcomes(2), cursor=99).cursor == 99
    assert decide(outcomes(0)).cursor == 0


def test_evidence_that_cannot_be_trained_on_is_said_with_what_to_do():
    reason = decide(outcomes(2, 2), missing=4, edited=1).reason
    assert "2 of 3 adjudicated" in reason
    assert "4 about posts that are not there and 1 about posts that were edited since not counted" in reason
    assert "unique_posts" in reason
