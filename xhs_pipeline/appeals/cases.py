"""The events of cases, within a transaction of the appeals store: read, folded into states, and added to."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from xhs_pipeline.appeals import decisions, states
from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.states import CaseState, case_state
from xhs_pipeline.appeals.tables import EVENTS
from xhs_pipeline.policy import Policy

HERE = "store"  # the origin of events that no file brought
PAGE = 200
COPIED = (
    "post_id", "decision_id", "model_version", "policy_version", "verdict", "category", "group_id", "decided_by_hash",
)  # fmt: skip


def append(db: sa.Connection, event: Mapping[str, Any]) -> int:
    """Add one event and return its id."""
    added = db.execute(sa.insert(EVENTS).values(**({"origin": HERE} | dict(event))))
    return int(added.inserted_primary_key[0])  # type: ignore[index]


def add(
    db: sa.Connection,
    case: CaseState,
    policy: Policy,
    at: datetime,
    kind: str,
    actor: str | None,
    role: str,
    **said: str | None,
) -> None:
    """Add an event to a case that is there; `said` are its verdict, category and note, where it has any."""
    about = {"post_id": case.post_id, "decision_id": case.decision_id, "model_version": case.model_version}
    moved = {"case_id": case.case_id, "case_kind": case.kind, "kind": kind, "at": at, "policy_version": policy.version}
    append(db, {**about, **moved, "actor_hash": actor, "actor_role": role, **said})


def settle(db: sa.Connection, case: CaseState, policy: Policy, at: datetime) -> CaseState:
    """Write down what the votes of a case come to, if they agree and are enough; returns the state after that."""
    labels = {vote.label for vote in case.votes}
    label = labels.pop() if len(labels) == 1 else None
    if label is None or not case.open or len(case.votes) < states.reviewers_needed(case.first, label, policy):
        return case
    kind = states.adjudication(case.first, label, policy)
    add(db, case, policy, at, kind, None, states.SYSTEM, verdict=label[0], category=label[1])
    return state(db, case.case_id, policy)


def rows_of(db: sa.Connection, case_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Every column of these cases' events, in the order of their ids."""
    asked = sa.select(EVENTS).where(EVENTS.c.case_id.in_(case_ids)).order_by(EVENTS.c.event_id)
    return [dict(row._mapping) for row in db.execute(asked)]


def state(db: sa.Connection, case_id: str, policy: Policy) -> CaseState:
    """The state of a case as this transaction sees it. Raises Refused when there is none."""
    events = rows_of(db, [case_id])
    if not events:
        raise Refused("unknown_case")
    return case_state(events, policy)


def newest(db: sa.Connection) -> int:
    """The largest event id, 0 where there is none."""
    return int(db.execute(sa.select(sa.func.max(EVENTS.c.event_id))).scalar() or 0)


def in_state(
    db: sa.Connection, wanted: str | None, after: int, policy: Policy
) -> Iterator[tuple[CaseState, list[dict[str, Any]]]]:
    """Cases in a state, None for all that are open, with their events; by the id of the first, those after `after`.

    The database leaves out what cannot be in that state, a page at a time; the fold decides.
    """
    later, newer = EVENTS.alias("later"), EVENTS.alias("newer")
    may_be: sa.ColumnElement[bool]
    if wanted in (*states.ADJUDICATED, *states.CLOSED):
        may_be = sa.exists().where(later.c.case_id == EVENTS.c.case_id, later.c.kind == wanted)
    else:
        # what the system wrote down as decided stays so unless something came after it
        last = ~sa.exists().where(newer.c.case_id == later.c.case_id, newer.c.event_id > later.c.event_id)
        decided = sa.and_(later.c.kind.in_(states.ADJUDICATED), later.c.actor_role == states.SYSTEM, last)
        # who may close a case, as states has it: a line that may not must not hide the case from its reviewers
        theirs = sa.or_(
            later.c.kind != states.WITHDRAWN,
            EVENTS.c.kind != states.FILED,
            EVENTS.c.actor_hash.is_(None),
            later.c.actor_hash == EVENTS.c.actor_hash,
        )
        closed = sa.and_(later.c.kind.in_(states.CLOSED), later.c.post_id == EVENTS.c.post_id, theirs)
        ended = sa.or_(closed, decided)
        may_be = ~sa.exists().where(later.c.case_id == EVENTS.c.case_id, ended)
    asked = sa.select(EVENTS.c.event_id, EVENTS.c.case_id).where(EVENTS.c.kind.in_(states.OPENING), may_be)
    while True:
        page = db.execute(asked.where(EVENTS.c.event_id > after).order_by(EVENTS.c.event_id).limit(PAGE)).all()
        if not page:
            return
        after = page[-1].event_id
        histories = states.group_cases(rows_of(db, [row.case_id for row in page]))
        for row in page:
            events = [dict(event) for event in histories[row.case_id]]
            case = case_state(events, policy)
            fits = case.open if wanted is None else case.state == wanted
            if fits and case.opened_by == row.event_id:  # a file may open a case a second time
                yield case, events


def view(db: sa.Connection, case: CaseState, events: Sequence[Mapping[str, Any]], with_images: bool = True) -> CaseView:
    """The case with what was judged and decided; `with_images` says whether their bytes are read, too."""
    snapshot, decision, at = decisions.read(db, case.decision_id, with_images)
    count = decisions.image_count(db, case.decision_id)
    return CaseView(case.case_id, case.kind, case, snapshot, count, decision, at, tuple(events))
