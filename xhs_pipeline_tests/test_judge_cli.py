"""Reading posts to judge from the command line: every row comes out as a post or with its number and the reason."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from xhs_pipeline.curation.clean import CleanSettings, clean_batch
from xhs_pipeline.judge import raw_rows
from xhs_pipeline.posts.rows import BadRow
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.sources import SourceError


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(out, "PNG")
    return out.getvalue()


def jsonl(folder: Path, *rows: dict[str, Any] | bytes, name: str = "posts.jsonl") -> Path:
    file = folder / name
    encoded = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in rows]
    file.write_bytes(b"".join(line + b"\n" for line in encoded))
    return file


def read(posts: Path, source: Path | None = None) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Posts and reasons, by row number."""
    rows = list(raw_rows(posts, source))
    assert len({number for number, _ in rows}) == len(rows)
    return (
        {number: row for number, row in rows if isinstance(row, dict)},
        {number: row.reason for number, row in rows if isinstance(row, BadRow)},
    )


def test_a_post_needs_an_id_and_something_to_judge_and_no_label(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    good, bad = read(jsonl(tmp_path, {"post_id": "p1", "title": "标题"}, {"post_id": 2, "images": ["a.png"]}))
    assert bad == {} and good[1] == {
        "post_id": "p1", "title": "标题", "body": "", "images": [], "image_errors": [],
    }  # fmt: skip
    assert good[2]["post_id"] == "2" and good[2]["images"] == [{"bytes": png(), "path": "a.png"}]


def test_bad_rows_come_with_their_number_and_the_reason_and_stop_nothing(tmp_path: Path) -> None:
    posts = jsonl(
        tmp_path,
        {"post_id": "p1", "title": "好"},
        b'{"post_id": "p2", "title": "cut in h',
        b'{"post_id": "p3", "title": "\xff\xfe"}',
        {"title": "no id"},
        {"post_id": "p1", "title": "again"},
        b"[1, 2]",
        b"",
        {"post_id": "p8", "title": ["a", "list"]},
        {"post_id": "p9", "body": "好", "images": 5},
        {"post_id": "p10", "body": "<|im_end|>"},
    )
    good, bad = read(posts)
    assert sorted(good) == [1, 10]
    assert bad == {
        2: "bad_json", 3: "invalid_utf8", 4: "missing_post_id", 5: "duplicate_post_id", 6: "bad_json", 8: "wrong_type", 9: "wrong_type",
    }  # fmt: skip


def test_details_of_bad_rows_hold_none_of_their_text(tmp_path: Path) -> None:
    posts = jsonl(tmp_path, {"post_id": "好", "title": {"秘密": 1}}, b'{"post_id": "x", "body": "\xe7\xa7\x98\xe5\xaf\x86', {"post_id": "ok", "title": "t"})  # fmt: skip
    details = [row.detail for _, row in raw_rows(posts, None) if isinstance(row, BadRow)]
    assert len(details) == 2 and not any("秘密" in detail for detail in details)


def test_an_image_outside_the_folder_is_not_read_and_the_post_stays(tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "empty.jpg").write_bytes(b"")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "missing.png", "empty.jpg", "C:\\a.png"]
    good, bad = read(jsonl(folder, {"post_id": "p1", "body": "好", "images": names}))
    assert bad == {} and all(image["bytes"] is None for image in good[1]["images"])
    assert good[1]["image_errors"] == [
        "path_escapes_folder", "path_escapes_folder", "path_escapes_folder", "file_missing", "file_empty", "path_escapes_folder",
    ]  # fmt: skip
    # and cleaning takes it from there as in training: the images are dropped with those reasons
    cleaned = clean_batch(pa.RecordBatch.from_pylist(list(good.values()), RAW_POSTS), CleanSettings())
    assert cleaned.posts.num_rows == 1
    assert cleaned.dropped_images["reason"].to_pylist() == good[1]["image_errors"]


def test_a_source_maps_the_columns_and_the_image_folder_and_asks_for_no_label(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png())
    source = tmp_path / "source.yaml"
    source.write_text(
        "format: csv\npath: whatever.csv\nimages_dir: pictures\n"
        "columns: {post_id: 笔记ID, title: 标题, images: 图片, verdict: 处理, category: 原因, author: 用户}\n",
        encoding="utf-8",
    )
    posts = tmp_path / "new.csv"  # neither verdict nor category nor author are there: nobody has decided yet
    posts.write_text("笔记ID,标题,图片\nn1,好物,a.png\nn2,a,b,c\n,无,\n", encoding="utf-8-sig")
    good, bad = read(posts, source)
    assert [(row["post_id"], row["title"]) for row in good.values()] == [("n1", "好物")]
    assert good[2]["images"] == [{"bytes": png(), "path": "a.png"}]
    assert bad == {3: "wrong_column_count", 4: "missing_post_id"}


def test_a_csv_needs_no_source_when_its_columns_have_our_names(tmp_path: Path) -> None:
    posts = tmp_path / "posts.csv"
    posts.write_text("post_id,body\np1,好\n", encoding="utf-8")
    good, bad = read(posts)
    assert good[2]["body"] == "好" and bad == {}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "posts.csv",
            "id,text\n1,a\n",
            r"posts\.csv, line 1: nothing is mapped to post_id; nothing is mapped to any of",
        ),
        ("posts.jsonl", '{"id": 1, "text": "a"}\n', r"posts\.jsonl: nothing is mapped to post_id.*columns found"),
        ("posts.xlsx", "not a workbook", r"posts\.xlsx: not a readable xlsx workbook"),
        ("posts.parquet", "not parquet", r"posts\.parquet: not a readable parquet file"),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole_is_one_clear_error(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(SourceError, match=message):
        list(raw_rows(file, None))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        list(raw_rows(tmp_path / "nowhere.jsonl", None))
