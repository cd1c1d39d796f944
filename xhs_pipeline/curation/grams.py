"""Texts as sets of character 3-grams, read straight from Arrow's UTF-8 buffers, and their exact Jaccard similarity.

Imports numba: import this module inside functions only. Knows texts, not posts, and finds no candidates.

Three code points of 21 bits fit in 63, so a gram is its own exact key; the mixing that spreads it is a bijection, so the
similarity is exact, not estimated. No set is stored: the two texts of a pair are decoded again when they are compared, which
takes about a microsecond for 100 characters and keeps memory at the size of the texts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

_Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class Corpus(NamedTuple):
    """UTF-8 bytes, offsets of the n texts in them (n + 1), and the number of distinct grams of each (0: not yet known)."""

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int32]


class Table(NamedTuple):
    """A hash set that holds the grams of one text. `state` is [serial, first serial of the loaded text, loaded text]."""

    keys: npt.NDArray[np.uint64]
    stamps: npt.NDArray[np.int64]
    state: npt.NDArray[np.int64]
    grams: npt.NDArray[np.uint64]


class Texts:
    """Texts to compare. A text of one or two characters, and the empty text, is one gram of its own; null is empty.

    Arrow arrays are not copied unless they come in several chunks.
    """

    def __init__(self, texts: "Sequence[str] | pa.Array | pa.ChunkedArray | Texts") -> None:
        self.corpus: Corpus
        self.table: Table
        if isinstance(texts, Texts):
            self.corpus, self.table = texts.corpus, texts.table
            return
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.cast(pa.large_string()).combine_chunks()
        array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
        array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        places = np.zeros(1, np.int64)
        if offsets is not None and len(array):
            places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        # an array of only empty texts may have no data at all
        content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
        self.corpus = Corpus(content, places, np.zeros(len(array), np.int32))
        longest = int(np.diff(places).max(initial=1))
        slots = 1 << (2 * longest).bit_length()
        self.table = Table(
            np.zeros(slots, np.uint64), np.zeros(slots, np.int64), np.array([0, 0, -1]), np.empty(longest, np.uint64)
        )

    def __len__(self) -> int:
        return len(self.corpus.counts)

    def jaccard(self, left: _Ints, right: _Ints) -> npt.NDArray[np.float32]:
        """The exact similarity of text left[i] with text right[i], for every i."""
        out = np.empty(len(left), np.float32)
        _jaccard_many(self.corpus, self.table, left.astype(np.int64), right.astype(np.int64), out)
        return out


@numba.njit(inline="always")
def _code_point(data: Any, place: Any) -> Any:
    """The code point at a byte, and the byte after it. Arrow guarantees valid UTF-8."""
    byte = np.uint32(data[place])
    low = np.uint32(63)
    if byte < 0x80:
        return byte, place + 1
    second = np.uint32(data[place + 1]) & low
    if byte < 0xE0:
        return ((byte & np.uint32(31)) << np.uint32(6)) | second, place + 2
    third = np.uint32(data[place + 2]) & low
    if byte < 0xF0:
        return ((byte & np.uint32(15)) << np.uint32(12)) | (second << np.uint32(6)) | third, place + 3
    fourth = np.uint32(data[place + 3]) & low
    high = ((byte & np.uint32(7)) << np.uint32(18)) | (second << np.uint32(12))
    return high | (third << np.uint32(6)) | fourth, place + 4


@numba.njit(cache=True)
def code_points(data: Any, first: Any, last: Any, out: Any) -> Any:
    """Write the code points of bytes [first, last) to out and return how many there are."""
    count = 0
    while first < last:
        out[count], first = _code_point(data, first)
        count += 1
    return count


@numba.njit(cache=True)
def read_grams(corpus: Any, text: Any, out: Any) -> Any:
    """Write the mixed 3-grams of a text, repeats included, to out and return how many there are (at least one)."""
    place, last = corpus.offsets[text], corpus.offsets[text + 1]
    seen, count, key = 0, 0, np.uint64(0)
    while place < last:
        code, place = _code_point(corpus.data, place)
        key = ((key << np.uint64(21)) | np.uint64(code)) & np.uint64(0x7FFFFFFFFFFFFFFF)
        seen += 1
        if seen >= 3:
            out[count] = key
            count += 1
    if seen < 3:
        out[0] = key | np.uint64(seen + 2) << np.uint64(62)
        count = 1
    # A separate loop, since this one vectorises. Two rounds of xor-shift and multiply, as in murmur3's finaliser.
    for index in range(count):
        mixed = out[index]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        out[index] = mixed ^ (mixed >> np.uint64(32))
    return count


@numba.njit(cache=True)
def _load(corpus: Any, table: Any, text: Any) -> None:
    count = read_grams(corpus, text, table.grams)
    table.state[0] += 1
    serial = table.state[0]
    table.state[1], table.state[2] = serial, text
    mask = np.uint64(len(table.keys) - 1)
    distinct = 0
    for index in range(count):
        key = table.grams[index]
        slot = key & mask
        while table.stamps[slot] >= serial and table.keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if table.stamps[slot] < serial:
            table.keys[slot], table.stamps[slot] = key, serial
            distinct += 1
    corpus.counts[text] = distinct


@numba.njit(cache=True)
def jaccard(corpus: Any, table: Any, text: Any, other: Any, threshold: Any) -> Any:
    """Exact similarity of two texts, or -1 as soon as it is known to lie below the threshold.

    `text` stays loaded, so comparing it with several others in a row is cheaper.
    """
    if corpus.counts[other] == 0:
        _load(corpus, table, other)
    if table.state[2] != text:
        _load(corpus, table, text)
    sizes = corpus.counts[text] + corpus.counts[other]
    needed = threshold / (1.0 + threshold) * sizes - 1e-6
    if min(corpus.counts[text], corpus.counts[other]) < needed:
        return -1.0
    count = read_grams(corpus, other, table.grams)
    table.state[0] += 1
    first, serial = table.state[1], table.state[0]
    mask = np.uint64(len(table.keys) - 1)
    common = 0
    for index in range(count):
        key = table.grams[index]
        slot = key & mask
        while table.stamps[slot] >= first:
            if table.keys[slot] == key:
                # a stamp marks grams that this comparison has met, since `other` may repeat them
                if table.stamps[slot] != serial:
                    table.stamps[slot] = serial
                    common += 1
                break
            slot = (slot + np.uint64(1)) & mask
        if common + count - index - 1 < needed:
            return -1.0
    return common / (sizes - common)


@numba.njit(cache=True)
def _jaccard_many(corpus: Any, table: Any, left: Any, right: Any, out: Any) -> None:
    for index in range(len(left)):
        out[index] = jaccard(corpus, table, left[index], right[index], 0.0)
