"""A split on disk put before a model: its posts are read as they are judged, so memory does not grow with the split."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.judgement.judge import Judge, Post
from xhs_pipeline.posts.schema import open_parquet
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

READ_ROWS = 64  # at once; a row group of a split has as many


def predict(
    judge: Judge, split: Path, log: Callable[[str], None] | None = None, chosen: Collection[str] | None = None
) -> list[Judgement | Unfit]:
    """What a model says of every row of a split (SHAREGPT parquet), or of the posts `chosen`, in the order of the file."""
    total = open_parquet(split).metadata.num_rows if chosen is None else len(chosen)
    return list(judge.judge(read_posts(split, chosen), log, total))


def read_posts(split: Path, chosen: Collection[str] | None = None) -> Iterator[Post]:
    """The posts of a split, or those `chosen` by id, READ_ROWS of them in memory at once."""
    wanted = None if chosen is None else pa.array(list(chosen), pa.string())
    columns = ["post_id", "title", "body", "images.list.element.bytes", "ocr_text", "qr_codes"]
    for batch in _batches(split, columns):
        if wanted is not None:
            batch = batch.filter(pc.is_in(batch["post_id"], value_set=wanted))
        for row in batch.to_pylist():
            images = tuple(image["bytes"] for image in row["images"])
            yield Post(row["post_id"], row["title"], row["body"], images, row["ocr_text"], row["qr_codes"])


def light_table(split: Path) -> pa.Table:
    """A split without its conversations and its images' bytes: of an image only the path is left, so they can be counted."""
    names = [name for name in pq.read_schema(split).names if name not in ("messages", "images")]
    return open_parquet(split).read(columns=[*names, "images.list.element.path"])


def rows_with_images(split: Path, post_ids: Collection[str]) -> pa.Table:
    """The rows of those posts with their images' bytes, in the order of the file: for the few that a report shows."""
    columns = ["post_id", "title", "body", "images"]
    wanted = pa.array(list(post_ids), pa.string())
    found = [batch.filter(pc.is_in(batch["post_id"], value_set=wanted)) for batch in _batches(split, columns)]
    schema = pq.read_schema(split)
    return pa.Table.from_batches(found, pa.schema([schema.field(name) for name in columns]))


def _batches(split: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A row group at a time: without `row_groups` pyarrow reads ahead, which with images is hundreds of megabytes."""
    file = open_parquet(split)
    for group in range(file.num_row_groups):
        yield from file.iter_batches(READ_ROWS, row_groups=[group], columns=list(columns), use_threads=False)
