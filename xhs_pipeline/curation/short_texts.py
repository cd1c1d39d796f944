"""Short texts one edit apart, which no MinHash setting finds. Imports numba: import this module inside functions only.

One substitution in the middle of L characters changes 3 of L - 2 grams on either side: the Jaccard index is (L - 5) / (L + 1),
below 0.8 up to 28 characters. So from 8 to 28 characters one insertion, deletion or substitution is allowed, whatever the
Jaccard index; in fewer than 8 one character may be all that is said. Longer texts are left to the Jaccard index.

An edit that adds, drops or changes a digit or a negation says something else (推荐 and 不推荐): such texts belong together when
posts are split, but neither is a copy of the other.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from xhs_pipeline.curation.buckets import NOBODY, Earlier, Entries, enter, root, sort_by_key
from xhs_pipeline.curation.grams import Texts, code_points
from xhs_pipeline.curation.minhash import REPRESENTATIVES, Forest, Pairs

SHORT_MIN, SHORT_MAX = 8, 28
# What one_edit answers.
FAR, SAME_SENSE, OTHER_SENSE = 0, 1, 2
# The matching form is simplified Chinese with half-width digits; the rest is for texts that are not in it.
_TELLING = np.array(
    sorted(ord(letter) for letter in "0123456789一二两三四五六七八九十百千万不没無无非别別未勿莫"), np.uint32
)
# Variants sorted at a time: 16 bytes each.
_VARIANTS_AT_ONCE = 1 << 24


def short_text_pairs(texts: Sequence[str] | pa.Array | pa.ChunkedArray | Texts) -> Pairs:
    """Pairs that connect different texts of 8 to 28 characters one edit apart, of any sense; similarity 1 - 1/length.

    A spanning forest, as near_duplicate_pairs gives. Two texts are one edit apart only when deleting at most one character from
    each can make them equal, so texts meet under their deletions (Mor and Fraenkel 1982), each with at most REPRESENTATIVES
    others per deletion: linear in the number of texts. Memory is bounded by sorting the deletions in parts.
    """
    texts = Texts(texts)
    forest = Forest(len(texts))
    for ordered in deletion_entries(texts):
        link_edits(ordered, NOBODY, texts, forest)
    return forest.pairs()


def deletion_entries(texts: Texts) -> Iterator[Entries]:
    """Sorted entries under every short text and each of its deletions, in parts from the least keys to the greatest."""
    total = _count_variants(texts.corpus)
    parts = total // _VARIANTS_AT_ONCE + 1
    entries = np.empty(total // parts, np.uint64)
    for part in range(parts):
        count = _variants(texts.corpus, part, parts, entries)
        if count > len(entries):
            entries = np.empty(count, np.uint64)
            _variants(texts.corpus, part, parts, entries)
        ordered = sort_by_key(entries[:count].copy(), np.empty(count, np.uint64))
        # two deletions of one text that come to the same, as in 好好
        yield ordered[np.append(True, ordered[1:] != ordered[:-1])] if count else ordered


def link_edits(ordered: Entries, earlier: Earlier, texts: Texts, forest: Forest) -> None:
    """Compare every member of a bucket with the bucket's first REPRESENTATIVES and add the pairs found to the forest."""
    if len(ordered):
        forest.found = _link_variants(ordered, earlier, texts.corpus, forest.arrays, forest.found)


def edit_similarity(texts: Texts, left: int, right: int) -> float:
    """1 - 1/length of the longer text where two short texts are one edit of the same sense apart, else 0."""
    answer, length = one_edit(texts.corpus, left, right)
    return 1 - 1 / length if answer == SAME_SENSE else 0.0


@numba.njit(cache=True)
def _short(corpus: Any, text: Any, codes: Any) -> Any:
    """Write the code points of a text to `codes` (SHORT_MAX long) and return how many; 0 for a text that is not short."""
    first, last = corpus.offsets[text], corpus.offsets[text + 1]
    if not SHORT_MIN <= last - first <= 4 * SHORT_MAX:
        return 0
    length = 0
    for place in range(first, last):
        length += (corpus.data[place] & 0xC0) != 0x80
    return code_points(corpus.data, first, last, codes) if SHORT_MIN <= length <= SHORT_MAX else 0


@numba.njit(cache=True)
def one_edit(corpus: Any, left: Any, right: Any) -> Any:
    """Whether two texts are short and exactly one edit apart (FAR, SAME_SENSE or OTHER_SENSE), and the longer length."""
    a, b = np.empty(SHORT_MAX, np.uint32), np.empty(SHORT_MAX, np.uint32)
    m, n = _short(corpus, left, a), _short(corpus, right, b)
    if m > n:
        a, b, m, n = b, a, n, m
    if m == 0 or n - m > 1:
        return FAR, n
    same = 0
    while same < m and a[same] == b[same]:
        same += 1
    if m == n and same == n:
        return FAR, n
    telling = b[same] in _TELLING or (m == n and a[same] in _TELLING)
    rest = same + 1 if m == n else same
    for index in range(rest, m):
        if a[index] != b[index + n - m]:
            return FAR, n
    return (OTHER_SENSE if telling else SAME_SENSE), n


@numba.njit(cache=True)
def _count_variants(corpus: Any) -> Any:
    codes = np.empty(SHORT_MAX, np.uint32)
    total = 0
    for text in range(len(corpus.counts)):
        length = _short(corpus, text, codes)
        total += length + 1 if length else 0
    return total


@numba.njit(cache=True)
def _variants(corpus: Any, part: Any, parts: Any, entries: Any) -> Any:
    """Write (hash of a text or of one of its deletions) << 32 | text for every hash that falls into this part, as far as there is
    room; returns how many there are.

    With prefix hashes p[i + 1] = p[i] B + c[i], deleting character i leaves p[n] + (p[i] - p[i + 1]) B^(n - 1 - i).
    """
    codes = np.empty(SHORT_MAX, np.uint32)
    prefix = np.zeros(SHORT_MAX + 1, np.uint64)
    base = np.uint64(0x9E3779B97F4A7C15)
    count = 0
    for text in range(len(corpus.counts)):
        length = _short(corpus, text, codes)
        if length == 0:
            continue
        for index in range(length):
            prefix[index + 1] = prefix[index] * base + np.uint64(codes[index])
        power = np.uint64(1)
        for cut in range(length, -1, -1):
            hashed = prefix[length]
            if cut < length:
                hashed += (prefix[cut] - prefix[cut + 1]) * power
                power *= base
            hashed = (hashed ^ (hashed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            hashed = (hashed ^ (hashed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            if ((hashed >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32) == np.uint64(part):
                if count < len(entries):
                    entries[count] = (hashed & np.uint64(0xFFFFFFFF00000000)) | np.uint64(text)
                count += 1
    return count


@numba.njit(cache=True)
def _link_variants(ordered: Any, earlier: Any, corpus: Any, forest: Any, found: Any) -> Any:
    parent, lefts, rights, similarities, _ = forest
    members = np.empty(REPRESENTATIVES, np.int64)
    held = place = 0
    last = np.uint64(0xFFFFFFFFFFFFFFFF)
    for entry in ordered:
        text, key = np.int64(np.uint32(entry)), entry >> np.uint64(32)
        if key != last:
            last = key
            place, held = enter(earlier, place, key, members)
        for index in range(held):
            a, b = root(parent, text), root(parent, members[index])
            if a == b:
                continue
            answer, length = one_edit(corpus, members[index], text)
            if answer != FAR:
                lefts[found], rights[found], similarities[found] = members[index], text, 1 - 1 / length
                found += 1
                parent[max(a, b)] = min(a, b)
        if held < REPRESENTATIVES:
            members[held] = text
            held += 1
    return found
