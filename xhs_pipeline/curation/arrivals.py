"""One week of clean posts in order of arrival, as the columns that duplicates are found and chosen by. Pure over Arrow."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.posts.schema import open_parquet

_READ = [
    "post_id", "title", "body", "match_text", "image_hashes", "created_at", "verdict", "category", "rationale", "label_source",
]  # fmt: skip
# Equal ids in one week: any fixed order will do.
_ORDER = (
    "created_at", "post_id", "match_text", "hashes", "verdict", "category", "label_source", "rationale", "length",
)  # fmt: skip
ROWS_AT_ONCE = 8192


def read_arrivals(file: Path) -> pa.Table:
    """The posts of a CLEAN_POSTS file by (created_at, post_id), never null but in created_at.

    Columns: post_id, match_text (large_string), hashes (of the images, joined by spaces), verdict, category, label_source
    (string), reasoned (bool), length (of title and body), text_length (of match_text; characters), row (in the file; int64).
    Holds one copy of the matching texts, and titles and bodies of one batch.
    """
    batches = [
        _light(batch)
        for batch in open_parquet(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=_READ, use_threads=False)
    ]
    posts = pa.Table.from_batches(batches, _light(pa.RecordBatch.from_pylist([], pq.read_schema(file))).schema)
    posts = posts.append_column("row", pa.array(np.arange(posts.num_rows)))
    order = pc.sort_indices(posts, sort_keys=[(name, "ascending") for name in _ORDER])
    return posts.drop_columns(["created_at", "rationale"]).take(order).combine_chunks()


def _light(batch: pa.RecordBatch) -> pa.RecordBatch:
    def text(name: str, kind: pa.DataType) -> pa.Array:
        return batch[name].cast(kind).fill_null("")

    columns = {
        name: text(name, pa.string()) for name in ("post_id", "verdict", "category", "label_source", "rationale")
    }
    columns["hashes"] = pc.binary_join(batch["image_hashes"], " ").fill_null("")
    columns["match_text"] = text("match_text", pa.large_string())
    columns["created_at"] = batch["created_at"]
    columns["reasoned"] = pc.greater(pc.utf8_length(columns["rationale"]), 0)
    sizes = [pc.utf8_length(text(name, pa.string())).cast(pa.int64()) for name in ("title", "body")]
    columns["length"] = pc.add(*sizes)
    columns["text_length"] = pc.utf8_length(columns["match_text"]).cast(pa.int64())
    return pa.record_batch(columns)
