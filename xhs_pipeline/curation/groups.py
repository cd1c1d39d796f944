"""What the decisions about duplicates need to know: posts as objects, when their texts are near, when their images agree.

Only a post in a group of two or more that is decided anew becomes an object. Which posts form a group is fold.py's matter, what
to do about a group duplicates.py's.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from xhs_pipeline.curation.images import MAX_HAMMING

NEARLY_EMPTY = 4
# More than MAX_HAMMING, so that hashes as near as that share at least one piece.
CHUNKS = 8
# A post is compared with at most this many kept ones per image chunk, which keeps a group of n linear in n.
CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Post:
    """What the decisions need to know of one post; `age` is its number, from oldest to newest.

    text: the node of its text. trust: rank of its label's source, 0 the most trusted; the untrusted share the last.
    """

    age: int
    post_id: str
    text: int
    text_length: int
    images: tuple[int, ...]
    completeness: tuple[int, int, int]
    label: tuple[str, str]
    trust: int

    def preference(self) -> tuple[Any, ...]:
        """Sorts the best post first: most complete (images, rationale, length), most trusted label, oldest."""
        return (*(-part for part in self.completeness), self.trust, self.age)


class SimilarTexts:
    """Nearness of the texts of posts that are decided together. numba is imported here, when there is something to compare.

    `nodes` (sorted) are the nodes whose texts `texts` holds.
    """

    def __init__(self, nodes: "np.ndarray[Any, Any]", texts: pa.LargeStringArray, threshold: float) -> None:
        from xhs_pipeline.curation.grams import Texts
        from xhs_pipeline.curation.short_texts import edit_similarity

        self.threshold = threshold
        self._place = {node: place for place, node in enumerate(nodes.tolist())}
        self._texts = Texts(texts)
        self._edit_similarity = edit_similarity
        self._known: dict[tuple[int, int], float] = {}

    def similarity(self, a: Post, b: Post) -> float:
        """1 for equal texts and for two nearly empty ones; one edit of the same sense in a short text by its length; else
        exact Jaccard.
        """
        nearly_empty = a.text_length < NEARLY_EMPTY, b.text_length < NEARLY_EMPTY
        if a.text == b.text or all(nearly_empty):
            return 1.0
        if any(nearly_empty):
            return 0.0
        left, right = sorted((self._place[a.text], self._place[b.text]))
        if (left, right) not in self._known:
            exact = self._texts.jaccard(np.array([left]), np.array([right]))
            self._known[left, right] = max(self._edit_similarity(self._texts, left, right), float(exact[0]))
        return self._known[left, right]

    def are_near(self, a: Post, b: Post) -> bool:
        return self.similarity(a, b) >= self.threshold


def parse_images(hashes: str) -> tuple[int, ...]:
    """Perceptual hashes (hex, joined by spaces) as numbers; a leading 1 bit tells hashes of different lengths apart."""
    return tuple(sorted(int(f"1{value}", 16) for value in hashes.split()))


def image_keys(images: Sequence[int]) -> list[int]:
    """32-bit keys of the images' numbered pieces: hashes that differ in fewer than CHUNKS bits share at least one."""
    keys: dict[int, None] = {}
    for image in images:
        bits = image.bit_length() - 1
        for part in range(CHUNKS):
            start, end = part * bits // CHUNKS, (part + 1) * bits // CHUNKS
            piece = image >> start & (1 << (end - start)) - 1
            keys[zlib.crc32(f"{bits} {part} {piece:x}".encode())] = None
    return list(keys)


def _close(a: int, b: int) -> bool:
    return a.bit_length() == b.bit_length() and (a ^ b).bit_count() <= MAX_HAMMING


def have_common_image(a: Sequence[int], b: Sequence[int]) -> bool:
    return any(_close(x, y) for x in a for y in b)


def images_agree(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether every image of the post with fewer images is also in the other; a post without images agrees only with another."""
    if not a or not b:
        return not a and not b
    few, many = sorted((a, b), key=len)
    return all(any(_close(x, y) for y in many) for x in few)
