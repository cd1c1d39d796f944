"""Connections to the appeals database, SQLite or PostgreSQL: transactions, the lock of the writers, and the schema's version.

Nothing here knows what an appeal is. Every failure leaves as a StoreError of one line that never holds a password, a statement
or a value.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

HEAD = "0002"  # the newest step in migrations/versions
MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS = 30  # how long a writer waits for the ones before it
STATEMENT_SECONDS = 60  # how long PostgreSQL may take over one statement of a writer, its waiting included
CONNECT_SECONDS = 10
SILENT_SECONDS = (
    30  # after which a server that acknowledges nothing counts as gone: a dead one would be waited for for ever
)
# One writer of events at a time: an id is given and becomes visible before the next one is given, so that a reader that goes on
# from the largest id it saw misses none. (A sequence alone hands out ids that may commit in another order.)
# ERASURE is shared by those who log posts and alone held by who erases some: nothing of theirs is committed behind its back.
WRITERS, SCHEMA, ERASURE = 0x78687301, 0x78687302, 0x78687303


class StoreError(RuntimeError):
    """The appeals database cannot be used just now, or at all; the message says which, and what to do."""


class Database:
    """One engine and the two kinds of transactions that there are: those that read, and those that write one after another."""

    def __init__(self, url: str):
        self.url = _parse(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.shown = self.url.set(query={}).render_as_string(hide_password=True)
        try:
            self.engine = self._engine()
        except ModuleNotFoundError as missing:
            raise StoreError(
                f"{self.shown}: the driver {missing.name} is not installed; pip install 'xhs-pipeline[postgres]'"
            ) from None

    def _engine(self) -> sa.Engine:
        if not self.sqlite:
            # pre-ping: a connection that a restart of the server cut is replaced before it is used
            return sa.create_engine(
                self.url,
                pool_pre_ping=True,
                hide_parameters=True,
                connect_args={
                    "connect_timeout": CONNECT_SECONDS,
                    "tcp_user_timeout": SILENT_SECONDS * 1000,
                    "keepalives_idle": CONNECT_SECONDS,  # asks one that is silent while an answer is waited for
                },
            )
        engine = sa.create_engine(self.url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
        sa.event.listen(engine, "connect", _sqlite_settings)
        sa.event.listen(engine, "begin", _sqlite_begin)
        return engine

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database."""
        with self._errors("nothing was read"), self.engine.connect() as connection:
            if not self.sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, alone: bool = True) -> Iterator[sa.Connection]:
        """A transaction that is written whole or not at all. `alone`: after all other such writers, before any later one."""
        with self._errors("nothing was written"), self.engine.connect() as connection:
            connection = connection.execution_options(xhs_write=True)
            with connection.begin():
                if not self.sqlite:
                    connection.exec_driver_sql(
                        f"SELECT set_config('lock_timeout', '{BUSY_SECONDS}s', true), "
                        f"set_config('statement_timeout', '{STATEMENT_SECONDS}s', true)"
                    )
                if alone:
                    self.take(connection, WRITERS)
                yield connection

    def empty_log(self) -> bool:
        """Take what was overwritten out of SQLite's log of writes, too, where it stays while another process has the store open.

        False where a reader did not let it within BUSY_SECONDS.
        """
        if not self.sqlite:
            return True
        with self._errors("the log beside the file was not emptied"), self.engine.connect() as connection:
            raw = connection.connection.driver_connection  # a checkpoint cannot stand in a transaction
            assert raw is not None
            return not raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]

    def take(self, connection: sa.Connection, lock: int, shared: bool = False) -> None:
        """Hold a lock until the transaction ends. SQLite has no need of any: its writers come one after another anyway."""
        if not self.sqlite:
            how = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
            connection.execute(sa.select(how(lock)))

    @contextmanager
    def _errors(self, outcome: str) -> Iterator[None]:
        """Turn the drivers' errors into one line; IntegrityError, which says what a caller did, passes."""
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            said = " ".join(str(error.orig).split("\n")[0].split()) or type(error.orig).__name__
            raise StoreError(f"{self.shown}: {outcome}: {said}; {self._remedy(said)}") from None
        except sa.exc.TimeoutError:
            raise StoreError(
                f"{self.shown}: {outcome}: all connections are in use; lower the load or try again"
            ) from None

    def _remedy(self, said: str) -> str:
        if "locked" in said or "lock timeout" in said:
            return f"another writer held it for {BUSY_SECONDS} s: try again, and end the one that hangs"
        if "statement timeout" in said:
            return f"the server took over {STATEMENT_SECONDS} s: lower its load and try again"
        if "full" in said or "No space" in said:
            return "make room on the disk and try again"
        if self.sqlite:
            return "check that the file and its folder exist, can be written, and lie on a local disk"
        return "check that the server runs and that XHS_APPEALS_URL names it, then try again"

    def upgrade(self) -> None:
        """Bring an empty or older database to HEAD; a second process waits for the first. Raises StoreError for a newer one."""
        with self._one_at_a_time():
            if self.version() == HEAD:
                return
            with self.write(alone=False) as connection:
                self.take(connection, SCHEMA)
                if not self.sqlite:
                    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")  # a step may rewrite a large table
                self._apply_steps(connection)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """On SQLite a lock beside the file: the step to WAL mode cannot stand in a transaction and does not wait for others."""
        if not self.sqlite:
            yield
            return
        with self._lock_file():
            with self._errors("nothing was read"), self.engine.connect() as connection:
                raw = connection.connection.driver_connection
                assert raw is not None
                if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    raw.execute("PRAGMA journal_mode = WAL")
            yield

    def _lock_file(self) -> IO[str]:
        """The file beside SQLite's, locked until it is closed; made with its folder where there is none."""
        path = Path(f"{self.url.database}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("a")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            said = error.strerror or type(error).__name__
            raise StoreError(
                f"{self.shown}: nothing was read: {error.filename or path}: {said}; {self._remedy(said)}"
            ) from None
        return lock

    def version(self) -> str | None:
        """The step that the database is at, None when it is empty."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found)

    def _apply_steps(self, connection: sa.Connection) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util.exc import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"{self.shown}: its schema is not known here ({error}); this version knows up to {HEAD}: "
                "install the version that made it, or name another database in XHS_APPEALS_URL"
            ) from None

    def close(self) -> None:
        self.engine.dispose()


def _parse(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise StoreError("XHS_APPEALS_URL is not a database URL; expected sqlite:////folder/appeals.sqlite3 or postgresql+psycopg://user@host/name") from None  # fmt: skip
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise StoreError(
            f"XHS_APPEALS_URL names a {parsed.get_backend_name()} database; expected sqlite or postgresql+psycopg"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError(
            "XHS_APPEALS_URL names a database in memory, which ends with the process; expected sqlite:////folder/appeals.sqlite3"
        )
    return parsed


def _sqlite_settings(raw: Any, record: Any) -> None:
    raw.isolation_level = None  # or the driver begins transactions by itself, and later than they should
    for pragma in ("foreign_keys = ON", "synchronous = FULL", "recursive_triggers = ON", "secure_delete = ON"):
        raw.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    # a write lock taken at the first write instead would fail, without waiting, when another writer came between
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("xhs_write") else "BEGIN")
