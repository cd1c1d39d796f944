"""The model in use: a pointer file, moved only by a passing gate, and the history of every attempt to move it.

    <folder>/champion.json   the release in use now; replaced whole, or not at all
    <folder>/history.jsonl   one line per release, held release, sign-off and rollback; only ever appended to

Model files are not kept here: `model_path` is relative to the folder's parent (the data folder), so both move together.
The history line is written and synced before the pointer is replaced. A full disk therefore stops the move with the old
pointer intact, and a kill between the two leaves at worst a line for a move that did not happen: the pointer decides.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from xhs_pipeline.artifacts import Artifact, digest, file_digest, read_json
from xhs_pipeline.judgement.gate import INSUFFICIENT, GateVerdict
from xhs_pipeline.policy import Policy

POINTER = "champion.json"
HISTORY = "history.jsonl"

RELEASED, HELD, ROLLED_BACK, UNCHANGED, SIGNED_OFF = "released", "held", "rolled_back", "unchanged", "signed_off"


@dataclass(frozen=True)
class Candidate:
    """A judged model that wants to be released. `model_path` is relative to the data folder, with forward slashes."""

    version: str
    model_path: str
    report_version: str
    policy_version: str


@dataclass(frozen=True)
class Champion:
    """The release in use. `previous` is the version that it replaced, None for the first."""

    version: str
    model_path: str
    report_version: str
    policy_version: str
    released_at: str
    previous: str | None


@dataclass(frozen=True)
class Move:
    """What an attempt came to: released, held, rolled_back or unchanged, why, and the champion afterwards (or None)."""

    action: str
    reason: str
    champion: Champion | None


def read_champion(folder: Path) -> Champion | None:
    """The model in use, or None before the first release.

    Raises ValueError naming the file when it exists but cannot be read: an unreadable pointer is not "no model".
    """
    path = folder / POINTER
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return Champion(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: not a champion pointer ({type(error).__name__}); "
            f"restore it from the last 'champion' in {folder / HISTORY}"
        ) from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All complete history lines, oldest first; a last line cut off by a kill is left out.

    Raises ValueError naming the line when a complete line is not JSON.
    """
    path = folder / HISTORY
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]  # what follows the last line break was never finished
    out = []
    for number, line in enumerate(lines, start=1):
        try:
            out.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON; the file was edited, restore it from a copy") from error
    return out


def model_folder(folder: Path, champion: Champion) -> Path:
    """Where the champion's model lies, for a pointer kept in `folder`."""
    return folder.parent / champion.model_path


def verdict_of(judged: Artifact, policy: Policy) -> tuple[GateVerdict, dict[str, Any]]:
    """The gate's verdict as the manifest of a published evaluation_report holds it, and report.json.

    Raises ValueError when report.json is not what was published: nobody is released on figures that were edited; and when the
    limits or costs of `policy` are others than the gate went by.
    """
    file, said = judged.file("report.json"), judged.manifest["files"]["report.json"]["sha256"]
    if not file.is_file() or file_digest(file) != said:
        raise ValueError(
            f"{file}: not the report that was published (expected SHA-256 {said[:16]}); remove its folder and materialise "
            "evaluation_report again"
        )
    then = judged.manifest["settings"]
    if changed := [name for name in ("gates", "costs") if digest(then[name]) != digest(getattr(policy, name))]:
        raise ValueError(
            f"{judged.path}: judged by other {' and '.join(changed)} than those of policy {policy.version}; materialise evaluation_report again"
        )
    return GateVerdict.from_dict(judged.manifest["counts"]["gate"]), read_json(file)


def rival_of(folder: Path, version: str) -> Champion | None:
    """The release that `version` is to be compared with: the one in use or, if that is itself, the one it replaced."""
    current = read_champion(folder)
    if current is None or current.version != version:
        return current
    return _released(folder, current.previous) if current.previous else None


def earlier_candidate(folder: Path, version: str) -> Candidate | None:
    """The newest model but `version` that was judged and held, as long as its folder is there."""
    held = [Candidate(**row["candidate"]) for row in reversed(read_history(folder)) if row["action"] == HELD]
    there = (c for c in held if c.version != version and (folder.parent / c.model_path).is_dir())
    return next(there, None)


def interventions(folder: Path, version: str) -> list[str]:
    """What people did about `version`, one line each: decisions made before it have to be made anew."""
    rows = [h for h in read_history(folder) if h["action"] in (ROLLED_BACK, SIGNED_OFF)]
    return [f"{h['action']} {h['at']}" for h in rows if version in (h.get("from_version"), h.get("version"))]


def sign_off(
    folder: Path,
    candidate: Candidate,
    verdict: GateVerdict,
    name: str,
    reason: str,
    now: datetime | None = None,
) -> str:
    """Record that a person answers for what the gate could not measure; the next decision on this report then releases.

    Holds for this model and this report only. Returns the line for the person. Raises ValueError when name or reason is
    empty, and when there is nothing to sign: a passing gate needs no one, and a failed gate is not a person's to lift.
    """
    _named(name, reason, "a sign-off")
    if verdict.status != INSUFFICIENT:
        raise ValueError(
            f"the gate of {candidate.version} is {verdict.summary}; only an insufficient one can be signed off"
        )
    row = {"action": SIGNED_OFF, "version": candidate.version, "report_version": candidate.report_version}
    with _locked(folder):
        _append(
            folder,
            {**row, "name": name.strip(), "reason": reason.strip(), "gate": verdict.as_dict(), "at": _stamp(now)},
        )
    return f"{candidate.version} signed off by {name.strip()}: {reason.strip()}"


def release(
    folder: Path, candidate: Candidate, verdict: GateVerdict, judged_against: str | None, now: datetime | None = None
) -> Move:
    """Move the pointer to `candidate` if and only if its gate passed, or lacked evidence only and a person signed it off.

    `judged_against` is the version in use that the gate compared with, None for none: when another one is in use by now
    (two runs at once, a rollback), the comparison says nothing about it and the candidate is held. A held candidate leaves
    the pointer and a line in the history. A version that was rolled back is held too, so that a repeated run cannot bring
    it back; train a new version instead. Releasing the champion again changes nothing.
    Raises ValueError for an unusable `model_path` and OSError when the disk refuses (the old pointer then stands).
    """
    with _locked(folder):
        current, history = read_champion(folder), read_history(folder)
        if current is not None and current.version == candidate.version:
            return Move(UNCHANGED, f"version {candidate.version} is the model in use already", current)
        signed = _signed(history, candidate) if verdict.status == INSUFFICIENT else None
        reason = f"{verdict.summary}; {signed}" if signed else verdict.summary
        if not verdict.passed and not signed:
            return _hold(folder, candidate, verdict, reason, current, history, now)
        undone = [h for h in history if h["action"] == ROLLED_BACK and h["from_version"] == candidate.version]
        if undone:
            why = f"version {candidate.version} was rolled back by {undone[-1]['name']}: {undone[-1]['reason']}"
            return _hold(folder, candidate, verdict, why, current, history, now)
        in_use = current.version if current is not None else None
        if in_use != judged_against:
            why = f"judged against {judged_against or 'no model'}, but {in_use or 'none'} is in use now; materialise evaluation_report again"
            return _hold(folder, candidate, verdict, why, current, history, now)
        _check_model(folder, candidate.model_path)
        champion = Champion(
            **asdict(candidate), released_at=_stamp(now), previous=current.version if current is not None else None
        )
        _move(folder, champion, {"action": RELEASED, "reason": reason, "gate": verdict.as_dict(), "at": _stamp(now)})
        return Move(RELEASED, reason, champion)


def rollback(folder: Path, name: str, reason: str, now: datetime | None = None) -> Move:
    """Put the previous model back in use; who did it and why stands in the history.

    Raises ValueError when name or reason is empty, when nothing is in use, when there is no previous release, or when
    its model folder is gone.
    """
    _named(name, reason, "a rollback")
    with _locked(folder):
        current = read_champion(folder)
        if current is None or current.previous is None:
            held = "no model is in use" if current is None else f"version {current.version} is the first release"
            raise ValueError(f"{folder / POINTER}: {held}, so there is nothing to roll back to")
        champion = _released(folder, current.previous)
        _check_model(folder, champion.model_path)
        row = {"action": ROLLED_BACK, "from_version": current.version, "name": name.strip(), "reason": reason.strip()}
        _move(folder, champion, {**row, "at": _stamp(now)})
        return Move(ROLLED_BACK, f"rolled back from {current.version} by {name.strip()}: {reason.strip()}", champion)


def _named(name: str, reason: str, what: str) -> None:
    if not name.strip() or not reason.strip():
        raise ValueError(f"{what} needs the name of the person and a reason, neither may be empty")


def _signed(history: list[dict[str, Any]], candidate: Candidate) -> str | None:
    """Who signed this model off on this report, and why; None when nobody did."""
    wanted = {"action": SIGNED_OFF, "version": candidate.version, "report_version": candidate.report_version}
    rows = [h for h in history if all(h.get(key) == value for key, value in wanted.items())]
    return f"signed off by {rows[-1]['name']}: {rows[-1]['reason']}" if rows else None


def _released(folder: Path, version: str) -> Champion:
    """The pointer as it was when `version` was last released."""
    records = [h["champion"] for h in read_history(folder) if h["action"] == RELEASED]
    before = [r for r in records if r["version"] == version]
    if not before:
        raise ValueError(f"{folder / HISTORY}: no release of version {version}, which {POINTER} names as previous")
    return Champion(**before[-1])


def _hold(
    folder: Path,
    candidate: Candidate,
    verdict: GateVerdict,
    reason: str,
    current: Champion | None,
    history: list[dict[str, Any]],
    now: datetime | None,
) -> Move:
    row = {"action": HELD, "candidate": asdict(candidate), "reason": reason, "gate": verdict.as_dict()}
    # the same hold, met again on a repeated run, is not news
    if not history or any(history[-1].get(key) != value for key, value in row.items()):
        _append(folder, {**row, "at": _stamp(now)})
    return Move(HELD, reason, current)


def _move(folder: Path, champion: Champion, row: dict[str, Any]) -> None:
    """Write the new pointer beside the old one, then the history line, then swap: what can fail comes first."""
    temporary = folder / f".{POINTER}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(asdict(champion), file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        _append(folder, {**row, "champion": asdict(champion)})
        os.replace(temporary, folder / POINTER)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)


def _append(folder: Path, row: dict[str, Any]) -> None:
    """Add one line and sync it; a line that does not fit is taken back, so the history never holds half a line."""
    path = folder / HISTORY
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    # unbuffered: a buffered file would try the failed write again when it is closed, after the truncation
    with open(path, "a+b", buffering=0) as file:
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1  # a kill may have left a torn line behind
        file.truncate(complete)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "the line was written in part only: no space left", str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(complete)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One mover at a time in this folder, across processes; the lock goes with the process that held it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_model(folder: Path, model_path: str) -> None:
    parts = PurePosixPath(model_path)
    if parts.is_absolute() or ".." in parts.parts or not model_path.strip():
        raise ValueError(f"model_path {model_path!r} must be relative to {folder.parent} and stay inside it")
    if not (folder.parent / model_path).is_dir():
        raise ValueError(
            f"{folder.parent / model_path}: no such model folder, so it cannot be put in use; merge it again"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="seconds")
