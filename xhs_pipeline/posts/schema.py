"""The Arrow schemas of the tables that weekly and unique posts live in. Columns only; no reading, no cleaning.

Images are JPEG (after cleaning) or original (before) bytes embedded beside their path. Parquet settings follow
xhs_pipeline_tests/benchmarks/parquet_images: image bytes uncompressed and without a dictionary, text zstd, and row groups of
64 rows or 4 MB, since whoever wants one image reads its whole group.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
ROWS_PER_GROUP = 64
BYTES_PER_GROUP = 4 * 1024 * 1024
DICTIONARY_COLUMNS = ("week", "verdict", "category", "label_source", "reason", "stage")

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
# image_hashes holds one 256-bit perceptual hash (64 hex digits) per image; identifiers lists the placeholder types put into the text and
# into ocr_text, and "二维码" where a QR code was seen. ocr_text is the text in the images, null where there is none; qr_codes
# counts codes and ocr_failed images that could not be read. All three are null when the setting `ocr` is off.
CLEAN_POSTS = pa.schema(
    [f for f in RAW_POSTS if f.name != "image_errors"]
    + [
        pa.field("match_text", pa.string()),
        pa.field("image_hashes", pa.list_(pa.string())),
        pa.field("identifiers", pa.list_(pa.string())),
        pa.field("ocr_text", pa.string()),
        pa.field("qr_codes", pa.int32()),
        pa.field("ocr_failed", pa.int32()),
    ]
)

# group_id: the component of posts that must stay in one split. founders: the group_ids that its posts, removed ones too, had in
# the weeks that brought them, sorted; the split goes by them, since they never change and a group_id may.
UNIQUE_POSTS = pa.schema(
    list(CLEAN_POSTS) + [pa.field("group_id", pa.string()), pa.field("founders", pa.list_(pa.string()))]
)

# Rows that left the pipeline, each with a counted reason. `detail` never holds the post's own text.
QUARANTINE = pa.schema(
    [("post_id", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
# Images that a post lost while the post itself stayed.
DROPPED_IMAGES = pa.schema(
    [("post_id", pa.string()), ("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
# Duplicates that left, with the label they had: several labels of one content tell how far reviewers agree.
REMOVED = pa.schema(
    [
        ("post_id", pa.string()),
        ("kept_post_id", pa.string()),
        ("reason", pa.string()),
        ("similarity", pa.float32()),
        ("verdict", pa.string()),
        ("category", pa.string()),
        ("label_source", pa.string()),
    ]
)


class TableWriter:
    """Streams record batches of one schema into a parquet file; `rows` counts them. Memory stays at one batch."""

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        rows_per_group: int = ROWS_PER_GROUP,
        bytes_per_group: int = BYTES_PER_GROUP,
    ):
        has_images = "images" in schema.names
        compression = {name: "zstd" for name in schema.names if name != "images"}
        if has_images:
            compression |= {"images.list.element.bytes": "none", "images.list.element.path": "zstd"}
        self.rows = 0
        self._schema = schema
        self._group = rows_per_group if has_images else 65536
        self._group_bytes = bytes_per_group
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._writer = pq.ParquetWriter(
            path, schema, compression=compression, use_dictionary=[n for n in DICTIONARY_COLUMNS if n in schema.names]
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; they reach the file in whole row groups, however small or large the batches are."""
        if batch.num_rows:
            self.rows += batch.num_rows
            self._waiting.append(batch)
            self._waiting_rows += batch.num_rows
            self._waiting_bytes += batch.nbytes
            if self._waiting_rows >= self._group or self._waiting_bytes >= self._group_bytes:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._schema)
            for portion in _portions(table, self._group_bytes):
                self._writer.write_table(portion, row_group_size=self._group)
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, failed: type[BaseException] | None, *exception: object) -> None:
        if failed is None:
            self._flush()
        self._writer.close()


def _portions(table: pa.Table, size: int) -> Iterator[pa.Table]:
    """The table in slices of at most `size` bytes, or of one row."""
    if table.num_rows <= 1 or table.nbytes <= size:
        yield table
        return
    half = table.num_rows // 2
    yield from _portions(table.slice(0, half), size)
    yield from _portions(table.slice(half), size)


def open_parquet(file: Path) -> pq.ParquetFile:
    """A parquet file to be streamed: by default pyarrow keeps what it reads ahead, which is in the end the whole file."""
    return pq.ParquetFile(file, pre_buffer=False)


def rows_of(
    files: Iterable[Path], post_ids: Collection[str], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Some posts by id, in the order of the files; only the row groups that hold one of them are read. columns: None = all."""
    wanted = pa.array(sorted(post_ids), pa.string())
    for file in map(open_parquet, files):
        for group in range(file.num_row_groups):
            here = pc.is_in(file.read_row_group(group, columns=["post_id"])["post_id"], value_set=wanted)
            if pc.any(here).as_py():
                yield file.read_row_group(group, columns=None if columns is None else list(columns)).filter(here)


def unique_files(unique: Path) -> list[Path]:
    """The posts tables in a folder of unique_posts: its posts, then those set aside for their contradicting labels."""
    return [file for name in ("posts", "set_aside") for file in sorted((unique / name).glob("*.parquet"))]


def kept_posts(unique: Path) -> dict[str, str]:
    """Of every post that a folder of unique_posts removed as a duplicate, the post that was kept for it.

    A post whose own id came twice was kept under that id, which names no other post.
    """
    removed = pq.read_table(unique / "removed.parquet", columns=["post_id", "kept_post_id"]).to_pylist()
    return {row["post_id"]: row["kept_post_id"] for row in removed if row["kept_post_id"] not in (None, row["post_id"])}


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Stream record batches into one parquet file and return the number of rows."""
    with TableWriter(path, schema) as table:
        for batch in batches:
            table.write(batch)
    return table.rows
