"""The decision log and its snapshots, within a transaction of the appeals store."""

import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.tables import DECISIONS, SNAPSHOT_IMAGES, SNAPSHOTS

AT_ONCE = 500  # snapshots asked for in one statement, far below what either database takes
Hash = Callable[[str | None], str | None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows of the tables, ready to insert: snapshots and images by snapshot id, decisions in the order given."""

    snapshots: dict[str, Row]
    images: dict[str, list[Row]]
    decisions: list[Row]


def rows_of(pairs: Sequence[tuple[Snapshot, Decision]], at: datetime, hash_of: Hash) -> Rows:
    """What `insert` writes of these; all that takes time, so that no transaction waits for it."""
    made = Rows({}, {}, [])
    for snapshot, decision in pairs:
        author_hash, group_id = hash_of(snapshot.author), snapshot.group_id
        sha256s = [hashlib.sha256(image).hexdigest() for image in snapshot.images]
        snapshot_id = snapshot.identity(author_hash, sha256s)
        made.snapshots[snapshot_id] = {
            "snapshot_id": snapshot_id, "post_id": snapshot.post_id, "title": snapshot.title, "body": snapshot.body,
            "ocr_text": snapshot.ocr_text, "qr_codes": snapshot.qr_codes, "author_hash": author_hash, "group_id": group_id, "at": at,
        }  # fmt: skip
        made.images[snapshot_id] = [
            {"snapshot_id": snapshot_id, "position": i, "sha256": sha256, "bytes": image}
            for i, (sha256, image) in enumerate(zip(sha256s, snapshot.images, strict=True))
        ]
        made.decisions.append(
            {
                "decision_id": uuid.uuid4().hex, "snapshot_id": snapshot_id, "post_id": snapshot.post_id, "group_id": group_id,
                "at": at, "source": decision.source, "model_version": decision.model_version,
                "policy_version": decision.policy_version, "verdict": decision.verdict, "category": decision.category,
                "verdict_probs": dict(decision.verdict_probs), "category_probs": dict(decision.category_probs),
                "decided_by_hash": hash_of(decision.decided_by),
            }
        )  # fmt: skip
    return made


def insert(db: sa.Connection, rows: Rows) -> None:
    """Add decisions, and those of their snapshots that are new. A post that was erased and is judged again has a new one."""
    known = _known(db, rows)
    while erased := {name: at for name, at in known.items() if at}:  # the new one may have been erased as well
        rows = _anew(rows, erased)
        known = _known(db, rows)
    # in one order everywhere: two services that add the same posts wait for each other, and must not do so in a circle
    new = sorted(rows.snapshots.keys() - known)
    _add(db, SNAPSHOTS, [rows.snapshots[name] for name in new])
    _add(db, SNAPSHOT_IMAGES, [image for name in new for image in rows.images[name]])
    if rows.decisions:  # of nothing, a row of defaults would be made
        db.execute(sa.insert(DECISIONS), rows.decisions)


def _known(db: sa.Connection, rows: Rows) -> dict[str, datetime | None]:
    """When each of the snapshots that are there was erased."""
    names, found = list(rows.snapshots), dict[str, datetime | None]()
    for begin in range(0, len(names), AT_ONCE):
        asked = SNAPSHOTS.c.snapshot_id.in_(names[begin : begin + AT_ONCE])
        answered = db.execute(sa.select(SNAPSHOTS.c.snapshot_id, SNAPSHOTS.c.erased_at).where(asked))
        found |= {row.snapshot_id: row.erased_at for row in answered}
    return found


def _anew(rows: Rows, erased: Mapping[str, datetime | None]) -> Rows:
    """The rows with snapshots in place of erased ones, under ids that are the same for all that was judged after that erasure."""
    ids = {name: hashlib.sha256(f"{name} after {at}".encode()).hexdigest() for name, at in erased.items()}

    def renamed(row: Row) -> Row:
        return row | {"snapshot_id": ids.get(row["snapshot_id"], row["snapshot_id"])}

    return Rows(
        {ids.get(name, name): renamed(row) for name, row in rows.snapshots.items()},
        {ids.get(name, name): [renamed(image) for image in images] for name, images in rows.images.items()},
        [renamed(row) for row in rows.decisions],
    )


def _add(db: sa.Connection, table: sa.Table, rows: list[Row]) -> None:
    if not rows:
        return
    if db.dialect.name == "sqlite":  # its writers come one after another
        db.execute(sa.insert(table), rows)
    else:  # another service may be adding the same post just now
        db.execute(postgresql.insert(table).on_conflict_do_nothing(), rows)


def find(db: sa.Connection, decision_id: str) -> Mapping[str, Any] | None:
    """The row of a decision, or None."""
    row = db.execute(sa.select(DECISIONS).where(DECISIONS.c.decision_id == decision_id)).first()
    return None if row is None else dict(row._mapping)


def is_erased(db: sa.Connection, decision_id: str) -> bool:
    """Whether the post that was decided on was erased since."""
    asked = sa.select(SNAPSHOTS.c.erased_at).join(DECISIONS).where(DECISIONS.c.decision_id == decision_id)
    return db.execute(asked).scalar() is not None


def author_of(db: sa.Connection, decision_id: str | None) -> str | None:
    """The hash of the author whose post was decided on, where it is known."""
    asked = sa.select(SNAPSHOTS.c.author_hash).join(DECISIONS).where(DECISIONS.c.decision_id == decision_id)
    found = db.execute(asked).scalar() if decision_id else None
    return None if found is None else str(found)


def image_count(db: sa.Connection, decision_id: str | None) -> int:
    """How many images were judged, 0 where the log does not hold them, or no more."""
    asked = sa.select(sa.func.count()).select_from(SNAPSHOT_IMAGES)
    asked = asked.join(DECISIONS, DECISIONS.c.snapshot_id == SNAPSHOT_IMAGES.c.snapshot_id)
    return int(db.execute(asked.where(DECISIONS.c.decision_id == decision_id)).scalar() or 0)


def read(
    db: sa.Connection, decision_id: str | None, with_images: bool = True
) -> tuple[Snapshot | None, Decision | None, datetime | None]:
    """What was judged, what was decided and when; None each where the log does not hold it, or no more."""
    row = find(db, decision_id) if decision_id else None
    if row is None:
        return None, None, None
    stored = db.execute(sa.select(SNAPSHOTS).where(SNAPSHOTS.c.snapshot_id == row["snapshot_id"])).one()
    images: tuple[bytes, ...] = ()
    if with_images:
        asked = sa.select(SNAPSHOT_IMAGES.c.bytes).where(SNAPSHOT_IMAGES.c.snapshot_id == row["snapshot_id"])
        images = tuple(db.execute(asked.order_by(SNAPSHOT_IMAGES.c.position)).scalars())
    snapshot = Snapshot(stored.post_id, stored.title, stored.body, images, stored.ocr_text, stored.qr_codes)
    shown = None if stored.erased_at else snapshot
    names = ("model_version", "policy_version", "verdict", "category", "verdict_probs", "category_probs", "source")
    return shown, Decision(**{name: row[name] for name in names}), row["at"]
