"""Versioned artefacts on disk: written once under a hash of what made them, published whole or not at all.

    $XHS_DATA_DIR/<key>/[<week>/]<version>/manifest.json, files ...
    $XHS_DATA_DIR/<key>/[<week>/]latest.json            {"version": ...}, moved atomically
    $XHS_DATA_DIR/<key>/[<week>/].work/<version>/       unfinished; kept by stages that resume

The version is the hash of the inputs' contents, the settings and the code version, so equal inputs mean nothing to do. A lock
per version makes a second run wait for the first one and then find its result. Nothing here knows Dagster or posts.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dagster",
    "pandas",
    "pyarrow",
    "pillow",
    "numpy",
    "scikit-learn",
    "cleanlab",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
)


def data_folder(given: str = "") -> Path:
    """The folder of all artefacts: `given`, else XHS_DATA_DIR, else `data` in the project's folder."""
    return Path(given or os.environ.get("XHS_DATA_DIR") or Path(__file__).resolve().parent.parent / "data").absolute()


@dataclass(frozen=True)
class Artifact:
    """A published artefact: its folder and its manifest."""

    key: str
    path: Path
    manifest: dict[str, Any]
    reused: bool = False

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def content(self) -> str:
        """Hash over the artefact's files: what later stages depend on, so that a rebuild with equal files ends there."""
        return str(self.manifest["content"])

    def file(self, name: str) -> Path:
        return self.path / name

    def tables_digest(self, *names: str) -> str:
        """Hash over some of its parquet files, named without .parquet: what a stage that reads only those depends on.

        Raises KeyError for one that is not there.
        """
        return digest({name: self.manifest["files"][f"{name}.parquet"]["sha256"] for name in names})


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found when it read the artefact back; a failed blocking check keeps the artefact from publishing."""

    name: str
    passed: bool
    description: str
    metadata: dict[str, Any] = field(default_factory=dict)
    blocking: bool = True


@dataclass(frozen=True)
class Built:
    """What a stage hands back after writing its files: figures for the manifest, and checks on what it wrote.

    linked: files that are hard links to files of a published version, with their entries in its manifest; their hashes are taken
    over where the size agrees.
    """

    counts: dict[str, Any]
    checks: list[CheckOutcome] = field(default_factory=list)
    linked: dict[str, dict[str, Any]] = field(default_factory=dict)


class RejectedArtifact(Exception):
    """A blocking check failed: the artefact is kept for inspection, `latest.json` did not move."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        failed = [c["description"] for c in artifact.manifest["checks"] if c["blocking"] and not c["passed"]]
        super().__init__(f"{artifact.key}: not published; {'; '.join(failed)} (files in {artifact.path})")


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True, default=str)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class ArtifactStore:
    """Artefacts under one root folder (`XHS_DATA_DIR`)."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, key: str, week: str | None = None) -> Path:
        return self.root / key / week if week else self.root / key

    def latest(self, key: str, week: str | None = None) -> Artifact | None:
        """The artefact that `latest.json` points to, or None when there is none yet."""
        version = self._pointed(key, week)
        return self.get(key, version, week) if version else None

    def whole(self, key: str, week: str | None = None) -> Artifact | None:
        """The latest artefact as `build` would find it; None where there is none, or where some of its files are gone."""
        version = self._pointed(key, week)
        return self.get(key, version, week) if version and _whole(self.folder(key, week) / version) else None

    def _pointed(self, key: str, week: str | None) -> str | None:
        pointer = self.folder(key, week) / "latest.json"
        return str(read_json(pointer)["version"]) if pointer.is_file() else None

    def get(self, key: str, version: str, week: str | None = None) -> Artifact:
        """One version. Raises FileNotFoundError when it is not there."""
        path = self.folder(key, week) / version
        if not (path / "manifest.json").is_file():
            raise FileNotFoundError(f"{path}: no such {key}; materialise {key} first")
        return Artifact(key, path, read_json(path / "manifest.json"))

    def weeks(self, key: str) -> list[str]:
        """Weeks of a weekly artefact that are published, oldest first."""
        return sorted(p.parent.name for p in (self.root / key).glob("*/latest.json"))

    def has_been_published(self, key: str) -> bool:
        """Whether a version was ever published, as far as the files say: also where latest.json itself is gone."""
        folder, tickets = self.folder(key), self.folder(key) / ".work" / "tickets.json"
        if (folder / "latest.json").is_file():
            return True
        return read_json(tickets)["latest"] > 0 if tickets.is_file() else any(folder.glob("*/manifest.json"))

    @contextlib.contextmanager
    def alone(self, key: str, log: Callable[[str], None] = print) -> Iterator[None]:
        """Hold the asset for one run at a time: a version that continues the latest one must not miss another's."""
        work = self.folder(key) / ".work"
        work.mkdir(parents=True, exist_ok=True)
        with _lock(work / f"{key}.lock", log):
            yield

    def build(
        self,
        key: str,
        write: Callable[[Path], Built],
        *,
        inputs: dict[str, str],
        settings: dict[str, Any],
        code_version: str,
        week: str | None = None,
        resumable: bool = False,
        lineage: dict[str, str] | None = None,
        log: Callable[[str], None] = print,
    ) -> Artifact:
        """Return the artefact for these inputs, running `write(work_folder)` only when no such version is published.

        `inputs` name -> content hash; `lineage` name -> version, for people. `resumable` keeps what an interrupted `write`
        left in its work folder. Raises RejectedArtifact when a blocking check fails; `latest.json` then stays as it was.
        """
        identity = {"key": key, "week": week, "inputs": inputs, "settings": settings, "code_version": code_version}
        version = digest(identity)
        folder = self.folder(key, week)
        final, work = folder / version, folder / ".work" / version
        work.parent.mkdir(parents=True, exist_ok=True)
        ticket = _take_ticket(folder)
        with _lock(folder / ".work" / f"{version}.lock", log):
            reused = _whole(final) and _accepted(read_json(final / "manifest.json"))
            if reused:
                log(f"{key}: {version} is there already, nothing recomputed")
            else:
                if work.exists() and not resumable:
                    shutil.rmtree(work)
                work.mkdir(exist_ok=True)
                started = time.monotonic()
                built = write(work)
                manifest = identity | {
                    "version": version,
                    "lineage": lineage or {},
                    "counts": built.counts,
                    "checks": [vars(c) for c in built.checks],
                    "packages": _package_versions(),
                    "seconds": round(time.monotonic() - started, 2),
                    "process_peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
                }
                _publish(work, final, manifest, built.linked)
            artifact = Artifact(key, final, read_json(final / "manifest.json"), reused)
            if not _accepted(artifact.manifest):
                raise RejectedArtifact(artifact)
            _point(folder, version, ticket, log)
        return artifact


def _accepted(manifest: dict[str, Any]) -> bool:
    return all(c["passed"] or not c["blocking"] for c in manifest["checks"])


def _whole(final: Path) -> bool:
    """Whether the manifest and every file it lists are there with the size they were written with."""
    if not (final / "manifest.json").is_file():
        return False
    files = read_json(final / "manifest.json")["files"]
    return all((final / n).is_file() and (final / n).stat().st_size == f["bytes"] for n, f in files.items())


def _take_ticket(folder: Path) -> int:
    """A number for this build, larger than those of all builds of the asset that began before it (no clock is asked)."""
    with _lock(folder / ".work" / "tickets.lock"):
        state = folder / ".work" / "tickets.json"
        tickets = read_json(state) if state.is_file() else {"issued": 0, "latest": 0}
        tickets["issued"] += 1
        write_json(state, tickets)
    return int(tickets["issued"])


def _point(folder: Path, version: str, ticket: int, log: Callable[[str], None]) -> None:
    """Move latest.json, unless a build that began later has moved it: it knew more."""
    with _lock(folder / ".work" / "tickets.lock"):
        tickets = read_json(folder / ".work" / "tickets.json")
        if tickets["latest"] > ticket:
            log(f"{folder.name}: a run that began later has published; latest.json stays there")
            return
        write_json(folder / "latest.json", {"version": version})
        write_json(folder / ".work" / "tickets.json", tickets | {"latest": ticket})


def _publish(work: Path, final: Path, manifest: dict[str, Any], linked: dict[str, dict[str, Any]]) -> None:
    """Hash every file that is not linked, write the manifest last, and rename the folder into place."""
    files = {}
    for name in sorted(_files_under(str(work))):
        if name != "manifest.json":
            file, known = work / name, linked.get(name)
            size = file.stat().st_size
            files[name] = known if known and known["bytes"] == size else {"sha256": file_digest(file), "bytes": size}
    write_json(
        work / "manifest.json",
        manifest | {"files": files, "content": digest({n: f["sha256"] for n, f in files.items()})},
    )
    if final.exists():  # a version that its checks rejected, or that lost files, now written anew
        shutil.rmtree(final)
    os.replace(work, final)


def _files_under(folder: str) -> Iterator[str]:
    """Names relative to the folder; an artefact may hold thousands of files."""
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name)[len(folder) + 1 :] for name in names)


def _package_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


@contextlib.contextmanager
def _lock(path: Path, log: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system frees it when this process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another run is writing {path.stem}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
