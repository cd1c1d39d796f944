"""The program of a pool's worker: gets batches on standard input, answers with what a function makes of them. See `pool`.

Parts of bytes cross, behind their number and sizes: JSON and Arrow IPC, no pickles.
"""

import importlib
import json
import mmap
import os
import queue
import resource
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pyarrow as pa

WHOLE_ROW = -1  # the part that means the row itself: its text, or all of it
NO_ROW = -1
PLACE = struct.Struct("<qq")  # row and part, in memory that parent and worker share
BETWEEN_ROWS = 300.0  # seconds for what is done on no row: unpacking a batch, packing the results
OUT_OF_MEMORY = 77  # exit code

# (row, part) to (reason, detail): what a function is to leave out. Part WHOLE_ROW leaves out the row.
GivenUp = Mapping[tuple[int, int], tuple[str, str]]
# Says which row and part is worked on from now; before the first row and after the last it is NO_ROW.
Begin = Callable[[int, int], None]


def main(function: str, settings: dict[str, Any], seconds: float, memory_mb: int, place: int) -> NoReturn:
    """The worker: answers batches until its parent closes the pipe, which the system does for a parent that was killed."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])

    def leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        send(answers, [_where(error).encode()])

    sys.excepthook = leave
    shared = mmap.mmap(place, PLACE.size)
    module, name = function.split(":")
    work = getattr(importlib.import_module(module), name)
    questions: queue.SimpleQueue[list[memoryview]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    _set_limits(memory_mb)

    def begin(row: int, part: int) -> None:
        # By the system's timer, so that a decoder that hangs while it holds the interpreter ends all the same, parent or not.
        signal.setitimer(signal.ITIMER_REAL, BETWEEN_ROWS if row == NO_ROW else seconds)
        PLACE.pack_into(shared, 0, row, part)

    while True:
        skipped, rows = questions.get()
        given_up = {(row, part): (reason, detail) for row, part, reason, detail in json.loads(bytes(skipped))}
        begin(NO_ROW, WHOLE_ROW)
        try:
            tables = work(decode(rows), settings, begin, given_up)
            begin(NO_ROW, WHOLE_ROW)
            answer = [b"", *map(encode, tables)]
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(answers, answer)


def _listen(questions: "queue.SimpleQueue[list[memoryview]]") -> None:
    try:
        while question := receive(0):
            questions.put(question)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    os._exit(0)


def _set_limits(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold posts
    used = Path("/proc/self/statm")
    if used.is_file():
        now = int(used.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_mb * 2**20,) * 2)


def _where(error: BaseException) -> str:
    """The kind of an error and the lines of code it came through; its message may quote a post."""
    lines = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-5:]]
    return f"{type(error).__name__} at {' > '.join(lines)}"


def send(pipe: int, parts: Sequence[Any]) -> None:
    """Write parts (objects with a buffer of bytes) behind their number and sizes."""
    views = [memoryview(part) for part in parts]
    for view in (memoryview(struct.pack(f"<q{len(views)}q", len(views), *(view.nbytes for view in views))), *views):
        while view:
            view = view[os.write(pipe, view) :]


def receive(pipe: int) -> list[memoryview] | None:
    """The parts that were sent, or None when the pipe ended before the last of them."""
    if (count := _read(pipe, 8)) is None or (sizes := _read(pipe, 8 * struct.unpack("<q", count)[0])) is None:
        return None
    parts = []
    for (size,) in struct.iter_unpack("<q", sizes):
        if (part := _read(pipe, size)) is None:
            return None
        parts.append(part)
    return parts


def _read(pipe: int, size: int) -> memoryview | None:
    whole = memoryview(bytearray(size))
    rest = whole
    while rest:
        if not (got := os.readv(pipe, [rest])):
            return None
        rest = rest[got:]
    return whole


def encode(batch: pa.RecordBatch) -> pa.Buffer:
    """Arrow IPC: unlike pickle it sends only the rows of a slice, not the whole table beneath it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def decode(encoded: memoryview) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(encoded)) as reader:
        return reader.read_next_batch()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
