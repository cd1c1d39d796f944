"""From appeal events to labels: which adjudications count, what they say, and how they correct posts.

Pure functions over Arrow tables. How a case comes to be decided is the fold's matter (states), when to retrain the decision's.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import pyarrow as pa

from xhs_pipeline.appeals.events import STAGE
from xhs_pipeline.appeals.records import is_known
from xhs_pipeline.appeals.states import (
    ADJUDICATED,
    APPEAL,
    AUDIT,
    CaseState,
    Event,
    Vote,
    case_state,
    group_cases,
    reviewers_between,
)
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE

DECIDED_SOURCES = (APPEAL, AUDIT)  # the label_source of a post whose label reviewers decided: the kind of its case

# One row a post: the label that its latest decided case gave it. event_id is the event that decided it, event_ids all that led
# there, reviewer_hashes those who agreed on it. group_id: the content that was judged, see records.Content.
OUTCOMES = pa.schema(
    [
        ("case_id", pa.string()),
        ("case_kind", pa.string()),
        ("post_id", pa.string()),
        ("outcome", pa.string()),
        ("verdict", pa.string()),
        ("category", pa.string()),
        ("severity", pa.int8()),
        ("event_id", pa.int64()),
        ("event_ids", pa.list_(pa.int64())),
        ("decided_at", pa.timestamp("us", tz="UTC")),
        ("reviewer_hashes", pa.list_(pa.string())),
        ("group_id", pa.string()),
    ]
)

Row = Mapping[str, Any]


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
    """The labels that appeals and audits decided, from a table of APPEAL_EVENTS.

    A case gives a label when it is upheld, overturned or modified by the rules of `states`: by reviewers who agree, none of whom
    made the first decision, two of them where severity 3 is taken back. A case that was withdrawn or expired, at any time,
    gives none, nor does one whose reviewers disagree. Of several appeals by one person against one decision the first counts;
    where cases about one decision come to different ends, reviewers disagree, and none of them does; nor do those about one
    content, judged twice or under two post ids, where the latest may not overrule the others (see standing). Of several decided
    cases about one post the latest wins. What claims to be decided and gives no label is quarantined with its reason.
    """
    quarantine: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for history in group_cases(events.to_pylist()).values():
        case = case_state(history, policy)
        by_id = {event["event_id"]: event for event in history}
        once = (case.post_id, case.decision_id, case.appellant_hash)
        if case.appellant_hash and once in seen:
            if case.label:
                quarantine.append(
                    _refusal(by_id[case.decided_by_event], "duplicate_appeal", "this appellant appealed before")
                )
            continue
        seen.add(once)
        if case.label:
            found.append(_outcome(case, case.label, by_id[case.decided_by_event], policy))
        elif refused := _no_label(case, by_id, policy):
            quarantine.append(refused)
    found = _undisputed(found, quarantine)
    by_post: dict[str, dict[str, Any]] = {}
    for outcome in sorted(found, key=lambda row: row["event_id"]):
        older = by_post.get(outcome["post_id"])
        if older is not None:
            detail = f"gives way to event {outcome['event_id']} about the same post"
            quarantine.append(_refusal(older, "superseded", detail))
        by_post[outcome["post_id"]] = outcome
    rows = [by_post[post_id] for post_id in sorted(by_post)]
    outcomes = [{name: row[name] for name in OUTCOMES.names} for row in rows]
    return Derived(pa.Table.from_pylist(outcomes, schema=OUTCOMES), pa.Table.from_pylist(quarantine, schema=QUARANTINE))


def _outcome(case: CaseState, label: tuple[str, str], deciding: Event, policy: Policy) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "case_kind": case.kind,
        "post_id": case.post_id,
        "outcome": case.state,
        "verdict": label[0],
        "category": label[1],
        "severity": policy.severity(label[1]),
        "event_id": case.decided_by_event,
        "event_ids": list(case.event_ids),
        "decided_at": case.decided_at,
        "reviewer_hashes": [vote.reviewer_hash for vote in case.votes],
        "group_id": case.group_id,
        "decision_id": case.decision_id,
        "origin": deciding["origin"],
        "origin_id": deciding["origin_id"],
    }


def _no_label(case: CaseState, by_id: Mapping[int, Event], policy: Policy) -> dict[str, Any] | None:
    """Why a case whose events claim a decision gives no label; None for one that is open or was closed, which is no fault."""
    if case.state not in (None, *ADJUDICATED) and not case.open:
        return None
    if case.disputed:
        detail = f"{len(case.votes)} reviewers do not agree; it is trained on when they come to"
        return _refusal(by_id[case.votes[-1].event_id], "reviewers_disagree", detail)
    if case.claimed is None:
        return None
    event, ignored = by_id[case.claimed], dict(case.ignored)
    if case.claimed in ignored:
        return _refusal(event, ignored[case.claimed], IGNORED.get(ignored[case.claimed], "it cannot count"))
    vote = next(vote for vote in case.votes if vote.event_id == case.claimed)
    if vote.problem:
        return _refusal(event, vote.problem, _said(vote, event, case, policy))
    return _refusal(
        event, "second_reviewer_missing", "taking severity 3 back takes two reviewers; add another one's vote"
    )


IGNORED = {
    "not_filed": "no filed or sampled event before it",
    "other_post": "the case was opened about another post",
    "reviewer_unknown": "it names no actor, and the one who decided first may not review",
    "own_decision": "the first decision is this reviewer's own",
    "own_appeal": "the appeal is this reviewer's own",
    "not_triaged": "the appeal is over a cap or came in a burst; a reviewer must triage it first",
}


def _said(vote: Vote, event: Event, case: CaseState, policy: Policy) -> str:
    if vote.problem == "nothing_to_overturn":
        return "the post had passed; say what it should have been as modified, with verdict and category"
    carrier = "first decision" if event["kind"] == "upheld" else "event"
    verdict, category = case.first if event["kind"] == "upheld" else (event["verdict"], event["category"])
    if verdict is None or category is None:
        return f"the {carrier} lacks a verdict or a category"
    allowed = policy.category(category)
    expected = (
        f"one of {', '.join(allowed.verdicts)} with it" if allowed else f"one of {', '.join(policy.category_names)}"
    )
    said = f"{_shown(verdict, policy.verdict_ids)} with {_shown(category, policy.category_names)}"
    return f"policy {policy.version} does not allow {said}; expected {expected}"


def _shown(value: str, known: Sequence[str]) -> str:
    """A value that the policy does not know is somebody's text: only its length is told."""
    return repr(value) if value in known else f"an unknown value of {len(value)} characters"


def _undisputed(found: list[dict[str, Any]], quarantine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the outcomes on which reviewers disagree: about one decision or one content, or one post where a file does not
    tell its content.
    """
    unknown = {row["post_id"] for row in found if not is_known(row["group_id"])}
    details: dict[int, str] = {}
    for what, names in {
        "content": [row["group_id"] if is_known(row["group_id"]) else None for row in found],
        "post": [row["post_id"] if row["post_id"] in unknown else None for row in found],
        "decision": [row["decision_id"] for row in found],
    }.items():
        about: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row, name in zip(found, names, strict=True):
            if name:
                about[name].append(row)
        detail = f"cases about the same {what} came to different ends"
        for rows in about.values():
            if len({_label(row) for row in rows}) > 1 if what == "decision" else standing(rows) is None:
                details |= {row["event_id"]: detail for row in rows}
    quarantine += [_refusal(r, "reviewers_disagree", details[r["event_id"]]) for r in found if r["event_id"] in details]
    return [row for row in found if row["event_id"] not in details]


def standing(outcomes: Iterable[Row]) -> Row | None:
    """Of the outcomes about one content the latest; None where reviewers disagree, so that none counts.

    They do where an earlier one has a label of severity 3, which takes two reviewers to take back, and the latest label was given
    by one alone, in all cases since the last that came to another label.
    """
    latest, *earlier = sorted(outcomes, key=lambda row: row["event_id"], reverse=True)
    since = list(takewhile(lambda row: _label(row) == _label(latest), earlier))
    agreeing = {reviewer for row in (latest, *since) for reviewer in row["reviewer_hashes"]}
    others = [row["severity"] for row in earlier if _label(row) != _label(latest)]
    needed = max((reviewers_between(severity, latest["severity"]) for severity in others), default=0)
    return latest if len(agreeing) >= needed else None


def _label(outcome: Row) -> tuple[str, str]:
    return outcome["verdict"], outcome["category"]


def _refusal(row: Mapping[str, Any], reason: str, detail: str) -> dict[str, Any]:
    """A QUARANTINE row that names events by number: ids of cases and posts may be of a person."""
    read_from = (
        f" (event {row['origin_id']} of {row['origin'].partition('@')[0]})"
        if row["origin"] and row["origin_id"]
        else ""
    )
    detail = f"event {row['event_id']}{read_from}: {detail}"
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
    """Outcomes about a removed duplicate, put on the post that was kept for it; of several on one post that which stands."""
    by_post: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in outcomes.to_pylist():
        post_id = kept_for.get(row["post_id"], row["post_id"])
        by_post[post_id].append(row | {"post_id": post_id})
    found = [standing(by_post[post_id]) for post_id in sorted(by_post)]
    return pa.Table.from_pylist([row for row in found if row is not None], schema=outcomes.schema)


def label_provenance(label_source: str | None, outcome: Mapping[str, Any] | None) -> str:
    """Where a training label comes from, as JSON: its source, the events that gave it and when.

    A label that came with the post has no events and no time; it has label_source, and its post's week.
    """
    decided_by = outcome if label_source in DECIDED_SOURCES else None
    events = decided_by["event_ids"] if decided_by else []
    decided = decided_by["decided_at"].isoformat() if decided_by else None
    return json.dumps({"source": label_source, "event_ids": events, "decided_at": decided}, ensure_ascii=False)


def apply_outcomes(posts: pa.Table, outcomes: pa.Table) -> Applied:
    """Give the posts that outcomes name their decided label, with the kind of its case as label_source; columns and order stay.

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
            d["case_kind"] if d else v for d, v in zip(named, posts["label_source"].to_pylist(), strict=True)
        ]
    if "rationale" in posts.column_names:
        new["rationale"] = [None if c else v for c, v in zip(changed, posts["rationale"].to_pylist(), strict=True)]
    for name, values in new.items():
        field = posts.schema.field(name)
        posts = posts.set_column(posts.schema.get_field_index(name), field, pa.array(values, type=field.type))
    return Applied(posts, sum(d is not None for d in named), sum(changed), len(set(decided) - set(ids)))
