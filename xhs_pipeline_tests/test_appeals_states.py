"""What state a case is in after which events: a table, since every order that two services or a file can bring is decided."""

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from xhs_pipeline.appeals.rules import Limits, burst, over_cap
from xhs_pipeline.appeals.states import CaseState, adjudication, case_state, reviewers_needed
from xhs_pipeline_tests.test_appeals_events import POLICY, event, lines, parse

PASSING = {"verdict": "pass", "category": "正常"}
FRAUD = {"category": "诈骗"}


def state_of(*events: dict[str, Any], flag: str | None = None) -> CaseState:
    rows = parse(lines(*events)).events.to_pylist()
    for row in rows:
        row["flag"] = flag if row["kind"] == "filed" else None
    return case_state(rows, POLICY)


def vote(event_id: int, judge: str, **label: Any) -> dict[str, Any]:
    return event(event_id, "voted", actor=judge, **({"verdict": "remove", "category": "私域引流"} | label))


def withdrawn(event_id: int, by: str | None = "person-1") -> dict[str, Any]:
    return event(event_id, "withdrawn", actor=by)


def settled(event_id: int, kind: str) -> dict[str, Any]:
    return event(event_id, kind, actor=None)


TABLE: list[tuple[str, list[dict[str, Any]], str | None, list[str]]] = [
    ("nothing but its filing", [event(1)], "filed", []),
    ("an audit", [event(1, "sampled")], "sampled", []),
    ("looked at", [event(1), event(2, "triaged")], "triaged", []),
    ("looked at twice", [event(1), event(2, "triaged"), event(3, "triaged")], "triaged", ["repeated"]),
    ("one of two votes", [event(1, **FRAUD), vote(2, "a", **PASSING)], "voted", []),
    ("a vote told twice", [event(1, **FRAUD), vote(2, "a", **PASSING), vote(3, "a", **PASSING)], "voted", ["repeated"]),
    ("one reviewer is not two", [event(1, **FRAUD), vote(2, "a", **PASSING), event(3, "overturned", actor="a")], "voted", []),
    ("two who agree", [event(1, **FRAUD), vote(2, "a", **PASSING), event(3, "overturned", actor="b")], "overturned", []),
    ("two who do not", [event(1, **FRAUD), vote(2, "a", **PASSING), vote(3, "b", **FRAUD)], "escalated", []),
    ("two of three", [event(1, **FRAUD), vote(2, "a", **PASSING), vote(3, "b", **FRAUD), vote(4, "c", **PASSING)], "escalated", []),
    ("come to agree", [event(1, **FRAUD), vote(2, "a", **PASSING), vote(3, "b", **FRAUD), event(4, "upheld", actor="a")], "upheld", []),
    ("a wrong claim does not decide", [event(1, **FRAUD), event(2, "overturned", actor="a")], "voted", []),
    ("decided", [event(1), event(2, "upheld")], "upheld", []),
    ("decided, told again", [event(1), event(2, "upheld", actor="a"), event(3, "upheld", actor="a")], "upheld", ["repeated"]),
    ("decided, confirmed", [event(1), event(2, "upheld", actor="a"), event(3, "upheld", actor="b")], "upheld", ["repeated"]),
    ("decided, contradicted", [event(1), event(2, "upheld", actor="a"), event(3, "overturned", actor="b")], "escalated", []),
    ("decided, corrected", [event(1), event(2, "upheld", actor="a"), event(3, "overturned", actor="a")], "overturned", []),
    ("decided, unsaid", [event(1), event(2, "upheld", actor="a"), vote(3, "a", **PASSING)], "voted", []),
    ("withdrawn", [event(1), withdrawn(2)], "withdrawn", []),
    ("withdrawn after it was decided", [event(1), event(2, "upheld"), withdrawn(3)], "withdrawn", []),
    ("decided after it was withdrawn", [event(1), withdrawn(2), event(3, "upheld")], "withdrawn", ["after_closing"]),
    ("withdrawn before it was filed", [withdrawn(1, "person-2"), event(2), event(3, "upheld")], "withdrawn", ["after_closing"]),
    ("withdrawn, then expired", [event(1), withdrawn(2), event(3, "expired")], "withdrawn", ["repeated"]),
    ("withdrawn by a stranger", [event(1), event(2, "upheld"), withdrawn(3, "stranger")], "upheld", ["not_the_appellant"]),
    ("withdrawn by nobody", [event(1), withdrawn(2, None)], "filed", ["not_the_appellant"]),
    ("withdrawn by a stranger first", [withdrawn(1, "stranger"), event(2), event(3, "upheld")], "upheld", ["not_the_appellant"]),
    ("another post withdrawn", [event(1), event(2, "upheld"), withdrawn(3) | {"post_id": "p-2"}], "upheld", ["other_post"]),
    ("another post expired", [event(1), event(2, "expired", post="p-2")], "filed", ["other_post"]),
    ("withdrawn where nobody is known to have filed", [event(1, actor=None), withdrawn(2, "li")], "withdrawn", []),
    ("expired", [event(1), event(2, "expired")], "expired", []),
    ("decided before it was filed", [event(1, "upheld"), event(2)], "filed", ["not_filed"]),
    ("never filed", [event(1, "upheld")], None, ["not_filed"]),
    ("filed twice", [event(1), event(2)], "filed", ["repeated"]),
    ("filed and sampled", [event(1), event(2, "sampled")], "filed", ["repeated"]),
    ("about another post", [event(1), event(2, "upheld", post="p-2")], "filed", ["other_post"]),
    ("by nobody", [event(1), event(2, "upheld", actor=None), event(3, "triaged", actor=None)], "filed", ["reviewer_unknown"] * 2),
    ("by the appellant", [event(1, actor="wang"), event(2, "overturned", actor="wang")], "filed", ["own_appeal"]),
    ("by who decided first", [event(1, decided_by="li"), event(2, "upheld", actor="li")], "filed", ["own_decision"]),
    ("with a label that is none", [event(1), vote(2, "a", verdict="pass")], "voted", []),
    ("an audit that finds nothing", [event(1, "sampled"), event(2, "upheld")], "upheld", []),
    ("an audit that finds fraud", [event(1, "sampled"), event(2, "modified", verdict="remove", **FRAUD)], "modified", []),
    ("an audit cannot overturn a pass", [event(1, "sampled"), event(2, "overturned")], "voted", []),
]  # fmt: skip


@pytest.mark.parametrize(("events", "state", "ignored"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_state_and_what_is_ignored_follow_from_the_events(
    events: list[dict[str, Any]], state: str | None, ignored: list[str]
) -> None:
    case = state_of(*events)
    assert case.state == state
    assert [reason for _, reason in case.ignored] == ignored
    assert (case.label is not None) == (state in ("upheld", "overturned", "modified"))
    assert set(case.event_ids) | {event_id for event_id, _ in case.ignored} == {e["event_id"] for e in events}


def test_the_order_in_which_events_are_given_does_not_matter_their_ids_do() -> None:
    events = [event(1, **FRAUD), vote(2, "a", **PASSING), event(3, "overturned", actor="b"), withdrawn(4)]
    assert len({repr(state_of(*given)) for given in itertools.permutations(events)}) == 1


def test_an_appeal_that_came_in_a_burst_counts_no_vote_before_a_reviewer_took_it_up() -> None:
    votes = [event(1), event(2, "upheld", actor="a")]
    case = state_of(*votes, flag="group_burst")
    assert (case.state, case.ignored, case.waits_for_triage) == ("filed", ((2, "not_triaged"),), True)
    case = state_of(*votes, event(3, "triaged", actor="b"), event(4, "upheld", actor="a"), flag="group_burst")
    assert (case.state, case.label) == ("upheld", ("remove", "私域引流"))


def test_what_the_system_writes_down_counts_only_with_the_votes_for_it() -> None:
    def system(*events: dict[str, Any]) -> str | None:
        rows = parse(lines(*events)).events.to_pylist()
        rows[-1]["actor_role"] = "system"
        return case_state(rows, POLICY).state

    assert system(event(1), settled(2, "overturned")) == "filed"
    assert system(event(1), vote(2, "a"), settled(3, "upheld")) == "upheld"
    assert system(event(1), vote(2, "a"), settled(3, "overturned")) == "voted"
    assert system(event(1, **FRAUD), vote(2, "a", **PASSING), settled(3, "overturned")) == "voted"


def test_lowering_severity_3_in_any_way_takes_two_reviewers_and_all_else_one() -> None:
    fraud, mild, fine = ("remove", "诈骗"), ("needs_edit", "虚假宣传"), ("pass", "正常")
    needed = {
        (fraud, fine): 2, (fraud, mild): 2, (fraud, ("needs_edit", "赌博")): 1, (fraud, fraud): 1, (mild, fine): 1,
        (fine, fraud): 1, ((None, None), fine): 2, ((None, None), fraud): 1,
    }  # fmt: skip
    assert {pair: reviewers_needed(*pair, POLICY) for pair in needed} == needed
    assert [adjudication(mild, label, POLICY) for label in (mild, fine, fraud)] == ["upheld", "overturned", "modified"]
    assert adjudication(fine, fine, POLICY) == "upheld"


def test_caps_and_bursts_are_counted_at_any_time_that_there_is():
    limits = Limits.of(POLICY.appeals)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    for now, earlier in ((first, [first] * 1000), (last, [last] * 1000), (first, [last] * 1000)):
        assert (over_cap(limits, now, earlier, []), burst(limits, now, [], earlier)) == ("author_cap", "group_burst")
    assert over_cap(limits, last, [first] * 1000, [first] * 1000) is None
