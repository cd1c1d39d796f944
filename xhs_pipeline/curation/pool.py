"""Record batches through worker processes that may die: in order, watched, tried again. Knows nothing about posts.

A worker is a program of its own that knows the function by name and gets batches as Arrow IPC bytes, so nothing is pickled
and nothing is inherited. It writes where it is (row and part) into 16 bytes shared with the parent, which outlive it.
"""

import contextlib
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from xhs_pipeline.curation.pool_worker import (
    BETWEEN_ROWS,
    NO_ROW,
    OUT_OF_MEMORY,
    PLACE,
    WHOLE_ROW,
    GivenUp,
    decode,
    encode,
    receive,
    send,
)

STRIKES = 2  # a row that fells one worker may have been near somebody else's accident
STRAY_DEATHS = 3  # of one batch's workers while on no row: then it is not the rows

# One thread a worker: there are as many workers as cores. Arenas of other allocators would reserve address space by the
# gigabyte, which the ceiling counts.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system",
}  # fmt: skip

# Whose row it is, for a log ("post 17"), and what part ("image 2").
Describe = Callable[[pa.RecordBatch, int, int], tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """What workers do. function: "package.module:name", called as name(batch, settings, begin, given_up), returns batches.

    settings: JSON values. seconds: wall time for one (row, part). memory_mb: address space a worker may take beyond what its
    program needs to start (enforced on Linux).
    """

    function: str
    settings: dict[str, Any]
    seconds: float
    memory_mb: int


def map_batches(
    task: Task,
    batches: Iterable[pa.RecordBatch],
    processes: int,
    *,
    describe: Describe,
    log: Callable[[str], None],
) -> Generator[list[pa.RecordBatch], None, None]:
    """What the task's function makes of every batch, in order; at most two batches per process are under way.

    When a worker dies or takes too long over one part, a line in the log names the row and the batch is tried
    again in a new worker. At the second time the row is given up as "kills_worker", or that part alone as "too_slow", and the
    rest of the batch goes on. Raises RuntimeError when the function raises, naming the row and the lines
    of code but not the message, which may quote text; and when workers keep dying while on no row.
    Closing the iterator ends the workers.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    pool = Pool(task, processes, describe, lines.put)
    source = iter(batches)
    pending: deque[Future[list[pa.RecordBatch]]] = deque()
    try:
        while True:
            for batch in islice(source, 2 * processes - len(pending)):
                pending.append(pool.submit(batch))
                pending[-1].add_done_callback(lambda _: lines.put(None))
            if not pending:
                return
            head = pending.popleft()
            while not (head.done() and lines.empty()):
                if line := lines.get():
                    log(line)
            yield head.result()
    finally:
        pool.close()


class Pool:
    """`processes` workers for whoever has batches now and then; `map_batches` says what becomes of a batch.

    `say` is told of accidents, from several threads.
    """

    def __init__(self, task: Task, processes: int, describe: Describe, say: Callable[[str], None]):
        self._slots = [_Slot(task, describe, say) for _ in range(processes)]
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(processes)

    def submit(self, batch: pa.RecordBatch) -> Future[list[pa.RecordBatch]]:
        """What the function makes of `batch`, once a worker is free and done."""
        return self._threads.submit(self.run, batch)

    def run(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        """`submit` for whoever waits in a thread of their own."""
        slot = self._free.get()
        try:
            return slot.run(batch)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """End the workers, and with CancelledError what they are at."""
        for slot in self._slots:
            slot.close()
        self._threads.shutdown(cancel_futures=True)
        for slot in self._slots:
            slot.release()


class _Slot:
    """One worker after another. A batch stays with its slot until it is done, so its rows meet no other slot's accidents."""

    def __init__(self, task: Task, describe: Describe, say: Callable[[str], None]):
        self._task, self._describe, self._say = task, describe, say
        self._worker: _Worker | None = None
        self._closed = False
        self._lock = threading.Lock()

    def run(self, batch: pa.RecordBatch) -> list[pa.RecordBatch]:
        strikes: Counter[tuple[int, int, str]] = Counter()
        given_up: dict[tuple[int, int], tuple[str, str]] = {}
        while True:
            worker = self._running()
            if answer := worker.ask(batch, given_up):
                header, *tables = answer
                if not header:
                    return [decode(table) for table in tables]
                where = ", ".join(self._describe(batch, worker.row, worker.part))
                raise RuntimeError(f"{self._task.function} failed at {where}: {header.tobytes().decode()}")
            how, slow = worker.end()
            self._worker = None
            if self._closed:
                raise CancelledError
            self._blame(batch, worker, how, slow, strikes, given_up)

    def _blame(
        self,
        batch: pa.RecordBatch,
        worker: "_Worker",
        how: str,
        slow: bool,
        strikes: Counter[tuple[int, int, str]],
        given_up: dict[tuple[int, int], tuple[str, str]],
    ) -> None:
        """Count a death against the row that the worker was on; at the last strike give the row, or its slow part, up."""
        whose, part = self._describe(batch, worker.row, worker.part)
        reason = "too_slow" if slow else "kills_worker"
        place = (worker.row, worker.part if slow else WHOLE_ROW)
        strikes[*place, reason] += 1
        count = strikes[*place, reason]
        if worker.row == NO_ROW and count == STRAY_DEATHS:
            raise RuntimeError(
                f"{count} processes of {self._task.function} died, the last by {how}, at {whose}, {part}; their words are "
                "on standard error; if the machine is out of memory, run fewer processes"
            )
        if last := worker.row != NO_ROW and count == STRIKES:
            given_up[place] = (reason, f"{part}: {how}, {count} times")
        self._say(
            f"{whose}, {part}: {how if slow else f'the process working on it died ({how})'}; "
            + (f"given up as {reason}, the rest goes on" if last else "its batch is tried again")
        )

    def _running(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise CancelledError
            self._worker = self._worker or _Worker(self._task)
            return self._worker

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._worker:
                self._worker.kill()

    def release(self) -> None:
        if self._worker:
            self._worker.release()


class _Worker:
    """A running worker, seen from the parent."""

    def __init__(self, task: Task) -> None:
        with tempfile.TemporaryFile() as shared:
            shared.truncate(PLACE.size)
            self._place = mmap.mmap(shared.fileno(), PLACE.size)
            self._place[:] = PLACE.pack(NO_ROW, WHOLE_ROW)
            arguments = json.dumps(asdict(task) | {"place": shared.fileno()})
            self._process = subprocess.Popen(
                [sys.executable, "-m", "xhs_pipeline.curation.pool_worker", arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[shared.fileno()],
                env={**os.environ, **_ENVIRONMENT},
            )
        self._seconds = task.seconds
        self.row, self.part = NO_ROW, WHOLE_ROW

    def ask(self, batch: pa.RecordBatch, given_up: GivenUp) -> list[memoryview] | None:
        """The parts of the worker's answer, or None when it is dead. Then, or after an error, row and part say where it was."""
        assert self._process.stdin is not None and self._process.stdout is not None
        skipped = json.dumps([[*place, *why] for place, why in given_up.items()]).encode()
        try:
            send(self._process.stdin.fileno(), [skipped, encode(batch)])
            answer = receive(self._process.stdout.fileno())
        except BrokenPipeError:
            answer = None
        self.row, self.part = PLACE.unpack(self._place)
        return answer

    def end(self) -> tuple[str, bool]:
        """How the worker died, in words without text of a post, and whether that was for taking too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)  # its pipe closed a moment before its end
        self.kill()
        self.release()
        code = self._process.returncode
        if code == -signal.SIGALRM:
            return f"over {BETWEEN_ROWS if self.row == NO_ROW else self._seconds:g} s", True
        if code == OUT_OF_MEMORY:
            return "out of memory", False
        return (signal.Signals(-code).name if code < 0 else f"exit code {code}"), False

    def kill(self) -> None:
        """End it and leave no zombie; may be called while another thread waits for its answer."""
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Close what the parent holds of a worker that has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._place.close()
