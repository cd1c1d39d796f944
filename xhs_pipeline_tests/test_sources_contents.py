"""What a source's rows bring: identifiers, accounts, images; and the fingerprint of all of it."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.posts.fields import MAX_IMAGE_BYTES, read_image
from xhs_pipeline.posts.sources import (
    Source,
    Tally,
    has_posts,
    read_week,
    source_fingerprint,
)
from xhs_pipeline.posts.stages import write_raw
from xhs_pipeline_tests.sources import KEY, POLICY, WEEK, jsonl, post, read, write_source

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
