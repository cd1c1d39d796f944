"""The decision log and its snapshots, within a transaction of the appeals store."""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.tables import DECISIONS, SNAPSHOT_IMAGES, SNAPSHOTS

Hash = Callable[[str | None], str | None]


def insert(db: sa.Connection, snapshot: Snapshot, decision: Decision, at: datetime, hash_of: Hash) -> str:
    """Add a decision, and its snapshot where it is new; returns the decision's id."""
    author_hash = hash_of(snapshot.author)
    snapshot_id, group_id = snapshot.identity(author_hash), snapshot.group_id
    if db.execute(sa.select(SNAPSHOTS.c.snapshot_id).where(SNAPSHOTS.c.snapshot_id == snapshot_id)).first() is None:
        _insert_snapshot(db, snapshot, snapshot_id, author_hash, group_id, at)
    decision_id = uuid.uuid4().hex
    db.execute(
        sa.insert(DECISIONS).values(
            decision_id=decision_id, snapshot_id=snapshot_id, post_id=snapshot.post_id, group_id=group_id, at=at,
            source=decision.source, model_version=decision.model_version, policy_version=decision.policy_version,
            verdict=decision.verdict, category=decision.category, verdict_probs=dict(decision.verdict_probs),
            category_probs=dict(decision.category_probs), decided_by_hash=hash_of(decision.decided_by),
        )
    )  # fmt: skip
    return decision_id


def _insert_snapshot(
    db: sa.Connection, snapshot: Snapshot, snapshot_id: str, author_hash: str | None, group_id: str, at: datetime
) -> None:
    row = {
        "snapshot_id": snapshot_id, "post_id": snapshot.post_id, "title": snapshot.title, "body": snapshot.body,
        "ocr_text": snapshot.ocr_text, "qr_codes": snapshot.qr_codes, "author_hash": author_hash, "group_id": group_id, "at": at,
    }  # fmt: skip
    images = [
        {"snapshot_id": snapshot_id, "position": i, "sha256": hashlib.sha256(image).hexdigest(), "bytes": image}
        for i, image in enumerate(snapshot.images)
    ]
    if db.dialect.name == "sqlite":  # its writers come one after another
        db.execute(sa.insert(SNAPSHOTS).values(row))
        if images:
            db.execute(sa.insert(SNAPSHOT_IMAGES), images)
        return
    # another service may be adding the same post just now
    db.execute(postgresql.insert(SNAPSHOTS).values(row).on_conflict_do_nothing())
    if images:
        db.execute(postgresql.insert(SNAPSHOT_IMAGES).on_conflict_do_nothing(), images)


def find(db: sa.Connection, decision_id: str) -> Mapping[str, Any] | None:
    """The row of a decision, or None."""
    row = db.execute(sa.select(DECISIONS).where(DECISIONS.c.decision_id == decision_id)).first()
    return None if row is None else dict(row._mapping)


def author_of(db: sa.Connection, decision_id: str | None) -> str | None:
    """The hash of the author whose post was decided on, where it is known."""
    asked = sa.select(SNAPSHOTS.c.author_hash).join(DECISIONS).where(DECISIONS.c.decision_id == decision_id)
    found = db.execute(asked).scalar() if decision_id else None
    return None if found is None else str(found)


def read(db: sa.Connection, decision_id: str | None) -> tuple[Snapshot | None, Decision | None, datetime | None]:
    """What was judged, what was decided and when; None each where the log does not hold it."""
    row = find(db, decision_id) if decision_id else None
    if row is None:
        return None, None, None
    stored = db.execute(sa.select(SNAPSHOTS).where(SNAPSHOTS.c.snapshot_id == row["snapshot_id"])).one()
    asked = sa.select(SNAPSHOT_IMAGES.c.bytes).where(SNAPSHOT_IMAGES.c.snapshot_id == row["snapshot_id"])
    images = tuple(db.execute(asked.order_by(SNAPSHOT_IMAGES.c.position)).scalars())
    snapshot = Snapshot(stored.post_id, stored.title, stored.body, images, stored.ocr_text, stored.qr_codes)
    names = ("model_version", "policy_version", "verdict", "category", "verdict_probs", "category_probs", "source")
    return snapshot, Decision(**{name: row[name] for name in names}), row["at"]
