"""A split is judged as it is read: in the order of the file, in bounded memory, with progress over the whole of it."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.judgement import judge as judging
from xhs_pipeline.judgement.frame import HAS_IMAGES, judged_frame
from xhs_pipeline.judgement.judge import Judge, Post
from xhs_pipeline.judgement.predict import light_table, predict, read_posts, rows_with_images
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement
from xhs_pipeline_tests.small import POLICY, jpeg

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def judge(small_merged: tuple[Path, dict[str, Any]]) -> Judge:
    return Judge(small_merged[0], POLICY)


@pytest.fixture(scope="module")
def split(small_splits: Path) -> Path:
    return small_splits / "test.parquet"


def heavy(data: bytes, size: int) -> bytes:
    """The same picture as a file of about `size` bytes: JPEG comments, which every reader passes over, fill it."""
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    return data[:2] + comment * (size // len(comment)) + data[2:]


def test_a_split_is_judged_in_the_order_of_its_rows(judge: Judge, split: Path) -> None:
    rows = pq.read_table(split).to_pylist()
    found = predict(judge, split)
    assert [j.post_id for j in found] == [row["post_id"] for row in rows]
    posts = [Post(r["post_id"], r["title"], r["body"], tuple(i["bytes"] for i in r["images"])) for r in rows]
    assert any(post.images for post in posts) and found == list(judge.judge(posts))


def test_small_windows_change_no_judgement(judge: Judge, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(judge, split)
    monkeypatch.setattr(judging, "WINDOW_POSTS", 3)
    for one, other in zip(predict(judge, split), whole, strict=True):
        assert isinstance(one, Judgement) and isinstance(other, Judgement)
        assert (one.post_id, one.verdict, one.category) == (other.post_id, other.verdict, other.category)
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


@pytest.mark.parametrize("limit", ["WINDOW_POSTS", "WINDOW_BYTES"])
def test_posts_are_taken_a_window_at_a_time(judge: Judge, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    picture = heavy(jpeg(90, 90), MEGABYTE)
    monkeypatch.setattr(judging, limit, {"WINDOW_POSTS": 4, "WINDOW_BYTES": 3 * MEGABYTE + 1}[limit])
    taken: list[int] = []

    def posts() -> Iterator[Post]:
        for number in range(10):
            taken.append(number)
            yield Post(f"p{number}", "早安", "公园散步", (picture,))

    judged = judge.judge(posts())
    assert not taken
    assert next(judged).post_id == "p0" and len(taken) == 4
    assert [j.post_id for j in judged] == [f"p{number}" for number in range(1, 10)]


def test_images_are_let_go_of_once_their_posts_are_judged(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "WINDOW_POSTS", 4)
    picture, number_of_posts = jpeg(90, 90), 48
    posts = (Post(f"p{n}", "早安", "公园散步", (heavy(picture, MEGABYTE),)) for n in range(number_of_posts))
    tracemalloc.start()
    try:
        judged = sum(1 for _ in judge.judge(posts))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert judged == number_of_posts
    assert 4 * MEGABYTE < peak < 12 * MEGABYTE, (
        "two windows of four images of a megabyte, at most, and what scoring needs"
    )


def test_progress_counts_over_the_whole_run_and_with_posts_that_cannot_be_read(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "WINDOW_POSTS", 2)
    monkeypatch.setattr("xhs_pipeline.vlm.scoring.SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(judge, "profile", judge.profile.model_copy(update={"text_head": 0, "text_tail": 0}))
    posts = [Post(f"p{n}", "标题", "散步" if n != 2 else "稳赚不赔" * 2000) for n in range(5)]
    lines: list[str] = []
    found = list(judge.judge(posts, lines.append, len(posts)))
    assert [isinstance(j, Unfit) for j in found] == [False, False, True, False, False]
    done = [line.split(" posts")[0] for line in lines]
    assert done[-1] == "judged 5/5" and sorted(done) == done and "judged 3/5" in done
    assert lines[-1].endswith(" posts/s, 0 s left")
    lines.clear()
    list(judge.judge(posts, lines.append))
    assert lines[-1].startswith("judged 5 posts, ") and lines[-1].endswith(" posts/s")


def test_the_light_table_counts_images_without_holding_one(judge: Judge, split: Path) -> None:
    light, whole = light_table(split), pq.read_table(split)
    assert light.nbytes < 0.5 * whole.nbytes and "messages" not in light.column_names
    frame = judged_frame(light, predict(judge, split), POLICY)
    assert frame[HAS_IMAGES].tolist() == [bool(images) for images in whole["images"].to_pylist()]
    assert len(set(frame[HAS_IMAGES])) == 2


def test_the_few_posts_that_a_report_shows_are_read_with_their_images(split: Path) -> None:
    rows = pq.read_table(split).to_pylist()
    shown = [rows[-1]["post_id"], next(row["post_id"] for row in rows if row["images"])]
    found = rows_with_images(split, shown).to_pylist()
    expected = [row for row in rows if row["post_id"] in shown]
    assert found == [{name: row[name] for name in ("post_id", "title", "body", "images")} for row in expected]
    assert rows_with_images(split, []).num_rows == 0


def test_an_empty_split_is_no_error(judge: Judge, split: Path, tmp_path: Path) -> None:
    empty = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_batches([], pq.read_schema(split)), empty)
    assert list(read_posts(empty)) == predict(judge, empty) == []
    assert light_table(empty).num_rows == rows_with_images(empty, []).num_rows == 0
