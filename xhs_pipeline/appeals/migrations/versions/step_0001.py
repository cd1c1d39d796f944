"""Decisions, snapshots and events, which nothing may change once written."""

import sqlalchemy as sa
from alembic import op

from xhs_pipeline.appeals.tables import NUMBER, UtcTime

revision = "0001"
down_revision = None

APPEND_ONLY = ("snapshots", "snapshot_images", "decisions", "events", "store_info")
# INSERT OR REPLACE deletes without asking the DELETE trigger, so on SQLite the insert itself looks for the row that is there.
KEYS = {
    "snapshots": ("snapshot_id",),
    "snapshot_images": ("snapshot_id", "position"),
    "decisions": ("decision_id",),
    "events": ("event_id",),
    "store_info": ("name",),
}


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", sa.String(64), primary_key=True),
        sa.Column("post_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("ocr_text", sa.Text),
        sa.Column("qr_codes", sa.Integer),
        sa.Column("author_hash", sa.String(32)),
        sa.Column("group_id", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )
    op.create_table(
        "snapshot_images",
        sa.Column("snapshot_id", sa.String(64), sa.ForeignKey("snapshots.snapshot_id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "decisions",
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
    op.create_table(
        "events",
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
        sa.UniqueConstraint("origin", "origin_id", name="events_origin"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "store_info",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("events_case", "events", ["case_id", "event_id"])
    op.create_index("events_kind", "events", ["kind", "event_id"])
    op.create_index("events_actor", "events", ["actor_hash", "kind", "at"])
    op.create_index("events_group", "events", ["group_id", "kind", "at"])
    op.create_index("events_decision", "events", ["decision_id"])
    op.create_index("decisions_at", "decisions", ["verdict", "at"])
    _append_only_postgresql() if op.get_bind().dialect.name == "postgresql" else _append_only_sqlite()


def _append_only_sqlite() -> None:
    for table in APPEND_ONLY:
        refusal = f"RAISE(ABORT, 'append-only: rows of {table} are never changed or deleted')"
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} BEGIN SELECT {refusal}; END"
            )
        same = " AND ".join(f"{key} = NEW.{key}" for key in KEYS[table])
        if table == "events":
            same = f"({same}) OR (origin = NEW.origin AND origin_id = NEW.origin_id)"
        op.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
            f"BEGIN SELECT {refusal}; END"
        )


def _append_only_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION xhs_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'append-only: rows of % are never changed or deleted', TG_TABLE_NAME; END $$"
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION xhs_append_only()"
        )
