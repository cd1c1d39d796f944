"""Judge posts from the command line: python -m xhs_pipeline.judge MODEL_DIR POSTS.jsonl OUT.jsonl [--source source.yaml]

Posts are cleaned and de-identified exactly as for training, then judged by the code that the evaluation uses. OUT gets one
line per judged post; a row that cannot be judged is reported on stderr by its number, counted, and never stops the rest. An
image that cannot be used is reported and counted too, and its post is judged without it.

OUT appears when the last row is done; until then its lines are in a hidden .part file beside it. So a run that fails or is
killed leaves no half file under OUT's name, and an earlier OUT as it was. A device or pipe (/dev/stdout) is written directly.
Exit status: 0, or 1 when none of the rows could be judged, or 2 when MODEL_DIR, POSTS or OUT cannot be used.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa

from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.fields import Reject, post_id_value, read_images, text_value
from xhs_pipeline.posts.rows import BadRow, read_rows
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.sources import BATCH_BYTES, Source, load_source

if TYPE_CHECKING:
    from xhs_pipeline.judgement.judge import Judge

CHUNK = 256  # posts in memory at once, fewer when their images and texts reach BATCH_BYTES
SHOWN_IMAGES = 3  # names in a line about images that were left out

NumberedRow = tuple[int, dict[str, Any] | BadRow]


@dataclass
class Counts:
    """What became of the rows: judged + not judged (by reason) = rows read. Images that were left out, by reason."""

    judged: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    images_left_out: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return self.judged + self.not_judged.total()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def raw_rows(posts: Path, source_file: Path | None) -> Iterator[NumberedRow]:
    """(row number, RAW_POSTS row without labels, or why it cannot be read). Raises SourceError for an unusable file."""
    kind = posts.suffix.lstrip(".").lower()
    kind = kind if kind in ("csv", "xlsx", "parquet") else "jsonl"
    source = load_source(source_file) if source_file else Source(posts, kind, posts.name, posts.parent, {}, {})
    wanted = {ours: theirs for ours, theirs in source.columns.items() if ours in ("post_id", "title", "body", "images")}
    seen: set[str] = set()
    for number, row in read_rows(posts, source.format, wanted, required=("post_id",)):
        if isinstance(row, BadRow):
            yield number, row
            continue
        try:
            column = f"column {source.columns.get('post_id', 'post_id')!r}"
            post = {"post_id": post_id_value(row.get("post_id"), column)} | _content(row, source.images_dir)
        except Reject as reject:
            yield number, BadRow(reject.reason, reject.detail)
            continue
        if post["post_id"] in seen:
            yield number, BadRow("duplicate_post_id", "post_id repeats an earlier row's; the first is judged")
            continue
        seen.add(post["post_id"])
        yield number, post


def _content(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    images, errors = read_images(row.get("images"), "images", folder)
    return {
        "title": text_value(row.get("title"), "title") or "",
        "body": text_value(row.get("body"), "body") or "",
        "images": images,
        "image_errors": errors,
    }


def judge_file(model: Path, posts: Path, out: Path, source: Path | None = None) -> Counts:
    """Judge every row of `posts` into `out` (JSON lines), which appears whole or not at all; returns what became of them.

    Raises ValueError or OSError, one line each, when the model folder, the posts as a whole or `out` cannot be used.
    """
    from xhs_pipeline.judgement.judge import Judge

    _check_paths(posts, out)
    chunks = _chunks(raw_rows(posts, source))
    first = list(islice(chunks, 1))  # a file that cannot be used shows before minutes of loading a model
    counts = Counts()
    with _whole_or_nothing(out) as lines:
        judge = Judge(model, load_policy())
        started = time.monotonic()
        for chunk in chain(first, chunks):
            for row in _judge_chunk(judge, chunk, counts):
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
            rate = counts.rows / (time.monotonic() - started)
            _say(f"judged {counts.judged} of {counts.rows} rows, {rate:.1f} rows/s")
    return counts


def _judge_chunk(judge: "Judge", chunk: list[NumberedRow], counts: Counts) -> list[dict[str, Any]]:
    """The lines for OUT. Counts every row, and says which were not judged and which images were left out."""
    from xhs_pipeline.curation.clean import CleanSettings, clean_batch
    from xhs_pipeline.judgement.judge import Post, as_row
    from xhs_pipeline.vlm.scoring import Judgement

    bad = [(number, row.reason, row.detail) for number, row in chunk if isinstance(row, BadRow)]
    good = [(number, row) for number, row in chunk if isinstance(row, dict)]
    numbers = {row["post_id"]: number for number, row in good}
    cleaned = clean_batch(pa.RecordBatch.from_pylist([row for _, row in good], schema=RAW_POSTS), CleanSettings())
    bad += [(numbers[q["post_id"]], q["reason"], q["detail"]) for q in cleaned.quarantine.to_pylist()]
    clean = [
        Post(p["post_id"], p["title"], p["body"], tuple(i["bytes"] for i in p["images"]))
        for p in cleaned.posts.to_pylist()
    ]
    rows = []
    for post, judged in zip(clean, judge.judge(clean), strict=True):
        if isinstance(judged, Judgement) and judged.valid:
            rows.append(as_row(judged))
        elif isinstance(judged, Judgement):
            bad.append((numbers[post.post_id], "no_finite_probability", "the model gave no usable answer"))
        else:
            bad.append((numbers[post.post_id], judged.reason, judged.detail))
    dropped = cleaned.dropped_images.to_pylist()
    counts.judged += len(rows)
    counts.not_judged.update(reason for _, reason, _ in bad)
    counts.images_left_out.update(image["reason"] for image in dropped)
    said = _left_out(dropped, numbers) + [(n, f"row {n} not judged: {why}: {detail}") for n, why, detail in bad]
    for _, line in sorted(said, key=lambda numbered: numbered[0]):
        _say(line)
    return rows


def _left_out(dropped: list[dict[str, Any]], numbers: dict[str, int]) -> list[tuple[int, str]]:
    """(row number, line) for each reason why a post lost images, naming the first few."""
    grouped: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for image in dropped:
        grouped.setdefault((numbers[image["post_id"]], image["reason"]), []).append(image)
    lines = []
    for (number, reason), images in grouped.items():
        names = ", ".join(image["path"] for image in images[:SHOWN_IMAGES])
        more = ", ..." if len(images) > SHOWN_IMAGES else ""
        lines.append((number, f"row {number}: {len(images)} image(s) left out: {reason}: {names}{more}"))
    return lines


def _check_paths(posts: Path, out: Path) -> None:
    if not posts.exists():
        raise FileNotFoundError(f"{posts}: no such file, expected the posts to judge")
    if out.is_dir():
        raise IsADirectoryError(f"{out}: a folder, expected the name of a file to write")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: no such folder; make it first")
    if out.resolve() == posts.resolve() or (out.is_file() and out.samefile(posts)):
        raise ValueError(f"{out}: OUT is the file of the posts, which it would replace; name another OUT")


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[TextIO]:
    """A file to write that takes the name `out` only when the block ends well. What is no regular file is written directly."""
    if str(out) == "/dev/stdout":  # opening it by name would cut off the file that a shell may have redirected it to
        with open(1, "w", encoding="utf-8", closefd=False) as lines:
            yield lines
        return
    if out.exists() and not out.is_file():
        with out.open("w", encoding="utf-8") as lines:
            yield lines
        return
    target = out.resolve()
    part = target.with_name(f".{target.name[:50]}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as lines:
            yield lines
            lines.flush()
            os.fsync(lines.fileno())
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _chunks(rows: Iterable[NumberedRow]) -> Iterator[list[NumberedRow]]:
    chunk: list[NumberedRow] = []
    size = 0
    for number, row in rows:
        chunk.append((number, row))
        if isinstance(row, dict):
            size += len(row["title"]) + len(row["body"]) + sum(len(image["bytes"] or b"") for image in row["images"])
        if len(chunk) >= CHUNK or size >= BATCH_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m xhs_pipeline.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a folder that merged_model wrote")
    parser.add_argument(
        "posts", type=Path, help="JSON lines (or CSV, xlsx, parquet) with post_id and title, body or images"
    )
    parser.add_argument("out", type=Path, help="JSON lines to write; not the file of the posts")
    parser.add_argument("--source", type=Path, help="source YAML whose columns and images_dir map the posts")
    options = parser.parse_args()
    try:
        counts = judge_file(options.model, options.posts, options.out, options.source)
    except (ValueError, OSError) as problem:
        _say(f"error: {problem}")
        return 2
    _say(
        f"done: {counts.judged} judged into {options.out}, {_shown(counts.not_judged)} not judged, {_shown(counts.images_left_out)} images left out"
    )
    if counts.rows and not counts.judged:
        _say(f"error: none of the {counts.rows} rows read could be judged; the reasons stand above")
        return 1
    return 0


def _shown(counted: Counter[str]) -> str:
    reasons = ", ".join(f"{reason} {n}" for reason, n in counted.most_common())
    return f"{counted.total()} ({reasons})" if reasons else "0"


if __name__ == "__main__":
    sys.exit(main())
