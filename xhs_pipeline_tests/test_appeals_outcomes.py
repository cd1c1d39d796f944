"""Which appeals become labels, and what those labels do to posts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from xhs_pipeline.appeals.evidence import as_judged, evidence
from xhs_pipeline.appeals.outcomes import (
    OUTCOMES,
    Derived,
    apply_outcomes,
    derive_outcomes,
    effective_digest,
    follow_duplicates,
    label_provenance,
)
from xhs_pipeline.appeals.records import Content, Snapshot
from xhs_pipeline.posts.schema import UNIQUE_POSTS
from xhs_pipeline_tests.splits import jpeg, posts_folder
from xhs_pipeline_tests.splits import post as unique_post
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
        "p-1": ("upheld", "remove", "私域引流"),
        "p-2": ("overturned", "pass", "正常"),
        "p-3": ("modified", "needs_edit", "虚假宣传"),
    }
    assert got.outcomes["severity"].to_pylist() == [1, 0, 1]
    assert got.outcomes["event_id"].to_pylist() == [2, 4, 6]
    assert got.outcomes.schema.equals(OUTCOMES)


def test_an_open_appeal_gives_no_label_and_no_fault():
    got = derive(event(1))
    assert got.outcomes.num_rows == 0 and got.quarantine.num_rows == 0


@pytest.mark.parametrize("closing", ["withdrawn", "expired"])
@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_a_withdrawn_or_expired_appeal_never_becomes_a_label(closing: str, order: tuple[int, int]):
    got = derive(event(1), event(order[0], "overturned"), event(order[1], closing, actor="person-1"))
    assert got.outcomes.num_rows == 0


def test_a_reviewers_own_correction_counts_whatever_order_the_lines_are_in():
    got = derive(event(9, "overturned", actor="judge"), event(1), event(4, "upheld", actor="judge"))
    assert labels(got)["p-1"] == ("overturned", "pass", "正常")
    assert got.outcomes["event_ids"].to_pylist() == [[1, 4, 9]]


def test_reviewers_who_decide_one_appeal_differently_give_no_label():
    got = derive(event(1), event(4, "upheld"), event(9, "overturned"))
    assert got.outcomes.num_rows == 0
    assert reasons(got) == ["reviewers_disagree"]


def test_of_two_appeals_about_one_post_the_latest_adjudication_wins_and_the_other_is_counted():
    got = derive(event(1), event(2, appeal="a-2"), event(3, "overturned", appeal="a-2"), event(4, "upheld"))
    assert labels(got) == {"p-1": ("upheld", "remove", "私域引流")}
    assert reasons(got) == ["superseded"]


def test_two_appeals_against_one_decision_that_end_differently_are_a_disagreement():
    one, two = {"decision_id": "d-1"}, {"decision_id": "d-1", "appeal": "a-2"}
    ended = [event(3, "overturned", appeal="a-2"), event(4, "upheld")]
    got = derive(event(1, **one), event(2, **two), *ended)
    assert got.outcomes.num_rows == 0
    assert reasons(got) == ["reviewers_disagree", "reviewers_disagree"]
    agreed = derive(event(1, **one), event(2, **two), event(3, "upheld", appeal="a-2"), event(4, "upheld"))
    assert labels(agreed)["p-1"] == ("upheld", "remove", "私域引流")


def test_where_a_file_does_not_tell_the_content_one_reviewer_takes_back_no_severe_label_of_the_post():
    upheld = [event(1, category="诈骗"), event(2, "upheld", actor="han")]
    one = [event(3, appeal="a-2"), event(4, "overturned", appeal="a-2", actor="bo")]
    got = derive(*upheld, *one)
    assert got.outcomes.num_rows == 0 and reasons(got) == ["reviewers_disagree"] * 2
    two = [event(3, appeal="a-2", category="诈骗"), event(5, "overturned", appeal="a-2", actor="cy")]
    voted = event(4, "voted", appeal="a-2", actor="bo", verdict="pass", category="正常")
    got = derive(*upheld, *two, voted)
    assert labels(got) == {"p-1": ("overturned", "pass", "正常")} and reasons(got) == ["superseded"]


def test_of_outcomes_about_copies_of_a_post_the_latest_stands_unless_it_alone_takes_back_a_severe_one():
    severe, mild = (
        [event(n, appeal=f"a-{n}", post=post, category=category), event(n + 1, "upheld", appeal=f"a-{n}", post=post)]
        for n, post, category in ((1, "copy", "诈骗"), (3, "kept", "私域引流"))
    )
    kept_for = {"copy": "kept"}
    assert follow_duplicates(derive(*severe, *mild).outcomes, kept_for).num_rows == 0
    graver = [event(5, appeal="a-5", post="copy", category="诈骗"), event(6, "upheld", appeal="a-5", post="copy")]
    followed = follow_duplicates(derive(*mild, *graver).outcomes, kept_for)
    assert followed.select(["post_id", "category"]).to_pylist() == [{"post_id": "kept", "category": "诈骗"}]


def test_of_one_persons_appeals_against_one_decision_the_first_counts():
    got = derive(
        event(1, actor="wang", decision_id="d-1"),
        event(2, appeal="a-2", actor="wang", decision_id="d-1"),
        event(3, "overturned", appeal="a-2"),
    )
    assert got.outcomes.num_rows == 0
    assert reasons(got) == ["duplicate_appeal"]


def test_an_audit_case_gives_a_label_of_its_own_kind_and_cannot_overturn_a_pass():
    got = derive(
        event(1, "sampled", appeal="s-1"), event(2, "modified", appeal="s-1", verdict="remove", category="诈骗"),
        event(3, "sampled", appeal="s-2", post="p-2"), event(4, "upheld", appeal="s-2", post="p-2"),
        event(5, "sampled", appeal="s-3", post="p-3"), event(6, "overturned", appeal="s-3", post="p-3"),
    )  # fmt: skip
    assert labels(got) == {"p-1": ("modified", "remove", "诈骗"), "p-2": ("upheld", "pass", "正常")}
    assert got.outcomes["case_kind"].to_pylist() == ["audit", "audit"]
    assert reasons(got) == ["nothing_to_overturn"]


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
        ([event(1), event(2, "upheld", actor=None)], "reviewer_unknown"),
        ([event(1), event(2, "upheld", actor="person-1")], "own_appeal"),
        ([event(1, decided_by="judge"), event(2, "overturned", actor="judge")], "own_decision"),
        ([event(1, category="诈骗"), event(2, "overturned")], "second_reviewer_missing"),
        (
            [event(1, category="诈骗"), event(2, "overturned", actor="j"), event(3, "overturned", actor="j")],
            "second_reviewer_missing",
        ),
        (
            [event(1, category="诈骗"), event(2, "modified", category="虚假宣传", verdict="remove")],
            "second_reviewer_missing",
        ),
        ([event(1, category=None), event(2, "overturned")], "second_reviewer_missing"),
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
    assert refused.startswith("event 2") and "'remove' with an unknown value of 12 characters" in refused
    assert "one of 正常" in refused and superseded.startswith("event 4") and "gives way to event 6" in superseded
    assert phone not in refused + superseded


@pytest.mark.parametrize("second", ["person-2", "person-3"])
def test_an_unusable_latest_adjudication_is_not_replaced_by_an_earlier_one(second: str):
    unusable = event(3, "modified", verdict="remove", category="正常", actor=second)
    assert derive(event(1), event(2, "overturned"), unusable).outcomes.num_rows == 0


@pytest.mark.parametrize("first", ["voted", "overturned"])
def test_taking_severity_3_back_takes_two_reviewers_who_agree(first: str):
    one = event(2, first, verdict="pass", category="正常")
    got = derive(event(1, category="诈骗"), one, event(3, "overturned"))
    assert labels(got) == {"p-1": ("overturned", "pass", "正常")}
    assert len(set(got.outcomes["reviewer_hashes"].to_pylist()[0])) == 2
    assert got.outcomes["event_ids"].to_pylist() == [[1, 2, 3]]


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
        event(1), event(2, "overturned"),
        event(3, appeal="b", post="p-2", category="诈骗"), event(4, "upheld", appeal="b", post="p-2"),
    ).outcomes  # fmt: skip
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


def judged(post_id: str, group: str | None) -> dict[str, Any]:
    row = derive(event(1, post=post_id), event(2, "overturned", post=post_id)).outcomes.to_pylist()[0]
    return row | {"group_id": group}


def test_a_post_that_was_edited_since_keeps_the_label_that_it_came_with():
    words, pictures = Content("原文").group_id, Content("", ("a", "b")).group_id
    rows = [
        judged("same", words), judged("edited", words), judged("emptied", words), judged("illustrated", words),
        judged("pictures", pictures), judged("captioned", pictures), judged("other pictures", pictures),
        judged("of a file", "post:of a file"), judged("unknown", None), judged("not there", words),
    ]  # fmt: skip
    today = {
        "same": Content("原文"), "edited": Content("改过"), "emptied": Content(""), "illustrated": Content("原文", ("a",)),
        "pictures": Content("", ("a", "b")), "captioned": Content("新字", ("a", "b")), "other pictures": Content("", ("a", "c")),
        "of a file": Content("任何"), "unknown": Content("x"),
    }  # fmt: skip
    kept = as_judged(pa.Table.from_pylist(rows, schema=OUTCOMES), today)["post_id"].to_pylist()
    assert kept == ["same", "pictures", "of a file", "unknown", "not there"]


def test_images_that_a_model_is_never_shown_need_not_have_been_judged():
    seen = pa.Table.from_pylist([judged("p", Content("原文", ("a", "b")).group_id)], schema=OUTCOMES)
    today = {"p": Content("原文", ("a", "b", "c"))}
    assert [as_judged(seen, today, max_images=most).num_rows for most in (1, 2, 3, None)] == [1, 1, 0, 0]
    assert as_judged(seen, {"p": Content("原文", ("a",))}, max_images=1).num_rows == 0, "one that was judged is gone"


def test_a_label_lands_only_on_the_text_and_the_pictures_that_were_judged(tmp_path: Path):
    harmless, other = jpeg(1), jpeg(2)

    def unique(number: int, match_text: str, *images: bytes) -> dict[str, Any]:
        shown = [{"bytes": image, "path": f"{place}.jpg"} for place, image in enumerate(images)]
        return unique_post(number, match_text=match_text) | {"images": shown}

    def said(post_id: str, body: str, *images: bytes) -> dict[str, Any]:
        return judged(post_id, Snapshot(post_id, "", body, images).group_id)

    posts = [
        unique(1, "周末公园散步", other), unique(2, "", other), unique(3, "加微信领红包"), unique(4, "周末公园散步", harmless),
        unique(5, "今天天气好", harmless), unique(6, "明天下雨"),
    ]  # fmt: skip
    removed = {"edited copy": "p-3", "same copy": "p-5", "copy of a file": "p-6"}
    folder = posts_folder(tmp_path, posts, removed)
    outcomes = [
        said("p-1", "周末公园散步", harmless), said("p-2", "", harmless), said("edited copy", "周末公园散步"),
        said("p-4", "周末，公园散步。", harmless), said("same copy", "今天天气好", harmless), judged("copy of a file", "post:copy of a file"),
    ]  # fmt: skip
    found = evidence(pa.Table.from_pylist(outcomes, schema=OUTCOMES), folder)
    assert (found.outcomes["post_id"].to_pylist(), found.missing, found.edited) == (["p-4", "p-5", "p-6"], 0, 3)


def test_a_label_says_which_events_gave_it_and_when_and_one_that_came_with_the_post_has_none():
    outcome = derive(event(1), event(2, "overturned")).outcomes.to_pylist()[0]
    decided = json.loads(label_provenance("appeal", outcome))
    assert decided == {"source": "appeal", "event_ids": [1, 2], "decided_at": "2026-02-20T02:00:00+00:00"}
    assert json.loads(label_provenance("平台", None)) == {"source": "平台", "event_ids": [], "decided_at": None}
