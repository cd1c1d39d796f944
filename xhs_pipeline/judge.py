"""Judge posts from the command line: python -m xhs_pipeline.judge MODEL_DIR POSTS.jsonl OUT.jsonl [--source source.yaml]

Posts are cleaned and de-identified exactly as for training, then judged by the code that the evaluation uses. OUT gets one
line per judged post; a row that cannot be judged is reported on stderr by its number, counted, and never stops the rest.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.fields import Reject, image_list, read_image, text_value
from xhs_pipeline.posts.rows import BadRow, read_rows
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.sources import load_source

CHUNK = 256  # posts in memory at once


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def raw_rows(posts: Path, source_file: Path | None) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """(row number, RAW_POSTS row without labels, or why it cannot be read). Raises SourceError for an unusable file."""
    source = load_source(source_file) if source_file else None
    columns, folder = (source.columns, source.images_dir) if source else ({}, posts.parent)
    wanted = {ours: theirs for ours, theirs in columns.items() if ours in ("post_id", "title", "body", "images")}
    kind = source.format if source else posts.suffix.lstrip(".").lower()
    seen: set[str] = set()
    for number, row in read_rows(
        posts, kind if kind in ("csv", "xlsx", "parquet") else "jsonl", wanted, required=("post_id",)
    ):
        if isinstance(row, BadRow):
            yield number, row
            continue
        try:
            post = _raw_row(row, folder)
        except Reject as reject:
            yield number, BadRow(reject.reason, reject.detail)
            continue
        if post["post_id"] in seen:
            yield number, BadRow("duplicate_post_id", "post_id repeats an earlier row's; the first is judged")
            continue
        seen.add(post["post_id"])
        yield number, post


def _raw_row(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    post_id = (text_value(row.get("post_id"), "post_id", numbers=True) or "").strip()
    if not post_id:
        raise Reject("missing_post_id", "post_id is empty")
    images = [
        (name, *((data, None) if data is not None else read_image(folder, name)))
        for name, data in image_list(row.get("images"), "images")
    ]
    return {
        "post_id": post_id,
        "title": text_value(row.get("title"), "title") or "",
        "body": text_value(row.get("body"), "body") or "",
        "images": [{"bytes": data, "path": name} for name, data, _ in images],
        "image_errors": [error for _, _, error in images],
    }


def judge_file(model: Path, posts: Path, out: Path, source: Path | None = None) -> Counter[str]:
    """Judge every row of `posts` into `out` (JSON lines); returns how many were judged and how many fell, by reason.

    Raises ValueError when the model folder or the file as a whole cannot be used.
    """
    from xhs_pipeline.curation.clean import CleanSettings, clean_batch
    from xhs_pipeline.judgement.judge import Judge, Post, as_row
    from xhs_pipeline.judgement.scoring import Judgement

    rows = raw_rows(posts, source)
    judge = Judge(model, load_policy())
    counted: Counter[str] = Counter(judged=0)
    started = time.monotonic()
    with out.open("w", encoding="utf-8") as lines:
        for chunk in _chunks(rows, CHUNK):
            bad = [(number, row.reason, row.detail) for number, row in chunk if isinstance(row, BadRow)]
            good = {row["post_id"]: (number, row) for number, row in chunk if isinstance(row, dict)}
            batch = pa.RecordBatch.from_pylist([row for _, row in good.values()], schema=RAW_POSTS)
            cleaned = clean_batch(batch, CleanSettings())
            bad += [(good[q["post_id"]][0], q["reason"], q["detail"]) for q in cleaned.quarantine.to_pylist()]
            clean = [
                Post(p["post_id"], p["title"], p["body"], tuple(i["bytes"] for i in p["images"]))
                for p in cleaned.posts.to_pylist()
            ]
            for post, judged in zip(clean, judge.judge(clean), strict=True):
                if isinstance(judged, Judgement) and judged.valid:
                    counted["judged"] += 1
                    lines.write(json.dumps(as_row(judged), ensure_ascii=False) + "\n")
                elif isinstance(judged, Judgement):
                    bad.append((good[post.post_id][0], "no_finite_probability", "the model gave no usable answer"))
                else:
                    bad.append((good[post.post_id][0], judged.reason, judged.detail))
            for number, reason, detail in sorted(bad):
                counted[reason] += 1
                _say(f"row {number} not judged: {reason}: {detail}")
            lines.flush()
            done = counted.total()
            _say(f"judged {counted['judged']} of {done} rows, {done / (time.monotonic() - started):.1f} rows/s")
    return counted


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m xhs_pipeline.judge", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder that merged_model wrote")
    parser.add_argument(
        "posts", type=Path, help="JSON lines (or CSV, xlsx, parquet) with post_id and title, body or images"
    )
    parser.add_argument("out", type=Path, help="JSON lines to write")
    parser.add_argument("--source", type=Path, help="source YAML whose columns and images_dir map the posts")
    options = parser.parse_args()
    try:
        counted = judge_file(options.model, options.posts, options.out, options.source)
    except (ValueError, FileNotFoundError) as problem:
        _say(f"error: {problem}")
        return 2
    fell = {reason: n for reason, n in counted.items() if reason != "judged"}
    _say(f"done: {counted['judged']} judged into {options.out}, {sum(fell.values())} not judged {fell or ''}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
