"""Jobs of posts that wait in line for a thread which takes several at once. Knows neither HTTP nor what is done with a post.

Everything but the work itself happens on the event loop, so nothing here needs a lock.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar


class Job:
    """Posts of one request, which stay together. `answer` is what the request waits for: results, or the error they met.

    A request that gave up waiting cancels `answer`; its job is then left out wherever it has not begun.
    """

    def __init__(self, size: int):
        self.size = size
        self.answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    @property
    def given_up(self) -> bool:
        return self.answer.cancelled()

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


AnyJob = TypeVar("AnyJob", bound=Job)


class Line(Generic[AnyJob]):
    """A line before `threads` threads. `work` is called there with a group of jobs, and then `done`, on the event loop, with the
    same group. `together` says whether a job may join a group.

    posts: in a group at most, though a larger job is taken alone. gather_seconds: how long the first job may wait for company
    while `more_coming` says that there is some on its way; it never waits for what nobody has sent.
    """

    def __init__(
        self,
        work: Callable[[list[AnyJob]], None],
        done: Callable[[Sequence[AnyJob]], None],
        *,
        posts: int,
        threads: int,
        together: Callable[[AnyJob, AnyJob], bool],
        more_coming: Callable[[], bool] = lambda: False,
        gather_seconds: float = 0.0,
    ):
        self._work, self._done, self._together, self._more_coming = work, done, together, more_coming
        self._posts, self._idle, self._gather_seconds = posts, threads, gather_seconds
        self._threads = ThreadPoolExecutor(threads)
        self._jobs: deque[AnyJob] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._closed = False
        # that wait here or are at work; counted here, so that no way out of the line can forget to
        self.posts = 0

    @property
    def busy(self) -> bool:
        """Whether a job that came now would have to wait."""
        return not self._idle or bool(self._jobs)

    def put(self, *jobs: AnyJob) -> None:
        """Add jobs at the end; none once closed."""
        if not self._closed:
            self._jobs.extend(jobs)
            self.posts += sum(job.size for job in jobs)
            self.start()

    def drop(self, job: AnyJob) -> None:
        """Take out a job that nobody waits for any more, if it is here and has not begun."""
        if job in self._jobs:
            self._jobs.remove(job)
            self.posts -= job.size

    def start(self) -> None:
        """Begin what can be begun; to be called whenever something changed that this line cannot see."""
        while self._idle and self._ready():
            group = self._take()
            if group:
                self._idle -= 1
                task = asyncio.get_running_loop().run_in_executor(self._threads, self._work, group)
                task.add_done_callback(partial(self._ended, group))

    def _ready(self) -> bool:
        if not self._jobs:
            return False
        if self._due or not self._more_coming() or sum(job.size for job in self._jobs) >= self._posts:
            return True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._gather_seconds, self._waited)
        return False

    def _waited(self) -> None:
        self._timer, self._due = None, bool(self._jobs)
        self.start()

    def _take(self) -> list[AnyJob]:
        if self._timer:
            self._timer.cancel()
        self._timer = None
        group: list[AnyJob] = []
        size = 0
        while self._jobs:
            job = self._jobs[0]
            if job.given_up:
                self.drop(job)
                continue
            if group and (size + job.size > self._posts or not self._together(group[0], job)):
                break
            group.append(self._jobs.popleft())
            size += job.size
        self._due = self._due and bool(self._jobs)  # who had to be left has waited, too
        return group

    def _ended(self, group: Sequence[AnyJob], task: "asyncio.Future[None]") -> None:
        self._idle += 1
        self.posts -= sum(job.size for job in group)
        error = task.exception()
        if error is not None:
            for job in group:
                job.fail(error)
        self._done(group)
        self.start()

    def close(self) -> None:
        """Wait for what has begun; nothing else is begun, by what ended meanwhile neither."""
        self._closed = True
        self._jobs.clear()
        self._threads.shutdown(cancel_futures=True)
