"""The tables of the appeals store, for SQLite and PostgreSQL alike. How they came to be, step by step, is in migrations/.

events      what happened to a case, in the order of event_id; the state of a case is derived from them (states)
decisions   what a model, or a person, first decided of a post: what appeals and audits are about
snapshots   the post as it was judged, under the hash of its content, so that an edited post does not change what was judged
store_info  which key the hashes of people were made with
erasures    whose texts were erased, when and how much
None of them is ever updated or deleted from, but for what an erasure empties; triggers in the database see to that.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite counts up by itself in INTEGER keys alone


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no zone, and PostgreSQL answers in the session's: both give an aware UTC time back."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()

SNAPSHOTS = sa.Table(
    "snapshots",
    METADATA,
    sa.Column("snapshot_id", sa.String(64), primary_key=True),
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("ocr_text", sa.Text),
    sa.Column("qr_codes", sa.Integer),
    sa.Column("author_hash", sa.String(32)),
    sa.Column("group_id", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("erased_at", UtcTime),
)
SNAPSHOT_IMAGES = sa.Table(
    "snapshot_images",
    METADATA,
    sa.Column("snapshot_id", sa.String(64), sa.ForeignKey("snapshots.snapshot_id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
)
DECISIONS = sa.Table(
    "decisions",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("decision_id", sa.String(32), nullable=False, unique=True),
    sa.Column("snapshot_id", sa.String(64), sa.ForeignKey("snapshots.snapshot_id"), nullable=False),
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("group_id", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("model_version", sa.Text, nullable=False),
    sa.Column("policy_version", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("verdict_probs", sa.JSON, nullable=False),
    sa.Column("category_probs", sa.JSON, nullable=False),
    sa.Column("decided_by_hash", sa.String(32)),
    sqlite_autoincrement=True,
)
# verdict and category of a filed or sampled event are those of the decision; flag says why an appeal waits for triage.
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("event_id", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("case_id", sa.Text, nullable=False),
    sa.Column("case_kind", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("post_id", sa.Text, nullable=False),
    sa.Column("decision_id", sa.Text),
    sa.Column("model_version", sa.Text),
    sa.Column("policy_version", sa.Text),
    sa.Column("verdict", sa.Text),
    sa.Column("category", sa.Text),
    sa.Column("actor_hash", sa.String(32)),
    sa.Column("actor_role", sa.Text, nullable=False),
    sa.Column("group_id", sa.Text),
    sa.Column("decided_by_hash", sa.String(32)),
    sa.Column("flag", sa.Text),
    sa.Column("note", sa.Text),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("origin_id", sa.Text),
    sqlite_autoincrement=True,
)
STORE_INFO = sa.Table(
    "store_info",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("author_hash", sa.String(32), nullable=False),
    sa.Column("snapshots", sa.Integer, nullable=False),
    sa.Column("images", sa.Integer, nullable=False),
    sa.Column("notes", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)
sa.UniqueConstraint(EVENTS.c.origin, EVENTS.c.origin_id, name="events_origin")
for name, columns in {
    "events_case": ("case_id", "event_id"),
    "events_kind": ("kind", "event_id"),
    "events_actor": ("actor_hash", "kind", "at"),
    "events_group": ("group_id", "kind", "at"),
    "events_decision": ("decision_id",),
}.items():
    sa.Index(name, *(EVENTS.c[column] for column in columns))
sa.Index("decisions_at", DECISIONS.c.verdict, DECISIONS.c.at)
sa.Index("snapshots_author", SNAPSHOTS.c.author_hash)
sa.Index("erasures_author", ERASURES.c.author_hash, ERASURES.c.at)
