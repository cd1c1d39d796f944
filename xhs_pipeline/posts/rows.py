"""Rows out of JSON Lines, CSV, Excel and Parquet files, as dicts under our column names. Knows no labels, weeks or images.

A row that cannot be read comes out as a BadRow with a reason; a file that cannot be read at all raises SourceError.
"""

import csv
import json
import logging
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from xhs_pipeline.posts.excel import formulas_without_value, refuse_bomb
from xhs_pipeline.posts.source_yaml import OUR_COLUMNS, SourceError

# A JSON line, CSV line or cell longer than this is no post; such a JSON line is passed over without being held in memory.
MAX_LINE_BYTES = 16 * 1024 * 1024
READ_BYTES = 1024 * 1024  # of a parquet column at a time
# In sparse JSON a whole week may lack these; other mapped columns that no row has are a mistake in the mapping.
SPARSE_COLUMNS = ("rationale", "label_source")
REQUIRED = ("post_id", "verdict", "category")
CONTENT = ("title", "body", "images")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadRow:
    """Why a row could not be read: a short code and a sentence without any of the row's text."""

    reason: str
    detail: str


LOST_FORMULA = BadRow(
    "formula_without_value",
    "a formula whose value is not stored; open the workbook in a spreadsheet program and save it, or paste values",
)

# Line (sheet row, or parquet row) number from 1, and the row.
Row = tuple[int, dict[str, Any] | BadRow]


def read_rows(path: Path, fmt: str, columns: dict[str, str], required: Sequence[str] = REQUIRED) -> Iterator[Row]:
    """Stream the rows of one file as {our column: value}, only columns that the file has.

    path: the file. fmt: one of source_yaml.FORMATS. columns: ours to theirs; columns left out keep their names.
    Values stay as the format gives them (JSON types, CSV text, Excel cells as text or datetime, Arrow as Python).
    A cell that cannot be read is a BadRow in its place, so that the rest of the row still tells its week and id.
    Raises SourceError when the file is not of that format, lacks a mapped or required column, or is a CSV whose quotes
    do not add up: from there on nobody can tell rows from text.
    """
    readers = {"jsonl": _jsonl, "csv": _csv, "xlsx": _xlsx, "parquet": _parquet}
    return readers[fmt](path, columns, required)


def _resolve(
    path: Path, header: Sequence[str], columns: dict[str, str], required: Sequence[str], where: str
) -> dict[str, str]:
    """Ours to theirs for every column that the header holds; all that is wrong with the header is said at once."""
    problems = [f"columns.{ours} names {theirs!r}" for ours, theirs in columns.items() if theirs not in header]
    problems += [f"nothing is mapped to {ours}" for ours in required if ours not in columns and ours not in header]
    if not any(c in columns or c in header for c in CONTENT):
        problems.append(f"nothing is mapped to any of {', '.join(CONTENT)}")
    found = {ours: columns.get(ours, ours) for ours in OUR_COLUMNS if columns.get(ours, ours) in header}
    problems += [
        f"column {theirs!r} stands there twice" for theirs in set(found.values()) if list(header).count(theirs) > 1
    ]
    if problems:
        shown = ", ".join(_shown(name) for name in header[:40]) or "none"
        doubt = " Is the first line a header?" if where and not found else ""
        raise SourceError(
            f"{path}{where}: {'; '.join(problems)}; columns found: {shown}.{doubt} "
            "Map them in the source YAML under `columns` (ours: theirs)"
        )
    return found


def _shown(name: str) -> str:
    """A column name for a message; in a file without a header it may be somebody's text or phone number."""
    plain = unicodedata.normalize("NFKC", name)
    if len(name) > 30 or "@" in plain or re.search(r"\d{5}", re.sub(r"[\W_]", "", plain)):
        return "(a long or number-like cell)"
    return repr(name[:20])


def _jsonl(path: Path, columns: dict[str, str], required: Sequence[str]) -> Iterator[Row]:
    seen: set[str] = set()
    objects = 0
    with path.open("rb") as file:
        for line, raw in enumerate(_lines(file), start=1):
            if raw is None:
                yield line, BadRow("line_too_long", f"the line is longer than {MAX_LINE_BYTES} bytes")
                continue
            if not raw.strip():
                continue
            row = _parse_json(raw.strip().removeprefix(b"\xef\xbb\xbf" if line == 1 else b""))
            if isinstance(row, dict):
                objects += 1
                if len(seen) < 1000:
                    seen.update(row)
                row = {ours: row[columns.get(ours, ours)] for ours in OUR_COLUMNS if columns.get(ours, ours) in row}
            yield line, row
    if objects:
        absent = [ours for ours in SPARSE_COLUMNS if ours in columns and columns[ours] not in seen]
        for ours in absent:
            log.warning("%s: no row has %r, which the source maps to %s", path, columns[ours], ours)
        firm = {ours: theirs for ours, theirs in columns.items() if ours not in absent}
        _resolve(path, sorted(seen), firm, required, "")


def _lines(file: Any) -> Iterator[bytes | None]:
    """Lines of a binary file; None for one that is too long."""
    while raw := file.readline(MAX_LINE_BYTES):
        if raw.endswith(b"\n") or len(raw) < MAX_LINE_BYTES:
            yield raw
            continue
        while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _parse_json(raw: bytes) -> dict[str, Any] | BadRow:
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow("invalid_utf8", f"byte {error.start} of the line is not UTF-8; save the file as UTF-8")
    except RecursionError:
        return BadRow("bad_json", "nested too deeply")
    except json.JSONDecodeError as error:
        return BadRow("bad_json", f"not a whole JSON object ({error.msg}, column {error.colno})")
    except ValueError:  # a number with thousands of digits
        return BadRow("bad_json", "a number with too many digits")
    if not isinstance(row, dict):
        return BadRow("bad_json", f"expected a JSON object, found {type(row).__name__}")
    return row


def _csv(path: Path, columns: dict[str, str], required: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    # surrogateescape keeps the reader going over bytes that are not UTF-8: they surface as lone surrogates in their own row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Without strict a misplaced quote would swallow rows, or let a post's text go on as rows with labels of its choice.
        reader = csv.reader(_text_lines(file), strict=True)
        header = [cell.strip() for cell in _record(path, reader) or ()]
        if _has_surrogate("".join(header)):
            raise SourceError(f"{path}, line 1: the header is not UTF-8; save the file as 'CSV UTF-8'")
        found = _resolve(path, header, columns, required, ", line 1")
        index = {ours: header.index(theirs) for ours, theirs in found.items()}
        while True:
            line = reader.line_num + 1
            cells = _record(path, reader)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(header):
                detail = f"lines {line} to {reader.line_num} hold {len(cells)} columns, the header {len(header)}; is a quote missing?"
                yield line, BadRow("wrong_column_count", detail)
            elif any(_has_surrogate(cell) for cell in cells):
                yield line, BadRow("invalid_utf8", "bytes that are not UTF-8; save the file as 'CSV UTF-8'")
            else:
                yield line, {ours: cells[i] for ours, i in index.items()}


def _record(path: Path, reader: Any) -> list[str] | None:
    """The next record, or None at the end. A fault in one stops the file: where the next one starts is then a guess."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise SourceError(
            f"{path}, line {line}: the record that starts here cannot be read ({error}, at line {reader.line_num}), and no "
            "row after it can be told from text; export the file again, with every text in quotes and quotes inside it doubled"
        ) from None


def _text_lines(file: Any) -> Iterator[str]:
    while line := file.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line of over {MAX_LINE_BYTES} characters")
        yield line


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _xlsx(path: Path, columns: dict[str, str], required: Sequence[str]) -> Iterator[Row]:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        refuse_bomb(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            yield from _sheet(path, book.worksheets[0], columns, required)
        finally:
            book.close()
    except SourceError:
        raise
    # SyntaxError is what the XML parser raises; the rest is what openpyxl lets through for a damaged or locked workbook.
    except (zipfile.BadZipFile, zlib.error, InvalidFileException, SyntaxError, OSError, EOFError) as error:
        raise SourceError(f"{path}: not a readable xlsx workbook ({error}); save it again as .xlsx") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, struct.error) as error:
        raise _unreadable(path, "xlsx workbook", error, "save it again as .xlsx without a password") from None


def _unreadable(path: Path, what: str, error: Exception, remedy: str) -> SourceError:
    """For errors whose message may quote a cell: only their kind is told."""
    return SourceError(f"{path}: not a readable {what} ({type(error).__name__} inside it); {remedy}")


def _sheet(path: Path, sheet: Any, columns: dict[str, str], required: Sequence[str]) -> Iterator[Row]:
    sheet.reset_dimensions()  # some writers state a wrong size, which would cut rows off
    rows = sheet.iter_rows(values_only=True)
    header = ["" if cell is None else str(cell).strip() for cell in next(rows, ())]
    found = _resolve(path, header, columns, required, f", sheet {sheet.title!r}, line 1")
    index = {ours: header.index(theirs) for ours, theirs in found.items()}
    empty = formulas_without_value(path, sheet._worksheet_path)  # openpyxl has no public name for it
    for line, cells in enumerate(rows, start=2):
        lost = [ours for ours, i in index.items() if (line, i + 1) in empty]
        if all(cell is None for cell in cells) and not lost:
            continue
        if any(cell is not None for cell in cells[len(header) :]):
            yield line, BadRow("wrong_column_count", f"cells beyond the header's {len(header)} columns")
        else:
            row = {ours: _cell(cells[i]) for ours, i in index.items() if i < len(cells)}
            yield line, row | dict.fromkeys(lost, LOST_FORMULA)


def _cell(value: Any) -> Any:
    """An Excel cell as text; dates stay, and whole numbers lose the ".0" that Excel's floats would give an id."""
    if isinstance(value, str) and len(value) > MAX_LINE_BYTES:
        return BadRow("cell_too_long", f"the cell is longer than {MAX_LINE_BYTES} characters")
    if value is None or isinstance(value, str | date):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) >= 10**15:
        return BadRow("wrong_type", "a number with over 15 digits, which Excel rounds; format the column as text")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parquet(path: Path, columns: dict[str, str], required: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # by default pyarrow keeps what it read ahead, in the end the whole file; and it reads a column of a group at once
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)
        found = _resolve(path, file.schema_arrow.names, columns, required, "")
        theirs = sorted(set(found.values()))
        line = 0
        for batch in file.iter_batches(batch_size=64, columns=theirs):
            for values in _batch_rows(batch):
                line += 1
                yield line, {ours: values[name] for ours, name in found.items()}
    except SourceError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable parquet file ({error}); write it again") from error
    except (ValueError, OverflowError, LookupError) as error:
        raise _unreadable(path, "parquet file", error, "write it again") from None


def _batch_rows(batch: Any) -> Iterable[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # UnicodeDecodeError is a ValueError, too
        return [{name: _value(batch.column(name), i) for name in batch.schema.names} for i in range(batch.num_rows)]


def _value(column: Any, i: int) -> Any:
    try:
        return column[i].as_py()
    except UnicodeDecodeError:
        return BadRow("invalid_utf8", "bytes that are not UTF-8")
    except (ValueError, OverflowError):
        return BadRow("value_out_of_range", "a time or number that is too large or too fine to hold")
