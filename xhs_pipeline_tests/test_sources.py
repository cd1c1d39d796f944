"""Reading a week of posts: every bad input is either a clear error (the source) or a counted quarantine row (a post)."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.posts.fields import parse_time
from xhs_pipeline.posts.sources import (
    SourceError,
    SourceMissing,
    load_source,
    read_week,
)
from xhs_pipeline.privacy import keyed_hash
from xhs_pipeline_tests.sources import KEY, POLICY, WEEK, jsonl, post, read, write_source

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
