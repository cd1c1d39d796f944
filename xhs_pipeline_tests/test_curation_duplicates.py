"""Which posts form groups and duplicate sets, and the choice of what stays."""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, digest
from xhs_pipeline.curation.groups import image_keys, images_agree, parse_images
from xhs_pipeline.curation.images import MAX_HAMMING
from xhs_pipeline.curation.unique import write_unique
from xhs_pipeline.posts.schema import CLEAN_POSTS, write_table
from xhs_pipeline_tests.test_curation_duplicates_texts import corpus, sentence

DAY = datetime(2026, 2, 16, tzinfo=UTC)
LONG = "这支口红的颜色真的非常适合黄皮肤，上嘴以后显白又持久，吃饭喝水都不掉色，推荐给大家试一试"
A, B, C = "00000000ffff0000", "ffff0000ffff0000", "0f0f0f0f0f0f0f0f"


def post(post_id: str, text: str = LONG, images: tuple[str, ...] = (), day: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "post_id": post_id,
        "title": "",
        "body": text,
        "match_text": text,
        "image_hashes": list(images),
        "created_at": DAY + timedelta(days=day),
        "week": (DAY + timedelta(days=day // 7 * 7)).date().isoformat(),
        "verdict": "pass",
        "category": "正常",
        "rationale": None,
        "label_source": "source",
    } | other


def clean_weeks(folder: Path, posts: list[dict[str, Any]]) -> dict[str, Artifact]:
    """The posts as clean_posts of their weeks, in the order given."""
    weeks: dict[str, Artifact] = {}
    for week in sorted({str(row["week"]) for row in posts}):
        rows = [row | {"images": []} for row in posts if row["week"] == week]
        content = digest([{**row, "created_at": str(row["created_at"])} for row in rows])
        place = folder / week / content
        if not place.exists():
            place.mkdir(parents=True)
            write_table(place / "posts.parquet", CLEAN_POSTS, [pa.RecordBatch.from_pylist(rows, CLEAN_POSTS)])
        weeks[week] = Artifact("clean_posts", place, {"content": content})
    return weeks


@dataclass(frozen=True)
class Found:
    """A unique_posts folder read back: rows as dicts, `kept` and `aside` without images, the older weeks first."""

    kept: list[dict[str, Any]]
    aside: list[dict[str, Any]]
    removed: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Found":
        kept, aside = (
            [row for file in sorted((folder / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
            for name in ("posts", "set_aside")
        )
        removed, conflicts = (
            pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("removed", "label_conflicts")
        )
        return cls(kept, aside, removed, conflicts)


def run(
    *posts: dict[str, Any], trusted: Sequence[str] = ("appeal",)
) -> tuple[Found, dict[str, str], dict[str, tuple[str | None, str]]]:
    """What was written, the group of each post, and (kept post, reason) of each removed one; rows are accounted for."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name) / "work"
        work.mkdir()
        built = write_unique(clean_weeks(Path(name), list(posts)), work, trusted, log=str)
        assert all(check.passed for check in built.checks) and built.counts["rows_in"] == len(posts)
        found = Found.read(work)
    removed = {row["post_id"]: (row["kept_post_id"], row["reason"]) for row in found.removed}
    groups = {row["post_id"]: row["group_id"] for row in (*found.kept, *found.aside)}
    groups |= {gone: groups[kept] for gone, (kept, _) in removed.items() if kept}
    return found, groups, removed


def test_exact_and_near_duplicates_keep_the_oldest_when_all_else_is_equal() -> None:
    _, groups, removed = run(
        post("new", day=2), post("old", day=1), post("near", LONG + "呀", day=3), post("other", "别的" * 20)
    )
    assert removed == {"new": ("near", "near_duplicate"), "old": ("near", "near_duplicate")}, (
        "the longer text is more complete"
    )
    assert groups == {"new": "old", "old": "old", "near": "old", "other": "other"}
    _, _, removed = run(post("new", day=2), post("old", day=1))
    assert removed == {"new": ("old", "exact_duplicate")}


def test_the_most_complete_post_stays_then_the_one_from_an_appeal() -> None:
    _, _, removed = run(post("bare", images=(A,)), post("more", images=(A, B), day=3))
    assert removed == {"bare": ("more", "near_duplicate")}
    _, _, removed = run(post("bare"), post("reasoned", rationale="因为", day=3))
    assert removed == {"bare": ("reasoned", "exact_duplicate")}
    _, _, removed = run(post("plain"), post("appealed", label_source="appeal", day=3))
    assert removed == {"plain": ("appealed", "exact_duplicate")}


def test_the_same_text_under_different_images_is_one_group_but_nothing_is_removed() -> None:
    _, groups, removed = run(post("one", images=(A,)), post("two", images=(B,), day=1), post("three", day=2))
    assert removed == {} and set(groups.values()) == {"one"}


def test_a_nearly_equal_image_counts_as_the_same() -> None:
    _, _, removed = run(post("one", images=("00000000ffff0000",)), post("two", images=("00000000ffff0003",), day=1))
    assert removed == {"two": ("one", "near_duplicate")}


def test_an_equal_image_does_not_join_posts_with_different_texts() -> None:
    generator = random.Random(3)
    _, groups, removed = run(*(post(f"p{n}", sentence(generator, 60), (A,), n) for n in range(50)))
    assert removed == {} and all(post_id == group for post_id, group in groups.items())


def test_posts_with_next_to_no_text_are_compared_by_their_images() -> None:
    _, groups, removed = run(
        post("a", "", (A,)), post("b", "哈", (A,), 1), post("c", "", (B,), 2), post("d", "好看", day=3), post("e", "好看", day=4),
        post("f", "好看", (C,), 5),
    )  # fmt: skip
    assert removed == {"a": ("b", "near_duplicate"), "e": ("d", "exact_duplicate")}
    assert groups == {"a": "a", "b": "a", "c": "c", "d": "d", "e": "d", "f": "f"}


def test_a_short_post_and_its_negation_share_a_group_but_neither_is_a_copy() -> None:
    bad: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}
    _, groups, removed = run(
        post("yes", "这家店的口红我很推荐大家"), post("no", "这家店的口红我不推荐大家", day=1, **bad)
    )
    assert removed == {} and set(groups.values()) == {"yes"}
    _, _, removed = run(post("old", "这家店的口红我很推荐大家"), post("new", "这家店的口红我真推荐大家", day=1))
    assert removed == {"new": ("old", "near_duplicate")}


def test_two_posts_that_share_only_a_third_ones_images_both_stay() -> None:
    _, _, removed = run(post("x", images=(A,)), post("xy", images=(A, B), day=1), post("xz", images=(A, C), day=2))
    assert removed == {"x": ("xy", "near_duplicate")}


def test_contradicting_labels_leave_together_unless_an_appeal_decides() -> None:
    bad: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}
    found, _, removed = run(post("one"), post("two", day=1, **bad), post("apart", images=(A,), day=2))
    assert removed == {"one": (None, "label_conflict"), "two": (None, "label_conflict")}
    assert [(row["post_id"], row["group_id"], row["category"]) for row in found.conflicts] == [
        ("one", "one", "正常"), ("two", "one", "诈骗"),
    ]  # fmt: skip
    found, _, removed = run(
        post("one", rationale="长"), post("two", day=1, label_source="appeal", **bad), post("three", day=2)
    )
    assert removed == {"one": ("two", "exact_duplicate"), "three": ("two", "exact_duplicate")}
    assert not found.conflicts
    _, _, removed = run(post("one", label_source="appeal"), post("two", day=1, label_source="appeal", **bad))
    assert {reason for _, reason in removed.values()} == {"label_conflict"}


def test_of_several_trusted_sources_the_first_one_decides_and_none_that_contradicts_itself() -> None:
    bad: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}
    trusted = ("appeal", "expert")
    one, two = post("one", label_source="expert"), post("two", day=1, label_source="expert", **bad)
    _, _, removed = run(post("zero", day=5, **bad), one, trusted=trusted)
    assert removed == {"zero": ("one", "exact_duplicate")}
    _, _, removed = run(one, two, post("three", day=2, label_source="appeal", **bad), trusted=trusted)
    assert removed == {"one": ("three", "exact_duplicate"), "two": ("three", "exact_duplicate")}
    found, _, removed = run(one, two, post("three", day=2), trusted=trusted)
    assert {reason for _, reason in removed.values()} == {"label_conflict"} and len(removed) == 3
    assert {row["set_id"] for row in found.conflicts} == {"one"} == {row["group_id"] for row in found.aside}
    assert [row["post_id"] for row in found.aside] == ["one", "two", "three"]
    _, _, removed = run(one, post("three", day=2, **bad), trusted=())
    assert {reason for _, reason in removed.values()} == {"label_conflict"}, "where nobody is trusted nobody decides"
    _, _, removed = run(post("plain"), post("expert", label_source="expert", day=1), trusted=trusted)
    assert removed == {"plain": ("expert", "exact_duplicate")}


def test_perceptual_hashes_of_any_length_are_compared_with_those_of_the_same_length() -> None:
    long = "0f" * 32
    other = f"{int(long, 16) ^ 1 << 255 ^ 1 << 3:064x}"
    _, _, removed = run(post("one", images=(long,)), post("two", images=(other,), day=1))
    assert removed == {"two": ("one", "near_duplicate")}
    _, groups, removed = run(post("one", "", (long,)), post("two", "", (other,), 1), post("cut", "", (long[:16],), 2))
    assert removed == {"two": ("one", "near_duplicate")} and groups == {"one": "one", "two": "one", "cut": "cut"}


def test_a_post_that_comes_again_in_a_later_week_is_removed_there() -> None:
    table = [post("same", "后来又改过的另一段文字" * 4, day=8), post("same", day=1)]
    found, _, _ = run(*table)
    assert [row["body"] for row in found.kept] == [LONG]
    assert found.removed == [
        {
            "post_id": "same", "kept_post_id": "same", "reason": "repeated_post_id", "similarity": None,
            "verdict": "pass", "category": "正常", "label_source": "source",
        }
    ]  # fmt: skip


def test_the_result_does_not_depend_on_the_order_of_rows() -> None:
    generator = random.Random(11)
    posts = []
    for n, text in enumerate(corpus(250, seed=4)):
        text = text[: generator.choice([3, 12, 60, 200])]
        images = tuple(generator.sample([A, B, C], generator.choice([0, 0, 1, 2])))
        label: dict[str, Any] = generator.choice([{}, {}, {"verdict": "remove", "category": "诈骗"}])
        posts.append(
            post(f"p{n % 240:03}", text, images, n % 20, label_source=generator.choice(["source", "appeal"]), **label)
        )
    reference = None
    for _ in range(4):
        generator.shuffle(posts)
        found, groups, _ = run(*posts)
        kept = sorted((p["post_id"], p["body"], str(p["created_at"]), p["founders"]) for p in found.kept)
        outcome = (kept, groups, found.removed, found.conflicts)
        reference = reference or outcome
        assert outcome == reference
    assert reference is not None and reference[2] and reference[3]


def test_thousands_of_copies_and_of_images_under_one_text_take_linear_time() -> None:
    generator = random.Random(6)
    copies = [post(f"c{n:05}", images=(A,)) for n in range(5_000)]
    album = [
        post(f"i{n:05}", "同一句话配了五千张不同的图片" * 3, (f"{generator.getrandbits(64):016x}",))
        for n in range(5_000)
    ]
    started = time.process_time()
    found, groups, removed = run(*copies, *album)
    assert time.process_time() - started < 30, "about 1 s when linear"
    assert len(found.removed) == 4_999 and {kept for kept, _ in removed.values()} == {"c00000"}
    assert set(groups.values()) == {"c00000", "i00000"}


def test_no_posts_give_an_empty_result(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    write_table(tmp_path / "posts.parquet", CLEAN_POSTS, [])
    built = write_unique({"2026-02-16": Artifact("clean_posts", tmp_path, {"content": "0"})}, work, [], log=str)
    assert Found.read(work) == Found([], [], [], []) and built.counts["groups"] == 0


def test_importing_curation_loads_neither_numba_nor_torch() -> None:
    code = (
        "import sys; import xhs_pipeline.curation.clean, xhs_pipeline.curation.unique; "
        "print(sorted({'numba', 'torch', 'dagster', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_images_that_are_near_meet_under_a_common_key() -> None:
    generator = random.Random(8)
    for bits in (64, 256):
        for _ in range(1_000):
            one = generator.getrandbits(bits)
            near = one
            for bit in generator.sample(range(bits), MAX_HAMMING):
                near ^= 1 << bit
            (a,), (b,) = (parse_images(f"{value:0{bits // 4}x}") for value in (one, near))
            assert images_agree((a,), (b,)) and set(image_keys((a,))) & set(image_keys((b,)))
    assert not set(image_keys(parse_images("0" * 64))) & set(image_keys(parse_images("f" * 64)))
