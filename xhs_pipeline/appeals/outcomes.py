"""From appeal events to labels: which adjudications count, what they say, and how they correct posts.

Pure functions over Arrow tables. When to retrain on them is decided elsewhere (decision), reading them is events' work.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from xhs_pipeline.appeals.events import ADJUDICATED, CLOSED, FILED, OVERTURNED, STAGE, UPHELD
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE

APPEAL = "appeal"  # the label_source of a post whose label an appeal decided

# One row a post: the label that its latest adjudicated appeal gave it, and the event that says so.
OUTCOMES = pa.schema(
    [
        ("appeal_id", pa.string()),
        ("post_id", pa.string()),
        ("outcome", pa.string()),
        ("verdict", pa.string()),
        ("category", pa.string()),
        ("severity", pa.int8()),
        ("event_id", pa.int64()),
        ("decided_at", pa.timestamp("us", tz="UTC")),
        ("reviewer_hash", pa.string()),
    ]
)


class Derived(NamedTuple):
    """Labels (OUTCOMES, by post_id) and the adjudications that gave none, each with its reason (QUARANTINE)."""

    outcomes: pa.Table
    quarantine: pa.Table


class Applied(NamedTuple):
    """Corrected posts, and how many posts an appeal named, how many labels changed, how many named posts are absent."""

    posts: pa.Table
    named: int
    changed: int
    missing: int


def derive_outcomes(events: pa.Table, policy: Policy) -> Derived:
    """The labels that appeals decided, from a table of APPEAL_EVENTS.

    Of an appeal the adjudication with the largest event id counts: upheld keeps the decision that was appealed against,
    overturned makes the post harmless, modified carries a label of its own. An appeal that was withdrawn or expired, at
    any time, gives no label. Of several appeals about one post the latest adjudication wins. An adjudication is
    quarantined when its appeal was not filed before it, when it names another post than the filing, or when the policy
    does not allow its label; an earlier adjudication of the same appeal does not take its place.
    """
    appeals: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(events.to_pylist(), key=lambda event: event["event_id"]):
        appeals[row["appeal_id"]].append(row)
    quarantine: list[dict[str, Any]] = []
    by_post: dict[str, dict[str, Any]] = {}
    found = [outcome for history in appeals.values() if (outcome := _outcome(history, policy, quarantine))]
    for outcome in sorted(found, key=lambda o: o["event_id"]):
        older = by_post.get(outcome["post_id"])
        if older is not None:
            detail = f"event {older['event_id']} gives way to event {outcome['event_id']} about the same post"
            quarantine.append(_refusal(older, "superseded", detail))
        by_post[outcome["post_id"]] = outcome
    rows = [by_post[post_id] for post_id in sorted(by_post)]
    return Derived(pa.Table.from_pylist(rows, schema=OUTCOMES), pa.Table.from_pylist(quarantine, schema=QUARANTINE))


def _outcome(history: list[dict[str, Any]], policy: Policy, quarantine: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The label of one appeal, or None; what is refused is added to `quarantine`."""
    if any(event["event"] in CLOSED for event in history):
        return None
    decisions = [event for event in history if event["event"] in ADJUDICATED]
    if not decisions:
        return None
    last = decisions[-1]
    filed = next((event for event in history if event["event"] == FILED), None)
    name = f"line {last['line']}, event {last['event_id']}"  # ids of appeals and posts may be of a person
    if filed is None or filed["event_id"] > last["event_id"]:
        quarantine.append(_refusal(last, "not_filed", f"{name}: no filed event before it"))
        return None
    if filed["post_id"] != last["post_id"]:
        quarantine.append(_refusal(last, "other_post", f"{name}: the appeal was filed about another post"))
        return None
    verdict, category = _label(last, filed, policy)
    if verdict is None or category is None:
        carrier = "filed event" if last["event"] == UPHELD else "event"
        quarantine.append(_refusal(last, "label_missing", f"{name}: the {carrier} lacks a verdict or a category"))
        return None
    if not policy.allows(verdict, category):
        allowed = policy.category(category)
        expected = (
            f"one of {', '.join(allowed.verdicts)} with it" if allowed else f"one of {', '.join(policy.category_names)}"
        )
        verdicts = [v.id for v in policy.verdicts]
        said = f"{_shown(verdict, verdicts)} with {_shown(category, policy.category_names)}"
        detail = f"{name}: policy {policy.version} does not allow {said}; expected {expected}"
        quarantine.append(_refusal(last, "label_not_allowed", detail))
        return None
    return {
        "appeal_id": last["appeal_id"],
        "post_id": last["post_id"],
        "outcome": last["event"],
        "verdict": verdict,
        "category": category,
        "severity": policy.severity(category),
        "event_id": last["event_id"],
        "decided_at": last["at"],
        "reviewer_hash": last["actor_hash"],
    }


def _shown(value: str, known: Sequence[str]) -> str:
    """A value that the policy does not know is somebody's text: only its length is told."""
    return repr(value) if value in known else f"an unknown value of {len(value)} characters"


def _label(last: dict[str, Any], filed: dict[str, Any], policy: Policy) -> tuple[str | None, str | None]:
    if last["event"] == OVERTURNED:
        return policy.pass_verdict, policy.normal_category
    carrier = filed if last["event"] == UPHELD else last
    return carrier["verdict"], carrier["category"]


def _refusal(row: dict[str, Any], reason: str, detail: str) -> dict[str, Any]:
    return {"post_id": row["post_id"], "stage": STAGE, "reason": reason, "detail": detail}


def effective_digest(outcomes: pa.Table) -> str:
    """SHA-256 (hex) over the labels and the events that gave them, whatever the order of rows.

    The same evidence gives the same digest after any replay or restart; a changed label, a new adjudication or a
    withdrawn one gives another.
    """
    names = ["post_id", "verdict", "category", "event_id"]
    rows = sorted(
        (row["post_id"], row["verdict"], row["category"], row["event_id"]) for row in outcomes.select(names).to_pylist()
    )
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def follow_duplicates(outcomes: pa.Table, kept_for: Mapping[str, str]) -> pa.Table:
    """Outcomes about a removed duplicate, put on the post that was kept for it; of several on one post the latest counts."""
    by_post: dict[str, dict[str, Any]] = {}
    for row in sorted(outcomes.to_pylist(), key=lambda outcome: outcome["event_id"]):
        post_id = kept_for.get(row["post_id"], row["post_id"])
        by_post[post_id] = row | {"post_id": post_id}
    return pa.Table.from_pylist([by_post[post_id] for post_id in sorted(by_post)], schema=outcomes.schema)


def apply_outcomes(posts: pa.Table, outcomes: pa.Table) -> Applied:
    """Give the posts that outcomes name their decided label, with label_source "appeal"; columns and order stay.

    Where the label changed, the post's own rationale is dropped: it argues for the decision that fell. Image bytes are
    not touched or copied. Outcomes about posts that are not in the table are counted as missing.
    """
    decided = {row["post_id"]: row for row in outcomes.to_pylist()}
    ids = posts["post_id"].to_pylist()
    named = [decided.get(post_id) for post_id in ids]
    before = list(zip(posts["verdict"].to_pylist(), posts["category"].to_pylist(), strict=True))
    changed = [d is not None and (d["verdict"], d["category"]) != b for d, b in zip(named, before, strict=True)]
    new: dict[str, list[Any]] = {}
    for name in ("verdict", "category", "severity"):
        if name in posts.column_names:
            new[name] = [d[name] if d else v for d, v in zip(named, posts[name].to_pylist(), strict=True)]
    if "label_source" in posts.column_names:
        new["label_source"] = [
            APPEAL if d else v for d, v in zip(named, posts["label_source"].to_pylist(), strict=True)
        ]
    if "rationale" in posts.column_names:
        new["rationale"] = [None if c else v for c, v in zip(changed, posts["rationale"].to_pylist(), strict=True)]
    for name, values in new.items():
        field = posts.schema.field(name)
        posts = posts.set_column(posts.schema.get_field_index(name), field, pa.array(values, type=field.type))
    return Applied(posts, sum(d is not None for d in named), sum(changed), len(set(decided) - set(ids)))
