"""Cleaning raw posts, batch by batch: text normalised and de-identified, images made safe. Pure over Arrow; writes nothing."""

import hashlib
import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa

from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.identifiers import mask
from xhs_pipeline.curation.images import ImageLimits, ImageRejected, clean_image
from xhs_pipeline.curation.text import matching_form, normalise
from xhs_pipeline.posts.schema import CLEAN_POSTS, DROPPED_IMAGES, QUARANTINE

STAGE = "clean_posts"
# Title and body together. A note holds a thousand characters and a long article some ten thousand; masking takes about 3 s for
# a million, so one row of megabytes (a whole file in one cell) would hold up its week.
MAX_TEXT_CHARS = 100_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_OF_IMAGES = ("images", "image_hashes", "ocr_text", "qr_codes", "ocr_failed")

Row = dict[str, Any]


@dataclass(frozen=True)
class CleanSettings:
    """How posts are cleaned. Part of the artefact's version: the same settings and input give the same bytes.

    max_text_chars: of title and body together, and of rationale and label_source each.
    ocr: read text and QR codes in the clean images; see curation.ocr.
    """

    images: ImageLimits = field(default_factory=ImageLimits)
    max_text_chars: int = MAX_TEXT_CHARS
    ocr: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain JSON values, to be hashed into the artefact's version."""
        return asdict(self)


@dataclass(frozen=True)
class CleanedBatch:
    """What became of one batch: posts (CLEAN_POSTS) + quarantine (QUARANTINE) = rows in; dropped_images of posts in either."""

    posts: pa.RecordBatch
    quarantine: pa.RecordBatch
    dropped_images: pa.RecordBatch


def clean_batch(batch: pa.RecordBatch, settings: CleanSettings) -> CleanedBatch:
    """Clean a batch of RAW_POSTS; see CleanedBatch. Rows keep their order.

    Title, body, rationale and label_source are normalised and de-identified. A post loses an image that cannot be used, with
    the reason in dropped_images; it goes to quarantine only when it has no text and no image left ("nothing_to_judge") or when
    its text is too long for a post ("text_too_long"; its images are then not looked at).
    """
    posts: list[Row] = []
    quarantine: list[Row] = []
    dropped: list[Row] = []
    for raw in batch.to_pylist():
        if too_long := _too_long(raw, settings.max_text_chars):
            quarantine.append(_quarantined(raw["post_id"], "text_too_long", too_long))
            continue
        images, hashes, texts, lost = _clean_images(raw, settings)
        dropped += lost
        post = _clean_text(raw)
        if not post["title"] and not post["body"] and not images:
            quarantine.append(_quarantined(raw["post_id"], "nothing_to_judge", _nothing_left(lost)))
            continue
        posts.append(post | {"images": images, "image_hashes": hashes} | _in_images(post, texts, settings))
    return CleanedBatch(
        pa.RecordBatch.from_pylist(posts, schema=CLEAN_POSTS),
        pa.RecordBatch.from_pylist(quarantine, schema=QUARANTINE),
        pa.RecordBatch.from_pylist(dropped, schema=DROPPED_IMAGES),
    )


def clean_stream(
    batches: Iterable[pa.RecordBatch], settings: CleanSettings, processes: int = 1
) -> Iterator[CleanedBatch]:
    """clean_batch over every batch, in order; with more than one process, by a pool of that many.

    At most two batches per process are under way, so memory does not grow with the week. Raises RuntimeError naming the posts
    of the batch when a worker dies (out of memory, killed).
    """
    if processes <= 1:
        for batch in batches:
            yield clean_batch(batch, settings)
        return
    source = iter(batches)
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context(method), initializer=_leave_with_parent
    )
    pending: deque[tuple[str, Future[tuple[bytes, bytes, bytes]]]] = deque()
    try:
        while True:
            for batch in islice(source, 2 * processes - len(pending)):
                pending.append((_names(batch), pool.submit(_clean_encoded, _encode(batch), settings)))
            if not pending:
                return
            names, future = pending.popleft()
            try:
                result = future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"a cleaning process died at or after the batch of posts {names}; "
                    "run with one process to find the post, or with fewer if memory ran out"
                ) from error
            yield CleanedBatch(*map(_decode, result))
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_with_parent() -> None:
    """End this worker when the run that started it is gone: killed outright, it cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(3)

    threading.Thread(target=wait, name="leave-with-parent", daemon=True).start()


def _clean_encoded(encoded: bytes, settings: CleanSettings) -> tuple[bytes, bytes, bytes]:
    cleaned = clean_batch(_decode(encoded), settings)
    return _encode(cleaned.posts), _encode(cleaned.quarantine), _encode(cleaned.dropped_images)


def _encode(batch: pa.RecordBatch) -> bytes:
    """Arrow IPC: unlike pickle it sends only the rows of a slice, not the whole table beneath it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _decode(encoded: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(encoded) as reader:
        return reader.read_next_batch()


def _names(batch: pa.RecordBatch) -> str:
    if not batch.num_rows:
        return "(none)"
    ids = batch.column("post_id")
    return f"{ids[0].as_py()} to {ids[-1].as_py()}"


def _too_long(raw: Row, most: int) -> str | None:
    lengths = {name: len(raw[name] or "") for name in ("title", "body", "rationale", "label_source")}
    lengths = {"title and body": lengths.pop("title") + lengths.pop("body"), **lengths}
    over = [f"{name}: {length:,} characters" for name, length in lengths.items() if length > most]
    return f"{'; '.join(over)}; at most {most:,}" if over else None


def _clean_text(raw: Row) -> Row:
    """The post's own columns with clean text, its matching form and the sorted placeholder types that went into it."""
    post = {name: raw.get(name) for name in CLEAN_POSTS.names if name not in _OF_IMAGES}
    found: set[str] = set()
    for name in ("title", "body", "rationale", "label_source"):
        post[name], types = mask(normalise(raw[name]))
        found.update(types)
    post["rationale"] = post["rationale"] or None
    post["label_source"] = post["label_source"] or None
    post["match_text"] = matching_form(post["title"], post["body"])
    post["identifiers"] = sorted(found)
    return post


def _clean_images(
    raw: Row, settings: CleanSettings
) -> tuple[list[Row], list[str], list[ocr.ImageText | None], list[Row]]:
    """Clean images, their hashes, what stands in them, and DROPPED_IMAGES rows for those that are of no use."""
    kept: list[Row] = []
    hashes: list[str] = []
    texts: list[ocr.ImageText | None] = []
    lost: list[Row] = []
    images = raw["images"] or []
    errors = raw["image_errors"] or [None] * len(images)
    for index, (image, error) in enumerate(zip(images, errors, strict=True)):
        image = image or {"bytes": None, "path": None}
        try:
            if error:
                raise _reading_error(error)
            clean = clean_image(image["bytes"], settings.images)
        except ImageRejected as rejected:
            lost.append(
                {
                    "post_id": raw["post_id"],
                    "path": shown_path(image["path"], index),
                    "reason": rejected.reason,
                    "detail": rejected.detail,
                }
            )
            continue
        kept.append({"bytes": clean.data, "path": f"{safe_name(raw['post_id'])}_{len(kept)}.jpg"})
        hashes.append(clean.phash)
        texts.append(_read(clean.data) if settings.ocr else None)
    return kept, hashes, texts, lost


def _read(jpeg: bytes) -> ocr.ImageText | None:
    """What stands in a clean image; None, which is counted in `ocr_failed`, when the reader fails on it."""
    try:
        return ocr.read(jpeg)
    except ocr.ReadingFailed:
        return None


def _in_images(post: Row, texts: list[ocr.ImageText | None], settings: CleanSettings) -> Row:
    """The columns about what stands in a post's images, and `identifiers` with what was found there; none when ocr is off."""
    if not settings.ocr:
        return {}
    found = ocr.merge(texts)
    return {
        "ocr_text": found.text or None,
        "qr_codes": found.qr_codes,
        "ocr_failed": found.failed,
        "identifiers": sorted({*post["identifiers"], *found.identifiers}),
    }


def _reading_error(error: str) -> ImageRejected:
    """An error of the reading stage, `code` or `code: sentence`; a sentence alone may hold anything, so it is not passed on."""
    code, _, sentence = error.partition(":")
    if not _CODE.fullmatch(code):
        return ImageRejected("unreadable", "the file could not be read")
    return ImageRejected(code, sentence.strip() or "found when the source was read")


def _nothing_left(lost: list[Row]) -> str:
    if not lost:
        return "no text and no image"
    reasons = ", ".join(row["reason"] for row in lost)
    return f"no text, and none of its {len(lost)} image(s) is usable: {reasons}"


def _quarantined(post_id: str, reason: str, detail: str) -> Row:
    return {"post_id": post_id, "stage": STAGE, "reason": reason, "detail": detail}


def safe_name(post_id: str) -> str:
    """`post_id` as a file name: itself when it is plain, else its plain characters and 8 hex digits that keep it unique."""
    plain = _UNSAFE.sub("_", post_id)[:64]
    return plain if plain == post_id else f"{plain}_{hashlib.sha256(post_id.encode()).hexdigest()[:8]}"


def shown_path(path: str | None, index: int) -> str:
    """The last part of an image's path, de-identified and at most 64 characters: fit for tables that people read."""
    name = re.split(r"[/\\]", path or "")[-1]
    shown, _ = mask(normalise(name[-200:]).replace("\n", " "))
    return shown[-64:] or f"image {index + 1}"
