"""clean_posts as a function over folders: streaming, counting, and checking what was written."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Built, CheckOutcome
from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.clean import CleanSettings, clean_stream
from xhs_pipeline.posts.schema import CLEAN_POSTS, DROPPED_IMAGES, QUARANTINE, TableWriter, open_parquet
from xhs_pipeline.posts.stages import rows_accounted

# A worker costs half a second of a core to start, which this many posts make up for even without images.
POSTS_PER_PROCESS = 1000
BATCH_ROWS = 64
SAY_EVERY_SECONDS = 10.0
OCR_COUNTS = ("posts_with_ocr_text", "qr_codes", "ocr_failed")


def write_clean(
    raw: Path,
    work: Path,
    settings: CleanSettings,
    log: Callable[[str], None] = print,
    processes: int | None = None,
) -> Built:
    """Clean one week of raw posts into posts, quarantine and dropped_images.parquet.

    processes: workers; by default one per core, fewer for a small week. What is written does not depend on it.
    Raises ValueError, before any work, when the settings ask for `ocr` and its extra is not installed.
    """
    if settings.ocr:
        ocr.require()
    source = open_parquet(raw)
    total = source.metadata.num_rows
    # reading an image costs half a second, so that even one batch is worth a process
    posts_per_process = BATCH_ROWS if settings.ocr else POSTS_PER_PROCESS
    processes = processes or max(1, min(os.cpu_count() or 1, total // posts_per_process))
    started = spoken = time.monotonic()
    decoded: list[pa.RecordBatch] = []
    with (
        TableWriter(work / "posts.parquet", CLEAN_POSTS) as posts,
        TableWriter(work / "quarantine.parquet", QUARANTINE) as quarantine,
        TableWriter(work / "dropped_images.parquet", DROPPED_IMAGES) as dropped,
        contextlib.closing(clean_stream(_batches(source), settings, processes, log)) as stream,
    ):
        for cleaned in stream:
            posts.write(cleaned.posts)
            quarantine.write(cleaned.quarantine)
            dropped.write(cleaned.dropped_images)
            decoded.append(cleaned.image_digests)
            done = posts.rows + quarantine.rows
            now = time.monotonic()
            if now - spoken > SAY_EVERY_SECONDS or done == total:
                rate = done / (now - started)
                log(f"clean_posts: {done}/{total} posts, {rate:.0f} posts/s, {(total - done) / rate:.0f} s left")
                spoken = now
    images, broken = _read_back(work / "posts.parquet", decoded)
    counts = {
        "rows_in": total, "posts": posts.rows, "quarantined": quarantine.rows,
        "images": images, "dropped_images": dropped.rows, "processes": processes,
    }  # fmt: skip
    if settings.ocr:
        counts |= _ocr_counts(work / "posts.parquet")
    decode = CheckOutcome(
        "images_decode", broken == 0, f"{broken} of {images} images, read back, are not the bytes that decoded"
    )
    return Built(counts, [rows_accounted(work, total), decode])


def _ocr_counts(file: Path) -> dict[str, int]:
    """Posts with text in images, QR codes, and images that could not be read, counted in the file."""
    read = pq.read_table(file, columns=["ocr_text", "qr_codes", "ocr_failed"])
    codes, failed = (pc.sum(read[name]).as_py() or 0 for name in ("qr_codes", "ocr_failed"))
    return dict(zip(OCR_COUNTS, (read.num_rows - read["ocr_text"].null_count, codes, failed), strict=True))


def _batches(source: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """A group at a time, so that images of many megabytes do not add up to a batch of gigabytes."""
    for group in range(source.num_row_groups):
        yield from source.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])


def _read_back(file: Path, decoded: Sequence[pa.RecordBatch]) -> tuple[int, int]:
    """How many images `file` holds, and how many are missing or differ from those with the SHA-256 in `decoded`, in order."""
    expected = (digest.as_py() for batch in decoded for digest in batch["sha256"])
    images = broken = 0
    for batch in _batches(open_parquet(file)):
        for image in pc.list_flatten(batch["images"]).field("bytes"):
            images += 1
            broken += not image.is_valid or hashlib.sha256(image.as_buffer()).digest() != next(expected, None)
    return images, broken + sum(1 for _ in expected)
