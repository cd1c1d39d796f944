"""What openpyxl does not say of a workbook: how large it unpacks, and which formulas have no stored value. Reads no rows."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from xhs_pipeline.posts.source_yaml import SourceError

MAX_UNPACKED_BYTES = 1024**3
_FORMULA = re.compile(rb"<(?:\w+:)?f[\s>/]")


def refuse_bomb(path: Path) -> None:
    """Raise SourceError when the workbook unpacks to over MAX_UNPACKED_BYTES; reads the archive's directory only.

    A directory that understates a size does no harm: no more than the stated size is ever unpacked.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise SourceError(
            f"{path}: unpacks to {size / 1024**2:.0f} MiB, expected at most {MAX_UNPACKED_BYTES / 1024**2:.0f}; "
            "split it by week, or save it as 'CSV UTF-8'"
        )


def formulas_without_value(path: Path, member: str) -> set[tuple[int, int]]:
    """(row, column) from 1 of every formula whose value the workbook does not store, so that it would read as empty.

    member: the sheet's file in the archive. Spreadsheet programs store values; programs that only write files often do
    not. A formula with an empty text as its value (t="str") is no such cell.
    """
    from openpyxl.utils.cell import coordinate_to_tuple

    found: set[tuple[int, int]] = set()
    with zipfile.ZipFile(path) as archive:
        if not _has_formula(archive, member):  # most sheets: spares parsing them a second time
            return found
        row = column = 0
        with archive.open(member) as file:
            for event, element in ElementTree.iterparse(file, ("start", "end")):
                tag = element.tag.rpartition("}")[2]
                if event == "start" and tag == "row":
                    row, column = int(element.get("r") or row + 1), 0
                elif event == "start" and tag == "c":
                    place = element.get("r")
                    row, column = coordinate_to_tuple(place) if place else (row, column + 1)
                elif event == "end" and tag == "c" and element.find("{*}f") is not None:
                    if not element.findtext("{*}v") and element.get("t") != "str":
                        found.add((row, column))
                elif event == "end" and tag == "row":
                    element.clear()
    return found


def _has_formula(archive: zipfile.ZipFile, member: str) -> bool:
    tail = b""
    with archive.open(member) as file:
        while chunk := file.read(1 << 20):
            if _FORMULA.search(tail + chunk):
                return True
            tail = chunk[-64:]
    return False
