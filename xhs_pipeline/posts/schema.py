"""The Arrow schemas of the tables that weekly and unique posts live in. Columns only; no reading, no cleaning.

Images are JPEG (after cleaning) or original (before) bytes embedded beside their path. Parquet settings follow a measurement
on 379 MB of embedded JPEGs: image bytes uncompressed and without a dictionary, text zstd, 64 rows a row group gives about
1.2 GB/s written and 2 ms for one random image; row groups of 4,000 take 150 times as long for one image.
"""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
ROWS_PER_GROUP = 64

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# One week of posts as read. `images[i].bytes` is null where `image_errors[i]` says why the file could not be read.
# label_source says who labelled the post (the source's own column, else "source"); severity is the category's.
RAW_POSTS = pa.schema(
    [
        ("post_id", pa.string()),
        ("title", pa.string()),
        ("body", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("image_errors", pa.list_(pa.string())),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("week", pa.string()),
        ("verdict", pa.string()),
        ("category", pa.string()),
        ("severity", pa.int8()),
        ("rationale", pa.string()),
        ("label_source", pa.string()),
        ("author_hash", pa.string()),
        ("schema_version", pa.int16()),
    ]
)

# After cleaning: every image decodes as a JPEG. match_text is the matching form of title and body, for comparison only;
# image_hashes holds one 64-bit perceptual hash (hex) per image; identifiers lists the placeholder types put into the text.
CLEAN_POSTS = pa.schema(
    [f for f in RAW_POSTS if f.name != "image_errors"]
    + [
        pa.field("match_text", pa.string()),
        pa.field("image_hashes", pa.list_(pa.string())),
        pa.field("identifiers", pa.list_(pa.string())),
    ]
)

# group_id: the component of posts that must stay in one split.
UNIQUE_POSTS = pa.schema(list(CLEAN_POSTS) + [pa.field("group_id", pa.string())])

# Rows that left the pipeline, each with a counted reason. `detail` never holds the post's own text.
QUARANTINE = pa.schema([("post_id", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
# Images that a post lost while the post itself stayed.
DROPPED_IMAGES = pa.schema([("post_id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
REMOVED = pa.schema(
    [("post_id", pa.string()), ("kept_post_id", pa.string()), ("reason", pa.string()), ("similarity", pa.float32())]
)


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Stream record batches into one parquet file and return the number of rows; memory stays at one batch."""
    has_images = "images" in schema.names
    text = [name for name in schema.names if name != "images"]
    rows = 0
    with pq.ParquetWriter(
        path,
        schema,
        compression={**{name: "zstd" for name in text}, **({"images.list.element.bytes": "none"} if has_images else {})},
        use_dictionary=["week", "verdict", "category", "label_source", "reason", "stage"],
        write_page_index=True,
    ) as writer:
        for batch in batches:
            rows += batch.num_rows
            writer.write_batch(batch, row_group_size=ROWS_PER_GROUP if has_images else 65536)
    return rows
