"""Appeal events as written by others: one JSON object a line, append-only. Read, validated, and actors hashed here.

What an appeal comes to is not decided here (see outcomes), and no state is kept. A bad line is counted with its line
number and never stops the rest; a file that is not there stops everything, since a failed read is not an empty one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.appeals.states import (
    APPEAL,
    AUDIT,
    AUTHOR,
    EXPIRED,
    FILED,
    KINDS,
    OPENING,
    REVIEWER,
    SAMPLED,
    SYSTEM,
    WITHDRAWN,
)
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.fields import MAX_ID_CHARS, TIME_ZONE
from xhs_pipeline.posts.schema import QUARANTINE
from xhs_pipeline.privacy import person_hash

STAGE = "appeal_outcomes"
YEARS = range(2000, 2100)  # in which an appeal can have been made
ROLES = {FILED: AUTHOR, WITHDRAWN: AUTHOR, SAMPLED: SYSTEM, EXPIRED: SYSTEM}  # all others are a reviewer's

# What happened to cases, by event_id. verdict and category are null where the event names none; those of an opening event are what
# was decided first. A verdict is the policy's id where the policy knows it, else as written. flag: why an appeal waits for
# triage. decided_by_hash: the person, if any, who decided first. origin and origin_id: the file that an event was read from and
# its id there. A file's `note` is free text about a person's post and is not kept.
APPEAL_EVENTS = pa.schema(
    [
        ("event_id", pa.int64()),
        ("case_id", pa.string()),
        ("case_kind", pa.string()),
        ("kind", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("post_id", pa.string()),
        ("decision_id", pa.string()),
        ("model_version", pa.string()),
        ("policy_version", pa.string()),
        ("verdict", pa.string()),
        ("category", pa.string()),
        ("actor_hash", pa.string()),
        ("actor_role", pa.string()),
        ("group_id", pa.string()),
        ("decided_by_hash", pa.string()),
        ("flag", pa.string()),
        ("origin", pa.string()),
        ("origin_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class EventLog:
    """Valid events in the order of their ids, the lines that were refused, and whether the file ends in half a line."""

    events: pa.Table
    quarantine: pa.Table
    torn_tail: bool


class _Refused(ValueError):
    """Why one line is not an event: a short code and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_events(path: Path, policy: Policy, key: bytes) -> EventLog:
    """Read an appeals JSONL; `key` is the one for `keyed_hash`.

    Raises FileNotFoundError (or another OSError) when the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: the source's `appeals` names this file and it does not exist; "
            "create it (it may be empty) or remove the setting"
        ) from error
    return parse_events(data, policy, key)


def parse_events(data: bytes, policy: Policy, key: bytes) -> EventLog:
    """The events in the bytes of an appeals JSONL.

    A last line without a line break that is not whole JSON is a write under way: it is neither an event nor a fault, and
    the next read sees it complete. An event id seen before is refused; the first line that carries it counts.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows: dict[int, dict[str, Any]] = {}
    lines_of: dict[int, int] = {}
    refused: list[dict[str, Any]] = []
    torn = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        raw: Any = None
        try:
            raw = _decode(line)
            row = _event(raw, policy, key)
            _refuse_repeat(row, rows.get(row["event_id"]), lines_of.get(row["event_id"]))
            rows[row["event_id"]], lines_of[row["event_id"]] = row, number
        except _Refused as error:
            if number == len(lines) and error.reason in ("bad_json", "bad_utf8"):
                torn = True
                continue
            refused.append(
                {
                    "post_id": _post_id(raw),
                    "stage": STAGE,
                    "reason": error.reason,
                    "detail": f"line {number}: {error.detail}",
                }
            )
    ordered = [rows[event_id] for event_id in sorted(rows)]
    openers = {row["case_id"]: row for row in reversed(ordered) if row["kind"] in OPENING}
    for row in ordered:
        row["case_kind"] = _case_kind(openers.get(row["case_id"]), policy)
    return EventLog(
        events=pa.Table.from_pylist(ordered, schema=APPEAL_EVENTS),
        quarantine=pa.Table.from_pylist(refused, schema=QUARANTINE),
        torn_tail=torn,
    )


def _case_kind(opener: Mapping[str, Any] | None, policy: Policy) -> str:
    """An audit is of a post that passed: blocked ones, sampled or not, teach leniency, which audits stand against."""
    passed = opener is not None and opener["kind"] == SAMPLED and opener["verdict"] == policy.pass_verdict
    return AUDIT if passed else APPEAL


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Refused("bad_utf8", f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise _Refused("bad_json", f"not JSON{where}") from error


def _event(raw: Any, policy: Policy, key: bytes) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise _Refused("bad_json", f"a JSON {type(raw).__name__}, expected an object")
    event_id = raw.get("event_id")
    if type(event_id) is not int or not 0 < event_id < 2**63:  # bool is an int, too
        raise _Refused("bad_event_id", "event_id must be a positive whole number")
    event = raw.get("event")
    if event not in KINDS:
        raise _Refused("unknown_event", f"event must be one of {', '.join(KINDS)}")
    verdict = _text(raw, "verdict", required=False)
    return {
        "event_id": event_id,
        "case_id": _id(raw, "appeal_id"),
        "kind": event,
        "at": _time(_text(raw, "at")),
        "post_id": _id(raw, "post_id"),
        "decision_id": _id(raw, "decision_id", required=False),
        "model_version": _id(raw, "model_version", required=False),
        "policy_version": _id(raw, "policy_version", required=False),
        "verdict": None if verdict is None else (policy.verdict_id(verdict) or verdict),
        "category": _text(raw, "category", required=False),
        "actor_hash": _person(raw, "actor", key),
        "actor_role": ROLES.get(event, REVIEWER),
        "group_id": None,
        "decided_by_hash": _person(raw, "decided_by", key) if event in OPENING else None,
        "flag": None,
        "origin": "",
        "origin_id": str(event_id),
    }


def _person(raw: Mapping[str, Any], name: str, key: bytes) -> str | None:
    value = _text(raw, name, required=False)
    try:
        return None if value is None else person_hash(key, value)
    except ValueError:
        raise _Refused("bad_field", f"{name} holds nothing that can be seen") from None


def _text(raw: Mapping[str, Any], name: str, required: bool = True) -> Any:
    """A non-empty string of the event, stripped; None when it is absent, null or blank and not required."""
    value = raw.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        if required:
            raise _Refused("missing_field", f"{name} is missing or empty")
        return None
    if not isinstance(value, str):
        raise _Refused("bad_field", f"{name} is a {type(value).__name__}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is legal JSON and no text
        raise _Refused("bad_field", f"{name} holds half a surrogate pair") from error
    return value.strip()


def _id(raw: Mapping[str, Any], name: str, required: bool = True) -> Any:
    value = _text(raw, name, required)
    if value is not None and (len(value) > MAX_ID_CHARS or not value.isprintable()):
        raise _Refused("bad_field", f"{name} holds control characters or over {MAX_ID_CHARS} characters")
    return value


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        at = (at if at.tzinfo else at.replace(tzinfo=TIME_ZONE)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _Refused("bad_time", "at is not an ISO 8601 time, such as 2026-02-20T10:00:00+08:00") from error
    if at.year not in YEARS:
        raise _Refused("bad_time", f"at is in no year from {YEARS[0]} to {YEARS[-1]}")
    return at


def _refuse_repeat(row: Mapping[str, Any], first: Mapping[str, Any] | None, line: int | None) -> None:
    if first is None:
        return
    same = row == first
    reason = "repeated_event" if same else "conflicting_event_id"
    raise _Refused(reason, f"event_id {row['event_id']} stands on line {line} already; the first one counts")


def _post_id(raw: Any) -> str | None:
    try:
        return _id(raw, "post_id", required=False) if isinstance(raw, Mapping) else None
    except _Refused:
        return None
