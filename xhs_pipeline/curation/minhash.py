"""Near-duplicate texts: MinHash signatures, LSH candidates, exact verification, all in numba kernels. Imports numba: import
this module inside functions only. Knows texts, not posts.

Similarity is the Jaccard index of the sets of character 3-grams. Three code points of 21 bits fit in 63, so a gram is its own
exact key and the verified similarity is exact, not estimated. Signatures follow Broder (1997); with 21 bands of 6 rows two
texts of similarity s become candidates with probability 1 - (1 - s^6)^21: 0.998 at 0.80, 0.99997 at 0.87, 0.28 at 0.5
(16 x 8 would find only 0.947 of the pairs at exactly 0.80).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

PERMUTATIONS = 128
BANDS, ROWS = 21, 6
# Members of one bucket are compared with at most this many of its members, so a bucket of n costs n comparisons, not n^2.
REPRESENTATIVES = 8
# Short texts: one edit in 8 to 19 characters falls below Jaccard 0.8 but hardly changes what is said; in fewer it may.
SHORT_MIN, SHORT_MAX = 8, 19

_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]
_UInt64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Pairs:
    """Verified pairs: text indices left < right (int32) and their similarity (float32), ordered by right, then left."""

    left: _Int32
    right: _Int32
    similarity: npt.NDArray[np.float32]


class Grams:
    """The 3-gram sets of texts, flat. A text of one or two characters, and the empty text, is one gram of its own."""

    def __init__(self, texts: Sequence[str] | pa.StringArray | pa.ChunkedArray) -> None:
        strings: Sequence[str] = texts.to_pylist() if isinstance(texts, (pa.Array, pa.ChunkedArray)) else texts
        lengths = np.fromiter((len(text) for text in strings), np.int64, len(strings))
        codes = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), np.uint32)
        counts = np.maximum(lengths - 2, 1)
        self.starts: _Int64 = np.concatenate(([0], np.cumsum(counts)))
        self.counts: _Int64 = counts
        self.keys: _UInt64 = np.empty(int(self.starts[-1]), np.uint64)
        # Sets are sorted the first time a text is compared: most texts never are.
        self.is_sorted = np.zeros(len(strings), np.bool_)
        _fill_grams(codes, np.concatenate(([0], np.cumsum(lengths))), self.starts, self.keys)

    def __len__(self) -> int:
        return len(self.counts)

    def jaccard(self, left: _Int32 | _Int64, right: _Int32 | _Int64) -> npt.NDArray[np.float32]:
        """The exact similarity of text left[i] with text right[i], for every i."""
        out = np.empty(len(left), np.float32)
        _jaccard_many(
            self.keys, self.starts, self.counts, self.is_sorted, left.astype(np.int64), right.astype(np.int64), out
        )
        return out


def near_duplicate_pairs(
    texts: Sequence[str] | pa.StringArray | pa.ChunkedArray | Grams, threshold: float = 0.8
) -> Pairs:
    """Verified pairs with Jaccard >= threshold that connect every group of near-duplicates found.

    The pairs are a spanning forest: two texts are near-duplicates, directly or by way of others, exactly when the pairs
    connect them, and there are fewer pairs than texts however many copies there are. Time and memory are linear in the number
    of characters (up to a sort of the band keys); about 1.1 kB a text of 100 characters. Deterministic for one order of texts.
    """
    grams = texts if isinstance(texts, Grams) else Grams(texts)
    count = len(grams)
    if count < 2:
        return _pairs([], [], [])
    multipliers, offsets = _permutations()
    keys = np.empty((BANDS, count), np.uint64)
    _band_keys(grams.keys, grams.starts, multipliers, offsets, keys)
    parent = np.arange(count, dtype=np.int64)
    left, right = np.empty(count, np.int32), np.empty(count, np.int32)
    similarity = np.empty(count, np.float32)
    found = 0
    for band in range(BANDS):
        order = np.argsort(keys[band], kind="stable")
        found = _link_buckets(
            keys[band], order, grams.keys, grams.starts, grams.counts, grams.is_sorted, threshold, parent,
            left, right, similarity, found,
        )  # fmt: skip
    return _pairs(left[:found], right[:found], similarity[:found])


def short_text_pairs(texts: Sequence[str]) -> Pairs:
    """Pairs of different short texts (8 to 19 characters) one insertion, deletion or substitution apart; similarity 1 - 1/length.

    Two texts are one edit apart only when deleting at most one character from each can make them equal, so texts meet under
    their deletions. Each compares with at most REPRESENTATIVES others per deletion: linear in the number of texts.
    """
    meeting: dict[str, list[int]] = {}
    found: dict[tuple[int, int], float] = {}
    for index, text in enumerate(texts):
        if not SHORT_MIN <= len(text) <= SHORT_MAX:
            continue
        for variant in {text, *(text[:cut] + text[cut + 1 :] for cut in range(len(text)))}:
            others = meeting.setdefault(variant, [])
            for other in others:
                if (other, index) not in found and texts[other] != text and _one_edit_apart(texts[other], text):
                    found[other, index] = 1 - 1 / max(len(text), len(texts[other]))
            if len(others) < REPRESENTATIVES:
                others.append(index)
    return _pairs([pair[0] for pair in found], [pair[1] for pair in found], list(found.values()))


def _one_edit_apart(a: str, b: str) -> bool:
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1:
        return False
    same = 0
    while same < len(a) and a[same] == b[same]:
        same += 1
    return a[same + (len(a) == len(b)) :] == b[same + 1 :]


def _pairs(
    left: Sequence[int] | _Int32, right: Sequence[int] | _Int32, similarity: Sequence[float] | npt.NDArray
) -> Pairs:
    low = np.minimum(np.asarray(left, np.int32), np.asarray(right, np.int32))
    high = np.maximum(np.asarray(left, np.int32), np.asarray(right, np.int32))
    order = np.lexsort((low, high))
    return Pairs(low[order], high[order], np.asarray(similarity, np.float32)[order])


def _permutations() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Odd multipliers and offsets of the hash functions x -> a x + b mod 2^32, the same on every machine."""
    random = np.random.Generator(np.random.PCG64(20260216))
    multipliers = random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    return multipliers, random.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)


@numba.njit(cache=True)
def _fill_grams(codes, offsets, starts, keys):  # type: ignore[no-untyped-def]
    for text in range(len(starts) - 1):
        first, last, out = offsets[text], offsets[text + 1], starts[text]
        if last - first < 3:
            key = np.uint64(0)
            for position in range(first, last):
                key = (key << np.uint64(21)) | np.uint64(codes[position])
            keys[out] = key
            continue
        for position in range(first, last - 2):
            keys[out] = (
                (np.uint64(codes[position]) << np.uint64(42))
                | (np.uint64(codes[position + 1]) << np.uint64(21))
                | np.uint64(codes[position + 2])
            )
            out += 1


@numba.njit(cache=True)
def _band_keys(grams, starts, multipliers, offsets, keys):  # type: ignore[no-untyped-def]
    signature = np.empty(PERMUTATIONS, np.uint32)
    for text in range(len(starts) - 1):
        signature[:] = np.uint32(0xFFFFFFFF)
        for position in range(starts[text], starts[text + 1]):
            # murmur3's finaliser: the multiply-add below is only as random as its input
            mixed = grams[position]
            mixed ^= mixed >> np.uint64(33)
            mixed *= np.uint64(0xFF51AFD7ED558CCD)
            mixed ^= mixed >> np.uint64(33)
            mixed *= np.uint64(0xC4CEB9FE1A85EC53)
            gram = np.uint32(mixed >> np.uint64(32))
            for index in range(PERMUTATIONS):
                value = np.uint32(multipliers[index] * gram + offsets[index])
                signature[index] = min(signature[index], value)
        for band in range(BANDS):
            key = np.uint64(0xCBF29CE484222325)
            for row in range(ROWS):
                key = (key ^ np.uint64(signature[band * ROWS + row])) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys[band, text] = key


@numba.njit(cache=True)
def _sort_set(grams, starts, counts, is_sorted, text):  # type: ignore[no-untyped-def]
    if is_sorted[text]:
        return
    first = starts[text]
    view = grams[first : first + counts[text]]
    view.sort()
    unique = 1
    for position in range(1, len(view)):
        if view[position] != view[unique - 1]:
            view[unique] = view[position]
            unique += 1
    counts[text] = unique
    is_sorted[text] = True


@numba.njit(cache=True)
def _jaccard(grams, starts, counts, is_sorted, a, b):  # type: ignore[no-untyped-def]
    _sort_set(grams, starts, counts, is_sorted, a)
    _sort_set(grams, starts, counts, is_sorted, b)
    i, j = starts[a], starts[b]
    end_i, end_j = i + counts[a], j + counts[b]
    common = 0
    while i < end_i and j < end_j:
        if grams[i] == grams[j]:
            common += 1
            i += 1
            j += 1
        elif grams[i] < grams[j]:
            i += 1
        else:
            j += 1
    return common / (counts[a] + counts[b] - common)


@numba.njit(cache=True)
def _jaccard_many(grams, starts, counts, is_sorted, left, right, out):  # type: ignore[no-untyped-def]
    for index in range(len(left)):
        out[index] = _jaccard(grams, starts, counts, is_sorted, left[index], right[index])


@numba.njit(cache=True)
def _root(parent, node):  # type: ignore[no-untyped-def]
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(cache=True)
def _link_buckets(keys, order, grams, starts, counts, is_sorted, threshold, parent, left, right, similarity, found):  # type: ignore[no-untyped-def]
    representatives = np.empty(REPRESENTATIVES, np.int64)
    held = 0
    for position in range(len(order)):
        text = order[position]
        if position == 0 or keys[text] != keys[order[position - 1]]:
            held = 0
        joined = False
        for index in range(held):
            other = representatives[index]
            root, other_root = _root(parent, text), _root(parent, other)
            if root == other_root:
                joined = True
                continue
            value = _jaccard(grams, starts, counts, is_sorted, text, other)
            if value >= threshold:
                left[found], right[found], similarity[found] = other, text, value
                found += 1
                parent[max(root, other_root)] = min(root, other_root)
                joined = True
        # A member that is already connected to a representative adds nothing as another one, until places are left over.
        if held < REPRESENTATIVES and (not joined or held < REPRESENTATIVES // 2):
            representatives[held] = text
            held += 1
    return found
