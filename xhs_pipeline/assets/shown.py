"""What the Dagster UI shows of an artefact: tables, contact sheets and curves, read back from its files.

Post text is de-identified by then and escaped here: markdown and HTML in a post stay text.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

SHOWN_CHARACTERS = 60
SHEET_IMAGES, THUMBNAIL = 24, 96


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
    batch = next(pq.ParquetFile(file).iter_batches(batch_size=rows, columns=list(columns)), None)
    return table(columns, [[row[c] for c in columns] for row in batch.to_pylist()] if batch is not None else [])


def picture(data: bytes | str, title: str) -> dg.MarkdownMetadataValue:
    """A PNG (bytes) or SVG (text) inline."""
    kind, raw = ("svg+xml", data.encode()) if isinstance(data, str) else ("png", data)
    return dg.MetadataValue.md(f"![{html.escape(title)}](data:image/{kind};base64,{base64.b64encode(raw).decode()})")


def contact_sheet(file: Path, limit: int = SHEET_IMAGES) -> dg.MarkdownMetadataValue:
    """Thumbnails of the first images of a posts table, eight a row."""
    from PIL import Image

    thumbnails: list[Image.Image] = []
    for batch in pq.ParquetFile(file).iter_batches(columns=["images"], batch_size=64):
        for images in batch["images"].to_pylist():
            for image in images:
                if len(thumbnails) < limit:
                    with Image.open(io.BytesIO(image["bytes"]), formats=["JPEG"]) as opened:
                        opened.thumbnail((THUMBNAIL, THUMBNAIL))
                        thumbnails.append(opened.convert("RGB"))
        if len(thumbnails) == limit:
            break
    if not thumbnails:
        return dg.MetadataValue.md("no images")
    side = THUMBNAIL + 4
    sheet = Image.new("RGB", (8 * side, -(-len(thumbnails) // 8) * side), "white")
    for place, thumbnail in enumerate(thumbnails):
        sheet.paste(thumbnail, (place % 8 * side + 2, place // 8 * side + 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return picture(buffer.getvalue(), "contact sheet")
