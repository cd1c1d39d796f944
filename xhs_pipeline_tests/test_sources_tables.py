"""CSV, Excel and Parquet as sources: the same posts, and the same refusals, as from JSON lines."""

import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.posts.rows import read_rows
from xhs_pipeline.posts.sources import (
    Source,
    SourceError,
    read_week,
)
from xhs_pipeline_tests.sources import KEY, POLICY, WEEK, read, reasons, write_source

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
