"""A source in a folder with posts of one week, and what reading it gives: what the tests of sources share."""

import json
from pathlib import Path
from typing import Any

from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import QUARANTINE, RAW_POSTS
from xhs_pipeline.posts.sources import (
    Source,
    load_source,
    read_week,
)

WEEK = "2026-02-16"
KEY = b"a key of sixteen or more bytes"
POLICY = load_policy()


def post(post_id: str = "p1", **changes: Any) -> dict[str, Any]:
    row = {"post_id": post_id, "title": "标题", "body": "正文", "created_at": "2026-02-17T10:00:00+08:00"}
    return row | {"verdict": "通过", "category": "正常"} | changes


def write_source(folder: Path, text: str = "format: jsonl\npath: posts-{week}.jsonl\n") -> Source:
    (folder / "source.yaml").write_text(text, encoding="utf-8")
    return load_source(folder / "source.yaml")


def jsonl(folder: Path, *rows: dict[str, Any] | bytes, yaml: str | None = None) -> Source:
    """A source whose week holds these rows; bytes go in as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (folder / f"posts-{WEEK}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return write_source(folder, yaml) if yaml else write_source(folder)


def read(source: Source, week: str = WEEK, batch_rows: int = 256) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    posts, bad = [], []
    for good_batch, bad_batch in read_week(source, week, POLICY, KEY, batch_rows):
        assert good_batch.schema == RAW_POSTS and bad_batch.schema == QUARANTINE
        posts += good_batch.to_pylist()
        bad += bad_batch.to_pylist()
    return posts, bad


def reasons(source: Source) -> list[str]:
    return [row["reason"] for row in read(source)[1]]
