"""One week of posts from a source, as Arrow batches: rows that are usable, and rows that are not with the reason why.

Text and image bytes pass untouched; cleaning, decoding images and removing duplicates across weeks happen in curation.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.fields import (
    TIME_ZONE,
    Reject,
    image_list,
    locate_image,
    parse_time,
    post_id_value,
    read_images,
    term_value,
    text_value,
)
from xhs_pipeline.posts.rows import BadRow, read_rows
from xhs_pipeline.posts.schema import QUARANTINE, RAW_POSTS, SCHEMA_VERSION
from xhs_pipeline.posts.source_yaml import Source, SourceError, SourceMissing, check_week, load_source
from xhs_pipeline.privacy import keyed_hash

__all__ = [
    "Source", "SourceError", "SourceMissing", "Tally", "has_posts", "load_source", "read_week", "source_fingerprint",
]  # fmt: skip

STAGE = "raw_posts"
MAX_LABEL_SOURCE_CHARS = 64
BATCH_BYTES = 64 * 1024 * 1024  # a batch is handed on early when its images reach this

Batches = tuple[pa.RecordBatch, pa.RecordBatch]


@dataclass
class Tally:
    """Counted where rows are met, before anything is done with them: all rows, and those of other weeks by week."""

    rows: int = 0
    other_weeks: Counter[str] = field(default_factory=Counter)


class _OtherWeek(Exception):
    """A row of a week that was not asked for."""

    def __init__(self, week: str) -> None:
        super().__init__(week)
        self.week = week


def unmasked(text: str) -> str:
    return text


def read_week(
    source: Source,
    week: str,
    policy: Policy,
    hmac_key: bytes,
    batch_rows: int = 256,
    *,
    mask: Callable[[str], str] = unmasked,
    tally: Tally | None = None,
) -> Iterator[Batches]:
    """Stream one week as (posts in the RAW_POSTS schema, quarantine in the QUARANTINE schema) batches.

    week: ISO date of a Monday. hmac_key: for author_hash. batch_rows: posts a batch at most; fewer when images are large.
    mask: takes identifiers of people out of label_source and of unknown labels that a quarantine row shows.
    tally: counts the rows as they are met: rows = posts + quarantine + other weeks. When the path has no {week}, one file
    holds several weeks: rows of other weeks are skipped, and rows whose week cannot be known are quarantined with every
    week that reads the file.
    Raises SourceMissing when there is no file for the week, SourceError when its columns do not fit, ValueError when `week`
    is no Monday. Bad rows never raise.
    """
    check_week(week)
    path = _existing(source, week)
    return _batches(_Reader(source, week, policy, hmac_key, path, mask, tally or Tally()), batch_rows)


def source_fingerprint(source: Source, week: str) -> dict[str, str]:
    """SHA-256 of what a week's posts depend on: `settings` of the YAML, the `posts` file, and the `images` that it names.

    The images' digest covers relative path, size and modification time of the files named by that week's rows (no image
    is read): pictures added for another week to the same folder change nothing here. Raises as `read_week` does.
    """
    check_week(week)
    path = _existing(source, week)
    settings = {
        "format": source.format,
        "columns": source.columns,
        "values": source.values,
        "week": source.week,
        "file_per_week": source.has_week_in_path,
    }
    with path.open("rb") as file:
        posts = hashlib.file_digest(file, "sha256").hexdigest()
    reader = _Reader(source, week, None, b"", path)
    images = hashlib.sha256()
    for name in sorted(reader.image_names()):
        found = locate_image(source.images_dir, name)
        known = [found] if isinstance(found, str) else [found[1].st_size, found[1].st_mtime_ns]
        images.update((json.dumps([name, *known]) + "\n").encode())
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return {"settings": hashlib.sha256(text.encode()).hexdigest(), "posts": posts, "images": images.hexdigest()}


def has_posts(source: Source, week: str) -> bool:
    """Whether the source holds anything for the week, usable or not. Raises as `read_week` does.

    Rows of a file of several weeks whose week cannot be known are no week's own.
    """
    check_week(week)
    path = _existing(source, week)
    reader = _Reader(source, week, None, b"", path)
    for _, row in read_rows(path, source.format, source.columns):
        try:
            reader._in_week(row)
        except _OtherWeek:
            continue
        except Reject:
            if not (source.has_week_in_path or source.week):
                continue
        return True
    return False


def _existing(source: Source, week: str) -> Path:
    path = source.posts_file(week)
    if path.is_file():
        return path
    pattern = Path(source.path.replace("{week}", "*"))
    remedy = "correct `path` (it is relative to the YAML file)"
    if source.has_week_in_path and not pattern.is_absolute() and path.parent.is_dir():
        others = sorted(p.name for p in source.file.parent.glob(str(pattern)))
        remedy = f"put the week's posts there, or choose a week that is there ({', '.join(others[:10]) or 'none is'})"
    raise SourceMissing(
        f"{path}: no such file, expected the {source.format} posts of week {week} named by {source.file}; {remedy}"
    )


def _batches(reader: "_Reader", batch_rows: int) -> Iterator[Batches]:
    posts: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []
    size = 0

    def flush() -> Batches:
        return pa.RecordBatch.from_pylist(posts, RAW_POSTS), pa.RecordBatch.from_pylist(bad, QUARANTINE)

    for post, quarantined in reader.rows():
        if post is not None:
            posts.append(post)
            size += sum(len(image["bytes"] or b"") for image in post["images"])
        if quarantined is not None:
            bad.append(quarantined)
        if len(posts) + len(bad) >= batch_rows or size >= BATCH_BYTES:
            yield flush()
            posts, bad, size = [], [], 0
    if posts or bad:
        yield flush()


@dataclass
class _Reader:
    """Turns the rows of one file into posts of one week. Each `_field` method rejects what it cannot use."""

    source: Source
    week: str
    policy: Policy | None
    hmac_key: bytes
    path: Path
    mask: Callable[[str], str] = unmasked
    tally: Tally = field(default_factory=Tally)

    def rows(self) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
        """(post, None) or (None, quarantine row) for every row of the week."""
        seen: set[str] = set()
        unit = "line" if self.source.format in ("jsonl", "csv") else "row"
        for number, row in read_rows(self.path, self.source.format, self.source.columns):
            self.tally.rows += 1
            post_id = None
            try:
                created = self._in_week(row)
                assert isinstance(row, dict)
                post_id = post_id_value(row.get("post_id"), self._column("post_id"))
                if post_id in seen:
                    raise Reject(
                        "duplicate_post_id", f"{self._column('post_id')} repeats an earlier row's; the first is kept"
                    )
                post = self._post(row, post_id, created)
            except _OtherWeek as other:
                self.tally.other_weeks[other.week] += 1
            except Reject as reject:
                detail = f"{self.path.name}, {unit} {number}: {reject.detail}"
                yield None, {"post_id": post_id, "stage": STAGE, "reason": reject.reason, "detail": detail}
            else:
                seen.add(post_id)
                yield post, None

    def image_names(self) -> set[str]:
        """The image files that the week's rows name (images embedded in the posts file are not files)."""
        names: set[str] = set()
        for _, row in read_rows(self.path, self.source.format, self.source.columns):
            try:
                self._in_week(row)
                assert isinstance(row, dict)
                names.update(
                    name for name, data in image_list(row.get("images"), self._column("images")) if data is None
                )
            except (_OtherWeek, Reject):
                continue
        return names

    def _column(self, ours: str) -> str:
        return f"column {self.source.columns.get(ours, ours)!r}"

    def _text(self, row: dict[str, Any], ours: str, numbers: bool = False) -> str | None:
        return text_value(row.get(ours), self._column(ours), numbers)

    def _in_week(self, row: dict[str, Any] | BadRow) -> datetime | None:
        """The row's time when it belongs to this week; otherwise raises _OtherWeek, or Reject when that cannot be told."""
        file_week = self.week if self.source.has_week_in_path else None
        fallback = file_week or self.source.week
        column = self._column("created_at")
        value = None if isinstance(row, BadRow) else row.get("created_at")
        created, week = None, fallback
        problem = row if isinstance(row, BadRow) else None
        if isinstance(value, BadRow):
            problem = BadRow(value.reason, f"{column}: {value.detail}")
        if problem is None and value in (None, "") and fallback is None:
            problem = BadRow("bad_time", f"{column} is empty and the source sets no `week`")
        elif problem is None and value not in (None, ""):
            try:
                created = parse_time(value)
                local = created.astimezone(TIME_ZONE).date()
                week = (local - timedelta(days=local.weekday())).isoformat()
            except (ValueError, OverflowError, TypeError, OSError):
                problem = BadRow("bad_time", f"{column} is not a time; expected e.g. 2026-02-16T10:00:00+08:00")
        if problem is not None:
            if fallback is not None and fallback != self.week:
                raise _OtherWeek(fallback)
            unknown = "; its week is unknown, so it is reported with every week read from this file"
            raise Reject(problem.reason, problem.detail + ("" if fallback else unknown))
        if week == self.week:
            return created
        if file_week:  # no other week will ever read this file, so skipping would lose the row
            detail = f"{column} lies in week {week}, the file is of {self.week} (Asia/Shanghai)"
            raise Reject("wrong_week", detail)
        assert week is not None  # a time or the fallback gave it
        raise _OtherWeek(week)

    def _post(self, row: dict[str, Any], post_id: str, created: datetime | None) -> dict[str, Any]:
        assert self.policy is not None
        verdict = self._label(
            row, "verdict", self.policy.verdict_id, tuple(f"{v.id} ({v.label})" for v in self.policy.verdicts)
        )
        names = self.policy.category_names
        category = self._label(row, "category", lambda term: term if term in names else None, names)
        if not self.policy.allows(verdict, category):
            found = self.policy.category(category)
            allowed = ", ".join(found.verdicts if found else ())
            raise Reject(
                "verdict_category_mismatch",
                f"verdict {verdict!r} cannot follow from category {category!r}; allowed: {allowed}",
            )
        author = self._text(row, "author", numbers=True)
        post = {
            "post_id": post_id,
            "title": self._text(row, "title") or "",
            "body": self._text(row, "body") or "",
            "created_at": created,
            "week": self.week,
            "verdict": verdict,
            "category": category,
            "severity": self.policy.severity(category),
            "rationale": self._text(row, "rationale") or None,
            "label_source": self._label_source(row),
            "author_hash": keyed_hash(self.hmac_key, author) if author and author.strip() else None,
            "schema_version": SCHEMA_VERSION,
        }
        images, errors = read_images(row.get("images"), self._column("images"), self.source.images_dir)
        return post | {"images": images, "image_errors": errors}

    def _label_source(self, row: dict[str, Any]) -> str:
        value = (self._text(row, "label_source") or "").strip()
        if len(value) > MAX_LABEL_SOURCE_CHARS or not value.isprintable():
            raise Reject(
                "bad_label_source",
                f"{self._column('label_source')} holds control characters or over {MAX_LABEL_SOURCE_CHARS} characters; "
                "expected a short name of who labels, such as reviewer",
            )
        return self.mask(value) or "source"

    def _label(
        self, row: dict[str, Any], ours: str, find: Callable[[str], str | None], allowed: tuple[str, ...]
    ) -> str:
        mapping = self.source.values.get(ours, {})
        term, found = term_value(row.get(ours), self._column(ours), mapping, find)
        if found is None and not term:
            raise Reject(f"missing_{ours}", f"{self._column(ours)} is empty; allowed: {', '.join(allowed)}")
        if found is None:
            shown = self.mask(term[:1000])  # first masked, then cut, so that no part of an identifier is left
            shown = shown if len(shown) <= 40 else shown[:39] + "…"
            known = ", ".join((*mapping, *allowed))
            raise Reject(
                f"unknown_{ours}",
                f"{self._column(ours)} holds {shown!r}; allowed: {known}; map it under `values.{ours}`",
            )
        return found
