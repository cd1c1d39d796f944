"""Near-duplicate texts: MinHash signatures, LSH candidates, exact verification, all in numba kernels. Imports numba: import
this module inside functions only. Knows texts, not posts.

Signatures follow Broder (1997), made by one-permutation hashing (Li, Owen, Zhang 2012): each of ROWS hash functions deals the
grams of a text into BANDS bins and keeps the least of every bin, so a text of n grams costs 6 n operations instead of 144 n;
an empty bin borrows from a random bin that is not (Shrivastava 2017, "optimal densification"). Band b is made of bin b of
every row, whose hash functions are independent: two texts of similarity s meet with probability 1 - (1 - s^6)^24, which is
0.9993 at 0.80, 0.31 at 0.5 and 0.006 at 0.25. Every meeting is then verified exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xhs_pipeline.curation.grams import Texts, jaccard, read_grams

BANDS, ROWS = 24, 6
# Members of one bucket are compared with its first few members, so a bucket of n costs n comparisons, not n^2. Which ones is a
# matter of order alone, never of what is already connected: texts that come later cannot change it.
REPRESENTATIVES = 8
# Pairs remembered as refused, 8 bytes each.
REFUSED_BITS = 20


@dataclass(frozen=True)
class Pairs:
    """Verified pairs: text indices left < right (int32) and their similarity (float32), ordered by right, then left."""

    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    similarity: npt.NDArray[np.float32]

    @classmethod
    def ordered(cls, left: npt.NDArray, right: npt.NDArray, similarity: npt.NDArray) -> "Pairs":
        order = np.lexsort((left, right))
        return cls(left[order], right[order], similarity[order])


class Forest:
    """Union-find over n texts and the pairs that connected them: at most n - 1, whatever the number of copies."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size, dtype=np.int64)
        self.left, self.right = np.empty(size, np.int32), np.empty(size, np.int32)
        self.similarity = np.empty(size, np.float32)
        self.refused = np.zeros(1 << REFUSED_BITS, np.uint64)
        self.found = 0

    @property
    def arrays(self) -> tuple[npt.NDArray, ...]:
        return self.parent, self.left, self.right, self.similarity, self.refused

    def pairs(self) -> Pairs:
        return Pairs.ordered(self.left[: self.found], self.right[: self.found], self.similarity[: self.found])


def near_duplicate_pairs(texts: Sequence[str] | pa.Array | pa.ChunkedArray | Texts, threshold: float = 0.8) -> Pairs:
    """Verified pairs with Jaccard >= threshold that connect every group of near-duplicates found.

    The pairs are a spanning forest: two texts are near-duplicates, directly or by way of others, exactly when the pairs
    connect them, and there are fewer pairs than texts however many copies there are. Time is linear in the number of
    characters; memory is the texts as Arrow holds them and about 150 bytes a text. Deterministic for one order of texts.
    """
    texts = Texts(texts)
    count = len(texts)
    forest = Forest(count)
    if count < 2:
        return forest.pairs()
    keys = np.empty((BANDS, count), np.uint32)
    _band_keys(texts.corpus, _multipliers(), keys)
    buckets, spare = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for band in range(BANDS):
        forest.found = _link_band(
            keys, band, buckets, spare, texts.corpus, texts.table, threshold, forest.arrays, forest.found
        )
    return forest.pairs()


def _multipliers() -> npt.NDArray[np.uint64]:
    """Odd multipliers, one a row, the same on every machine."""
    random = np.random.Generator(np.random.PCG64(20260216))
    return random.integers(0, 2**64, ROWS, dtype=np.uint64) | np.uint64(1)


@numba.njit(cache=True)
def _band_keys(corpus: Any, multipliers: Any, keys: Any) -> None:
    longest = 1
    for text in range(len(corpus.counts)):
        longest = max(longest, corpus.offsets[text + 1] - corpus.offsets[text])
    grams = np.empty(longest, np.uint64)
    signature = np.empty((ROWS, BANDS), np.uint32)
    empty = np.uint32(0xFFFFFFFF)
    bands = np.uint64(BANDS)
    for text in range(len(corpus.counts)):
        count = read_grams(corpus, text, grams)
        signature[:] = empty
        for row in range(ROWS):
            bins = signature[row]
            for index in range(count):
                # the top 24 bits choose the bin, the 32 below the top 8 are compared: nearly independent, and cheap
                hashed = grams[index] * multipliers[row]
                place = ((hashed >> np.uint64(40)) * bands) >> np.uint64(24)
                bins[place] = min(bins[place], np.uint32(hashed >> np.uint64(8)))
        for band in range(BANDS):
            key = np.uint64(0xCBF29CE484222325)
            for row in range(ROWS):
                least = signature[row, band]
                probe = np.uint64(row * BANDS + band + 1) * np.uint64(0x9E3779B97F4A7C15)
                while least == empty:
                    probe = probe * np.uint64(0x5851F42D4C957F2D) + np.uint64(0x14057B7EF767814F)
                    least = signature[row, ((probe >> np.uint64(40)) * bands) >> np.uint64(24)]
                key = (key ^ np.uint64(least)) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys[band, text] = np.uint32(key >> np.uint64(32))


@numba.njit(cache=True)
def sort_by_key(entries: Any, spare: Any) -> Any:
    """Sort entries (key << 32 | text) by key, stably, by counting digits of 11 bits; returns the sorted array."""
    for shift in (np.uint64(32), np.uint64(43), np.uint64(54)):
        starts = np.zeros(2048, np.int64)
        for entry in entries:
            starts[(entry >> shift) & np.uint64(2047)] += 1
        total = 0
        for digit in range(2048):
            total, starts[digit] = total + starts[digit], total
        for entry in entries:
            digit = (entry >> shift) & np.uint64(2047)
            spare[starts[digit]] = entry
            starts[digit] += 1
        entries, spare = spare, entries
    return entries


@numba.njit(cache=True)
def root(parent: Any, node: Any) -> Any:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(cache=True)
def _link_band(keys: Any, band: Any, buckets: Any, spare: Any, corpus: Any, table: Any, threshold: Any, forest: Any, found: Any) -> Any:  # fmt: skip
    for text in range(len(buckets)):
        buckets[text] = (np.uint64(keys[band, text]) << np.uint64(32)) | np.uint64(text)
    ordered = sort_by_key(buckets, spare)
    found, waiting = _link_buckets(ordered, corpus, table, threshold, forest, found)
    # Of a large bucket, those who were not among the first meet once more where the next band agrees as well.
    following = keys[(band + 1) % BANDS]
    for index in range(waiting):
        key = np.uint32(ordered[index] >> np.uint64(32)) * np.uint32(0x9E3779B1) ^ following[np.uint32(ordered[index])]
        ordered[index] = (np.uint64(key) << np.uint64(32)) | np.uint64(np.uint32(ordered[index]))
    if waiting:
        ordered = sort_by_key(ordered[:waiting], np.empty(waiting, np.uint64))
        found, _ = _link_buckets(ordered, corpus, table, threshold, forest, found)
    return found


@numba.njit(cache=True)
def _link_buckets(ordered: Any, corpus: Any, table: Any, threshold: Any, forest: Any, found: Any) -> Any:
    """Compare within buckets; returns the pairs found so far, and how many entries beyond the first of their bucket were
    moved to the front of `ordered`.
    """
    parent, lefts, rights, similarities, refused = forest
    shift = np.uint64(64 - REFUSED_BITS)
    members = np.empty(REPRESENTATIVES, np.int64)
    held = waiting = 0
    last = np.uint64(0)
    for entry in ordered:
        text, key = np.int64(np.uint32(entry)), entry >> np.uint64(32)
        if key != last:
            held, last = 0, key
        for index in range(held):
            other = members[index]
            a, b = root(parent, text), root(parent, other)
            if a == b:
                continue
            # a pair that is a little below the threshold meets in many bands, one after another: refuse it once
            pair = (np.uint64(other) << np.uint64(32)) | np.uint64(text)
            slot = (pair * np.uint64(0x9E3779B97F4A7C15)) >> shift
            if refused[slot] == pair:
                continue
            similarity = jaccard(corpus, table, text, other, threshold)
            if similarity < threshold:
                refused[slot] = pair
            else:
                lefts[found], rights[found], similarities[found] = other, text, similarity
                found += 1
                parent[max(a, b)] = min(a, b)
        if held < REPRESENTATIVES:
            members[held] = text
            held += 1
        else:
            ordered[waiting] = entry
            waiting += 1
    return found, waiting
