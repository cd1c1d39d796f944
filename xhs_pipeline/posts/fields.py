"""Single values of a row: a time, a list of image names, an image file inside its folder. Knows no source and no policy."""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

from xhs_pipeline.posts.rows import BadRow

TIME_ZONE = ZoneInfo("Asia/Shanghai")  # weeks start on Monday 00:00 here; times without a zone are meant here
MAX_IMAGE_BYTES = 20 * 1024 * 1024
MAX_IMAGES = 50  # of one post; further ones are not read
MAX_POST_BYTES = 128 * 1024 * 1024  # of all images of one post: it is cleaned by one worker, whose memory is bounded
MAX_ID_CHARS = 256
WRITTEN_DATE = re.compile(
    r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?(?:[T\s]+(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:[.,](\d{1,9}))?)?)?"
)
WRITTEN_EPOCH = re.compile(r"(?:\d{10}|\d{13})(?:\.\d*)?", re.ASCII)


class Reject(Exception):
    """A row that goes to quarantine, with a short code and a sentence that holds none of its text."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def text_value(value: Any, column: str, numbers: bool = False) -> str | None:
    """A text value or None; `numbers` admits whole numbers, as ids are often written. Raises Reject for anything else."""
    if isinstance(value, BadRow):
        raise Reject(value.reason, f"{column}: {value.detail}")
    if numbers and isinstance(value, float) and value.is_integer():
        value = int(value)
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise Reject("wrong_type", f"{column} is a {type(value).__name__}, expected text")
    return None if value is None else _encodable(value, column)


def _encodable(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Reject("invalid_unicode", f"{column} holds half of a surrogate pair, which no text may") from None
    return text


def term_value(
    value: Any, column: str, mapping: Mapping[str, str], find: Callable[[str], str | None]
) -> tuple[str, str | None]:
    """(the term as written, ours or None) of a label: `mapping` is theirs to ours, `find` knows our own terms. Raises Reject."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    term = (text_value(value, column, numbers=True) or "").strip()
    return term, mapping.get(term) or find(term)


def image_list(value: Any, column: str) -> list[tuple[str, bytes | None]]:
    """(relative path, embedded bytes or None) of every image that a row names. Raises Reject for what is no such list."""
    if isinstance(value, BadRow):
        raise Reject(value.reason, f"{column}: {value.detail}")
    if isinstance(value, str):
        value = _split_images(value)
    if value is None:
        return []
    images: list[tuple[str, bytes | None]] = []
    for item in value if isinstance(value, list) else [value]:
        name, data = (item.get("path"), item.get("bytes")) if isinstance(item, dict) else (item, None)
        if data is not None and name is None:
            name = f"embedded-{len(images)}"
        if not isinstance(name, str) or not isinstance(data, bytes | None):
            expected = "a list of relative paths (in CSV and Excel: separated by ; or |, or a JSON list)"
            raise Reject("wrong_type", f"{column} is not {expected}")
        if name.strip() or data is not None:
            images.append((_encodable(name.strip(), column), data))
    return images


def _split_images(text: str) -> Any:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # a file name may begin with a bracket
    return re.split(r"[;|]", text)


def read_image(folder: Path, name: str) -> tuple[bytes | None, str | None]:
    """The bytes of an image inside `folder`, or None and the reason: path_escapes_folder, file_missing, not_a_file,
    file_empty, file_too_large (over MAX_IMAGE_BYTES, not read) or file_unreadable. Never decodes."""
    found = locate_image(folder, name)
    if isinstance(found, str):
        return None, found
    try:
        with found[0].open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError:
        return None, "file_unreadable"
    return (data, None) if len(data) <= MAX_IMAGE_BYTES else (None, "file_too_large")


def locate_image(folder: Path, name: str) -> tuple[Path, os.stat_result] | str:
    """The real file that `name` means inside `folder`, or the reason why there is none."""
    portable = name.replace("\\", "/")
    windows = PureWindowsPath(name)
    if "\0" in name or windows.drive or windows.root or portable.startswith("/"):
        return "path_escapes_folder"
    root = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(root, portable))  # follows links, so that one leading outside shows
    if os.path.commonpath([root, real]) != root:
        return "path_escapes_folder"
    try:
        status = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        return "file_missing"
    except OSError:  # a name too long, a circle of links, no permission
        return "file_unreadable"
    if not stat.S_ISREG(status.st_mode):
        return "not_a_file"
    if status.st_size == 0:
        return "file_empty"
    return (Path(real), status) if status.st_size <= MAX_IMAGE_BYTES else "file_too_large"


def parse_time(value: Any) -> datetime:
    """A UTC time from ISO text, 2026/2/16 9:05, 2026年2月16日, epoch seconds or milliseconds, or a datetime.

    Raises ValueError, OverflowError, TypeError or OSError for anything else.
    """
    if isinstance(value, str):
        text = value.strip()
        if WRITTEN_EPOCH.fullmatch(text):
            value = float(text)
        elif written := WRITTEN_DATE.fullmatch(text):
            year, month, day, hour, minute, second, fraction = written.groups(default="0")
            value = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
            value = value.replace(microsecond=int(fraction[:6].ljust(6, "0")))
        else:
            value = datetime.fromisoformat(text)
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < 10**9:  # 2001; 20260216 as a number is no time in 1970
            raise ValueError("too small for epoch seconds")
        seconds = value / 1000 if value >= 10**11 else value
        return datetime.fromtimestamp(seconds, UTC)
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} is no time")
    value = value.replace(tzinfo=TIME_ZONE) if value.tzinfo is None else value
    return value.astimezone(UTC)


def post_id_value(value: Any, column: str) -> str:
    """A post's id as stripped text. Raises Reject when it is empty, over MAX_ID_CHARS long or not printable."""
    post_id = (text_value(value, column, numbers=True) or "").strip()
    if not post_id:
        raise Reject("missing_post_id", f"{column} is empty")
    if len(post_id) > MAX_ID_CHARS or not post_id.isprintable():
        raise Reject("bad_post_id", f"{column} holds control characters or over {MAX_ID_CHARS} characters")
    return post_id


def read_images(value: Any, column: str, folder: Path) -> tuple[list[dict[str, Any]], list[str | None]]:
    """The images of a cell as (RAW_POSTS images, image_errors), aligned: bytes are null where the error says why.

    Of a post with more than MAX_IMAGES images the further ones are not read, nor kept what goes beyond MAX_POST_BYTES. Raises Reject when the cell lists no names.
    """
    images: list[dict[str, Any]] = []
    errors: list[str | None] = []
    total = 0
    for index, (name, data) in enumerate(image_list(value, column)):
        error: str | None = None
        if index >= MAX_IMAGES:
            data, error = None, "too_many_images"
        elif data is None:
            data, error = read_image(folder, name)
        elif not 0 < len(data) <= MAX_IMAGE_BYTES:
            data, error = None, "file_too_large" if data else "file_empty"
        if data is not None and total + len(data) > MAX_POST_BYTES:
            data, error = None, "post_too_large"
        total += len(data or b"")
        images.append({"bytes": data, "path": name})
        errors.append(error)
    return images, errors
