"""Cleaning batches: every row and every image is accounted for."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xhs_pipeline.curation.clean import (
    MAX_TEXT_CHARS,
    CleanedBatch,
    CleanSettings,
    clean_batch,
    clean_stream,
    safe_name,
    shown_path,
)
from xhs_pipeline.curation.images import ImageLimits
from xhs_pipeline.curation.stages import _read_back, write_clean
from xhs_pipeline.posts.schema import CLEAN_POSTS, DROPPED_IMAGES, QUARANTINE, RAW_POSTS, TableWriter


def jpeg(colour: str = "red", side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "JPEG")
    return out.getvalue()


def raw(
    post_id: str, title: str | None = "标题", body: str | None = "正文", images: Any = (), **other: Any
) -> dict[str, Any]:
    """A raw post; each image is bytes, or a string saying why it could not be read."""
    return {
        "post_id": post_id,
        "title": title,
        "body": body,
        "images": [{"bytes": None if isinstance(i, str) else i, "path": f"dir/{n}.jpg"} for n, i in enumerate(images)],
        "image_errors": [i if isinstance(i, str) else None for i in images],
        "created_at": datetime(2026, 2, 17, tzinfo=UTC),
        "week": "2026-02-16",
        "verdict": "pass",
        "category": "正常",
        "severity": 0,
        "rationale": None,
        "label_source": "source",
        "author_hash": "0" * 32,
        "schema_version": 1,
    } | other


def silent(line: str) -> None:
    pass


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=RAW_POSTS)


def test_text_is_normalised_and_de_identified_in_title_body_and_rationale() -> None:
    post = raw("p1", "加V：abc12345\u200b", "电话13812345678\r\n好", rationale="留了扣扣9014093")
    cleaned = clean_batch(batch(post), CleanSettings()).posts.to_pylist()[0]
    assert (cleaned["title"], cleaned["body"]) == ("加V：<微信号>", "电话<手机号>\n好")
    assert cleaned["rationale"] == "留了扣扣<QQ号:谐音>"
    assert cleaned["identifiers"] == ["QQ号:谐音", "微信号", "手机号"]
    assert cleaned["match_text"] == "加v微信号电话手机号好"
    for name in ("post_id", "week", "verdict", "category", "severity", "label_source", "author_hash", "created_at"):
        assert cleaned[name] == post[name]


def test_who_labelled_a_post_is_de_identified_and_plain_names_of_sources_stay() -> None:
    names = ["source", "reviewer", "appeal", "人工复审", None, "审核员 张三 13812345678"]
    cleaned = clean_batch(batch(*(raw(f"p{n}", label_source=name) for n, name in enumerate(names))), CleanSettings())
    assert cleaned.posts["label_source"].to_pylist() == [*names[:5], "审核员 张三 <手机号>"]
    assert cleaned.posts["identifiers"].to_pylist() == [[]] * 5 + [["手机号"]]


def test_a_text_too_long_for_a_post_is_quarantined_at_once_with_its_length() -> None:
    half = MAX_TEXT_CHARS // 2
    rows = [
        raw("most", "题" * half, "文" * half),
        raw("over", "题" * half, "文" * (half + 1), images=[b"junk"]),
        raw("file", body="电话13812345678，" * 700_000),
        raw("why", rationale="因" * (MAX_TEXT_CHARS + 1)),
    ]
    started = time.process_time()
    cleaned = clean_batch(batch(*rows), CleanSettings())
    assert time.process_time() - started < 5, "masking such a text would take tens of seconds"
    assert cleaned.posts["post_id"].to_pylist() == ["most"] and cleaned.dropped_images.num_rows == 0
    found = {row["post_id"]: (row["reason"], row["detail"]) for row in cleaned.quarantine.to_pylist()}
    assert found["over"] == ("text_too_long", "title and body: 100,001 characters; at most 100,000")
    assert found["file"] == ("text_too_long", "title and body: 9,800,002 characters; at most 100,000")
    assert found["why"] == ("text_too_long", "rationale: 100,001 characters; at most 100,000")


def test_every_setting_of_cleaning_can_be_hashed_into_the_version() -> None:
    plain = CleanSettings().as_dict()
    assert json.loads(json.dumps(plain)) == plain and plain["images"]["longest_side"] == 1024
    for other in (CleanSettings(images=ImageLimits(jpeg_quality=90)), CleanSettings(max_text_chars=5)):
        assert other.as_dict() != plain
    assert clean_batch(batch(raw("p1", "标题", "正文正文")), CleanSettings(max_text_chars=5)).quarantine.num_rows == 1


def test_a_post_loses_its_bad_images_with_reasons_and_keeps_the_good_ones() -> None:
    cleaned = clean_batch(
        batch(raw("a/b", images=[b"", jpeg(), "path_outside_folder", jpeg(side=20), b"junk"])), CleanSettings()
    )
    post = cleaned.posts.to_pylist()[0]
    assert [row["reason"] for row in cleaned.dropped_images.to_pylist()] == [
        "file_empty", "path_outside_folder", "too_small", "unsupported_format",
    ]  # fmt: skip
    assert [image["path"] for image in post["images"]] == [f"{safe_name('a/b')}_0.jpg"]
    assert len(post["image_hashes"]) == 1 and Image.open(io.BytesIO(post["images"][0]["bytes"])).format == "JPEG"


def test_only_a_post_with_nothing_left_to_judge_is_quarantined() -> None:
    cleaned = clean_batch(
        batch(
            raw("text", images=["missing"]),
            raw("image", None, "\u200b ", images=[jpeg()]),
            raw("empty", "", None),
            raw("lost", None, None, images=["missing", b""]),
        ),
        CleanSettings(),
    )
    assert cleaned.posts["post_id"].to_pylist() == ["text", "image"]
    details = {row["post_id"]: row for row in cleaned.quarantine.to_pylist()}
    assert set(details) == {"empty", "lost"}
    assert {(row["stage"], row["reason"]) for row in details.values()} == {("clean_posts", "nothing_to_judge")}
    assert details["empty"]["detail"] == "no text and no image"
    assert "2 image(s)" in details["lost"]["detail"] and "missing, file_empty" in details["lost"]["detail"]


def test_tables_of_an_empty_batch_have_their_schemas() -> None:
    cleaned = clean_batch(batch(), CleanSettings())
    assert (cleaned.posts.schema, cleaned.quarantine.schema, cleaned.dropped_images.schema) == (
        CLEAN_POSTS, QUARANTINE, DROPPED_IMAGES,
    )  # fmt: skip


def test_paths_in_tables_show_a_file_name_only() -> None:
    assert shown_path("/home/somebody/../x/cat.jpg", 0) == "cat.jpg"
    assert shown_path("C:\\Users\\li\\13812345678.jpg", 0) == "<手机号>.jpg"
    assert len(shown_path("a" * 500 + "\u202e.jpg", 0)) <= 64
    assert shown_path(None, 1) == shown_path("dir/", 1) == "image 2"


def test_file_names_are_safe_and_stay_distinct() -> None:
    assert safe_name("post-1_a") == "post-1_a"
    names = [safe_name(post_id) for post_id in ("../etc", ".._etc", "a/b", "a_b", "帖子", "贴子", "x" * 300, "x" * 301)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and "." not in name and len(name) < 80 for name in names)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_keeps_order_and_loses_no_row(processes: int) -> None:
    rows = [raw(f"p{n:03}", body="" if n % 10 == 0 else f"正文{n}", title="", images=["missing"]) for n in range(60)]
    table = pa.Table.from_pylist(rows, schema=RAW_POSTS)
    results = list(clean_stream(table.to_batches(max_chunksize=7), CleanSettings(), processes))
    kept = [post_id for result in results for post_id in result.posts["post_id"].to_pylist()]
    gone = [post_id for result in results for post_id in result.quarantine["post_id"].to_pylist()]
    assert kept == sorted(kept) and len(kept) == 54 and len(gone) == 6 and len(set(kept + gone)) == 60
    assert sum(result.dropped_images.num_rows for result in results) == 60


def test_a_pool_reads_ahead_by_a_few_batches_only() -> None:
    taken = []

    def source():  # type: ignore[no-untyped-def]
        for n in range(50):
            taken.append(n)
            yield batch(raw(f"p{n}"))

    stream = clean_stream(source(), CleanSettings(), processes=2)
    next(stream)
    assert len(taken) <= 5
    assert isinstance(stream, Generator)
    stream.close()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for processes")


def descendants(pid: int, zombies: bool = False) -> set[int]:
    """Processes below `pid` that run."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # gone meanwhile
            continue
        if zombies or state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found, wave = set(), {pid}
    while wave := {child for child, parent in parents.items() if parent in wave}:
        found |= wave
    return found


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_cleaned_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    rows = [raw(f"p{n:03}", f"标题{n}", images=[jpeg(side=40 + n), b"junk"][: n % 3]) for n in range(150)]
    rows[7] |= {"title": "", "body": None, "images": [], "image_errors": []}
    with TableWriter(tmp_path / "raw.parquet", RAW_POSTS) as table:
        table.write(batch(*rows))
    written = []
    for processes in (1, 3):
        (tmp_path / str(processes)).mkdir()
        built = write_clean(tmp_path / "raw.parquet", tmp_path / str(processes), CleanSettings(), silent, processes)
        assert all(check.passed for check in built.checks)
        written.append([path.read_bytes() for path in sorted((tmp_path / str(processes)).iterdir())])
    assert written[0] == written[1] and len(written[0]) == 3
    assert (built.counts["posts"], built.counts["quarantined"], built.counts["images"]) == (149, 1, 99)


def test_one_image_is_read_without_reading_many_others(tmp_path: Path) -> None:
    sizes = [40_000] * 130 + [3_000_000] * 6 + [9_000_000] + [0] * 70
    with TableWriter(tmp_path / "posts.parquet", RAW_POSTS) as table:
        for start in (0, 100):
            stop = 100 if start == 0 else None
            table.write(batch(*(raw(f"p{n}", images=[bytes(size)]) for n, size in enumerate(sizes[start:stop], start))))
    file = pq.ParquetFile(tmp_path / "posts.parquet")
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    assert all(group.num_rows <= 64 for group in groups)
    assert all(group.total_byte_size < 4.1 * 2**20 or group.num_rows == 1 for group in groups)
    assert file.read(columns=["post_id"])["post_id"].to_pylist() == [f"p{n}" for n in range(len(sizes))]


def test_an_image_that_changed_on_its_way_to_the_file_fails_the_check(tmp_path: Path) -> None:
    cleaned = clean_batch(
        batch(raw("p1", images=[jpeg("red"), jpeg("blue")]), raw("p2", images=[jpeg()])), CleanSettings()
    )
    rows = cleaned.posts.to_pylist()
    for name, change in (
        ("same", lambda images: images),
        ("other byte", lambda images: [images[0] | {"bytes": images[0]["bytes"][:-9] + b"x" + images[0]["bytes"][-8:]}, images[1]]),
        ("lost", lambda images: images[1:]),
        ("order", lambda images: images[::-1]),
    ):  # fmt: skip
        with TableWriter(tmp_path / name, CLEAN_POSTS) as table:
            table.write(
                pa.RecordBatch.from_pylist([rows[0] | {"images": change(rows[0]["images"])}, rows[1]], CLEAN_POSTS)
            )
    broken = {path.name: _read_back(path, [cleaned.image_digests]) for path in tmp_path.iterdir()}
    assert broken.pop("same") == (3, 0)
    assert all(count for _, count in broken.values()) and broken["other byte"] == (3, 1)


def test_progress_says_how_many_posts_at_what_rate_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xhs_pipeline.curation.stages.SAY_EVERY_SECONDS", 0.0)
    with TableWriter(tmp_path / "raw.parquet", RAW_POSTS) as table:
        table.write(batch(*(raw(f"p{n}") for n in range(200))))
    said: list[str] = []
    write_clean(tmp_path / "raw.parquet", tmp_path, CleanSettings(), said.append)
    assert len(said) == 4 and re.fullmatch(r"clean_posts: 64/200 posts, \d+ posts/s, \d+ s left", said[0])
    assert said[-1].startswith("clean_posts: 200/200 posts,") and said[-1].endswith(" 0 s left")


HOSTILE = "xhs_pipeline_tests.hostile:tables"  # in a file of its own, since every worker imports it


def suffer(rows: list[dict[str, Any]], processes: int = 1, **settings: Any) -> tuple[list[CleanedBatch], list[str]]:
    """The rows in batches of four through workers that suffer from some of them, and what was logged."""
    said: list[str] = []
    batches = pa.Table.from_pylist(rows, schema=RAW_POSTS).to_batches(max_chunksize=4)
    stream = clean_stream(batches, CleanSettings(**settings), processes, said.append, HOSTILE)
    return list(stream), said


def sick(post_id: str, *images: bytes, text: str = "") -> dict[str, Any]:
    return raw(post_id, images=list(images), rationale=text)


def ids(results: list[CleanedBatch]) -> list[str]:
    return [post_id for result in results for post_id in result.posts["post_id"].to_pylist()]


def test_a_post_that_kills_its_worker_twice_is_quarantined_and_the_rest_goes_on() -> None:
    rows = [
        sick("a"),
        sick("b", jpeg(), b"kill"),
        sick("c", b"abort"),
        sick("d"),
        sick("e", jpeg()),
        sick("f", text="leave"),
    ]
    results, said = suffer([*rows, sick("g", b"eat", jpeg()), sick("h")])
    ends = {"b": "image 2: SIGKILL", "c": "image 1: SIGABRT", "f": "text: exit code 5", "g": "image 1: out of memory"}
    assert ids(results) == ["a", "d", "e", "h"]
    assert [row for result in results for row in result.quarantine.to_pylist()] == [
        {"post_id": post_id, "stage": "clean_posts", "reason": "kills_worker", "detail": f"{end}, 2 times"}
        for post_id, end in ends.items()
    ]
    expected = []
    for post_id, end in ends.items():
        part, _, how = end.partition(": ")
        died = f"post {post_id}, {part}: the process working on it died ({how}); "
        expected += [died + "its batch is tried again", died + "given up as kills_worker, the rest goes on"]
    assert said == expected


def test_an_image_over_the_time_limit_is_dropped_and_its_post_stays_but_a_text_takes_its_post_along() -> None:
    rows = [sick("a", jpeg(), b"hang", jpeg("blue")), sick("b"), sick("c", text="hang"), sick("d")]
    results, said = suffer(rows, seconds_per_image=2)
    assert ids(results) == ["a", "b", "d"]
    assert len(results[0].posts["images"][0]) == 2
    [lost], [bad] = results[0].dropped_images.to_pylist(), results[0].quarantine.to_pylist()
    assert lost == {"post_id": "a", "path": "1.jpg", "reason": "too_slow", "detail": "image 2: over 2 s, 2 times"}
    assert (bad["post_id"], bad["reason"], bad["detail"]) == ("c", "too_slow", "text: over 2 s, 2 times")
    assert said[0] == "post a, image 2: over 2 s; its batch is tried again" and len(said) == 4


def test_a_post_near_one_accident_is_not_blamed(tmp_path: Path) -> None:
    place = str(tmp_path / "happened")
    results, said = suffer([sick(place, jpeg(), b"once"), sick("b", jpeg())])
    assert Path(place).exists() and len(said) == 1
    assert ids(results) == [place, "b"] and results[0].quarantine.num_rows == 0
    assert [row["reason"] for row in results[0].dropped_images.to_pylist()] == ["unsupported_format"]


def test_an_error_of_our_own_fails_the_step_and_names_the_post_but_quotes_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"failed at post b, image 1: KeyError at .*hostile.py:\d+") as error:
        suffer([sick("a"), sick("b", b"bug")])
    assert "secret" not in str(error.value)


def test_workers_that_cannot_start_fail_the_step_instead_of_starting_for_ever() -> None:
    stream = clean_stream([batch(raw("p1"))], CleanSettings(), 1, silent, "xhs_pipeline_tests.no_such_module:nothing")
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        list(stream)


def test_an_image_beyond_the_memory_ceiling_is_dropped_and_the_worker_lives() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (6000, 6000)).save(out, "PNG", compress_level=1)
    rows = [raw("a", images=[out.getvalue(), jpeg()])]
    results, said = suffer(rows, worker_memory_mb=64)
    assert [row["reason"] for row in results[0].dropped_images.to_pylist()] == ["out_of_memory"]
    assert ids(results) == ["a"] and said == []


@needs_proc
def test_a_run_whose_workers_are_killed_at_random_writes_the_same_bytes() -> None:
    rows = [raw(f"p{n:03}", f"标题{n}", images=[jpeg(side=200 + n % 7)] * (n % 4)) for n in range(400)]
    table = pa.Table.from_pylist(rows, schema=RAW_POSTS)

    def tables(disturbed: bool) -> list[list[Any]]:
        said: list[str] = []
        out, random, before = [], Random(7), descendants(os.getpid())
        victims: set[int] | None = None  # the first workers; their successors, which try again, are left alone
        for result in clean_stream(table.to_batches(max_chunksize=20), CleanSettings(), 4, said.append):
            out.append([part.to_pylist() for part in vars(result).values()])
            victims = descendants(os.getpid()) - before if victims is None else victims
            if disturbed and victims and random.random() < 0.4:
                os.kill(victims.pop(), signal.SIGKILL)
        assert len(said) == (4 if disturbed else 0), said
        return out

    assert tables(disturbed=True) == tables(disturbed=False)


@needs_proc
def test_no_worker_is_left_when_a_run_is_cancelled_or_fails() -> None:
    others = descendants(os.getpid(), zombies=True)  # a database that other tests use, for one
    stream = clean_stream((batch(raw(f"p{n}")) for n in count()), CleanSettings(), 2, silent)
    next(stream)
    workers = descendants(os.getpid(), zombies=True) - others
    stream.close()
    assert len(workers) >= 2 and not workers & descendants(os.getpid(), zombies=True)


@needs_proc
def test_no_worker_outlives_a_run_that_was_killed() -> None:
    program = """
import itertools
from xhs_pipeline_tests.test_curation_clean import batch, raw
from xhs_pipeline.curation.clean import CleanSettings, clean_stream
for n, _ in enumerate(clean_stream((batch(raw(f"p{n}")) for n in itertools.count()), CleanSettings(), processes=2)):
    if n == 8:
        print("cleaning", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        try:
            assert run.stdout.readline() == "cleaning\n"
            workers = descendants(run.pid)
            assert len(workers) >= 2
        finally:
            os.kill(run.pid, signal.SIGKILL)
    until = time.monotonic() + 20
    while left := {pid for pid in workers if runs(pid)}:
        assert time.monotonic() < until, f"{len(left)} of {len(workers)} processes still run"
        time.sleep(0.1)
