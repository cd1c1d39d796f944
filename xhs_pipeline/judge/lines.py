"""A file of JSON lines that appears whole or not at all, and whose unfinished part the next identical run goes on with.

    .OUT.part       the lines so far; takes the name OUT when the last one is written
    .OUT.part.log   what the lines are made from, then the size of .OUT.part after every finished chunk; locked while in use

A chunk counts as finished once its lines are synced and its size is logged; what a kill left behind that is cut off. Knows
neither posts nor models.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

MADE_FROM, SIZE = "made_from", "bytes"


class Lines:
    """An open file of lines. `size` is how many bytes finished chunks hold, those of an earlier run included."""

    def __init__(self, file: BinaryIO, log: BinaryIO | None = None, size: int = 0):
        self._file, self._log, self.size = file, log, size

    def earlier(self) -> Iterator[dict[str, Any]]:
        """The lines that an earlier run finished, in order; to be read before the first `add`."""
        if self.size:
            self._file.seek(0)
            left = self.size
            while left:
                line = self._file.readline()
                left -= len(line)
                yield json.loads(line)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one chunk: a line per row. Raises OSError when the disk refuses; the chunk is then not finished."""
        chunk = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        self._file.write(chunk)
        self._file.flush()
        self.size += len(chunk)
        if self._log:
            os.fsync(self._file.fileno())
            _append(self._log, {SIZE: self.size})


@contextlib.contextmanager
def resumable(out: Path, made_from: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Lines]:
    """`out` to write lines to. It takes its name when the block ends well; else the next call with equal `made_from` goes on.

    `made_from` names everything that the lines depend on, each with a hash. Lines made from something else are thrown away,
    and `say` is told what differs. What is no regular file (a pipe, a device, /dev/stdout) is written directly.
    Raises ValueError when another process is writing `out`.
    """
    if str(out) == "/dev/stdout":  # opening it by name would cut off the file that a shell may have redirected it to
        with open(1, "wb", closefd=False) as stream:
            yield Lines(stream)
        return
    if out.exists() and not out.is_file():
        with out.open("wb") as stream:
            yield Lines(stream)
        return
    target = out.resolve()
    part, log = _beside(target, ".part"), _beside(target, ".part.log")
    with _locked(log, out) as chunks, part.open("a+b") as file:  # appending: writes go to the end, wherever it was read
        lines = Lines(file, chunks, _finished(chunks, file, made_from, part, say))
        file.truncate(lines.size)
        try:
            yield lines
            os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
            log.unlink()
        finally:
            if not lines.size:  # nothing to go on with
                part.unlink(missing_ok=True)
                log.unlink(missing_ok=True)


def _beside(target: Path, suffix: str) -> Path:
    """A hidden name in the same folder that stays within what file systems allow."""
    name = target.name
    if len(os.fsencode(name)) > 200:
        name = f"{name[:50]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
    return target.with_name(f".{name}{suffix}")


@contextlib.contextmanager
def _locked(log: Path, out: Path) -> Iterator[BinaryIO]:
    """The log, opened to append, by one process at a time; the system frees it when that process ends, however it ends."""
    while True:
        with log.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out}: another run is writing it; wait for its end, or name another OUT") from None
            # its last owner may have finished and removed it between opening and locking
            if _is_file(file, log):
                yield file
                return


def _is_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _finished(
    chunks: BinaryIO, file: BinaryIO, made_from: Mapping[str, str], part: Path, say: Callable[[str], None]
) -> int:
    """How many bytes of the part to go on after; a log that belongs to something else is begun anew."""
    chunks.seek(0)
    logged = chunks.read()
    complete = logged.rfind(b"\n") + 1  # a kill may have torn the last line
    entries = [json.loads(line) for line in logged[:complete].splitlines()]
    size = file.seek(0, os.SEEK_END)
    if entries and entries[0] == {MADE_FROM: made_from} and len(entries) > 1 and size >= entries[-1][SIZE]:
        chunks.truncate(complete)
        return int(entries[-1][SIZE])
    if entries and size:
        before = entries[0][MADE_FROM]
        differing = [name for name in made_from if before.get(name) != made_from[name]]
        why = f"made from another {' and another '.join(differing)}" if differing else "cut off"
        say(f"{part}: begun by an earlier run, but {why}; starting anew")
    chunks.truncate(0)
    _append(chunks, {MADE_FROM: made_from})
    return 0


def _append(log: BinaryIO, entry: Mapping[str, Any]) -> None:
    log.write(json.dumps(entry).encode() + b"\n")
    log.flush()
