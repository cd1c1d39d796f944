"""Erasing what an author wrote, within a transaction of the appeals store; ids, decisions and what became of cases stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from xhs_pipeline.appeals import states
from xhs_pipeline.appeals.cases import add, in_state
from xhs_pipeline.appeals.tables import DECISIONS, ERASURES, EVENTS, SNAPSHOT_IMAGES, SNAPSHOTS
from xhs_pipeline.policy import Policy


@dataclass(frozen=True)
class Erased:
    """How much was erased, and how many open cases were closed since nobody can review them any more.

    notes_of_others: notes that others, reviewers above all, wrote on cases about the author's posts, which stay and may quote them.
    from_log: whether it is out of SQLite's log of writes, too; a reader in the midst of its work keeps it there until another
    erasure, or until the last process closes the store.
    """

    snapshots: int
    images: int
    notes: int
    closed: int
    notes_of_others: int = 0
    from_log: bool = True


def erase(db: sa.Connection, policy: Policy, author_hashes: Sequence[str], at: datetime) -> Erased:
    """Empty the snapshots and notes of an author, known by any of these hashes; their open cases expire. A trace in `erasures`
    for each hash comes first: triggers ask for it.

    The labels that cases came to stay, by post id and hash of the text: they fit a post only where it is still among the posts, as
    it was judged.
    """
    gone = Erased(0, 0, 0, 0)
    for author_hash in author_hashes:
        one = _erase(db, policy, author_hash, at)
        gone = Erased(
            gone.snapshots + one.snapshots, gone.images + one.images, gone.notes + one.notes, gone.closed + one.closed
        )
    about = sa.select(DECISIONS.c.decision_id).join(SNAPSHOTS).where(SNAPSHOTS.c.author_hash.in_(author_hashes))
    left = _count(db, EVENTS, sa.and_(EVENTS.c.decision_id.in_(about), EVENTS.c.note.is_not(None)))
    return replace(gone, notes_of_others=left)


def _erase(db: sa.Connection, policy: Policy, author_hash: str, at: datetime) -> Erased:
    mine = sa.and_(SNAPSHOTS.c.author_hash == author_hash, SNAPSHOTS.c.erased_at.is_(None))
    all_mine = sa.select(SNAPSHOTS.c.snapshot_id).where(SNAPSHOTS.c.author_hash == author_hash)
    of_mine = SNAPSHOT_IMAGES.c.snapshot_id.in_(
        all_mine
    )  # of those erased before, too, should any have been added since
    my_notes = sa.and_(EVENTS.c.actor_hash == author_hash, EVENTS.c.note.is_not(None))
    asked = {"snapshots": (SNAPSHOTS, mine), "images": (SNAPSHOT_IMAGES, of_mine), "notes": (EVENTS, my_notes)}
    counts = {name: _count(db, table, which) for name, (table, which) in asked.items()}
    about = sa.select(DECISIONS.c.decision_id).join(SNAPSHOTS).where(mine)
    decided = set(db.execute(about).scalars())
    waiting = [case for case, _ in in_state(db, None, 0, policy) if case.decision_id in decided] if decided else []
    db.execute(sa.insert(ERASURES).values(at=at, author_hash=author_hash, **counts))
    db.execute(sa.update(SNAPSHOTS).where(mine).values(title="", body="", ocr_text=None, erased_at=at))
    db.execute(sa.delete(SNAPSHOT_IMAGES).where(of_mine))
    db.execute(sa.update(EVENTS).where(my_notes).values(note=None))
    for case in waiting:
        add(db, case, policy, at, states.EXPIRED, None, states.SYSTEM)
    return Erased(counts["snapshots"], counts["images"], counts["notes"], closed=len(waiting))


def _count(db: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    return int(db.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar() or 0)
