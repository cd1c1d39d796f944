"""Which posts say the same, which one of them stays, and which labels contradict each other. Pure over Arrow; writes nothing.

Two relations, on purpose different:
- a GROUP holds posts whose texts are equal or near, whatever their images: they must stay in one split.
- a DUPLICATE SET holds posts of a group whose images agree as well: only here is one kept and the rest removed, since under
  the same text it may be the image that decides.
An equal image alone joins nothing, or every user of one stock photo would end up in one group; it counts only where the
texts are too short (under 4 characters) to say anything.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xhs_pipeline.posts.schema import REMOVED

LABEL_CONFLICTS = pa.schema(
    [(name, pa.string()) for name in ("post_id", "group_id", "verdict", "category", "label_source")]
)
TRUSTED_SOURCE = "appeal"
NEARLY_EMPTY = 4
# Measured on 223 photos: re-encoding at quality 60 and 0.7 of the size moves 0 to 2 of 64 bits (one photo: 4); two different
# photos differ in 16 or more. Must stay below 4, the number of chunks that _chunks cuts a hash into.
MAX_HAMMING = 2
# A post is compared with at most this many kept ones per image chunk, which keeps a group of n linear in n.
CANDIDATES = 16
NO_IMAGE = (-1, 0)


@dataclass(frozen=True)
class Duplicates:
    """The outcome for a table of n posts: `kept` (bool mask) and `group_ids` (string) in its row order.

    `removed` (REMOVED) holds every other row once; kept_post_id is null for label conflicts, similarity null for repeated ids.
    `label_conflicts` (LABEL_CONFLICTS) lists the contradicting posts, for people to decide.
    """

    kept: npt.NDArray[np.bool_]
    group_ids: pa.StringArray
    removed: pa.Table
    label_conflicts: pa.Table


@dataclass(frozen=True)
class _Post:
    """What the decisions need to know of one post; `age` is its rank by (week, created_at, post_id)."""

    row: int
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


def find_duplicates(posts: pa.Table, threshold: float = 0.8) -> Duplicates:
    """Group, compare and choose over CLEAN_POSTS columns (images need not be loaded). `threshold` is a Jaccard similarity.

    A duplicate set keeps its best post (most complete, then label from an appeal, then oldest). If its labels differ, the label
    of the trusted source wins; without one, or when trusted labels differ too, the whole set is removed as label_conflict.
    A post_id seen before (in an earlier week) is removed as repeated_post_id. A post with images is never the duplicate of
    one without. group_id is the post_id of the group's oldest post, a post alone is its own group. The result does not depend
    on the order of the rows.
    """
    everyone, texts = _read(posts)
    first: dict[str, _Post] = {}
    for post in everyone:
        first.setdefault(post.post_id, post)
    unique = list(first.values())
    similar = _SimilarTexts(texts, threshold)
    removed: list[tuple[int, dict[str, Any]]] = []
    conflicts: list[tuple[int, dict[str, Any]]] = []
    group_of = {}
    for group in _groups(unique, similar):
        for post in group:
            group_of[post.post_id] = group[0].post_id
        for members in _duplicate_sets(group, similar) if len(group) > 1 else ():
            rows, contradicting = _decide(members, similar)
            removed += rows
            conflicts += [(post.row, _conflict(post, group[0].post_id)) for post in contradicting]
    for post in everyone:
        if first[post.post_id] is not post:
            removed.append((post.row, _removal(post, post.post_id, "repeated_post_id", None)))
    kept = np.ones(posts.num_rows, np.bool_)
    kept[[row for row, _ in removed]] = False
    age = {post.row: post.age for post in everyone}
    group_ids = [""] * posts.num_rows
    for post in everyone:
        group_ids[post.row] = group_of[post.post_id]
    return Duplicates(
        kept,
        pa.array(group_ids, pa.string()),
        pa.Table.from_pylist([record for _, record in sorted(removed, key=lambda pair: age[pair[0]])], schema=REMOVED),
        pa.Table.from_pylist(
            [record for _, record in sorted(conflicts, key=lambda pair: age[pair[0]])], schema=LABEL_CONFLICTS
        ),
    )


def _read(posts: pa.Table) -> tuple[list[_Post], list[str]]:
    """The posts from oldest to newest, and the distinct matching texts they refer to by index."""
    columns = {name: posts[name].to_pylist() for name in posts.column_names if name != "images"}

    def column(name: str) -> list[Any]:
        return columns.get(name) or [None] * posts.num_rows

    bodies, titles, rationales = column("body"), column("title"), column("rationale")
    weeks, sources, times = column("week"), column("label_source"), column("created_at")

    def position(row: int) -> tuple[Any, ...]:
        when = times[row]
        return (
            weeks[row] or "",
            (1, 0.0) if when is None else (0, when.timestamp()),
            columns["post_id"][row],
            # equal ids in one week: any fixed order will do
            columns["match_text"][row],
            columns["image_hashes"][row] or [],
            columns["verdict"][row],
            columns["category"][row],
            sources[row] or "",
            rationales[row] or "",
        )

    index: dict[str, int] = {}
    result = []
    for age, row in enumerate(sorted(range(posts.num_rows), key=position)):
        text = columns["match_text"][row] or ""
        images = tuple(sorted(int(value, 16) for value in columns["image_hashes"][row] or []))
        length = len(titles[row] or "") + len(bodies[row] or "")
        result.append(
            _Post(
                row,
                age,
                columns["post_id"][row],
                index.setdefault(text, len(index)),
                len(text),
                images,
                (len(images), int(bool(rationales[row])), length),
                (columns["verdict"][row], columns["category"][row]),
                sources[row] or "",
            )
        )
    return result, list(index)


class _SimilarTexts:
    """Equality and nearness of the distinct matching texts. numba is imported here, when there is something to compare."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        from xhs_pipeline.curation.grams import Texts
        from xhs_pipeline.curation.minhash import near_duplicate_pairs
        from xhs_pipeline.curation.short_texts import edit_similarity, short_text_pairs

        self.threshold = threshold
        self.forest = _Forest(len(texts))
        self.texts = Texts(["" if len(text) < NEARLY_EMPTY else text for text in texts])
        self.edit_similarity = edit_similarity
        for pairs in (near_duplicate_pairs(self.texts, threshold), short_text_pairs(self.texts)):
            for left, right in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True):
                if len(texts[left]) >= NEARLY_EMPTY:
                    self.forest.join(left, right)

    def similarity(self, a: _Post, b: _Post) -> float:
        """1 for equal texts and for two nearly empty ones; one edit of the same sense in a short text by its length; else
        exact Jaccard.
        """
        nearly_empty = a.text_length < NEARLY_EMPTY, b.text_length < NEARLY_EMPTY
        if a.text == b.text or all(nearly_empty):
            return 1.0
        if any(nearly_empty):
            return 0.0
        exact = self.texts.jaccard(np.array([a.text]), np.array([b.text]))
        return max(self.edit_similarity(self.texts, a.text, b.text), float(exact[0]))

    def are_near(self, a: _Post, b: _Post) -> bool:
        return self.similarity(a, b) >= self.threshold


def _groups(posts: list[_Post], similar: _SimilarTexts) -> Iterator[list[_Post]]:
    """Components of posts with equal or near texts, or with nearly empty texts and a common image; each oldest first."""
    forest = _Forest(len(posts))
    seen: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, post in enumerate(posts):
        if post.text_length >= NEARLY_EMPTY:
            meeting: Iterable[tuple[Any, ...]] = [("text", similar.forest.root(post.text))]
        elif post.images:
            meeting = [("image", *chunk) for image in post.images for chunk in _chunks(image)]
        else:
            meeting = [("nearly empty", post.text)]
        for key in meeting:
            others = seen[key]
            for other in others:
                if key[0] != "image" or _share_an_image(post.images, posts[other].images):
                    forest.join(place, other)
            if len(others) < (CANDIDATES if key[0] == "image" else 1):
                others.append(place)
    members: dict[int, list[_Post]] = defaultdict(list)
    for place, post in enumerate(posts):
        members[forest.root(place)].append(post)
    yield from members.values()


def _duplicate_sets(group: list[_Post], similar: _SimilarTexts) -> Iterator[list[_Post]]:
    """Sets of two or more posts, the best first, each of which has near text and agreeing images with the best."""
    equal: dict[tuple[int, tuple[int, ...]], list[_Post]] = defaultdict(list)
    for post in sorted(group, key=_Post.preference):
        equal[post.text, post.images].append(post)
    leaders: dict[tuple[int, int], list[int]] = defaultdict(list)
    sets: list[list[_Post]] = []
    for posts in equal.values():
        best = posts[0]
        keys = [chunk for image in best.images for chunk in _chunks(image)] or [NO_IMAGE]
        candidates = dict.fromkeys(place for key in keys for place in leaders.get(key, ()))
        for place in candidates:
            if _images_agree(best.images, sets[place][0].images) and similar.are_near(best, sets[place][0]):
                sets[place] += posts
                break
        else:
            for key in keys:
                if len(leaders[key]) < CANDIDATES:
                    leaders[key].append(len(sets))
            sets.append(list(posts))
    yield from (members for members in sets if len(members) > 1)


def _decide(members: list[_Post], similar: _SimilarTexts) -> tuple[list[tuple[int, dict[str, Any]]], list[_Post]]:
    """Removal records of a duplicate set, best post first, and its posts again if their labels contradict each other."""
    kept = members[0]
    if len({post.label for post in members}) > 1:
        trusted = sorted((post for post in members if post.source == TRUSTED_SOURCE), key=_Post.preference)
        if len({post.label for post in trusted}) != 1:
            return [(post.row, _removal(post, None, "label_conflict", None)) for post in members], members
        kept = trusted[0]
    records = []
    for post in members:
        if post is kept:
            continue
        same = post.text == kept.text and post.images == kept.images
        reason = "exact_duplicate" if same else "near_duplicate"
        records.append((post.row, _removal(post, kept.post_id, reason, similar.similarity(post, kept))))
    return records, []


def _removal(post: _Post, kept_post_id: str | None, reason: str, similarity: float | None) -> dict[str, Any]:
    return {"post_id": post.post_id, "kept_post_id": kept_post_id, "reason": reason, "similarity": similarity}


def _conflict(post: _Post, group_id: str) -> dict[str, Any]:
    verdict, category = post.label
    return {
        "post_id": post.post_id,
        "group_id": group_id,
        "verdict": verdict,
        "category": category,
        "label_source": post.source,
    }


def _chunks(image: int) -> list[tuple[int, int]]:
    """Four numbered 16-bit pieces of a hash: hashes that differ in at most three bits share at least one."""
    return [(part, image >> (16 * part) & 0xFFFF) for part in range(4)]


def _close(a: int, b: int) -> bool:
    return (a ^ b).bit_count() <= MAX_HAMMING


def _share_an_image(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return any(_close(x, y) for x in a for y in b)


def _images_agree(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether every image of the post with fewer images is also in the other; a post without images agrees only with another."""
    if not a or not b:
        return not a and not b
    few, many = sorted((a, b), key=len)
    return all(any(_close(x, y) for y in many) for x in few)
