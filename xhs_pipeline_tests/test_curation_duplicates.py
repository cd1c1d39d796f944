"""Near-duplicate search against brute force, and the choice of what stays."""

import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from xhs_pipeline.curation.duplicates import Duplicates, find_duplicates
from xhs_pipeline.curation.minhash import Grams, near_duplicate_pairs, short_text_pairs

LETTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
DAY = datetime(2026, 2, 16, tzinfo=UTC)


def sentence(generator: random.Random, length: int) -> str:
    return "".join(generator.choices(LETTERS, k=length))


def edited(generator: random.Random, text: str, edits: int) -> str:
    letters = list(text)
    for _ in range(edits):
        letters[generator.randrange(len(letters))] = generator.choice(LETTERS)
    return "".join(letters)


def corpus(size: int, seed: int = 1) -> list[str]:
    """Half fresh texts of 30 to 150 characters, half edits of earlier ones, so that similarities spread around 0.8."""
    generator = random.Random(seed)
    texts: list[str] = []
    for _ in range(size):
        if texts and generator.random() < 0.5:
            texts.append(edited(generator, generator.choice(texts), generator.randint(1, 6)))
        else:
            texts.append(sentence(generator, generator.randint(30, 150)))
    return texts


def gram_set(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def connected(pairs: Any, size: int) -> list[int]:
    parent = list(range(size))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
        parent[max(root(left), root(right))] = min(root(left), root(right))
    return [root(node) for node in range(size)]


def test_pairs_agree_with_brute_force() -> None:
    texts = corpus(1200)
    sets = [gram_set(text) for text in texts]
    pairs = near_duplicate_pairs(texts)
    groups = connected(pairs, len(texts))
    for left, right, value in zip(pairs.left, pairs.right, pairs.similarity, strict=True):
        exact = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
        assert left < right and value == pytest.approx(exact) and exact >= 0.8
    wanted = found = 0
    for right in range(len(texts)):
        for left in range(right):
            common = len(sets[left] & sets[right])
            if common and common >= 0.8 * len(sets[left] | sets[right]):
                wanted += 1
                found += groups[left] == groups[right]
    assert wanted > 200 and found / wanted >= 0.99


def test_candidates_at_exactly_the_threshold_are_found() -> None:
    """Pairs of 0.80 to 0.82 only, each alone in its group: the worst case for LSH."""
    generator = random.Random(5)
    texts: list[str] = []
    while len(texts) < 3000:
        text = sentence(generator, 100)
        other = edited(generator, text, 4)
        a, b = gram_set(text), gram_set(other)
        if 0.8 <= len(a & b) / len(a | b) <= 0.82:
            texts += [text, other]
    assert len(near_duplicate_pairs(texts).left) >= 0.985 * len(texts) / 2


def test_very_short_and_empty_texts_pair_only_when_equal() -> None:
    pairs = near_duplicate_pairs(pa.array(["", "好", "好看", "", "好看", "看好", "好看吗"]))
    assert list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == [(0, 3), (2, 4)]
    assert len(near_duplicate_pairs([]).left) == len(near_duplicate_pairs(["一"]).left) == 0


def test_exact_similarity_of_given_pairs() -> None:
    grams = Grams(["abcdef", "abcdeg", "zzz"])
    assert grams.jaccard(np.array([0, 0]), np.array([1, 2])).tolist() == pytest.approx([3 / 5, 0])


def test_short_texts_one_edit_apart_are_found() -> None:
    texts = [
        "今天的天气真的好",
        "今天的天气真好",
        "今天天气真的好",
        "明天的天气真的好",
        "完全不同的一句话呀",
        "好看极了",
        "好看死了",
    ]
    pairs = short_text_pairs(texts)
    assert {(0, 3)} == set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)), (
        "under 8 characters nothing pairs"
    )
    generator = random.Random(2)
    for _ in range(300):
        text = sentence(generator, generator.randint(9, 18))
        cut = generator.randrange(len(text))
        for other in (text[:cut] + text[cut + 1 :], text[:cut] + "x" + text[cut:], text[:cut] + "x" + text[cut + 1 :]):
            assert len(short_text_pairs([text, other]).left) == 1
            assert len(short_text_pairs([text, other[1:] + "yy"]).left) == 0 or cut == 0


@pytest.mark.parametrize(
    "make", [lambda n: "同一句话说了很多很多遍" * 8, lambda n: "开场白完全一样的模板" * 9 + str(n)]
)
def test_a_giant_bucket_takes_linear_time(make: Any) -> None:
    near_duplicate_pairs(["compile", "compiled"])
    texts = [make(n) for n in range(20_000)]
    started = time.process_time()
    pairs = near_duplicate_pairs(texts)
    assert len(pairs.left) == len(texts) - 1
    assert time.process_time() - started < 10, "about 0.5 s when linear"


# --- the choice ----------------------------------------------------------------------------------------------------------

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


def run(*posts: dict[str, Any]) -> tuple[Duplicates, dict[str, str], dict[str, tuple[str | None, str]]]:
    """The result, the group of each post, and (kept post, reason) of each removed one; rows are accounted for."""
    table = pa.Table.from_pylist(list(posts))
    table = table.set_column(
        table.column_names.index("image_hashes"), "image_hashes", table["image_hashes"].cast(pa.list_(pa.string()))
    )
    found = find_duplicates(table)
    assert int(found.kept.sum()) + found.removed.num_rows == len(posts) == len(found.group_ids)
    groups = dict(zip(table["post_id"].to_pylist(), found.group_ids.to_pylist(), strict=True))
    removed = {row["post_id"]: (row["kept_post_id"], row["reason"]) for row in found.removed.to_pylist()}
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


def test_two_posts_that_share_only_a_third_ones_images_both_stay() -> None:
    _, _, removed = run(post("x", images=(A,)), post("xy", images=(A, B), day=1), post("xz", images=(A, C), day=2))
    assert removed == {"x": ("xy", "near_duplicate")}


def test_contradicting_labels_leave_together_unless_an_appeal_decides() -> None:
    bad: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}
    found, _, removed = run(post("one"), post("two", day=1, **bad), post("apart", images=(A,), day=2))
    assert removed == {"one": (None, "label_conflict"), "two": (None, "label_conflict")}
    assert [(row["post_id"], row["group_id"], row["category"]) for row in found.label_conflicts.to_pylist()] == [
        ("one", "one", "正常"), ("two", "one", "诈骗"),
    ]  # fmt: skip
    found, _, removed = run(
        post("one", rationale="长"), post("two", day=1, label_source="appeal", **bad), post("three", day=2)
    )
    assert removed == {"one": ("two", "exact_duplicate"), "three": ("two", "exact_duplicate")}
    assert found.label_conflicts.num_rows == 0
    _, _, removed = run(post("one", label_source="appeal"), post("two", day=1, label_source="appeal", **bad))
    assert {reason for _, reason in removed.values()} == {"label_conflict"}


def test_a_post_that_comes_again_in_a_later_week_is_removed_there() -> None:
    table = [post("same", "后来又改过的另一段文字" * 4, day=8), post("same", day=1)]
    found, _, _ = run(*table)
    assert found.kept.tolist() == [False, True]
    assert found.removed.to_pylist() == [
        {"post_id": "same", "kept_post_id": "same", "reason": "repeated_post_id", "similarity": None}
    ]


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
        kept = sorted(
            (p["post_id"], p["body"], str(p["created_at"])) for p, k in zip(posts, found.kept, strict=True) if k
        )
        outcome = (kept, groups, found.removed.to_pylist(), found.label_conflicts.to_pylist())
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
    assert found.removed.num_rows == 4_999 and {kept for kept, _ in removed.values()} == {"c00000"}
    assert set(groups.values()) == {"c00000", "i00000"}


def test_no_posts_give_an_empty_result() -> None:
    table = pa.table({name: pa.array([], pa.string()) for name in post("x") if name != "image_hashes"})
    found = find_duplicates(table.append_column("image_hashes", pa.array([], pa.list_(pa.string()))))
    assert len(found.kept) == len(found.group_ids) == found.removed.num_rows == found.label_conflicts.num_rows == 0


def test_importing_curation_loads_neither_numba_nor_torch() -> None:
    code = (
        "import sys; import xhs_pipeline.curation.clean, xhs_pipeline.curation.duplicates; "
        "print(sorted({'numba', 'torch', 'dagster', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
