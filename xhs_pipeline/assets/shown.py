"""What the Dagster UI shows of an artefact: tables, contact sheets and curves, read back from its files.

Post text is de-identified by then and escaped here: markdown and HTML in a post stay text.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from xhs_pipeline.posts.schema import open_parquet, rows_of

SHOWN_CHARACTERS = 60
SHEET_IMAGES, THUMBNAIL = 24, 96
# Rows shown of every reason, and groups of every sheet.
EXAMPLES, SHEET_GROUPS = 3, 12


def escape(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """One table cell: shortened, on one line, with HTML and markdown made harmless."""
    text = " ".join(str("" if value is None else value).split())
    text = text[:limit] + ("…" if len(text) > limit else "")
    return "".join(f"&#{ord(c)};" if c in "\\`*_{}[]()#+-.!|~<>&\"'=:/@" else c for c in text)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """A markdown table with escaped cells."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def counts(values: Mapping[str, int], name: str) -> dg.MarkdownMetadataValue:
    """Counts as a table, largest first."""
    return table([name, "count"], sorted(values.items(), key=lambda item: (-item[1], item[0])))


def count_column(file: Path, column: str) -> Counter[str]:
    """How often each value of a parquet column occurs."""
    return Counter(str(v) for v in pq.read_table(file, columns=[column])[column].to_pylist())


def preview(file: Path, columns: Sequence[str], rows: int = 10) -> dg.MarkdownMetadataValue:
    """The first rows of a parquet file."""
    batch = next(open_parquet(file).iter_batches(batch_size=rows, columns=list(columns)), None)
    return table(columns, [[row[c] for c in columns] for row in batch.to_pylist()] if batch is not None else [])


def picture(data: bytes | str, title: str) -> dg.MarkdownMetadataValue:
    """A PNG (bytes) or SVG (text) inline."""
    kind, raw = ("svg+xml", data.encode()) if isinstance(data, str) else ("png", data)
    return dg.MetadataValue.md(f"![{html.escape(title)}](data:image/{kind};base64,{base64.b64encode(raw).decode()})")


def examples(rows: Iterable[Mapping[str, Any]], by: str, columns: Sequence[str]) -> dg.MarkdownMetadataValue:
    """The first EXAMPLES rows of every value of `by`, the most frequent value first."""
    seen: Counter[str] = Counter()
    kept: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        seen[str(row[by])] += 1
        if seen[str(row[by])] <= EXAMPLES:
            kept.setdefault(str(row[by]), []).append(row)
    lines = [[value, of, *(row[c] for c in columns)] for value, of in seen.most_common() for row in kept[value]]
    return table([by, "of", *columns], lines)


def posts_of(files: Iterable[Path], post_ids: Collection[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Some posts by id out of posts tables; of a table with images only the row groups that hold one of them are read."""
    found = rows_of(files, post_ids, ["post_id", *columns])
    return {row["post_id"]: row for rows in found for row in rows.to_pylist()}


def contact_sheet(file: Path, limit: int = SHEET_IMAGES) -> dg.MarkdownMetadataValue:
    """Thumbnails of the first images of a posts table, eight a row."""
    images: list[bytes] = []
    for batch in open_parquet(file).iter_batches(columns=["images"], batch_size=64):
        images += [image["bytes"] for post in batch["images"].to_pylist() for image in post]
        if len(images) >= limit:
            break
    images = images[:limit]
    return sheet([images[start : start + 8] for start in range(0, len(images), 8)], "contact sheet")


def sheet(rows: Sequence[Sequence[bytes]], title: str) -> dg.MarkdownMetadataValue:
    """JPEGs as thumbnails on one picture, row by row."""
    from PIL import Image

    if not any(rows):
        return dg.MetadataValue.md("no images")
    side = THUMBNAIL + 4
    canvas = Image.new("RGB", (max(map(len, rows)) * side, len(rows) * side), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            with Image.open(io.BytesIO(image), formats=["JPEG"]) as opened:
                opened.thumbnail((THUMBNAIL, THUMBNAIL))
                canvas.paste(opened.convert("RGB"), (x * side + 2, y * side + 2))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return picture(buffer.getvalue(), title)
