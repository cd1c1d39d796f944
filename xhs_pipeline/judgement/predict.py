"""A split on disk put before a model: its posts are read as they are judged, so memory does not grow with the split."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.judgement.judge import Judge, Post, as_post
from xhs_pipeline.posts.schema import open_parquet, rows_of
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

READ_ROWS = 64  # at once; a row group of a split has as many


def predict(
    judge: Judge, split: Path, log: Callable[[str], None] | None = None, chosen: Collection[str] | None = None
) -> list[Judgement | Unfit]:
    """What a model says of every row of a split (SHAREGPT parquet), or of the posts `chosen`, in the order of the file."""
    total = pq.read_metadata(split).num_rows if chosen is None else len(chosen)
    return list(judge.judge(read_posts(split, chosen), log, total))


def read_posts(split: Path, chosen: Collection[str] | None = None) -> Iterator[Post]:
    """The posts of a split, or those `chosen` by id, READ_ROWS of them in memory at once."""
    wanted = None if chosen is None else pa.array(list(chosen), pa.string())
    columns = ["post_id", "title", "body", "images.list.element.bytes", "ocr_text", "qr_codes"]
    for batch in open_parquet(split).iter_batches(READ_ROWS, columns=columns, use_threads=False):
        if wanted is not None:
            batch = batch.filter(pc.is_in(batch["post_id"], value_set=wanted))
        for row in batch.to_pylist():
            yield as_post(row)


def light_table(split: Path) -> pa.Table:
    """A split without its conversations and its images' bytes: of an image only the path is left, so they can be counted."""
    names = [name for name in pq.read_schema(split).names if name not in ("messages", "images")]
    return open_parquet(split).read(columns=[*names, "images.list.element.path"])


def rows_with_images(split: Path, post_ids: Collection[str]) -> pa.Table:
    """The rows of those posts with their images' bytes, in the order of the file: for the few that a report shows."""
    columns, schema = ["post_id", "title", "body", "images"], pq.read_schema(split)
    nothing = pa.schema([schema.field(name) for name in columns]).empty_table()
    return pa.concat_tables([nothing, *rows_of([split], post_ids, columns)])
