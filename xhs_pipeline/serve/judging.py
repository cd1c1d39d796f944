"""A request's posts on their way: cleaned as for training, judged by the champion, decided, logged. Knows no HTTP.

Cleaning runs in worker processes, so that a hostile image ends a worker and not the service; the model in one thread, on as
many posts at once as are waiting; the store in another, so that the model goes on while a disk is waited for. A decision is
answered only after it is in the store.
"""

import asyncio
import binascii
import logging
import math
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.curation.clean import CleanedBatch, CleanSettings, task_of
from xhs_pipeline.curation.pool import Pool
from xhs_pipeline.curation.pool_worker import WHOLE_ROW
from xhs_pipeline.judgement.judge import Post, as_post, decided_row
from xhs_pipeline.posts.fields import Reject, post_id_value, read_images, text_value
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.serve.batching import Job, Line
from xhs_pipeline.serve.limits import Limits
from xhs_pipeline.serve.metrics import Metrics
from xhs_pipeline.serve.model import InUse, ModelInUse
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

log = logging.getLogger(__name__)

NOT_BASE64 = "not base64 of an image file, without line breaks or a data: prefix"
NO_IMAGES_FOLDER = Path("/nonexistent")  # images come as bytes; no name that a request gives is ever a file here
Answer = dict[str, Any]


@dataclass(frozen=True)
class Incoming:
    """A post as it was sent: images are the files' bytes. author: who wrote it, kept as a keyed hash alone."""

    post_id: str
    title: str
    body: str
    images: tuple[bytes, ...] = ()
    author: str | None = None


def incoming(post_id: str | None, title: str, body: str, images: Sequence[str], author: str | None = None) -> Incoming:
    """A post from values as they were sent, checked as those of a source are; `images` are files in base64.

    Without a post_id one is made up. Raises Reject, whose sentence names an image by number and holds none of the values.
    """
    files = []
    for place, image in enumerate(images, start=1):
        try:
            files.append(binascii.a2b_base64(image.encode(), strict_mode=True))
        except ValueError:
            raise Reject("bad_base64", f"image {place}: {NOT_BASE64}") from None
    named = post_id_value(post_id, "post_id") if (post_id or "").strip() else f"unnamed-{secrets.token_hex(16)}"
    title, body = text_value(title, "title") or "", text_value(body, "body") or ""
    return Incoming(named, title, body, tuple(files), (author or "").strip() or None)


class NotReady(RuntimeError):
    """There is no model in use; the message says what to do."""


class Busy(RuntimeError):
    """As many posts are waiting as may wait; `retry_after` is when to try again, in seconds."""

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(f"{waiting} posts are waiting, which is as many as may")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Cleaned:
    """A post fit to be judged, the types of what was de-identified in it, and {reason: number} of images left out."""

    post: Post
    identifiers: list[str]
    images_left_out: dict[str, int]


class _PostsJob(Job):
    """The posts of a request, bound to the model that was in use when it came."""

    def __init__(self, posts: Sequence[Incoming], in_use: InUse):
        super().__init__(len(posts))
        self.posts, self.in_use = posts, in_use
        self.cleaned: list[Cleaned | Answer] = []
        self.answers: list[Answer] = []

    @property
    def has_images(self) -> bool:
        return any(post.images for post in self.posts)


class Judging:
    """`judge` is what requests call; the rest is how it gets its answer. Close it when no request is left."""

    def __init__(self, model: ModelInUse, store: AppealStore, limits: Limits, metrics: Metrics):
        self._model, self._store, self._limits, self._metrics = model, store, limits, metrics
        self._pools: dict[bool, Pool] = {}
        self._waiting = 0
        self._posts_per_second = 1.0
        self._cleaning: Line[_PostsJob] = Line(
            self._clean,
            self._cleaned,
            posts=limits.batch_posts,
            threads=limits.clean_processes,
            together=_cleaned_together,
            more_coming=lambda: self._judging.busy,  # what is cleaned sooner would wait for the model
            gather_seconds=limits.gather_seconds,
        )
        self._judging: Line[_PostsJob] = Line(
            self._judge, self._judged, posts=limits.batch_posts, threads=1,
            together=lambda one, other: one.in_use is other.in_use,
            more_coming=lambda: self._cleaning.posts > 0, gather_seconds=limits.gather_seconds,
        )  # fmt: skip
        self._logging: Line[_PostsJob] = Line(
            self._log, self._logged, posts=limits.batch_posts, threads=1, together=lambda one, other: True
        )
        metrics.cleaning.set_function(lambda: self._cleaning.posts)

    async def judge(self, posts: Sequence[Incoming]) -> list[Answer]:
        """An answer for every post, in the order given, all by one model: a decision, or error and detail.

        Raises NotReady, Busy, TimeoutError after `limits.request_seconds`, StoreError when a decision could not be logged
        (then none of the request's was), and whatever the model fails with.
        """
        if (in_use := self._model.current) is None:
            raise NotReady(self._model.problem)
        if self._waiting + len(posts) > self._limits.waiting_posts:
            seconds = math.ceil(self._waiting / self._posts_per_second)
            raise Busy(self._waiting, min(max(seconds, 1), math.ceil(self._limits.request_seconds)))
        job = _PostsJob(posts, in_use)
        self._count(job.size)
        try:
            self._cleaning.put(job)
            async with asyncio.timeout(self._limits.request_seconds):
                return await job.answer
        finally:
            for line in (self._cleaning, self._judging, self._logging):
                line.drop(job)  # given up: its images must not stay where others are let in
            self._count(-job.size)
            self._judging.start()  # which may have waited for this one

    def _count(self, waiting: int) -> None:
        self._waiting += waiting
        self._metrics.waiting.set(self._waiting)

    # --- cleaning, in a thread each for every worker process ------------------------------------------------------------

    def warm(self) -> None:
        """Start the workers, which takes a second or two that no request should pay."""
        nothing = pa.RecordBatch.from_pylist([], schema=RAW_POSTS)
        for started in [self._pool(False).submit(nothing) for _ in range(self._limits.clean_processes)]:
            started.result()

    def _pool(self, ocr: bool) -> Pool:
        if ocr not in self._pools:
            settings = CleanSettings(ocr=ocr, seconds_per_image=self._limits.image_seconds)
            self._pools[ocr] = Pool(task_of(settings), self._limits.clean_processes, _place, log.warning)
        return self._pools[ocr]

    def _clean(self, group: list[_PostsJob]) -> None:
        rows = [post for job in group for post in job.posts]
        raw = pa.RecordBatch.from_pylist([_row(n, post) for n, post in enumerate(rows)], schema=RAW_POSTS)
        ocr = group[0].in_use.judge.profile.ocr
        made = _by_row(CleanedBatch(*self._pool(ocr).run(raw)))
        numbers = iter(range(len(rows)))
        for job in group:
            job.cleaned = [made[next(numbers)] for _ in job.posts]

    def _cleaned(self, group: Sequence[_PostsJob]) -> None:
        self._judging.put(*_waited_for(group))

    # --- the model, in one thread ---------------------------------------------------------------------------------------

    def _judge(self, group: list[_PostsJob]) -> None:
        began = time.monotonic()
        in_use = group[0].in_use
        asked = [cleaned.post for job in group for cleaned in job.cleaned if isinstance(cleaned, Cleaned)]
        judged = iter(list(in_use.judge.judge(asked)))
        for job in group:
            job.answers = [
                {"post_id": sent.post_id}
                | (self._decided(in_use, cleaned, next(judged)) if isinstance(cleaned, Cleaned) else cleaned)
                for sent, cleaned in zip(job.posts, job.cleaned, strict=True)
            ]
        size = sum(job.size for job in group)
        self._metrics.batch.observe(size)
        self._posts_per_second = size / max(time.monotonic() - began, 1e-6)

    def _judged(self, group: Sequence[_PostsJob]) -> None:
        self._logging.put(*_waited_for(group))
        self._cleaning.start()

    def _decided(self, in_use: InUse, cleaned: Cleaned, judged: Judgement | Unfit) -> Answer:
        if isinstance(judged, Unfit):
            return _not_judged(judged.reason, judged.detail)
        if not judged.valid:
            return _not_judged("no_finite_probability", "the model gave no usable answer")
        decided = decided_row(judged, in_use.judge.policy, in_use.calibration, in_use.version)
        return decided | {"identifiers": cleaned.identifiers, "images_left_out": cleaned.images_left_out}

    # --- the store, in one thread ---------------------------------------------------------------------------------------

    def _log(self, group: list[_PostsJob]) -> None:
        entries: list[tuple[Snapshot, Decision]] = []
        logged: list[Answer] = []
        for job in group:
            for sent, cleaned, answer in zip(job.posts, job.cleaned, job.answers, strict=True):
                if isinstance(cleaned, Cleaned) and "verdict" in answer:
                    entries.append(_log_entry(job.in_use, sent, cleaned, answer))
                    logged.append(answer)
        if entries:
            for answer, decision_id in zip(logged, self._store.log_decisions(entries), strict=True):
                answer["decision_id"] = decision_id

    def _logged(self, group: Sequence[_PostsJob]) -> None:
        for job in group:
            if job.given_up or not job.answer.done():  # else it failed
                self._measure(job.answers, job.in_use)
        for job in _waited_for(group):
            job.answer.set_result(job.answers)

    def _measure(self, answers: Sequence[Answer], in_use: InUse) -> None:
        metrics, review = self._metrics, in_use.judge.policy.verdict_ids[-1]
        for answer in answers:
            if "error" in answer:
                metrics.not_judged.labels(answer["error"]).inc()
                continue
            if "decision_id" not in answer:  # given up, and then the store failed
                continue
            metrics.decisions.labels(answer["verdict"], answer["category"]).inc()
            if answer["verdict"] == review:
                unsure = answer["confidence"] < in_use.calibration.min_confidence
                metrics.escalations.labels("low_confidence" if unsure else "cheapest").inc()
            for reason, images in answer["images_left_out"].items():
                metrics.images_left_out.labels(reason).inc(images)

    def close(self) -> None:
        """End the threads and the workers; what a request still waits for fails."""
        for pool in self._pools.values():
            pool.close()
        for line in (self._cleaning, self._judging, self._logging):
            line.close()


def _cleaned_together(one: _PostsJob, other: _PostsJob) -> bool:
    """Texts alone, which cost a millisecond: whoever sent a picture that takes its time waits for it alone."""
    return (
        not one.has_images and not other.has_images and one.in_use.judge.profile.ocr == other.in_use.judge.profile.ocr
    )


def _waited_for(group: Sequence[_PostsJob]) -> list[_PostsJob]:
    """Those that neither failed nor were given up."""
    return [job for job in group if not job.answer.done()]


def _row(number: int, post: Incoming) -> dict[str, Any]:
    """A row of RAW_POSTS under a number in place of its id, so that no log line of a worker's accident names a post."""
    named = [{"path": f"image {n}", "bytes": data} for n, data in enumerate(post.images, start=1)]
    images, errors = read_images(named, "images", NO_IMAGES_FOLDER)
    return {"post_id": str(number), "title": post.title, "body": post.body, "images": images, "image_errors": errors}


def _place(batch: pa.RecordBatch, row: int, part: int) -> tuple[str, str]:
    return "a post", "text" if part == WHOLE_ROW else f"image {part + 1}"


def _by_row(cleaned: CleanedBatch) -> dict[int, Cleaned | Answer]:
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    for image in cleaned.dropped_images.to_pylist():
        lost[image["post_id"]][image["reason"]] += 1
    made: dict[int, Cleaned | Answer] = {}
    for row in cleaned.quarantine.to_pylist():
        made[int(row["post_id"])] = _not_judged(row["reason"], row["detail"])
    for row in cleaned.posts.to_pylist():
        made[int(row["post_id"])] = Cleaned(as_post(row), row["identifiers"], dict(lost[row["post_id"]]))
    return made


def _not_judged(reason: str, detail: str) -> Answer:
    return {"error": reason, "detail": detail}


def _log_entry(in_use: InUse, sent: Incoming, cleaned: Cleaned, answer: Answer) -> tuple[Snapshot, Decision]:
    post, seen = cleaned.post, in_use.judge.profile.max_images
    snapshot = Snapshot(
        sent.post_id, post.title, post.body, post.images[:seen], post.ocr_text, post.qr_codes, sent.author
    )
    names = ("model_version", "policy_version", "verdict", "category", "verdict_probs", "category_probs")
    return snapshot, Decision(**{name: answer[name] for name in names}, source="serve")
