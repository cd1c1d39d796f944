"""When appeals ask for a new model: enough new adjudications, once for the same evidence, never beside another run."""

import dataclasses

from xhs_pipeline.appeals.decision import decide_retrain
from xhs_pipeline.appeals.outcomes import effective_digest
from xhs_pipeline_tests.test_appeals_events import POLICY, event
from xhs_pipeline_tests.test_appeals_outcomes import derive

THREE = dataclasses.replace(POLICY, appeals={"min_adjudicated": 3})


def outcomes(count: int, first: int = 0):
    events = []
    for i in range(first, first + count):
        name = {"appeal": f"a-{i}", "post": f"p-{i}"}
        events += [event(2 * i + 1, **name), event(2 * i + 2, "overturned", **name)]
    return derive(*events).outcomes


def test_too_few_adjudications_wait_and_the_reason_says_the_numbers():
    decision = decide_retrain(outcomes(14), [], POLICY, running=False)
    assert not decision.run and decision.run_key is None
    assert decision.reason == "14 of 20 adjudicated: waiting for 6 more"
    assert decision.cursor == 28


def test_enough_adjudications_run_under_the_digest_of_their_labels():
    table = outcomes(3)
    decision = decide_retrain(table, [], THREE, running=False)
    assert decision.run
    assert decision.run_key == f"appeals-{effective_digest(table)}"
    assert decision.reason == "3 of 3 adjudicated: retraining"


def test_what_a_model_was_trained_on_does_not_count_again():
    table = outcomes(5)
    trained = table["event_id"].to_pylist()[:3]
    decision = decide_retrain(table, trained, THREE, running=False)
    assert not decision.run
    assert decision.reason.startswith("2 of 3 adjudicated")
    assert decide_retrain(table, trained[:2], THREE, running=False).run


def test_a_decision_that_was_changed_on_review_is_new_evidence():
    before = derive(event(1), event(2, "upheld")).outcomes
    after = derive(event(1), event(2, "upheld"), event(3, "overturned")).outcomes
    one = dataclasses.replace(POLICY, appeals={"min_adjudicated": 1})
    assert not decide_retrain(before, [2], one, running=False).run
    assert decide_retrain(after, [2], one, running=False).run


def test_nothing_runs_beside_a_run_and_the_evidence_waits_for_it():
    waiting = decide_retrain(outcomes(3), [], THREE, running=True)
    assert not waiting.run
    assert "under way" in waiting.reason
    assert decide_retrain(outcomes(3), [], THREE, running=False, cursor=waiting.cursor).run


def test_a_replay_or_a_second_daemon_asks_for_the_same_run():
    table = outcomes(4)
    first = decide_retrain(table, [], THREE, running=False)
    again = decide_retrain(table.take([3, 1, 0, 2]), [], THREE, running=False, cursor=first.cursor)
    assert first == again


def test_the_cursor_never_goes_back():
    assert decide_retrain(outcomes(2), [], THREE, running=False, cursor=99).cursor == 99
    assert decide_retrain(outcomes(0), [], THREE, running=False).cursor == 0
