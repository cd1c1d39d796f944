"""Which appeals become labels, and what those labels do to posts."""

from typing import Any

import pyarrow as pa
import pytest

from xhs_pipeline.appeals.outcomes import OUTCOMES, Derived, apply_outcomes, derive_outcomes, effective_digest
from xhs_pipeline.posts.schema import UNIQUE_POSTS
from xhs_pipeline_tests.test_appeals_events import POLICY, event, lines, parse


def derive(*events: dict[str, Any]) -> Derived:
    log = parse(lines(*events))
    assert log.quarantine.num_rows == 0
    return derive_outcomes(log.events, POLICY)


def labels(derived: Derived) -> dict[str, tuple[str, str, str]]:
    return {row["post_id"]: (row["outcome"], row["verdict"], row["category"]) for row in derived.outcomes.to_pylist()}


def reasons(derived: Derived) -> list[str]:
    return derived.quarantine["reason"].to_pylist()


def posts(**rows: tuple[str, str]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "post_id": post_id,
                "images": [{"bytes": b"jpeg", "path": "a.jpg"}],
                "verdict": verdict,
                "category": category,
                "severity": POLICY.severity(category),
                "rationale": "说要转账",
                "label_source": "source",
            }
            for post_id, (verdict, category) in rows.items()
        ],
        schema=UNIQUE_POSTS,
    )


def test_an_upheld_decision_stands_an_overturned_one_makes_the_post_harmless_a_modified_one_brings_its_own():
    got = derive(
        event(1),
        event(2, "upheld"),
        event(3, appeal="a-2", post="p-2"),
        event(4, "overturned", appeal="a-2", post="p-2"),
        event(5, appeal="a-3", post="p-3"),
        event(6, "modified", appeal="a-3", post="p-3", verdict="需要修改", category="虚假宣传"),
    )
    assert labels(got) == {
        "p-1": ("upheld", "remove", "诈骗"),
        "p-2": ("overturned", "pass", "正常"),
        "p-3": ("modified", "needs_edit", "虚假宣传"),
    }
    assert got.outcomes["severity"].to_pylist() == [3, 0, 1]
    assert got.outcomes["event_id"].to_pylist() == [2, 4, 6]
    assert got.outcomes.schema.equals(OUTCOMES)


def test_an_open_appeal_gives_no_label_and_no_fault():
    got = derive(event(1))
    assert got.outcomes.num_rows == 0 and got.quarantine.num_rows == 0


@pytest.mark.parametrize("closing", ["withdrawn", "expired"])
@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_a_withdrawn_or_expired_appeal_never_becomes_a_label(closing: str, order: tuple[int, int]):
    got = derive(event(1), event(order[0], "overturned"), event(order[1], closing))
    assert got.outcomes.num_rows == 0


def test_the_latest_adjudication_of_an_appeal_counts_whatever_order_the_lines_are_in():
    got = derive(event(9, "overturned"), event(1), event(4, "upheld"))
    assert labels(got)["p-1"] == ("overturned", "pass", "正常")


def test_of_two_appeals_about_one_post_the_latest_adjudication_wins_and_the_other_is_counted():
    got = derive(event(1), event(2, appeal="a-2"), event(3, "overturned", appeal="a-2"), event(4, "upheld"))
    assert labels(got) == {"p-1": ("upheld", "remove", "诈骗")}
    assert reasons(got) == ["superseded"]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event(2, "upheld")], "not_filed"),
        ([event(1, "overturned"), event(2)], "not_filed"),
        ([event(1), event(2, "upheld", post="p-other")], "other_post"),
        ([event(1, verdict=None, category=None), event(2, "upheld")], "label_missing"),
        ([event(1), event(2, "modified")], "label_missing"),
        ([event(1), event(2, "modified", verdict="remove", category="正常")], "label_not_allowed"),
        ([event(1), event(2, "modified", verdict="remove", category="外星人")], "label_not_allowed"),
        ([event(1, verdict="外星结论"), event(2, "upheld")], "label_not_allowed"),
    ],
)
def test_an_adjudication_that_cannot_be_a_label_is_counted_with_its_reason(events: list, reason: str):
    got = derive(*events)
    assert got.outcomes.num_rows == 0
    assert reasons(got) == [reason]
    assert "event " in got.quarantine["detail"].to_pylist()[0]


def test_a_refused_adjudication_shows_labels_of_the_policy_and_of_others_only_their_length():
    phone = "13800138000"
    got = derive(
        event(1, appeal=phone),
        event(2, "modified", appeal=phone, verdict="remove", category=f"打{phone}"),
        event(3, appeal="b", post="p-2"),
        event(4, "upheld", appeal="b", post="p-2"),
        event(5, appeal=phone + "0", post="p-2"),
        event(6, "overturned", appeal=phone + "0", post="p-2"),
    )
    refused, superseded = got.quarantine["detail"].to_pylist()
    assert "line 2, event 2: " in refused and "'remove' with an unknown value of 12 characters" in refused
    assert "one of 正常" in refused and "event 4 gives way to event 6" in superseded
    assert phone not in refused + superseded


def test_an_unusable_latest_adjudication_is_not_replaced_by_an_earlier_one():
    got = derive(event(1), event(2, "overturned"), event(3, "modified", verdict="remove", category="正常"))
    assert got.outcomes.num_rows == 0


def test_no_events_give_empty_tables():
    got = derive()
    assert got.outcomes.num_rows == 0 and got.outcomes.schema.equals(OUTCOMES)


def test_the_digest_is_the_same_after_a_replay_and_changes_with_every_label():
    first = derive(
        event(1), event(2, "upheld"), event(3, appeal="b", post="p-2"), event(4, "upheld", appeal="b", post="p-2")
    )
    shuffled = first.outcomes.take([1, 0])
    assert effective_digest(first.outcomes) == effective_digest(shuffled)
    later = derive(
        event(1), event(2, "upheld"), event(3, appeal="b", post="p-2"), event(4, "overturned", appeal="b", post="p-2")
    )
    assert effective_digest(first.outcomes) != effective_digest(later.outcomes)
    assert effective_digest(first.outcomes) != effective_digest(first.outcomes.slice(0, 1))
    assert len(effective_digest(derive().outcomes)) == 64


def test_a_corrected_post_carries_the_decided_label_and_loses_the_rationale_that_fell():
    outcomes = derive(
        event(1), event(2, "overturned"), event(3, appeal="b", post="p-2"), event(4, "upheld", appeal="b", post="p-2")
    ).outcomes
    table = posts(**{"p-1": ("remove", "诈骗"), "p-2": ("remove", "诈骗"), "p-3": ("pass", "正常")})
    got = apply_outcomes(table, outcomes)
    rows = {row["post_id"]: row for row in got.posts.to_pylist()}
    assert (rows["p-1"]["verdict"], rows["p-1"]["category"], rows["p-1"]["severity"]) == ("pass", "正常", 0)
    assert rows["p-1"]["rationale"] is None
    assert rows["p-2"]["rationale"] == "说要转账"
    assert [rows[p]["label_source"] for p in ("p-1", "p-2", "p-3")] == ["appeal", "appeal", "source"]
    assert (got.named, got.changed, got.missing) == (2, 1, 0)
    assert got.posts.schema.equals(table.schema)
    assert got.posts["images"].equals(table["images"])


def test_outcomes_about_posts_that_are_not_here_are_counted():
    outcomes = derive(event(1), event(2, "overturned")).outcomes
    got = apply_outcomes(posts(**{"p-9": ("remove", "诈骗")}), outcomes)
    assert (got.named, got.changed, got.missing) == (0, 0, 1)
    assert got.posts["verdict"].to_pylist() == ["remove"]
