"""Buckets of equal keys, weeks apart, and the components that pairs form. Imports numba: import this module inside functions only.

An ENTRY is key << 32 | member (uint64): 32 bits of a hash, and the number of a text or post within its week. A week's entries
are kept sorted by key, equal keys in order of arrival. Who is compared with whom depends on the place in the bucket alone, so
what a week has to be compared with follows from the sorted entries of the weeks before it; nothing else of them is read.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from xhs_pipeline.curation.grams import Corpus

Entries = npt.NDArray[np.uint64]
_HITS_AT_ONCE = 1 << 16


class Earlier(NamedTuple):
    """What earlier weeks hold in a week's buckets: members[starts[i] : starts[i + 1]] (int64) under key keys[i] (uint64)."""

    keys: Entries
    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]


NOBODY = Earlier(np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int64))


def join(ordered: Entries, earlier: Iterable[tuple[Entries, int]], limit: int) -> Earlier:
    """The first `limit` members, in order of arrival, that earlier weeks hold in each bucket of `ordered`.

    `earlier` gives sorted entries week by week, and what to add to their members to number them among all weeks. Costs one
    look at each of their entries, most of which end at a table of the keys wanted that lies in the cache.
    """
    if not len(ordered):
        return NOBODY
    keys = ordered >> np.uint64(32)
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    bits = min(32, max(10, (8 * len(keys)).bit_length()))
    shift = np.uint64(32 - bits)
    slots = np.full(1 << bits, -1, np.int32)
    places = keys >> shift
    firsts = np.flatnonzero(np.append(True, places[1:] != places[:-1]))
    slots[places[firsts]] = firsts
    held = np.zeros(len(keys), np.int64)
    buckets, members = np.empty(_HITS_AT_ONCE, np.int64), np.empty(_HITS_AT_ONCE, np.int64)
    found: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for entries, base in earlier:
        start = 0
        while start < len(entries):
            start, hits = _scan(keys, slots, shift, entries, start, limit, held, buckets, members)
            if hits:
                found.append((buckets[:hits].copy(), members[:hits] + base))
    if not found:
        return NOBODY
    order = np.argsort(np.concatenate([where for where, _ in found]), kind="stable")
    starts = np.append(0, np.cumsum(held[held > 0]))
    return Earlier(keys[held > 0], starts, np.concatenate([who for _, who in found])[order])


@numba.njit(cache=True)
def seek(keys: Any, place: Any, key: Any) -> Any:
    """The first place from `place` on whose key is not below `key`."""
    while place < len(keys) and keys[place] < key:
        place += 1
    return place


@numba.njit(cache=True)
def enter(earlier: Any, place: Any, key: Any, members: Any) -> Any:
    """Write what earlier weeks hold in the bucket of `key` to `members`; returns the bucket's place and how many they are."""
    keys, starts, before = earlier
    place, held = seek(keys, place, key), 0
    if place < len(keys) and keys[place] == key:
        for index in range(starts[place], starts[place + 1]):
            members[held] = before[index]
            held += 1
    return place, held


@numba.njit(cache=True)
def _scan(keys: Any, slots: Any, shift: Any, entries: Any, start: Any, limit: Any, held: Any, buckets: Any, members: Any) -> Any:  # fmt: skip
    hits = 0
    for index in range(start, len(entries)):
        key = entries[index] >> np.uint64(32)
        place = slots[key >> shift]
        if place < 0:
            continue
        place = seek(keys, place, key)
        if place < len(keys) and keys[place] == key and held[place] < limit:
            if hits == len(buckets):
                return index, hits
            buckets[hits], members[hits] = place, np.int64(np.uint32(entries[index]))
            held[place] += 1
            hits += 1
    return len(entries), hits


@numba.njit(cache=True)
def sort_by_key(entries: Any, spare: Any) -> Any:
    """Sort entries by key, stably, by counting digits of 11 bits; returns the sorted array, which is one of the two."""
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


def hash_entries(corpus: Corpus) -> Entries:
    """Sorted entries under a hash of each whole text. Equal texts have equal keys; equal keys prove nothing."""
    entries = np.empty(len(corpus.counts), np.uint64)
    _hash(corpus, entries)
    return sort_by_key(entries, np.empty_like(entries))


@numba.njit(cache=True)
def _hash(corpus: Any, entries: Any) -> None:
    for text in range(len(entries)):
        hashed = np.uint64(0xCBF29CE484222325)
        for place in range(corpus.offsets[text], corpus.offsets[text + 1]):
            hashed = (hashed ^ np.uint64(corpus.data[place])) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(29)
        hashed *= np.uint64(0xD6E8FEB86659FD93)
        entries[text] = (hashed & np.uint64(0xFFFFFFFF00000000)) | np.uint64(text)


@numba.njit(cache=True)
def root(parent: Any, node: Any) -> Any:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


class Components:
    """Union-find over all nodes so far; of every component the least node is the root, and `oldest` its oldest post."""

    def __init__(self) -> None:
        self.parent = np.empty(0, np.int64)
        self.oldest = np.empty(0, np.int64)

    def extend(self, count: int) -> None:
        size = len(self.parent)
        self.parent = np.append(self.parent, np.arange(size, size + count))
        self.oldest = np.append(self.oldest, np.full(count, np.iinfo(np.int64).max))

    def join(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> None:
        _join(self.parent, self.oldest, left, right)

    def arrive(self, nodes: npt.NDArray[np.int64], first: int) -> None:
        """Posts first, first + 1, ... lie on these nodes; -1 for posts that lie on none."""
        _arrive(self.parent, self.oldest, nodes, first)

    def roots(self, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        out = np.empty(len(nodes), np.int64)
        _roots(self.parent, nodes, out)
        return out

    def oldest_of(self, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The oldest post in the component of each node; -1 for node -1."""
        if not len(self.parent):
            return np.full(len(nodes), -1)
        return np.where(nodes < 0, -1, self.oldest[self.roots(nodes)])


@numba.njit(cache=True)
def _join(parent: Any, oldest: Any, left: Any, right: Any) -> None:
    for index in range(len(left)):
        a, b = root(parent, left[index]), root(parent, right[index])
        parent[max(a, b)] = min(a, b)
        oldest[min(a, b)] = min(oldest[a], oldest[b])


@numba.njit(cache=True)
def _arrive(parent: Any, oldest: Any, nodes: Any, first: Any) -> None:
    for index in range(len(nodes)):
        if nodes[index] >= 0:
            node = root(parent, nodes[index])
            oldest[node] = min(oldest[node], first + index)


@numba.njit(cache=True)
def _roots(parent: Any, nodes: Any, out: Any) -> None:
    for index in range(len(nodes)):
        out[index] = root(parent, nodes[index]) if nodes[index] >= 0 else 0
