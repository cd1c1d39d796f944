"""Appeal events as they arrive in a file: whole, cut, repeated, hostile, or not there at all."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.appeals.events import EventLog, parse_events, read_events
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import QUARANTINE
from xhs_pipeline.privacy import keyed_hash

POLICY = load_policy()
KEY = b"a key of at least sixteen bytes"


def event(event_id: int, kind: str = "filed", appeal: str = "a-1", post: str = "p-1", **changes: Any) -> dict[str, Any]:
    """One event as its writer would put it down; a filed one appeals against removal for leading people off the site."""
    raw: dict[str, Any] = {"event_id": event_id, "appeal_id": appeal, "post_id": post, "event": kind}
    raw |= {"at": "2026-02-20T10:00:00+08:00", "actor": f"person-{event_id}", "note": "私人备注"}
    if kind == "filed":
        raw |= {"verdict": "remove", "category": "私域引流"}
    if kind == "sampled":
        raw |= {"verdict": "pass", "category": "正常", "actor": None}
    return {**raw, **changes}


def lines(*events: dict[str, Any]) -> bytes:
    return "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in events).encode()


def parse(data: bytes) -> EventLog:
    return parse_events(data, POLICY, KEY)


def refusals(log: EventLog) -> list[tuple[str, str]]:
    return [(row["reason"], row["detail"]) for row in log.quarantine.to_pylist()]


def test_events_come_out_in_the_order_of_their_ids_with_times_in_utc():
    log = parse(lines(event(2, "upheld", at="2026-02-21T09:00:00"), event(1)))
    assert log.events["event_id"].to_pylist() == [1, 2]
    # a time without an offset is Shanghai's
    assert log.events["at"].to_pylist()[1] == datetime(2026, 2, 21, 1, 0, tzinfo=UTC)
    assert log.events["origin_id"].to_pylist() == ["1", "2"]
    assert log.quarantine.num_rows == 0 and not log.torn_tail


def test_actors_leave_only_as_keyed_hashes_and_notes_not_at_all():
    log = parse(lines(event(1, actor="wang_xiaoming")))
    assert log.events["actor_hash"].to_pylist() == [keyed_hash(KEY, "wang_xiaoming")]
    assert "wang_xiaoming" not in str(log.events.to_pylist())
    assert "私人备注" not in str(log.events.to_pylist())


def test_who_decided_first_is_hashed_too_and_only_an_opening_event_says_so():
    log = parse(lines(event(1, decided_by="judge-1", decision_id="d-1"), event(2, "upheld", decided_by="judge-1")))
    assert log.events["decided_by_hash"].to_pylist() == [keyed_hash(KEY, "judge-1"), None]
    assert log.events["decision_id"].to_pylist() == ["d-1", None]


def test_a_case_that_was_sampled_is_an_audit_and_the_role_follows_from_what_was_done():
    log = parse(
        lines(event(1, "sampled"), event(2, "voted"), event(3, appeal="a-2"), event(4, "expired", appeal="a-2"))
    )
    assert log.events["case_kind"].to_pylist() == ["audit", "audit", "appeal", "appeal"]
    assert log.events["actor_role"].to_pylist() == ["system", "reviewer", "author", "system"]


def test_a_time_in_no_plausible_year_and_a_name_that_nobody_sees_are_bad_lines():
    log = parse(
        lines(
            event(1, at="0001-01-02T00:00:00+00:00"),
            event(2, at="9000-01-01T00:00:00"),
            event(3, actor="\u200b"),
            event(4),
        )
    )
    assert log.events["event_id"].to_pylist() == [4]
    assert [reason for reason, _ in refusals(log)] == ["bad_time", "bad_time", "bad_field"]


def test_a_sampled_post_that_was_blocked_is_no_audit():
    blocked = event(1, "sampled", verdict="remove", category="私域引流")
    log = parse(
        lines(
            blocked,
            event(2, "overturned"),
            event(3, "sampled", appeal="a-2", verdict="通过"),
            event(4, "voted", appeal="a-2"),
        )
    )
    assert log.events["case_kind"].to_pylist() == ["appeal", "appeal", "audit", "audit"]


def test_verdicts_are_taken_as_ids_or_labels_and_unknown_ones_are_kept_for_judging_later():
    log = parse(lines(event(1, verdict="违规删除"), event(2, appeal="a-2", verdict="外星结论")))
    assert log.events["verdict"].to_pylist() == ["remove", "外星结论"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event_id": 7, "appeal_id": ', "bad_json"),
        (b"[1, 2]", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"event_id": ' + b"9" * 5000 + b"}", "bad_json"),
        (b'{"post_id": "\xff\xfe"}', "bad_utf8"),
        (lines(event(0)).strip(), "bad_event_id"),
        (lines(event(2**63)).strip(), "bad_event_id"),
        (lines({**event(1), "event_id": True}).strip(), "bad_event_id"),
        (lines({**event(1), "event_id": "1"}).strip(), "bad_event_id"),
        (lines(event(1, "eaten")).strip(), "unknown_event"),
        (lines({**event(1), "event": ["filed"]}).strip(), "unknown_event"),
        (lines(event(1, post="")).strip(), "missing_field"),
        (lines({k: v for k, v in event(1).items() if k != "appeal_id"}).strip(), "missing_field"),
        (lines({**event(1), "actor": 12}).strip(), "bad_field"),
        (b'{"event_id": 1, "appeal_id": "\\ud800", "event": "filed", "post_id": "p"}', "bad_field"),
        (lines(event(1, post="x" * 257)).strip(), "bad_field"),
        (lines(event(1, appeal="a\nb")).strip(), "bad_field"),
        (lines(event(1, at="last Tuesday")).strip(), "bad_time"),
        (lines(event(1, at="0001-01-01T00:00:00+23:00")).strip(), "bad_time"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_the_rest_is_read(line: bytes, reason: str):
    log = parse(lines(event(10)) + line + b"\n\n" + lines(event(11, "upheld")))
    assert log.events["event_id"].to_pylist() == [10, 11]
    [(got, detail)] = refusals(log)
    assert got == reason
    assert detail.startswith("line 2: ")
    assert log.quarantine.schema.equals(QUARANTINE)


def test_a_refused_line_is_never_quoted():
    log = parse(b'{"event_id": "x", "post_id": "p-1", "note": "13800000000"}\n')
    assert "13800000000" not in str(refusals(log))
    assert log.quarantine["post_id"].to_pylist() == ["p-1"]


def test_an_id_that_no_id_can_be_reaches_no_table():
    log = parse(lines(event(1, post="正文" * 200), event(2, appeal="a\x1b[0m")))
    assert log.events.num_rows == 0
    assert log.quarantine["post_id"].to_pylist() == [None, "p-1"]
    assert "正文" not in str(log.quarantine.to_pylist()) and "x1b" not in str(log.quarantine.to_pylist())


def test_a_last_line_still_being_written_is_left_for_the_next_read():
    whole = lines(event(1), event(2, "upheld"))
    for cut in range(len(lines(event(1))) + 1, len(whole) - 1):
        log = parse(whole[:cut])
        assert log.events.num_rows == 1, cut
        assert log.quarantine.num_rows == 0 and log.torn_tail, cut
    assert parse(whole[:-1]).events.num_rows == 2
    assert not parse(whole[:-1]).torn_tail


def test_an_event_written_twice_counts_once_and_another_under_its_id_is_refused():
    log = parse(lines(event(1), event(1), event(1, "upheld")))
    assert log.events.num_rows == 1
    assert [reason for reason, _ in refusals(log)] == ["repeated_event", "conflicting_event_id"]
    assert "line 1" in refusals(log)[0][1]


def test_a_byte_order_mark_blank_lines_and_an_empty_file_are_no_faults():
    log = parse(b"\xef\xbb\xbf" + lines(event(1)) + b"\r\n  \n")
    assert (log.events.num_rows, log.quarantine.num_rows) == (1, 0)
    empty = parse(b"")
    assert (empty.events.num_rows, empty.quarantine.num_rows, empty.torn_tail) == (0, 0, False)


def test_a_configured_file_that_is_missing_stops_the_read(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"appeals\.jsonl.*does not exist"):
        read_events(tmp_path / "appeals.jsonl", POLICY, KEY)
    (tmp_path / "appeals.jsonl").write_bytes(lines(event(1)))
    assert read_events(tmp_path / "appeals.jsonl", POLICY, KEY).events.num_rows == 1
