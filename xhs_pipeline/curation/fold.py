"""Folding one more week into all the weeks before it: which of its posts are alike to which. Imports numba: import this module
inside functions only.

Weeks are folded one after another in calendar order, from an empty index too, so that a week which arrives now and all weeks at
once take the same path to the same numbers. A fold reads of earlier weeks: their sorted entries (integers), and the texts and
image hashes of those that share a bucket with a new one. It decides nothing about what is kept.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.curation.arrivals import read_arrivals
from xhs_pipeline.curation.buckets import Components, Earlier, Entries, hash_entries, join
from xhs_pipeline.curation.grams import Texts
from xhs_pipeline.curation.groups import CANDIDATES, NEARLY_EMPTY, have_common_image, image_keys, parse_images
from xhs_pipeline.curation.index import POSTS, TEXTS, Index, Numbers, Segment, whole
from xhs_pipeline.curation.minhash import (
    BANDS,
    REPRESENTATIVES,
    Forest,
    band_entries,
    band_keys,
    finer_entries,
    link_near,
)
from xhs_pipeline.curation.parts import part_starts
from xhs_pipeline.curation.short_texts import deletion_entries, link_edits

EVERYONE = 1 << 62


class History:
    """All weeks folded so far. Of every post, in order of arrival: its text, node, first and founder as index.POSTS has them."""

    def __init__(self) -> None:
        self.index = Index()
        self.components = Components()
        self.text = self.node = self.first = self.founder = np.empty(0, np.int64)

    def load(self, segments: Sequence[Segment]) -> None:
        """Begin with finished segments, oldest first: integers only."""
        names = ("text", "node", "first", "founder")
        posts = [segment.read("posts").select(names) for segment in segments]
        pairs = [segment.read("pairs") for segment in segments]
        for segment in segments:
            self.index.append(segment)
        if segments:
            self.text, self.node, self.first, self.founder = (
                pa.concat_tables(posts)[name].to_numpy() for name in names
            )
            self.components.extend(self.index.nodes)
            self.components.join(*(pa.concat_tables(pairs)[name].to_numpy() for name in ("left", "right")))
            self.components.arrive(self.node, 0)

    def leaders(self) -> Numbers:
        """Of every post the oldest in its group; -1 for a repeated id."""
        return self.components.oldest_of(self.node)

    def fold(self, file: Path, folder: Path, threshold: float) -> None:
        """Write the segment of one week of clean posts into `folder` and take it in."""
        folder.mkdir(parents=True)
        posts = read_arrivals(file)
        segment = Segment(folder)
        segment.posts, segment.part_starts = posts.num_rows, part_starts(file)
        first = self._firsts(posts, segment)
        arrived = np.flatnonzero(first == self.index.posts + np.arange(len(first)))
        text = self._texts(whole(posts["match_text"]), arrived, segment)
        nearly_empty = posts["text_length"].to_numpy() < NEARLY_EMPTY
        pictured = np.flatnonzero(
            nearly_empty & (text >= 0) & pc.not_equal(posts["hashes"], "").to_numpy().astype(np.bool_)
        )
        segment.pictured = len(pictured)
        node = text.copy()
        node[pictured] = self.index.nodes + segment.texts + np.arange(len(pictured))
        posts = posts.drop_columns(["match_text"])
        pairs = _Comparison(self, segment, threshold).pairs()
        images = self._image_pairs(posts["hashes"].take(pictured).to_pylist(), segment)
        left, right = np.append(pairs[0], images[0]), np.append(pairs[1], images[1])
        segment.write("pairs", pa.table({"left": left, "right": right}))
        self.components.extend(segment.texts + segment.pictured)
        self.components.join(left, right)
        self.components.arrive(node, self.index.posts)
        founder = self.components.oldest_of(node)
        for name, values in (("text", text), ("node", node), ("first", first), ("founder", founder)):
            posts = posts.append_column(name, pa.array(values))
        segment.write("posts", posts.select(POSTS.names).cast(POSTS))
        segment.finish()
        self.text, self.node = np.append(self.text, text), np.append(self.node, node)
        self.first, self.founder = np.append(self.first, first), np.append(self.founder, founder)
        self.index.append(segment)

    def _firsts(self, posts: pa.Table, segment: Segment) -> Numbers:
        """Of every post of the week the first post with its id, whenever it came."""
        ids = whole(posts["post_id"]).cast(pa.large_string()).dictionary_encode()
        codes = ids.indices.to_numpy()
        _, local = np.unique(codes, return_index=True)
        known, entries = self._lookup("ids", ids.dictionary)
        segment.add("ids", _renumbered(entries, known < 0, local))
        return np.where(known < 0, self.index.posts + local, known)[codes]

    def _texts(self, texts: pa.LargeStringArray, arrived: Numbers, segment: Segment) -> Numbers:
        """The text node of every post of the week, -1 for repeated ids; the texts that are new go into the segment."""
        encoded = texts.take(arrived).dictionary_encode()
        known, entries = self._lookup("texts", encoded.dictionary)
        local = np.cumsum(known < 0) - 1
        segment.add("texts", _renumbered(entries, known < 0, local))
        new = encoded.dictionary.filter(pa.array(known < 0)) if (known >= 0).any() else encoded.dictionary
        segment.texts = len(new)
        segment.write("texts", pa.table({"text": new}, schema=TEXTS))
        nodes = np.full(len(texts), -1)
        nodes[arrived] = np.where(known < 0, self.index.nodes + local, known)[encoded.indices.to_numpy()]
        return nodes

    def _lookup(self, name: str, values: pa.LargeStringArray) -> tuple[Numbers, Entries]:
        """Where earlier weeks have each of these different values (-1: nowhere), compared in full; and their sorted entries."""
        entries = hash_entries(Texts(values).corpus)
        earlier = join(entries, self.index.entries(name), EVERYONE)
        known = np.full(len(values), -1)
        if len(earlier.keys):
            new, old = _product(entries, earlier)
            distinct, back = np.unique(old, return_inverse=True)
            if name == "texts":
                found = self.index.take_texts(distinct)
            else:
                found = whole(self.index.take_posts(distinct, ["post_id"])["post_id"]).cast(pa.large_string())
            equal = pc.equal(values.take(pa.array(new)), found.take(pa.array(back))).to_numpy(zero_copy_only=False)
            known[new[equal]] = old[equal]
        return known, entries

    def _image_pairs(self, hashes: list[str], segment: Segment) -> tuple[Numbers, Numbers]:
        """Pairs of nearly empty posts, one of them new, that have an image in common."""
        posts = [parse_images(text) for text in hashes]
        keyed = sorted((key, place) for place, images in enumerate(posts) for key in image_keys(images))
        entries = np.array([key << 32 | place for key, place in keyed], np.uint64)
        segment.add("images", entries)
        earlier = join(entries, self.index.entries("images"), CANDIDATES)
        old = np.unique(earlier.members)
        base = self.index.nodes + segment.texts
        images = {
            node: parse_images(text) for node, text in zip(old.tolist(), self.index.take_hashes(old), strict=True)
        }
        images |= {base + place: of_post for place, of_post in enumerate(posts)}
        seen: dict[int, list[int]] = defaultdict(list)
        for key, start, end in zip(earlier.keys.tolist(), earlier.starts[:-1], earlier.starts[1:], strict=True):
            seen[key] += earlier.members[start:end].tolist()
        pairs: dict[tuple[int, int], None] = {}
        for key, place in keyed:
            node = base + place
            for other in seen[key]:
                if (other, node) not in pairs and have_common_image(images[other], images[node]):
                    pairs[other, node] = None
            if len(seen[key]) < CANDIDATES:
                seen[key].append(node)
        both = np.array(list(pairs), np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]


def _renumbered(entries: Entries, kept: npt.NDArray[np.bool_], numbers: Numbers) -> Entries:
    """The entries of the members that are kept, under other numbers of the same order."""
    members = (entries & np.uint64(0xFFFFFFFF)).astype(np.int64)
    chosen = kept[members]
    keys = entries[chosen] >> np.uint64(32) << np.uint64(32)
    return keys | numbers[members[chosen]].astype(np.uint64)


def _product(ordered: Entries, earlier: Earlier) -> tuple[Numbers, Numbers]:
    """Every (member of `ordered`, earlier member) of one bucket."""
    keys = ordered >> np.uint64(32)
    low, high = np.searchsorted(keys, earlier.keys), np.searchsorted(keys, earlier.keys, side="right")
    before = np.diff(earlier.starts)
    sizes = (high - low) * before
    bucket = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(bucket)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    new = ordered[low[bucket] + within // before[bucket]]
    old = earlier.members[earlier.starts[bucket] + within % before[bucket]]
    return (new & np.uint64(0xFFFFFFFF)).astype(np.int64), old


class _Comparison:
    """New texts with one another and with the earlier texts that share a bucket with them.

    First all entries are made, written and joined with those of earlier weeks; then the texts met are fetched, once; then every
    bucket is gone through. So memory holds the week's texts, its keys and the texts met, whatever the size of the index.
    """

    def __init__(self, history: History, segment: Segment, threshold: float) -> None:
        self._history, self._segment, self._threshold = history, segment, threshold
        self._met: list[tuple[str, int, Earlier]] = []

    def pairs(self) -> tuple[Numbers, Numbers]:
        """Nodes left, right of a spanning forest of what is near."""
        history, count = self._history, self._segment.texts
        column = whole(self._segment.read("texts")["text"])
        texts = Texts(column)
        self._meet(texts, np.flatnonzero(pc.greater_equal(pc.utf8_length(column), NEARLY_EMPTY).to_numpy(False)))
        old = np.unique(np.concatenate([np.empty(0, np.int64), *(earlier.members for _, _, earlier in self._met)]))
        if len(old):
            texts = Texts(pa.chunked_array([column, history.index.take_texts(old)]))
        forest = Forest(count + len(old))
        _, first, inverse = np.unique(history.components.roots(old), return_index=True, return_inverse=True)
        forest.parent[count:] = count + first[inverse]
        for name, part, earlier in self._met:
            known = Earlier(earlier.keys, earlier.starts, count + np.searchsorted(old, earlier.members))
            ordered = self._segment.entries(name, part)
            if name == "deletions":
                link_edits(ordered, known, texts, forest)
            else:
                link_near(ordered, known, texts, self._threshold, forest)
        nodes = np.append(history.index.nodes + np.arange(count), old)
        return nodes[forest.left[: forest.found]], nodes[forest.right[: forest.found]]

    def _meet(self, texts: Texts, entered: Numbers) -> None:
        keys = band_keys(texts)
        for band in range(BANDS):
            ordered = band_entries(keys, band, entered)
            earlier = self._join("bands", band, ordered)
            self._join("finer", band, finer_entries(ordered, earlier, keys, band))
        for part, ordered in enumerate(deletion_entries(texts)):
            self._join("deletions", part, ordered)

    def _join(self, name: str, part: int, ordered: Entries) -> Earlier:
        self._segment.add(name, ordered)
        of_all: Iterable[tuple[Entries, int]] = self._history.index.entries(name, None if name == "deletions" else part)
        earlier = join(ordered, of_all, REPRESENTATIVES)
        self._met.append((name, part, earlier))
        return earlier
