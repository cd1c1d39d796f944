"""Near-duplicate texts against brute force: what is found, what is verified, what order and arrival change."""

import random
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from xhs_pipeline.curation.grams import Texts
from xhs_pipeline.curation.minhash import near_duplicate_pairs
from xhs_pipeline.curation.short_texts import edit_similarity, short_text_pairs

LETTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]


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
    texts = Texts(["abcdef", "abcdeg", "zzz"])
    assert texts.jaccard(np.array([0, 0]), np.array([1, 2])).tolist() == pytest.approx([3 / 5, 0])


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
    found = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert found == {(0, 3)}, "under 8 characters nothing pairs"
    generator = random.Random(2)
    for _ in range(300):
        text = sentence(generator, generator.randint(9, 27))
        cut = generator.randrange(len(text))
        for other in (text[:cut] + text[cut + 1 :], text[:cut] + "x" + text[cut:], text[:cut] + "x" + text[cut + 1 :]):
            assert len(short_text_pairs([text, other]).left) == 1
            assert len(short_text_pairs([text, other[1:] + "yy"]).left) == 0 or cut == 0


def distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


def test_short_pairs_agree_with_edit_distance_on_every_pair() -> None:
    """Few letters and few lengths, so that repeated letters, shifts and chance neighbours abound."""
    generator = random.Random(8)
    texts = ["".join(generator.choices("甲乙丙丁戊", k=generator.randint(7, 11))) for _ in range(100)]
    for _ in range(150):
        text = generator.choice(texts)
        cut, letter = generator.randrange(len(text)), generator.choice(["", *"甲乙丙"])
        texts.append(text[:cut] + letter + text[cut + generator.randint(0, 1) :])
    texts = sorted(set(texts))
    generator.shuffle(texts)
    groups = connected(short_text_pairs(texts), len(texts))
    edges = [(i, j) for j in range(len(texts)) for i in range(j) if is_short_pair(texts[i], texts[j])]
    assert len(edges) > 100
    assert all(groups[i] == groups[j] for i, j in edges)
    together = connected(Edges(edges), len(texts))
    assert together == groups, "nothing else is connected"


class Edges:
    def __init__(self, edges: list[Any]) -> None:
        self.left, self.right = (np.array([edge[side] for edge in edges]) for side in (0, 1))


def is_short_pair(a: str, b: str) -> bool:
    return len(a) >= 8 and len(b) >= 8 and distance(a, b) == 1


def test_one_edit_is_enough_for_every_text_of_eight_characters_or_more() -> None:
    """The short rule ends exactly where one edit in the middle no longer falls below 0.8."""
    generator = random.Random(9)
    for length in range(8, 60):
        text = sentence(generator, length)
        middle = length // 2
        for other in (text[:middle] + "x" + text[middle + 1 :], text[:middle] + "x" + text[middle:]):
            short = len(short_text_pairs([text, other]).left)
            assert short or len(near_duplicate_pairs([text, other]).left), f"{length} characters"
            assert short == (length <= 28 and len(other) <= 28)


def test_an_edit_of_a_negation_or_a_digit_is_near_but_not_the_same() -> None:
    texts = Texts(
        [
            "这家店的口红我很推荐大家",
            "这家店的口红我不推荐大家",
            "这家店的口红我真推荐大家",
            "一共花了我25块钱呢真贵",
            "一共花了我28块钱呢真贵",
        ]
    )
    assert len(short_text_pairs(texts).left) == 3
    assert edit_similarity(texts, 0, 2) == pytest.approx(1 - 1 / 12)
    assert edit_similarity(texts, 0, 1) == edit_similarity(texts, 3, 4) == edit_similarity(texts, 0, 4) == 0


def test_arrow_arrays_of_every_kind_give_the_same_pairs() -> None:
    texts = [*corpus(300, seed=3), "", "emoji 😀😀😀 ascii é 汉字", "emoji 😀😀😀 ascii é 汉字"]
    expected = near_duplicate_pairs(texts)
    assert (301, 302) in set(zip(expected.left.tolist(), expected.right.tolist(), strict=True))
    whole = pa.array(texts)
    for form in (
        whole,
        whole.cast(pa.large_string()),
        pa.concat_arrays([pa.array(["前面"]), whole])[1:],
        pa.chunked_array([whole[:100], whole[100:100], whole[100:]]),
        pa.array([text or None for text in texts]),
    ):
        pairs = near_duplicate_pairs(form)
        assert pairs.left.tolist() == expected.left.tolist() and pairs.right.tolist() == expected.right.tolist()


def test_texts_that_arrive_later_never_part_what_was_together() -> None:
    generator = random.Random(12)
    texts = corpus(400, seed=7) + [
        "同一个模板开头写得很长很长很长很长很长" + sentence(generator, 12) for _ in range(400)
    ]
    texts += [edited(generator, text, 1)[:28] for text in generator.choices(texts, k=200)]
    generator.shuffle(texts)
    for find in (near_duplicate_pairs, short_text_pairs):
        everything = connected(find(texts), len(texts))
        for size in (100, 333, 700):
            pairs = find(texts[:size])
            assert all(everything[i] == everything[j] for i, j in zip(pairs.left, pairs.right, strict=True))


def test_small_clusters_under_one_template_are_found_although_they_share_its_buckets() -> None:
    """2,000 texts two by two at 0.8 or more, and all of them around 0.5 to one another."""
    generator = random.Random(4)
    template = sentence(generator, 80)
    texts: list[str] = []
    for _ in range(1000):
        text = template + sentence(generator, 40)
        texts += [text, edited(generator, text, 2)]
    order = list(range(2000))
    generator.shuffle(order)
    pairs = near_duplicate_pairs([texts[place] for place in order])
    groups = connected(pairs, 2000)
    where = {place: index for index, place in enumerate(order)}
    assert sum(groups[where[2 * n]] == groups[where[2 * n + 1]] for n in range(1000)) >= 990


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
