"""Appeals files into the store: each event once, however often its file is read, and by the same rules as all others."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from xhs_pipeline.appeals import rules, states
from xhs_pipeline.appeals.cases import rows_of, settle
from xhs_pipeline.appeals.database import Database
from xhs_pipeline.appeals.events import STAGE, read_events
from xhs_pipeline.appeals.records import POST_GROUP
from xhs_pipeline.appeals.tables import EVENTS
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE

SAME = ("case_id", "kind", "at", "post_id", "verdict", "category", "actor_hash", "decided_by_hash")
CHUNK = 500


@dataclass(frozen=True)
class Imported:
    """new + known = the events of the file; refused: its bad lines (QUARANTINE); torn_tail: it ends in half a line."""

    new: int
    known: int
    refused: pa.Table
    torn_tail: bool


def origin_of(path: Path) -> str:
    """The file's name and a hash of where it lies: two files of one name are two origins, and no folder is told."""
    return f"{path.name}@{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def import_events(
    database: Database, policy: Policy, key: bytes, clock: Callable[[], datetime], path: Path
) -> Imported:
    """Add the events of an appeals file that are not in the store yet, in the order of their ids there, in one transaction.

    An event whose id was read from this file before with other content is refused: events are only ever appended. Raises
    FileNotFoundError (or another OSError) when the file cannot be read.
    """
    log, origin = read_events(path, policy, key), origin_of(path)
    rows = [row | {"origin": origin} for row in log.events.to_pylist()]
    with database.read() as db:
        known = _known(db, origin)
    new = [row for row in rows if row["origin_id"] not in known]
    if new:
        with database.write() as db:
            known = _known(db, origin)  # another process may have read the same file meanwhile
            new = [row for row in rows if row["origin_id"] not in known]
            _insert(db, policy, clock, new)
    changed = [row for row in rows if row["origin_id"] in known and known[row["origin_id"]] != _content(row)]
    refused = pa.concat_tables([log.quarantine.cast(QUARANTINE), _changed(changed)])
    return Imported(len(new), len(rows) - len(new) - len(changed), refused, log.torn_tail)


def _known(db: sa.Connection, origin: str) -> dict[str, tuple[Any, ...]]:
    asked = sa.select(EVENTS.c.origin_id, *(EVENTS.c[name] for name in SAME)).where(EVENTS.c.origin == origin)
    return {row[0]: tuple(row[1:]) for row in db.execute(asked)}


def _content(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in SAME)


def _changed(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    detail = "event_id {} was read from this file before with other content, which counts; write a change as an event of its own"
    return pa.Table.from_pylist(
        [
            {"post_id": row["post_id"], "stage": STAGE, "reason": "conflicting_event_id", "detail": detail.format(row["origin_id"])}
            for row in rows
        ],
        schema=QUARANTINE,
    )  # fmt: skip


def _insert(db: sa.Connection, policy: Policy, clock: Callable[[], datetime], rows: list[dict[str, Any]]) -> None:
    """Add rows with flags on those that are over a cap or in a burst, and write down what cases come to by their votes."""
    limits = rules.Limits.of(policy.appeals)
    by_author, about_group = _filings(db)
    for row in rows:
        if row["kind"] == states.FILED:
            row["group_id"] = POST_GROUP + row["post_id"]  # the content is not in the file
            of_author = by_author.setdefault(row["actor_hash"], []) if row["actor_hash"] else []
            of_group = about_group.setdefault(row["group_id"], [])
            row["flag"] = rules.over_cap(limits, row["at"], of_author, of_group) or rules.burst(limits, row["at"], of_author, of_group)  # fmt: skip
            of_author.append(row["at"])
            of_group.append(row["at"])
        row.pop("event_id")
    cases = sorted({row["case_id"] for row in rows})
    kinds = _kinds(db, cases)
    for row in rows:
        row["case_kind"] = kinds.get(row["case_id"], row["case_kind"])
    for start in range(0, len(rows), CHUNK):
        db.execute(sa.insert(EVENTS), rows[start : start + CHUNK])
    for start in range(0, len(cases), CHUNK):
        for history in states.group_cases(rows_of(db, cases[start : start + CHUNK])).values():
            settle(db, states.case_state(history, policy), policy, clock())


def _filings(db: sa.Connection) -> tuple[dict[str, list[datetime]], dict[str, list[datetime]]]:
    by_author: dict[str, list[datetime]] = {}
    about_group: dict[str, list[datetime]] = {}
    for actor, group, at in db.execute(
        sa.select(EVENTS.c.actor_hash, EVENTS.c.group_id, EVENTS.c.at).where(EVENTS.c.kind == states.FILED)
    ):
        by_author.setdefault(actor, []).append(at)
        about_group.setdefault(group, []).append(at)
    return by_author, about_group


def _kinds(db: sa.Connection, cases: list[str]) -> dict[str, str]:
    """The kind of those cases that are open already: a later file need not say it again."""
    found: dict[str, str] = {}
    for start in range(0, len(cases), CHUNK):
        asked = sa.select(EVENTS.c.case_id, EVENTS.c.case_kind).where(
            EVENTS.c.case_id.in_(cases[start : start + CHUNK]), EVENTS.c.kind.in_(states.OPENING)
        )
        found |= {case_id: kind for case_id, kind in db.execute(asked.order_by(EVENTS.c.event_id.desc()))}
    return found
