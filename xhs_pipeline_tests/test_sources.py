"""Reading a week of posts: every bad input is either a clear error (the source) or a counted quarantine row (a post)."""

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.fields import MAX_IMAGE_BYTES, parse_time, read_image
from xhs_pipeline.posts.rows import read_rows
from xhs_pipeline.posts.schema import QUARANTINE, RAW_POSTS
from xhs_pipeline.posts.sources import (
    Source,
    SourceError,
    SourceMissing,
    Tally,
    has_posts,
    load_source,
    read_week,
    source_fingerprint,
)
from xhs_pipeline.posts.stages import write_raw
from xhs_pipeline.privacy import keyed_hash

WEEK = "2026-02-16"
KEY = b"a key of sixteen or more bytes"
POLICY = load_policy()


def post(post_id: str = "p1", **changes: Any) -> dict[str, Any]:
    row = {"post_id": post_id, "title": "标题", "body": "正文", "created_at": "2026-02-17T10:00:00+08:00"}
    return row | {"verdict": "通过", "category": "正常"} | changes


def write_source(folder: Path, text: str = "format: jsonl\npath: posts-{week}.jsonl\n") -> Source:
    (folder / "source.yaml").write_text(text, encoding="utf-8")
    return load_source(folder / "source.yaml")


def jsonl(folder: Path, *rows: dict[str, Any] | bytes, yaml: str | None = None) -> Source:
    """A source whose week holds these rows; bytes go in as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (folder / f"posts-{WEEK}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return write_source(folder, yaml) if yaml else write_source(folder)


def read(source: Source, week: str = WEEK, batch_rows: int = 256) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    posts, bad = [], []
    for good_batch, bad_batch in read_week(source, week, POLICY, KEY, batch_rows):
        assert good_batch.schema == RAW_POSTS and bad_batch.schema == QUARANTINE
        posts += good_batch.to_pylist()
        bad += bad_batch.to_pylist()
    return posts, bad


def reasons(source: Source) -> list[str]:
    return [row["reason"] for row in read(source)[1]]


# --- the source YAML ----------------------------------------------------------------------------------------------------


def test_a_missing_source_file_says_what_was_expected_and_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such file, expected a source YAML.*XHS_SOURCE"):
        load_source(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "format: jsonl\npath: a\nimage_dir: x\n",
            r"line 3: unknown key 'image_dir'.*allowed: format, path, images_dir",
        ),
        ("format: json\npath: a\n", r"line 1: format has 'json'; allowed: jsonl, csv, xlsx, parquet"),
        (
            "format: csv\npath: a\ncolumns:\n  text: body\n",
            r"line 4: unknown key 'text' in columns.*post_id, title, body",
        ),
        (
            "format: csv\npath: a\nvalues:\n  label: {a: pass}\n",
            r"line 4: unknown key 'label' in values.*verdict, category",
        ),
        (
            "format: csv\npath: a\nvalues:\n  verdict:\n    ok: pass\n    bad: banned\n",
            r"line 6: values\.verdict maps 'bad' to 'banned'.*remove \(违规删除\)",
        ),
        (
            "format: csv\npath: a\nvalues:\n  category:\n    x: 广告\n",
            r"line 5: values\.category maps 'x' to '广告'.*虚假宣传",
        ),
        ("format: csv\npath: a\nvalues:\n  verdict:\n    x:\n", r"line 5: values\.verdict\.x must be one line of text"),
        ("format: csv\npath: a\nweek: 2026-02-18\n", r"line 3: week '2026-02-18' is not a Monday.*2026-02-16"),
        ("format: csv\npath: a\nweek: soon\n", r"line 3: week 'soon' is not a date"),
        ("format: csv\npath: posts-{month}.csv\n", r"line 2: path has '\{month\}'; allowed: \{week\}"),
        ("format: csv\nformat: jsonl\npath: a\n", r"line 2: 'format' appears twice"),
        ("format: csv\npath: a\nimages_dir: nope\n", r"line 3: no folder .*nope"),
        ("format: csv\n", r"`path` is missing"),
        ("", r"empty, expected at least `format` and `path`"),
        ("- format\n", r"line 1: the source YAML must be a mapping"),
        ("format: [csv\npath: a\n", r"line 2: not valid YAML"),
        ("[" * 5000, r"nested too deeply|not valid YAML"),
    ],
)
def test_a_mistake_in_the_source_yaml_names_the_file_the_line_the_value_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message) as error:
        write_source(tmp_path, text)
    assert str(tmp_path / "source.yaml") in str(error.value)


def test_a_yaml_date_is_read_as_a_week_and_a_number_as_a_label(tmp_path: Path) -> None:
    source = write_source(
        tmp_path, "format: csv\npath: a.csv\nweek: 2026-02-16\nvalues:\n  verdict: {1: remove, no: 通过}\n"
    )
    assert source.week == WEEK
    assert source.values == {"verdict": {"1": "remove", "no": "pass"}}


def test_the_posts_file_of_a_week_that_is_not_there_names_the_weeks_that_are(tmp_path: Path) -> None:
    source = jsonl(tmp_path, post())
    with pytest.raises(SourceMissing, match=r"posts-2026-02-23\.jsonl: no such file.*posts-2026-02-16\.jsonl"):
        read_week(source, "2026-02-23", POLICY, KEY)
    with pytest.raises(ValueError, match="not a Monday"):
        read_week(source, "2026-02-17", POLICY, KEY)


# --- rows that cannot be used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (json.dumps(post()).encode()[:60], "bad_json"),
        (b"[" * 100_000 + b"]" * 100_000, "bad_json"),
        (b'{"post_id": ' + b"9" * 5000 + b"}", "bad_json"),
        (b"[1, 2]", "bad_json"),
        (b"null", "bad_json"),
        (json.dumps(post(), ensure_ascii=False).encode("gbk"), "invalid_utf8"),
        (json.dumps(post(body="\ud800")).encode(), "invalid_unicode"),
        (json.dumps(post(author="\udfff")).encode(), "invalid_unicode"),
        (json.dumps(post(images=["\ud800.jpg"])).encode(), "invalid_unicode"),
        (post(post_id=""), "missing_post_id"),
        (post(post_id=None), "missing_post_id"),
        (post(post_id="x" * 300), "bad_post_id"),
        (post(post_id=1.5), "wrong_type"),
        (post(created_at="yesterday"), "bad_time"),
        (post(created_at=20260216), "bad_time"),
        (post(created_at=1e400), "bad_time"),
        (post(created_at=[1]), "bad_time"),
        (post(created_at="9999-12-31T23:00:00+00:00"), "bad_time"),
        (post(created_at="2026-02-09T10:00:00+08:00"), "wrong_week"),
        (post(verdict="封号"), "unknown_verdict"),
        (post(verdict=None), "missing_verdict"),
        (post(verdict=["remove"]), "wrong_type"),
        (post(category="水帖"), "unknown_category"),
        (post(category=""), "missing_category"),
        (post(verdict="remove", category="正常"), "verdict_category_mismatch"),
        (post(verdict="pass", category="诈骗"), "verdict_category_mismatch"),
        (post(body={"a": 1}), "wrong_type"),
        (post(title=7), "wrong_type"),
        (post(images={"a": 1}), "wrong_type"),
        (post(images=[["a.jpg"]]), "wrong_type"),
        (post(images=7), "wrong_type"),
    ],
)
def test_a_bad_row_is_quarantined_with_its_reason_and_the_rows_around_it_stay(
    tmp_path: Path, row: dict[str, Any] | bytes, reason: str
) -> None:
    source = jsonl(tmp_path, post("before"), row, post("after"))
    posts, bad = read(source)
    assert [p["post_id"] for p in posts] == ["before", "after"]
    assert [(b["reason"], b["stage"]) for b in bad] == [(reason, "raw_posts")]
    assert f"posts-{WEEK}.jsonl, line 2: " in bad[0]["detail"]


def test_an_unknown_label_is_shown_short_with_the_allowed_ones(tmp_path: Path) -> None:
    _, bad = read(jsonl(tmp_path, post(verdict="封" * 500)))
    assert "封" * 39 + "…" in bad[0]["detail"] and "封" * 40 not in bad[0]["detail"]
    assert "column 'verdict'" in bad[0]["detail"] and "needs_edit (需要修改)" in bad[0]["detail"]


def test_no_quarantine_detail_holds_post_text(tmp_path: Path) -> None:
    secret = "我的电话是15400001234"
    rows = [post(f"p{i}", title=secret, body=secret) for i in range(3)]
    broken = [rows[0] | {"created_at": secret}, rows[1] | {"images": 3}, rows[2] | {"verdict": None}]
    cut = json.dumps(rows[0], ensure_ascii=False).encode()[:70]
    _, bad = read(jsonl(tmp_path, *broken, cut))
    assert len(bad) == 4 and not any("1540000" in str(row) or "电话" in str(row) for row in bad)


def test_of_two_rows_with_one_post_id_only_the_first_survives(tmp_path: Path) -> None:
    posts, bad = read(jsonl(tmp_path, post("same", body="一"), post("same", body="二"), post(" same ", body="三")))
    assert [p["body"] for p in posts] == ["一"]
    assert [b["reason"] for b in bad] == ["duplicate_post_id"] * 2


def test_rows_in_are_posts_plus_quarantine_in_batches_of_any_size(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | bytes] = [post(f"p{i}") for i in range(20)]
    rows[3] = b"{"
    rows[11] = post("p10")
    source = jsonl(tmp_path, *rows, b"", b"   ")
    for batch_rows in (1, 7, 256):
        posts, bad = read(source, batch_rows=batch_rows)
        assert (len(posts), len(bad)) == (18, 2)


def test_in_a_file_of_several_weeks_other_weeks_are_skipped_and_unreadable_rows_reported_with_each(
    tmp_path: Path,
) -> None:
    rows = [post("a"), post("b", created_at="2026-02-23T00:00:00+08:00"), post("c", created_at=None), b"{"]
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (tmp_path / "all.jsonl").write_bytes(b"\n".join(lines))
    source = write_source(tmp_path, "format: jsonl\npath: all.jsonl\n")
    for week, kept in ((WEEK, "a"), ("2026-02-23", "b")):
        posts, bad = read(source, week)
        assert [p["post_id"] for p in posts] == [kept]
        assert [b["reason"] for b in bad] == ["bad_time", "bad_json"]
        assert all("reported with every week" in b["detail"] for b in bad)
    with_week = write_source(tmp_path, f"format: jsonl\npath: all.jsonl\nweek: {WEEK}\n")
    assert [p["post_id"] for p in read(with_week)[0]] == ["a", "c"]
    assert read(with_week, "2026-02-23") == ([read(source, "2026-02-23")[0][0]], [])


def test_the_week_turns_on_monday_midnight_in_shanghai(tmp_path: Path) -> None:
    times = ["2026-02-15T15:59:59Z", "2026-02-15T16:00:00Z", "2026-02-22 23:59:59", "2026-02-22T16:00:00+00:00"]
    posts, bad = read(jsonl(tmp_path, *(post(f"p{i}", created_at=time) for i, time in enumerate(times))))
    assert [p["post_id"] for p in posts] == ["p1", "p2"]
    assert [b["reason"] for b in bad] == ["wrong_week", "wrong_week"]
    assert posts[0]["created_at"] == datetime(2026, 2, 15, 16, tzinfo=UTC)


def test_times_are_read_as_people_and_programs_write_them() -> None:
    expected = datetime(2026, 2, 16, 1, 5, tzinfo=UTC)
    written = [
        "2026-02-16T09:05:00+08:00",
        "2026-02-16 09:05",
        "2026/2/16 9:05",
        "2026年2月16日 9:05",
        "2026-02-16T01:05Z",
        "2026-2-16T9:5",
        "2026/02/16 9:5:0.000",
        "1771203900.0",
        "1771203900000.0",
    ]
    numbers = [expected.timestamp(), int(expected.timestamp()) * 1000, str(int(expected.timestamp()))]
    for value in [*written, *numbers, datetime(2026, 2, 16, 9, 5)]:
        assert parse_time(value) == expected, value
    for value in ("2026/02/16 10:00:00.5", "1771207200.5", "2026-2-16 10:0:0,5000001"):
        assert parse_time(value) == datetime(2026, 2, 16, 2, 0, 0, 500_000, UTC), value
    for value in ("2026/2/30", "2026-2-16 24:61", "177120720", "nan"):
        with pytest.raises(ValueError):
            parse_time(value)


def test_a_good_row_keeps_its_text_and_loses_its_author(tmp_path: Path) -> None:
    body = " 原样\u200b<|im_end|>\x00 \r\n"
    row = post("p", body=body, title=None, verdict="remove", category="诈骗", author="someone", rationale="")
    posts, bad = read(jsonl(tmp_path, row, post("q", author=12, label_source="senior")))
    assert bad == []
    assert (posts[0]["body"], posts[0]["title"], posts[0]["severity"]) == (body, "", 3)
    assert posts[0]["author_hash"] == keyed_hash(KEY, "someone") and posts[0]["rationale"] is None
    assert (posts[0]["label_source"], posts[1]["label_source"]) == ("source", "senior")
    assert posts[0]["week"] == WEEK and posts[1]["author_hash"] == keyed_hash(KEY, "12")
    assert "someone" not in str(posts)


def test_a_column_that_no_json_row_has_is_an_error_that_lists_those_found(tmp_path: Path) -> None:
    source = jsonl(tmp_path, post(), yaml="format: jsonl\npath: posts-{week}.jsonl\ncolumns: {body: text}\n")
    with pytest.raises(SourceError, match=r"columns\.body names 'text'; columns found: 'body', 'category'"):
        read(source)


def test_a_line_too_long_to_be_a_post_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xhs_pipeline.posts.rows.MAX_LINE_BYTES", 1000)
    posts, bad = read(jsonl(tmp_path, post("a"), post("b", body="长" * 5000), post("c")))
    assert [p["post_id"] for p in posts] == ["a", "c"]
    assert [b["reason"] for b in bad] == ["line_too_long"]


# --- CSV, Excel, Parquet ------------------------------------------------------------------------------------------------

OWN_YAML = """\
format: csv
path: export.csv
week: 2026-02-16
columns: {post_id: 编号, body: 内容, verdict: 处理, category: 类型, images: 图}
values:
  verdict: {删: remove, 放行: pass}
  category: {广告: 虚假宣传, 无: 正常}
"""


def test_a_users_own_csv_runs_with_a_mapping_and_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"first")
    text = '编号,内容,处理,类型,图,其他\n1,"两行\n的""内容""",删,广告,a.jpg; b.jpg,x\n2,好,通过,无,,y\n'
    (tmp_path / "export.csv").write_text(text, encoding="utf-8-sig")
    posts, bad = read(write_source(tmp_path, OWN_YAML))
    assert bad == []
    assert [(p["post_id"], p["verdict"], p["category"]) for p in posts] == [
        ("1", "remove", "虚假宣传"),
        ("2", "pass", "正常"),
    ]
    assert posts[0]["body"] == '两行\n的"内容"'
    assert posts[0]["images"] == [{"bytes": b"first", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    assert posts[0]["image_errors"] == [None, "file_missing"]
    assert posts[0]["created_at"] is None and posts[0]["week"] == WEEK


def test_bad_csv_rows_are_quarantined_by_line(tmp_path: Path) -> None:
    rows = [b"post_id,body,verdict,category", b"1,ok,pass,\xe6\xad\xa3\xe5\xb8\xb8", b"2,too,few", b"3,\xff\xfe,pass,x"]
    rows += [b"4," + b"x" * 200_000 + b",pass,\xe6\xad\xa3\xe5\xb8\xb8", b"", b'5,5" ok,pass,\xe6\xad\xa3\xe5\xb8\xb8']
    (tmp_path / "export.csv").write_bytes(b"\n".join(rows))
    posts, bad = read(write_source(tmp_path, f"format: csv\npath: export.csv\nweek: {WEEK}\n"))
    assert [p["post_id"] for p in posts] == ["1", "4", "5"]
    assert [b["reason"] for b in bad] == ["wrong_column_count", "invalid_utf8"]
    assert "line 3: " in bad[0]["detail"] and "3 columns, the header 4" in bad[0]["detail"]


def csv_file(folder: Path, text: str) -> Source:
    (folder / "export.csv").write_text(text, encoding="utf-8", newline="")
    return write_source(folder, f"format: csv\npath: export.csv\nweek: {WEEK}\n")


CSV_HEADER = "post_id,body,verdict,category\n"


@pytest.mark.parametrize(
    "fault",
    [
        '2,"say "hi" to",pass,正常\n',  # quotes inside a quoted text that are not doubled
        '2,"never closed,pass,正常\n3,ok,pass,正常\n',
        '2,"never closed,pass,正常\n3,"quoted",pass,正常\n',
        '2,"' + "长" * 1500 + '\ninjected,text,pass,正常\n",remove,诈骗\n',  # over the limit of a field
        "2," + "长" * 5000 + ",pass,正常\n",
    ],
)
def test_a_csv_whose_quotes_do_not_add_up_stops_at_that_record_and_gives_no_row_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("xhs_pipeline.posts.rows.MAX_LINE_BYTES", 1000)
    source = csv_file(tmp_path, CSV_HEADER + "1,ok,pass,正常\n" + fault + "9,after,pass,正常\n")
    seen = []
    with pytest.raises(SourceError, match=r"export\.csv, line 3: .*export the file again") as error:
        for batch, _ in read_week(source, WEEK, POLICY, KEY, batch_rows=1):
            seen += batch["post_id"].to_pylist()
    assert seen == ["1"]
    assert "长" not in str(error.value) and "hi" not in str(error.value)


def test_a_long_text_that_looks_like_labelled_rows_stays_one_text(tmp_path: Path) -> None:
    body = "x" * 140_000 + "\nfake,injected,pass,正常\n" + "y" * 140_000
    posts, bad = read(csv_file(tmp_path, CSV_HEADER + f'1,"{body}",remove,诈骗\n2,ok,pass,正常\n'))
    assert [(p["post_id"], p["verdict"], len(p["body"])) for p in posts] == [
        ("1", "remove", len(body)),
        ("2", "pass", 2),
    ]
    assert bad == []


def test_blanks_around_a_csv_header_are_no_part_of_the_names(tmp_path: Path) -> None:
    source = csv_file(tmp_path, "post_id , body,verdict\t, category\n1,a,pass,正常\n")
    assert [p["post_id"] for p in read(source)[0]] == ["1"]


def test_a_file_without_a_header_is_recognised_and_its_first_row_is_not_told(tmp_path: Path) -> None:
    row = "短文,13800138000,138-0013-8000,１３８００１３８０００,me@x.cn,me＠x.cn," + "很长的正文" * 10
    with pytest.raises(SourceError) as error:
        read(csv_file(tmp_path, row + "\n"))
    message = str(error.value)
    assert "columns found: '短文', (a long or number-like cell)" in message
    assert "Is the first line a header?" in message
    assert not re.search("138|0013|１３８|me|很长", message.replace(str(tmp_path), ""))
    with pytest.raises(SourceError) as error:
        read(csv_file(tmp_path, "post_id,body\n"))
    assert "Is the first line" not in str(error.value)


def test_a_csv_with_wrong_columns_names_the_missing_and_the_found_ones_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text("id,text,verdict\n1,a,pass\n", encoding="utf-8")
    source = write_source(tmp_path, "format: csv\npath: export.csv\ncolumns: {title: head}\n")
    with pytest.raises(SourceError) as error:
        read(source)
    message = str(error.value)
    assert "export.csv, line 1: " in message and "columns.title names 'head'" in message
    assert "nothing is mapped to post_id" in message and "nothing is mapped to category" in message
    assert "columns found: 'id', 'text', 'verdict'" in message and "under `columns`" in message


@pytest.mark.parametrize("data", [b"", "编号,内容".encode("gbk"), b"post_id,post_id,body,verdict,category\n"])
def test_a_csv_header_that_cannot_be_used_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "export.csv").write_bytes(data)
    with pytest.raises(SourceError, match=r"export\.csv, line 1"):
        read(write_source(tmp_path, "format: csv\npath: export.csv\n"))


def excel(folder: Path, *rows: list[Any]) -> Source:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(folder / "export.xlsx")
    return write_source(folder, "format: xlsx\npath: export.xlsx\n")


def test_excel_ids_stay_whole_numbers_and_dates_become_times(tmp_path: Path) -> None:
    header = ["post_id", "body", "created_at", "verdict", "category"]
    when = datetime(2026, 2, 17, 8)
    source = excel(
        tmp_path,
        header,
        [123, "整数", when, "通过", "正常"],
        [124.0, 666, when, "通过", "正常"],
        [],
        [1234567890123456789, "太长", when, "通过", "正常"],
        [126, "缺列", when],
        [127, "多列", when, "通过", "正常", "?"],
        ["0012", "文字", "2026-02-18", "通过", "正常"],
    )
    posts, bad = read(source)
    assert [(p["post_id"], p["body"]) for p in posts] == [("123", "整数"), ("124", "666"), ("0012", "文字")]
    assert posts[0]["created_at"] == datetime(2026, 2, 17, 0, tzinfo=UTC)
    assert [b["reason"] for b in bad] == ["wrong_type", "missing_verdict", "wrong_column_count"]
    assert "export.xlsx, row 5: " in bad[0]["detail"] and "format the column as text" in bad[0]["detail"]


def test_a_file_that_is_no_workbook_or_no_parquet_is_an_error_that_names_it(tmp_path: Path) -> None:
    for fmt in ("xlsx", "parquet"):
        (tmp_path / f"export.{fmt}").write_bytes(b"PK\x03\x04 neither")
        with pytest.raises(SourceError, match=rf"export\.{fmt}: not a readable {fmt}"):
            read(write_source(tmp_path, f"format: {fmt}\npath: export.{fmt}\n"))
    whole = excel(tmp_path, ["post_id", "body", "verdict", "category"], ["1", "a", "pass", "正常"])
    data = (tmp_path / "export.xlsx").read_bytes()
    (tmp_path / "export.xlsx").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="not a readable xlsx"):
        read(whole)


def test_a_workbook_that_unpacks_to_over_a_gibibyte_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    source = excel(tmp_path, ["post_id", "body", "verdict", "category"], ["1", "a", "pass", "正常"])
    zeros = b"\0" * 2**20
    with (
        zipfile.ZipFile(tmp_path / "export.xlsx", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("xl/media/bomb.bin", "w", force_zip64=True) as member,
    ):
        for _ in range(1024):
            member.write(zeros)
    assert (tmp_path / "export.xlsx").stat().st_size < 16 * 2**20
    with pytest.raises(SourceError, match=r"export\.xlsx: unpacks to 1024 MiB, expected at most 1024"):
        read(source)


def test_an_excel_cell_too_long_to_be_a_post_costs_only_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xhs_pipeline.posts.rows.MAX_LINE_BYTES", 1000)
    header, when = ["post_id", "body", "created_at", "verdict", "category"], datetime(2026, 2, 17)
    source = excel(tmp_path, header, ["1", "长" * 1001, when, "pass", "正常"], ["2", "a", when, "pass", "正常"])
    assert [p["post_id"] for p in read(source)[0]] == ["2"]
    assert reasons(source) == ["cell_too_long"]


def test_a_formula_without_a_stored_value_costs_its_row_and_never_reads_as_empty_text(tmp_path: Path) -> None:
    header, when = ["post_id", "title", "body", "created_at", "images", "verdict", "category"], datetime(2026, 2, 17)
    label = ["pass", "正常"]
    source = excel(
        tmp_path,
        header,
        ["1", "=A1", "正文", when, None, *label],
        ["2", None, "正文", when, None, *label],
        ["3", "标题", "正文", "=NOW()", None, *label],
        ["4", "标题", "正文", when, "=A1", *label],
        ["=A1"] * 7,
        ["6", "标题", "=A1", when, None, *label, "?"],
        ["7", "标题", "=A1", when, None, *label],
    )
    posts, bad = read(source)
    assert [p["post_id"] for p in posts] == ["2"]
    found = [(re.search(r"row (\d+)", b["detail"])[1], b["reason"]) for b in bad]  # type: ignore[index]
    lost = "formula_without_value"
    assert found == [("2", lost), ("4", lost), ("5", lost), ("6", lost), ("7", "wrong_column_count"), ("8", lost)]
    assert "column 'title': a formula whose value is not stored" in bad[0]["detail"]
    stored = rb'<c r="\1" t="str"><f>\2</f><v>text</v>'
    edit_sheet(tmp_path, lambda xml: re.sub(rb'<c r="(\w+)"[^>]*><f>([^<]*)</f><v ?(?:/>|></v>)', stored, xml))
    assert {"1", "2", "7"} <= {p["post_id"] for p in read(source)[0]}, "a formula with a stored value is that value"


def test_a_formula_whose_value_is_empty_text_is_empty(tmp_path: Path) -> None:
    header, when = ["post_id", "title", "body", "created_at", "verdict", "category"], datetime(2026, 2, 17)
    source = excel(tmp_path, header, ["1", "=A1", "正文", when, "pass", "正常"])
    assert reasons(source) == ["formula_without_value"]
    edit_sheet(tmp_path, lambda xml: xml.replace(b'<c r="B2">', b'<c r="B2" t="str">'))
    assert [(p["post_id"], p["title"]) for p in read(source)[0]] == [("1", "")]


def edit_sheet(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """Rewrite the XML of the workbook's only sheet."""
    path = folder / "export.xlsx"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    changed = change(members[sheet])
    assert changed != members[sheet]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {sheet: changed}).items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'r="B2"', b'r="\xe2\x82\xac"'),
        (b'<row r="2">', b'<row r="13800138000x">'),
        (b'<c r="B2" t="n"><v>', b'<c r="B2" t="s"><v>13800138000'),
        (b'<c r="B2" t="n"><v>', b'<c r="B2" t="n"><v>me@x.cn'),
        (b"</sheetData>", b""),
    ],
)
def test_a_damaged_sheet_is_an_error_that_names_the_file_and_quotes_no_cell(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    source = excel(tmp_path, ["post_id", "body", "verdict", "category"], ["a", 7, "pass", "正常"])
    edit_sheet(tmp_path, lambda xml: xml.replace(old, new))
    with pytest.raises(SourceError, match=r"export\.xlsx: not a readable xlsx workbook") as error:
        read(source)
    assert "138" not in str(error.value) and "me@x.cn" not in str(error.value)
    assert error.value.__cause__ is None or "138" not in str(error.value.__cause__)


def test_a_workbook_or_parquet_file_damaged_anywhere_is_an_error_or_bad_rows_and_never_a_crash(tmp_path: Path) -> None:
    excel(tmp_path, ["post_id", "body", "verdict", "category"], *[[f"{i}", "正文", "pass", "正常"] for i in range(30)])
    columns = {"post_id": ["1", "2"], "body": ["a", "b"], "verdict": ["pass"] * 2, "category": ["正常"] * 2}
    pq.write_table(pa.table(columns), tmp_path / "export.parquet")
    for fmt in ("xlsx", "parquet"):
        source = write_source(tmp_path, f"format: {fmt}\npath: export.{fmt}\nweek: {WEEK}\n")
        whole = (tmp_path / f"export.{fmt}").read_bytes()
        for position in range(0, len(whole), len(whole) // 150):
            damaged = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
            (tmp_path / f"export.{fmt}").write_bytes(damaged)
            try:
                read(source)
            except SourceError as error:
                assert f"export.{fmt}" in str(error)


def test_a_parquet_time_that_nothing_can_hold_costs_only_its_row(tmp_path: Path) -> None:
    when = [int(datetime(2026, 2, 17, tzinfo=UTC).timestamp()) * 10**6, 2**62, -(2**62)]
    table = pa.table(
        {
            "post_id": ["1", "2", "3"],
            "body": ["a", "b", "c"],
            "created_at": pa.array(when, pa.timestamp("us", "UTC")),
            "verdict": ["pass"] * 3,
            "category": ["正常"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "export.parquet")
    posts, bad = read(write_source(tmp_path, "format: parquet\npath: export.parquet\n"))
    assert [p["post_id"] for p in posts] == ["1"]
    assert [b["reason"] for b in bad] == ["value_out_of_range"] * 2
    assert "column 'created_at': " in bad[0]["detail"]


def test_parquet_posts_may_embed_their_images(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"from disk")
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    embedded = [
        {"bytes": b"inside", "path": "a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": b"", "path": "c.jpg"},
    ]
    table = pa.table(
        {
            "post_id": ["1", "2"],
            "body": ["a", "b"],
            "created_at": pa.array([datetime(2026, 2, 17, tzinfo=UTC)] * 2, pa.timestamp("ns", "UTC")),
            "images": pa.array([embedded, None], pa.list_(image)),
            "verdict": ["pass", "pass"],
            "category": ["正常", "正常"],
        }
    )
    pq.write_table(table, tmp_path / "export.parquet")
    posts, bad = read(write_source(tmp_path, "format: parquet\npath: export.parquet\n"))
    assert bad == [] and len(posts) == 2 and posts[1]["images"] == []
    assert [i["bytes"] for i in posts[0]["images"]] == [b"inside", b"from disk", None]
    assert posts[0]["image_errors"] == [None, None, "file_empty"]


def test_a_parquet_file_of_images_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "posts.parquet"
    rows = [{"post_id": f"p{n}", "images": [{"bytes": bytes(100_000), "path": "a"}]} for n in range(640)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=64, compression="none", use_dictionary=False)
    del rows
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_rows(file, "parquet", {}, required=("post_id",)):
        most = max(most, pa.total_allocated_bytes() - before)
    assert file.stat().st_size > 60e6 and most < 25e6, "a batch of 64 posts, what is being decoded and little else"


def test_parquet_text_that_is_not_utf8_costs_only_its_row(tmp_path: Path) -> None:
    body = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    table = pa.table({"post_id": ["1", "2"], "body": body, "verdict": ["pass"] * 2, "category": ["正常"] * 2})
    pq.write_table(table, tmp_path / "export.parquet")
    source = write_source(tmp_path, f"format: parquet\npath: export.parquet\nweek: {WEEK}\n")
    assert [p["post_id"] for p in read(source)[0]] == ["1"]
    assert reasons(source) == ["invalid_utf8"]


# --- identifiers and accounts -------------------------------------------------------------------------------------------


def hide_digits(text: str) -> str:
    return re.sub(r"\d{5,}", "<数字>", text)


def masked(source: Source) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    posts, bad = [], []
    for good_batch, bad_batch in read_week(source, WEEK, POLICY, KEY, mask=hide_digits):
        posts += good_batch.to_pylist()
        bad += bad_batch.to_pylist()
    return posts, bad


def test_who_labelled_a_post_is_a_short_name_without_identifiers(tmp_path: Path) -> None:
    rows = [
        post("a", label_source=" 审核13800138000 "),
        post("b", label_source="x" * 65),
        post("c", label_source="a\nb"),
    ]
    posts, bad = masked(jsonl(tmp_path, *rows, post("d", label_source="x" * 64), post("e", label_source=" ")))
    assert [(p["post_id"], p["label_source"]) for p in posts] == [("a", "审核<数字>"), ("d", "x" * 64), ("e", "source")]
    assert [(b["post_id"], b["reason"]) for b in bad] == [("b", "bad_label_source"), ("c", "bad_label_source")]
    assert "xxx" not in str(bad)


def test_an_unknown_label_is_shown_without_identifiers_even_where_it_is_cut(tmp_path: Path) -> None:
    rows = [post("a", verdict="打13800138000"), post("b", category="字" * 35 + "13800138000")]
    _, bad = masked(jsonl(tmp_path, *rows))
    assert [b["reason"] for b in bad] == ["unknown_verdict", "unknown_category"]
    assert "'打<数字>'" in bad[0]["detail"] and "138" not in str(bad)


def test_rows_are_counted_where_they_are_met_and_the_weeks_of_others_are_named(tmp_path: Path) -> None:
    rows = [post("a"), post("b", created_at="2026-02-24T00:00:00+08:00"), post("c", verdict="?"), post("a")]
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    source = write_source(tmp_path, "format: jsonl\npath: all.jsonl\n")
    tally = Tally()
    batches = list(read_week(source, WEEK, POLICY, KEY, tally=tally))
    assert (tally.rows, dict(tally.other_weeks)) == (4, {"2026-02-23": 1})
    assert sum(good.num_rows + bad.num_rows for good, bad in batches) == 3

    said: list[str] = []
    built = write_raw(source, WEEK, POLICY, KEY, tmp_path, said.append)
    assert built.counts == {"rows_in": 3, "posts": 1, "quarantined": 2, "other_weeks": 1}
    assert built.checks[0].passed and said == []
    built = write_raw(source, "2026-03-02", POLICY, KEY, tmp_path, said.append)
    assert built.counts == {"rows_in": 0, "posts": 0, "quarantined": 0, "other_weeks": 4}
    assert said == ["0 posts of 2026-03-02; the file has rows of 2026-02-16 (3), 2026-02-23 (1)"]


def test_a_row_that_was_met_and_not_written_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(*arguments: Any, **options: Any) -> Any:
        for good, bad in read_week(*arguments, **options):
            yield good.slice(1), bad

    monkeypatch.setattr("xhs_pipeline.posts.stages.read_week", losing)
    built = write_raw(jsonl(tmp_path, post("a"), post("b")), WEEK, POLICY, KEY, tmp_path)
    assert not built.checks[0].passed and "2 rows in = 1 kept" in built.checks[0].description


# --- images -------------------------------------------------------------------------------------------------------------


def test_an_image_path_never_leaves_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "ok.jpg").write_bytes(b"ok")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "up").symlink_to(tmp_path)
    (folder / "inner.jpg").symlink_to(folder / "ok.jpg")
    outside = [
        "../secret.jpg",
        "sub/../../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "..\\secret.jpg",
        "link.jpg",
        "up/secret.jpg",
    ]
    outside += ["C:\\secret.jpg", "\\\\host\\share\\a.jpg", "\\secret.jpg", "ok.jpg\0.png"]
    for name in outside:
        assert read_image(folder, name) == (None, "path_escapes_folder"), name
    for name in ("ok.jpg", "sub/../ok.jpg", "sub\\..\\ok.jpg", "./ok.jpg", "inner.jpg"):
        assert read_image(folder, name) == (b"ok", None), name


def test_what_is_no_ordinary_image_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    expected = {
        "empty.jpg": "file_empty",
        "large.jpg": "file_too_large",
        "pipe.jpg": "not_a_file",
        "folder.jpg": "not_a_file",
        "gone.jpg": "file_missing",
        "empty.jpg/a.jpg": "file_missing",
        "circle.jpg": "file_unreadable",
        "n" * 5000 + ".jpg": "file_unreadable",
    }
    names = list(expected)
    posts, _ = read(jsonl(tmp_path, post(images=names)))
    assert dict(zip(names, posts[0]["image_errors"], strict=True)) == expected
    assert all(image["bytes"] is None for image in posts[0]["images"])


def test_images_may_be_a_list_a_json_list_or_separated(tmp_path: Path) -> None:
    forms = [["a.jpg", "b.jpg"], '["a.jpg", "b.jpg"]', "a.jpg;b.jpg", "a.jpg | b.jpg", ["a.jpg", "", "b.jpg"]]
    posts, bad = read(jsonl(tmp_path, *(post(f"p{i}", images=form) for i, form in enumerate(forms))))
    assert bad == []
    assert all([image["path"] for image in p["images"]] == ["a.jpg", "b.jpg"] for p in posts)


def test_only_so_many_images_of_one_post_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    posts, _ = read(jsonl(tmp_path, post(images=["a.jpg"] * 60)))
    assert Counter(posts[0]["image_errors"]) == {None: 50, "too_many_images": 10}


# --- fingerprint --------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_settings_posts_and_the_images_they_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    source = jsonl(tmp_path, post(images=["a.jpg"]), b"{")
    before = source_fingerprint(source, WEEK)
    assert source_fingerprint(source, WEEK) == before and set(before) == {"settings", "posts", "images"}

    (tmp_path / "of-next-week.jpg").write_bytes(b"y")
    assert source_fingerprint(source, WEEK) == before, "images of other weeks must not redo this one"
    (tmp_path / "a.jpg").write_bytes(b"xyz")
    changed = source_fingerprint(source, WEEK)
    assert [k for k in before if changed[k] != before[k]] == ["images"]

    mapped = write_source(tmp_path, "format: jsonl\npath: posts-{week}.jsonl\nvalues:\n  verdict: {ok: pass}\n")
    assert source_fingerprint(mapped, WEEK)["settings"] != before["settings"]
    jsonl(tmp_path, post(images=["a.jpg"], body="neu"))
    assert source_fingerprint(source, WEEK)["posts"] != before["posts"]


@pytest.mark.parametrize(
    ("row", "of_its_own_file", "of_a_file_of_many_weeks"),
    [
        (post(), True, True),
        (post(created_at="2026-02-10T10:00:00+08:00"), True, False),
        (
            post(created_at="soon"),
            True,
            False,
        ),  # no week's own where a file holds many: it comes with whichever is read next
        (b"{", True, False),
    ],
)
def test_a_week_has_posts_where_something_is_its_own_usable_or_not(
    tmp_path: Path, row: Any, of_its_own_file: bool, of_a_file_of_many_weeks: bool
) -> None:
    assert has_posts(jsonl(tmp_path, row), WEEK) == of_its_own_file
    assert (
        has_posts(write_source(tmp_path, f"format: jsonl\npath: posts-{WEEK}.jsonl\n"), WEEK) == of_a_file_of_many_weeks
    )
    assert not has_posts(jsonl(tmp_path), WEEK)


# --- real posts ---------------------------------------------------------------------------------------------------------


def test_real_posts_come_through_a_mapping_without_loss(tmp_path: Path) -> None:
    file = Path(__file__).resolve().parents[2] / "shared" / "real_posts" / "dev.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not on this machine: real posts are not part of the repository")
    columns = "{post_id: id, body: text, verdict: policy_verdict, category: gold_category, label_source: source}"
    text = f"format: jsonl\npath: {file}\nweek: {WEEK}\ncolumns: {columns}\nvalues:\n  category: {{normal: 正常}}\n"
    posts, bad = read(write_source(tmp_path, text))
    assert bad == [] and len(posts) == len(file.read_bytes().splitlines()) == 4000
    assert {p["label_source"] for p in posts} >= {"chineseharm", "cold"}


def test_images_of_a_post_beyond_its_bytes_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xhs_pipeline.posts.fields.MAX_POST_BYTES", 1000)
    for name, size in (("a.jpg", 600), ("b.jpg", 500), ("c.jpg", 400), ("d.jpg", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    source = jsonl(tmp_path, post(images=["a.jpg", "b.jpg", "c.jpg", "d.jpg"]))
    [kept], _ = read(source)
    assert kept["image_errors"] == [None, "post_too_large", None, "post_too_large"]
    assert [image["bytes"] is None for image in kept["images"]] == [False, True, False, True]
