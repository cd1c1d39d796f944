"""A real PostgreSQL for tests: made in a folder of its own, on a Unix socket, ended with the session. Needs Debian's package."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg
import pytest

USER = "postgres"  # PostgreSQL refuses to run as root; Debian's package makes this user


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl: Debian's newest version, else what is on the path; or None."""
    installed = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max((path.parent for path in installed), key=lambda folder: int(folder.parent.name), default=None)
    found = shutil.which("initdb")
    return newest or (Path(found).resolve().parent if found else None)


class Postgres:
    """One server; `url()` gives an empty place on it. `kill` ends it as a power cut would, `start` recovers it."""

    def __init__(self, bin_folder: Path):
        self.bin = bin_folder
        self.folder = Path(
            tempfile.mkdtemp(prefix="xhs-pg-", dir="/tmp")
        )  # short: a socket's path has at most 107 bytes
        self.data = self.folder / "data"
        if os.geteuid() == 0:
            shutil.chown(self.folder, USER)
        self._run("initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        command = [*as_user, str(self.bin / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        # without fsync a killed server still recovers all: the writes are the operating system's by then
        settings = f"-c listen_addresses='' -c fsync=off -c unix_socket_directories={self.folder} -c max_connections=50"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", settings, "start")

    def kill(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def restart(self) -> None:
        self.kill()
        self.start()

    def url(self, password: str = "") -> str:
        """A SQLAlchemy URL that leads to tables of its own: a new schema, since a database each would be copied file by file."""
        name = f"of_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host=str(self.folder), user=USER, dbname=USER, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        whom = f"{USER}:{password}" if password else USER
        return f"postgresql+psycopg://{whom}@/{USER}?host={self.folder}&options=-csearch_path%3D{name}"

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_postgres() -> Postgres:
    """A running server, or a skip that says what to install."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL server here; apt-get install postgresql")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            pytest.skip(f"PostgreSQL does not run as root and there is no user {USER}; apt-get install postgresql")
    return Postgres(folder)
