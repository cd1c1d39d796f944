"""What stands in for a decoder that crashes, hangs or eats memory: workers run it by name in place of clean_tables."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.curation.clean import clean_tables
from xhs_pipeline.curation.pool_worker import Begin, GivenUp


def tables(
    batch: pa.RecordBatch, settings: dict[str, Any], begin: Begin, given_up: GivenUp
) -> Sequence[pa.RecordBatch]:
    """clean_tables for posts that make trouble: an image's bytes, or the rationale, say which."""

    def begin_and_suffer(row: int, part: int) -> None:
        begin(row, part)
        images = batch["images"][row].as_py()
        suffer(
            images[part]["bytes"] if part >= 0 else (batch["rationale"][row].as_py() or "").encode(),
            batch["post_id"][row].as_py(),
        )

    return clean_tables(batch, settings, begin_and_suffer, given_up)


def suffer(how: bytes, post_id: str) -> None:
    if how == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == b"abort":
        os.abort()
    if how == b"leave":
        os._exit(5)
    if how == b"hang":
        time.sleep(600)
    if how == b"eat":
        bytearray(2 << 40)
    if how == b"once" and not Path(post_id).exists():
        Path(post_id).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == b"bug":
        raise KeyError("a secret of the post")
