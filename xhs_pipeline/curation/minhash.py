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

from xhs_pipeline.curation.buckets import NOBODY, Earlier, Entries, enter, root, seek, sort_by_key
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
    forest = Forest(len(texts))
    keys, entered = band_keys(texts), np.arange(len(texts))
    for band in range(BANDS):
        ordered = band_entries(keys, band, entered)
        link_near(ordered, NOBODY, texts, threshold, forest)
        link_near(finer_entries(ordered, NOBODY, keys, band), NOBODY, texts, threshold, forest)
    return forest.pairs()


def band_keys(texts: Texts) -> npt.NDArray[np.uint32]:
    """The LSH keys of every text, (BANDS, texts)."""
    keys = np.empty((BANDS, len(texts)), np.uint32)
    _band_keys(texts.corpus, _multipliers(), keys)
    return keys


def band_entries(keys: npt.NDArray[np.uint32], band: int, entered: npt.NDArray[np.int64]) -> Entries:
    """The sorted entries of one band, of the texts that are `entered` into buckets."""
    entries = np.empty(len(entered), np.uint64)
    _entries(keys[band], entered, entries)
    return sort_by_key(entries, np.empty_like(entries))


def finer_entries(ordered: Entries, earlier: Earlier, keys: npt.NDArray[np.uint32], band: int) -> Entries:
    """The sorted entries of the band's second, finer buckets.

    Of a large bucket, those who are not among the first REPRESENTATIVES meet once more where the next band agrees as well.
    """
    entries = np.empty(len(ordered), np.uint64)
    count = _beyond(ordered, earlier, keys[(band + 1) % BANDS], entries)
    return sort_by_key(entries[:count].copy(), np.empty(count, np.uint64))


def link_near(ordered: Entries, earlier: Earlier, texts: Texts, threshold: float, forest: Forest) -> None:
    """Compare every member of a bucket with the bucket's first REPRESENTATIVES and add the pairs found to the forest.

    Members of `ordered` and of `earlier` number texts of `texts`.
    """
    if len(ordered):
        forest.found = _link(ordered, earlier, texts.corpus, texts.table, threshold, forest.arrays, forest.found)


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
def _entries(keys: Any, entered: Any, entries: Any) -> None:
    for index in range(len(entered)):
        entries[index] = (np.uint64(keys[entered[index]]) << np.uint64(32)) | np.uint64(entered[index])


@numba.njit(cache=True)
def _beyond(ordered: Any, earlier: Any, following: Any, entries: Any) -> Any:
    """Write the finer entries of the members past the first REPRESENTATIVES of their bucket; returns how many they are."""
    keys, starts, _ = earlier
    count = held = place = 0
    last = np.uint64(0xFFFFFFFFFFFFFFFF)
    for entry in ordered:
        key = entry >> np.uint64(32)
        if key != last:
            held, last = 0, key
            place = seek(keys, place, key)
            if place < len(keys) and keys[place] == key:
                held = starts[place + 1] - starts[place]
        if held < REPRESENTATIVES:
            held += 1
        else:
            finer = np.uint32(key) * np.uint32(0x9E3779B1) ^ following[np.uint32(entry)]
            entries[count] = (np.uint64(finer) << np.uint64(32)) | np.uint64(np.uint32(entry))
            count += 1
    return count


@numba.njit(cache=True)
def _link(ordered: Any, earlier: Any, corpus: Any, table: Any, threshold: Any, forest: Any, found: Any) -> Any:
    """Compare within buckets; returns the pairs found so far."""
    parent, lefts, rights, similarities, refused = forest
    shift = np.uint64(64 - REFUSED_BITS)
    members = np.empty(REPRESENTATIVES, np.int64)
    held = place = 0
    last = np.uint64(0xFFFFFFFFFFFFFFFF)
    for entry in ordered:
        text, key = np.int64(np.uint32(entry)), entry >> np.uint64(32)
        if key != last:
            last = key
            place, held = enter(earlier, place, key, members)
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
    return found
