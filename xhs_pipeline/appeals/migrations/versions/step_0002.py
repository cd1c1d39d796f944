"""What an author wrote can be erased, which leaves a trace; nothing else becomes changeable by it.

A row of erasures comes first and names the author by hash. With it, and for that author alone, the triggers let through: the texts
of a snapshot becoming empty while erased_at becomes the erasure's time, the images of such a snapshot being deleted, and the
note of an event becoming null.
"""

import sqlalchemy as sa
from alembic import op

from xhs_pipeline.appeals.tables import NUMBER, UtcTime

revision = "0002"
down_revision = "0001"

KEPT_OF_SNAPSHOT = ("snapshot_id", "post_id", "qr_codes", "author_hash", "group_id", "at")
KEPT_OF_EVENT = (
    "event_id", "case_id", "case_kind", "kind", "at", "post_id", "decision_id", "model_version", "policy_version", "verdict",
    "category", "actor_hash", "actor_role", "group_id", "decided_by_hash", "flag", "origin", "origin_id",
)  # fmt: skip


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("author_hash", sa.String(32), nullable=False),
        sa.Column("snapshots", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("notes", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("erasures_author", "erasures", ["author_hash", "at"])
    op.add_column("snapshots", sa.Column("erased_at", UtcTime))
    op.create_index("snapshots_author", "snapshots", ["author_hash"])
    _allow_postgresql() if op.get_bind().dialect.name == "postgresql" else _allow_sqlite()


def _allowed(same: str) -> dict[tuple[str, str], str]:
    """What each action on a table must be to pass; `same` is the database's comparison under which null equals null."""

    def kept(columns: tuple[str, ...]) -> str:
        return " AND ".join(f"NEW.{column} {same} OLD.{column}" for column in columns)

    return {
        ("snapshots", "UPDATE"): (
            f"OLD.erased_at IS NULL AND NEW.title {same} '' AND NEW.body {same} '' AND NEW.ocr_text IS NULL "
            f"AND {kept(KEPT_OF_SNAPSHOT)} AND EXISTS "
            "(SELECT 1 FROM erasures WHERE author_hash = OLD.author_hash AND at = NEW.erased_at)"
        ),
        ("snapshot_images", "DELETE"): (
            "EXISTS (SELECT 1 FROM snapshots WHERE snapshot_id = OLD.snapshot_id AND erased_at IS NOT NULL)"
        ),
        ("events", "UPDATE"): (
            f"NEW.note IS NULL AND {kept(KEPT_OF_EVENT)} "
            "AND EXISTS (SELECT 1 FROM erasures WHERE author_hash = OLD.actor_hash)"
        ),
    }


def _allow_sqlite() -> None:
    for (table, action), allowed in _allowed("IS").items():
        op.execute(f"DROP TRIGGER {table}_no_{action.lower()}")
        _refuse_sqlite(table, action, f"WHEN NOT ({allowed})")
    _refuse_sqlite("erasures", "UPDATE")
    _refuse_sqlite("erasures", "DELETE")
    _refuse_sqlite("erasures", "INSERT", "WHEN EXISTS (SELECT 1 FROM erasures WHERE number = NEW.number)", "replace")


def _refuse_sqlite(table: str, action: str, when: str = "", name: str = "") -> None:
    op.execute(
        f"CREATE TRIGGER {table}_no_{name or action.lower()} BEFORE {action} ON {table} {when} "
        f"BEGIN SELECT RAISE(ABORT, 'append-only: rows of {table} are never changed or deleted'); END"
    )


def _allow_postgresql() -> None:
    for (table, action), allowed in _allowed("IS NOT DISTINCT FROM").items():
        other = "DELETE" if action == "UPDATE" else "UPDATE"
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        _refuse_postgresql(table, f"{other} OR TRUNCATE")
        op.execute(
            f"CREATE FUNCTION xhs_erasure_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF ({allowed}) IS NOT TRUE THEN "
            "RAISE EXCEPTION 'append-only: rows of % are never changed or deleted', TG_TABLE_NAME; END IF; "
            f"RETURN {'NEW' if action == 'UPDATE' else 'OLD'}; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_erasure BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION xhs_erasure_{table}()"
        )
    _refuse_postgresql("erasures", "UPDATE OR DELETE OR TRUNCATE")


def _refuse_postgresql(table: str, actions: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_append_only BEFORE {actions} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION xhs_append_only()"
    )
