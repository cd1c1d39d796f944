"""Which posts say the same or nearly the same: their order by age, their distinct texts, and the groups these form.

Pure over Arrow. Works in columns, since most posts are alike to no other: only a post in a group of two or more becomes an
object. What to do about a group is decided in duplicates.py.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TRUSTED_SOURCE = "appeal"
NEARLY_EMPTY = 4
# Measured on 223 photos: re-encoding at quality 60 and 0.7 of the size moves 0 to 2 of 64 bits (one photo: 4); two different
# photos differ in 16 or more. Must stay below 4, the number of chunks that image_chunks cuts a hash into.
MAX_HAMMING = 2
# A post is compared with at most this many kept ones per image chunk, which keeps a group of n linear in n.
CANDIDATES = 16
# Posts that are turned into objects at a time.
POSTS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Post:
    """What the decisions need to know of one post; `age` is its place among all posts from oldest to newest."""

    age: int
    post_id: str
    text: int
    text_length: int
    images: tuple[int, ...]
    completeness: tuple[int, int, int]
    label: tuple[str, str]
    source: str

    def preference(self) -> tuple[Any, ...]:
        """Sorts the best post first: most complete (images, rationale, length), most trusted label, oldest."""
        return (*(-part for part in self.completeness), self.source != TRUSTED_SOURCE, self.age)


class Aged:
    """The posts of a CLEAN_POSTS table from oldest to newest by (week, created_at, post_id); all arrays are in this order.

    rows: their rows in the table. first: of every post, the place of the first post of the same id. text: index of the
    matching text among the distinct ones of the posts that are first (-1 for the others).
    """

    def __init__(self, posts: pa.Table) -> None:
        columns = {name: posts[name] for name in posts.column_names if name not in ("images", "title", "body")}
        columns["match_text"] = columns["match_text"].cast(pa.large_string()).fill_null("")
        columns["hashes"] = pc.binary_join(columns.pop("image_hashes"), " ").fill_null("")
        for name in ("week", "label_source", "rationale"):
            columns[name] = _text(posts, name)
        columns["length"] = pc.add(pc.utf8_length(_text(posts, "title")), pc.utf8_length(_text(posts, "body")))
        # Equal ids in one week: any fixed order will do.
        order = (
            "week",
            "created_at",
            "post_id",
            "match_text",
            "hashes",
            "verdict",
            "category",
            "label_source",
            "rationale",
        )
        keys = [(name, "ascending") for name in order if name in columns]
        self.rows: npt.NDArray[np.int64] = (
            pc.sort_indices(pa.table(columns), sort_keys=keys).to_numpy().astype(np.int64)
        )
        columns["text_length"] = pc.utf8_length(columns["match_text"])
        # The texts, most of the memory, are copied only where they are first, and then held once, distinct.
        texts = columns.pop("match_text")
        self.table = pa.table(columns).take(self.rows)
        self.ids = self.table["post_id"].combine_chunks()
        codes = self.ids.dictionary_encode().indices.to_numpy()
        _, firsts = np.unique(codes, return_index=True)
        self.first: npt.NDArray[np.int64] = firsts[codes]
        self.is_first = self.first == np.arange(len(codes))
        encoded = texts.take(self.rows[self.is_first]).combine_chunks().dictionary_encode()
        self.texts = encoded.dictionary
        self.text = np.full(len(codes), -1, np.int64)
        self.text[self.is_first] = encoded.indices.to_numpy()

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self, leaders: npt.NDArray[np.int64]) -> Iterator[list[Post]]:
        """The groups of two or more different posts, each oldest first; `leaders` as self.leaders gives them."""
        sizes = np.bincount(leaders[self.is_first], minlength=len(leaders))
        places = np.flatnonzero(self.is_first & (sizes[leaders] > 1))
        places = places[np.argsort(leaders[places], kind="stable")]
        parts = (places[start : start + POSTS_AT_ONCE] for start in range(0, len(places), POSTS_AT_ONCE))
        posts = (post for part in parts for post in self._posts(part))
        for _, group in groupby(zip(leaders[places].tolist(), posts, strict=True), key=itemgetter(0)):
            yield [post for _, post in group]

    def _posts(self, places: npt.NDArray[np.int64]) -> Iterator[Post]:
        table = self.table.take(places)
        reasoned = pc.greater(pc.utf8_length(table["rationale"]), 0)
        names = ("text_length", "length", "post_id", "hashes", "verdict", "category", "label_source")
        values = (column.to_pylist() for column in (reasoned, *(table[name] for name in names)))
        for age, text, has_reason, letters, size, post_id, hashes, verdict, category, source in zip(
            places.tolist(), self.text[places].tolist(), *values, strict=True
        ):
            images = _images(hashes)
            completeness = (len(images), int(has_reason), size)
            yield Post(age, post_id, text, letters, images, completeness, (verdict, category), source)

    def leaders(self, similar: "SimilarTexts") -> npt.NDArray[np.int64]:
        """Of every post the place of the oldest in its group; a repeated id has the group of its first post.

        A group is a component of posts with equal or near texts, or with nearly empty texts and a common image.
        """
        label = similar.component[self.text]
        pictured = self.is_first & similar.nearly_empty[self.text]
        pictured &= pc.not_equal(self.table["hashes"], "").to_numpy().astype(bool)
        # Apart from the texts: a nearly empty post with images meets others by its images only.
        label[pictured] = len(self.texts) + np.flatnonzero(pictured)
        label[~self.is_first] = len(self.texts) + np.flatnonzero(~self.is_first)
        _, oldest, inverse = np.unique(label, return_index=True, return_inverse=True)
        leader = oldest[inverse]
        places = np.flatnonzero(pictured)
        leader[places] = places[_by_images([_images(text) for text in self.table["hashes"].take(places).to_pylist()])]
        return leader[self.first]


class SimilarTexts:
    """Equality and nearness of distinct matching texts. numba is imported here, when there is something to compare."""

    def __init__(self, texts: pa.LargeStringArray, threshold: float) -> None:
        from xhs_pipeline.curation.grams import Texts
        from xhs_pipeline.curation.minhash import near_duplicate_pairs
        from xhs_pipeline.curation.short_texts import edit_similarity, short_text_pairs

        self.threshold = threshold
        # One more than there are texts: place -1 stands for posts whose text is not looked at.
        self.nearly_empty = np.append(
            pc.less(pc.utf8_length(texts), NEARLY_EMPTY).to_numpy(zero_copy_only=False), False
        )
        # Blanked, or 哈哈哈, which has the grams of 哈哈哈哈, would stand between it and 哈哈哈哈哈.
        if self.nearly_empty.any():
            texts = pc.if_else(pa.array(self.nearly_empty[:-1]), pa.scalar("", pa.large_string()), texts)
        self.texts = Texts(texts)
        self._edit_similarity = edit_similarity
        forest = _Forest(len(texts) + 1)
        for pairs in (near_duplicate_pairs(self.texts, threshold), short_text_pairs(self.texts)):
            for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
                if not self.nearly_empty[left]:
                    forest.join(left, right)
        self.component = forest.roots()

    def similarity(self, a: Post, b: Post) -> float:
        """1 for equal texts and for two nearly empty ones; one edit of the same sense in a short text by its length; else
        exact Jaccard.
        """
        nearly_empty = a.text_length < NEARLY_EMPTY, b.text_length < NEARLY_EMPTY
        if a.text == b.text or all(nearly_empty):
            return 1.0
        if any(nearly_empty):
            return 0.0
        exact = self.texts.jaccard(np.array([a.text]), np.array([b.text]))
        return max(self._edit_similarity(self.texts, a.text, b.text), float(exact[0]))

    def are_near(self, a: Post, b: Post) -> bool:
        return self.similarity(a, b) >= self.threshold


class _Forest:
    """Union-find whose root is the smallest member."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = self.parent[self.parent[node]]
            node = self.parent[node]
        return node

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self) -> npt.NDArray[np.int64]:
        parent = np.array(self.parent, np.int64)
        while (parent[parent] != parent).any():
            parent = parent[parent]
        return parent


def _by_images(posts: list[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    """Of each post the first one connected to it by images that look the same."""
    forest = _Forest(len(posts))
    seen: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, images in enumerate(posts):
        for key in (chunk for image in images for chunk in image_chunks(image)):
            for other in seen[key]:
                if any(_close(x, y) for x in images for y in posts[other]):
                    forest.join(place, other)
            if len(seen[key]) < CANDIDATES:
                seen[key].append(place)
    return forest.roots()


def _text(posts: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of strings without nulls; empty ones where the table lacks it."""
    column = posts[name] if name in posts.column_names else pa.chunked_array([pa.nulls(posts.num_rows)])
    return column.cast(pa.large_string()).fill_null("")


def _images(hashes: str) -> tuple[int, ...]:
    return tuple(sorted(int(value, 16) for value in hashes.split()))


def image_chunks(image: int) -> list[tuple[int, int]]:
    """Four numbered 16-bit pieces of a hash: hashes that differ in at most three bits share at least one."""
    return [(part, image >> (16 * part) & 0xFFFF) for part in range(4)]


def _close(a: int, b: int) -> bool:
    return (a ^ b).bit_count() <= MAX_HAMMING


def images_agree(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether every image of the post with fewer images is also in the other; a post without images agrees only with another."""
    if not a or not b:
        return not a and not b
    few, many = sorted((a, b), key=len)
    return all(any(_close(x, y) for y in many) for x in few)
