"""Reading posts to judge from the command line: every row comes out as a post or with its number and the reason."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from xhs_pipeline.curation.clean import CleanSettings, clean_batch
from xhs_pipeline.judge.__main__ import main
from xhs_pipeline.judge.rows import CHUNK, CHUNK_BYTES, ReadRow, chunked, read_posts, source_of
from xhs_pipeline.judgement.judge import Judge
from xhs_pipeline.posts.fields import MAX_ID_CHARS, MAX_IMAGES
from xhs_pipeline.posts.rows import BadRow
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.sources import SourceError
from xhs_pipeline.vlm.card import MODEL_CARD
from xhs_pipeline_tests.small import POLICY, jsonl


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def model(untrained_model: Path) -> Path:
    return untrained_model


def judge(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> int:
    monkeypatch.setattr(sys, "argv", ["judge", *map(str, arguments)])
    return main()


def read(posts: Path, source: Path | None = None) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Posts and reasons, by row number."""
    rows = list(read_posts(posts, source_of(posts, source)))
    assert len({row.number for row in rows}) == len(rows)
    return (
        {row.number: row.post for row in rows if isinstance(row.post, dict)},
        {row.number: row.post.reason for row in rows if isinstance(row.post, BadRow)},
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
    rows = read_posts(posts, source_of(posts, None))
    details = [row.post.detail for row in rows if isinstance(row.post, BadRow)]
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
        list(read_posts(file, source_of(file, None)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        list(read_posts(tmp_path / "nowhere.jsonl", source_of(tmp_path / "nowhere.jsonl", None)))


# what the command writes, and what it says


def test_images_that_cannot_be_used_are_reported_by_row_and_counted_apart_from_the_rows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "broken.png").write_bytes(png()[:60])
    posts = jsonl(
        tmp_path,
        {"post_id": "p1", "body": "好", "images": ["good.png"]},
        {"post_id": "p2", "body": "好", "images": ["gone-13812345678.png", "good.png", "broken.png", "gone.png"]},
        {"title": "no id"},
        {"post_id": "p4", "images": ["gone.png"]},
    )
    out = tmp_path / "out.jsonl"
    assert judge(monkeypatch, model, posts, out) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["row"], line["post_id"], line.get("error")) for line in lines] == [
        (1, "p1", None), (2, "p2", None), (3, None, "missing_post_id"), (4, "p4", "nothing_to_judge"),
    ]  # fmt: skip
    assert [line.get("images_left_out") for line in lines] == [
        None, {"file_missing": 2, "broken": 1}, None, {"file_missing": 1},
    ]  # fmt: skip
    said = capsys.readouterr().err.splitlines()
    rows = [line for line in said if line.startswith("row ")]
    assert rows[0] == "row 2: 2 image(s) left out: file_missing: gone-<手机号>.png, gone.png"
    assert rows[1].startswith("row 2: 1 image(s) left out: broken: broken.png")
    assert rows[2].startswith("row 3 not judged: missing_post_id")
    assert rows[3] == "row 4: 1 image(s) left out: file_missing: gone.png"
    assert rows[4].startswith("row 4 not judged: nothing_to_judge") and len(rows) == 5
    assert said[-1] == (
        f"done: 2 judged into {out}, 2 (missing_post_id 1, nothing_to_judge 1) not judged, "
        "4 (file_missing 3, broken 1) images left out"
    )


def test_of_a_post_with_too_many_images_the_further_ones_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    good, _ = read(jsonl(tmp_path, {"post_id": "p1", "images": ["a.png"] * (MAX_IMAGES + 2)}))
    assert good[1]["image_errors"] == [None] * MAX_IMAGES + ["too_many_images"] * 2
    assert [image["bytes"] for image in good[1]["images"][-3:]] == [png(), None, None]


def test_an_id_with_control_characters_or_without_end_is_refused_as_when_reading_a_week(tmp_path: Path) -> None:
    ids = ["\x1b[2J", "a\nb", "x" * (MAX_ID_CHARS + 1), "x" * MAX_ID_CHARS, "帖子 1"]
    good, bad = read(jsonl(tmp_path, *({"post_id": post_id, "body": "好"} for post_id in ids)))
    assert bad == dict.fromkeys((1, 2, 3), "bad_post_id") and sorted(good) == [4, 5]


def test_posts_in_memory_are_bounded_by_their_number_and_by_their_bytes() -> None:
    picture = bytes(CHUNK_BYTES // 4)  # one object, however many posts hold it
    row = {"post_id": "p", "title": "", "body": "", "images": [{"bytes": picture, "path": "a"}]}
    text = {"post_id": "p", "title": "", "body": "好", "images": []}
    assert [len(chunk) for chunk in chunked(ReadRow(n, row) for n in range(10))] == [4, 4, 2]
    assert [len(chunk) for chunk in chunked(ReadRow(n, text) for n in range(CHUNK + 1))] == [CHUNK, 1]


@pytest.mark.parametrize("way", ["same", "symlink", "hardlink"])
def test_the_posts_are_never_overwritten_by_the_judgements(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    posts = jsonl(tmp_path, {"post_id": "p1", "body": "好"})
    before, out = posts.read_bytes(), tmp_path / "out.jsonl"
    if way == "symlink":
        out.symlink_to(posts)
    elif way == "hardlink":
        out.hardlink_to(posts)
    else:
        out = tmp_path / "." / "posts.jsonl"
    assert judge(monkeypatch, tmp_path, posts, out) == 2
    assert "OUT is the file of the posts" in capsys.readouterr().err and posts.read_bytes() == before


@pytest.mark.parametrize(
    "case", ["no posts", "posts are a folder", "posts lack columns", "no model", "out is a folder"]
)
def test_what_cannot_be_used_is_one_line_and_leaves_an_earlier_out_as_it_was(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, posts = tmp_path / "out.jsonl", jsonl(tmp_path, {"post_id": "p1", "body": "好"})
    out.write_text("earlier\n")
    if case == "no posts":
        posts = tmp_path / "nowhere.jsonl"
    elif case == "posts are a folder":
        posts = tmp_path
    elif case == "posts lack columns":
        posts.write_text('{"id": 1}\n')
    assert judge(monkeypatch, tmp_path, posts, tmp_path if case == "out is a folder" else out) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(tmp_path) in said
    assert out.read_text() == "earlier\n" and not list(tmp_path.glob(".*"))


def test_a_full_disk_is_one_line_and_exit_2(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not on this machine")
    posts = jsonl(tmp_path, {"post_id": "p1", "body": "好"})
    assert judge(monkeypatch, model, posts, "/dev/full") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 28] No space left on device"


def test_standard_output_is_written_directly(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    posts = jsonl(tmp_path, {"post_id": "p1", "body": "好"})
    assert judge(monkeypatch, model, posts, "/dev/stdout") == 0
    assert json.loads(capfd.readouterr().out)["post_id"] == "p1"


def test_when_no_row_could_be_judged_the_command_fails_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    posts = jsonl(tmp_path, {"post_id": "", "body": "好"}, {"post_id": "p2", "body": "\u200b"})
    assert judge(monkeypatch, model, posts, out) == 1
    assert "error: none of the 2 rows read could be judged" in capsys.readouterr().err
    assert judge(monkeypatch, model, jsonl(tmp_path, name="none.jsonl"), out) == 0, "no rows are no failure"
    assert out.read_text() == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "holds no profile"),
        (b'{"profile": 5}', "holds no profile"),
        (b'{"profile": {}, "wording": {}, "prompt": null}', "holds no prompt and no policy_version"),
        (
            b'{"profile": {"max_length": 1, "speed": 2}, "wording": {}, "prompt": "p", "policy_version": "1"}',
            "profile: base_model: .*; max_length: .*; speed: ",
        ),
        (
            b'{"profile": {"base_model": "tiny"}, "wording": {"verdicts": []}, "prompt": "p", "policy_version": "1"}',
            "wording: KeyError: 'categories'",
        ),
    ],
)
def test_a_broken_model_card_is_named_with_what_is_wrong_in_it(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / MODEL_CARD).write_bytes(content)
    with pytest.raises(ValueError, match=rf"moderation\.json: {message}.*expected what merged_model wrote") as error:
        Judge(tmp_path, POLICY)
    assert "\n" not in str(error.value)
