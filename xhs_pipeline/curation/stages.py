"""clean_posts as a function over folders: streaming, counting, and checking what was written."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Built, CheckOutcome
from xhs_pipeline.curation.clean import CleanSettings, clean_stream
from xhs_pipeline.posts.schema import CLEAN_POSTS, DROPPED_IMAGES, QUARANTINE, TableWriter
from xhs_pipeline.posts.stages import rows_accounted

# A process of its own costs about a second to start: below this many posts one process is faster.
POSTS_PER_PROCESS = 4000
BATCH_ROWS = 64
SAY_EVERY_SECONDS = 10.0


def write_clean(raw: Path, work: Path, settings: CleanSettings, log: Callable[[str], None] = print) -> Built:
    """Clean one week of raw posts into posts, quarantine and dropped_images.parquet."""
    source = pq.ParquetFile(raw)
    total = source.metadata.num_rows
    processes = max(1, min(os.cpu_count() or 1, total // POSTS_PER_PROCESS))
    started = spoken = time.monotonic()
    done = 0
    with (
        TableWriter(work / "posts.parquet", CLEAN_POSTS) as posts,
        TableWriter(work / "quarantine.parquet", QUARANTINE) as quarantine,
        TableWriter(work / "dropped_images.parquet", DROPPED_IMAGES) as dropped,
    ):
        for cleaned in clean_stream(source.iter_batches(batch_size=BATCH_ROWS), settings, processes):
            posts.write(cleaned.posts)
            quarantine.write(cleaned.quarantine)
            dropped.write(cleaned.dropped_images)
            done = posts.rows + quarantine.rows
            now = time.monotonic()
            if now - spoken > SAY_EVERY_SECONDS or done == total:
                rate = done / (now - started)
                log(f"clean_posts: {done}/{total} posts, {rate:.0f} posts/s, {(total - done) / rate:.0f} s left")
                spoken = now
    images, broken = _decode_all(work / "posts.parquet")
    counts = {
        "rows_in": total, "posts": posts.rows, "quarantined": quarantine.rows,
        "images": images, "dropped_images": dropped.rows, "processes": processes,
    }  # fmt: skip
    decode = CheckOutcome("images_decode", broken == 0, f"{broken} of {images} images do not decode when read back")
    return Built(counts, [rows_accounted(work, total), decode])


def _decode_all(file: Path) -> tuple[int, int]:
    """Decode every embedded image; returns how many there are and how many fail."""
    from PIL import Image

    images = broken = 0
    for batch in pq.ParquetFile(file).iter_batches(columns=["images"], batch_size=BATCH_ROWS):
        for image in pc.list_flatten(batch["images"]).to_pylist():
            images += 1
            try:
                with Image.open(io.BytesIO(image["bytes"]), formats=["JPEG"]) as opened:
                    opened.load()
            except (OSError, SyntaxError, ValueError):
                broken += 1
    return images, broken
