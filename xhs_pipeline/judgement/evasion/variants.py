"""Test posts written otherwise, as the pipeline in use would put them before a model: disguised, with a photo more, or turned round.

Which posts these are, and what the model then reads. Judges nothing and counts nothing.
"""

import functools
import heapq
import io
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.clean import CleanSettings
from xhs_pipeline.curation.identifiers import mask
from xhs_pipeline.curation.images import clean_image
from xhs_pipeline.curation.text import normalise
from xhs_pipeline.judgement.evasion.transforms import CHINESE_NAMES, Disguised, disguise
from xhs_pipeline.judgement.judge import Post
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import open_parquet
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import unit_hash

UNRELATED_PHOTO, IMAGE_ORDER = "unrelated_photo", "image_order"
PHOTOS = 32  # harmless photos held in memory, of which every post gets one
ROWS_AT_ONCE = 64  # a row group of the splits
COLUMNS = (
    "post_id", "group_id", "week", "title", "body", "verdict", "category", "label_source", "images", "images_left_out", "ocr_text",
    "qr_codes",
)  # fmt: skip


@dataclass(frozen=True)
class Sampled:
    """A test post that is rewritten; `violating` by its label."""

    post_id: str
    group_id: str
    violating: bool


@dataclass(frozen=True)
class Photo:
    """A clean JPEG and the group of the post that it stands in."""

    post_id: str
    group_id: str
    data: bytes


def choose(test: Path | pa.Table, policy: Policy, seed: int, most: int) -> list[Sampled]:
    """At most `most` violating and as many harmless posts of the test split (SHAREGPT rows), sorted by id.

    Every category, with and without images apart, gives its share, rounded up. Within one of these strata a post's place is a
    hash of its id, so a test split that grows keeps most of its sample. Reads no image.
    """
    strata: dict[tuple[bool, str, bool], list[tuple[float, str, str]]] = defaultdict(list)
    for post_id, group_id, category, pictured in _light(test):
        place = unit_hash("evasion", seed, post_id)
        strata[category != policy.normal_category, category, pictured].append((place, post_id, group_id))
    chosen = []
    for side in (True, False):
        ranked = [
            (rank / len(posts), *post)
            for (violating, *_), posts in strata.items()
            if violating == side
            for rank, post in enumerate(sorted(posts))
        ]
        chosen += [Sampled(post_id, group, side) for *_, post_id, group in heapq.nsmallest(most, ranked)]
    return sorted(chosen, key=lambda post: post.post_id)


def read_rows(test: Path | pa.Table, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """COLUMNS of the posts named in `wanted`, in the order of `test`; memory holds ROWS_AT_ONCE rows with their images."""
    ids = pa.array(sorted(wanted), pa.string())
    for batch in _batches(test):
        yield from batch.filter(pc.is_in(batch["post_id"], value_set=ids)).to_pylist()


def harmless_photos(test: Path | pa.Table, policy: Policy, seed: int) -> list[Photo]:
    """The first images of PHOTOS harmless posts that have some, chosen by a hash of their ids; of fewer when there are no more."""
    pictured = (post for post, _, category, pictured in _light(test) if pictured and category == policy.normal_category)
    wanted = heapq.nsmallest(PHOTOS, pictured, key=lambda post: unit_hash("photo", seed, post))
    rows = read_rows(test, wanted) if wanted else iter(())
    return [Photo(row["post_id"], row["group_id"], row["images"][0]["bytes"]) for row in rows]


def _read(jpeg: bytes) -> ocr.ImageText | None:
    try:
        return ocr.read(jpeg)
    except ocr.ReadingFailed:
        return None  # as in cleaning: the post is judged without the text in it


# every photo goes to many posts, and reading one takes half a second
_read_photo = functools.lru_cache(maxsize=PHOTOS + 1)(_read)


@dataclass(frozen=True)
class Variants:
    """How a post is rewritten for a model of `profile`: every name of CHINESE_NAMES, `unrelated_photo` and `image_order`.

    A rewritten post goes the way that a new post goes: its text is normalised and de-identified again, so that what cleaning
    undoes is undone; a new image is cleaned with the settings of cleaning, and read where the profile reads images. What was
    not rewritten is already clean, and cleaning a clean text or JPEG leaves it as it is.

    The accounts behind placeholders such as <微信号> are not known here: a placeholder is left as it is, also where the words
    around it are disguised, and is drawn as it stands in a rendered image. So disguises of the accounts themselves are not measured.
    """

    profile: Profile
    seed: int
    photos: Sequence[Photo]

    def of(self, name: str, row: dict[str, Any], stored: Post) -> Post | None:
        """The post of `row`, which is `stored`, under one of the names; None where there is nothing to rewrite.

        Equal to `stored` where cleaning undoes all of it. Raises FontMissing as `evasion.disguise` does.
        """
        if name in CHINESE_NAMES:
            return self._disguised(name, stored)
        if name == UNRELATED_PHOTO:
            return self._with_photo(row["group_id"], stored)
        return self._turned(stored) if not row["images_left_out"] else None

    def _disguised(self, name: str, stored: Post) -> Post | None:
        hidden = disguise(name, stored.post_id, Disguised(stored.title, stored.body, stored.images), self.seed)
        if hidden is None:
            return None
        title, body = (mask(normalise(text))[0] for text in (hidden.title, hidden.body))
        added = hidden.images[: len(hidden.images) - len(stored.images)]
        return self._with_images(replace(stored, title=title, body=body), added, first=True)

    def _with_photo(self, group_id: str, stored: Post) -> Post | None:
        """The photo of a post of another group, which one by a hash of both ids; a plain gradient where there is none."""
        if len(stored.images) >= self.profile.max_images:
            return None
        others = (photo for photo in self.photos if photo.group_id != group_id)
        photo = min(others, key=lambda p: unit_hash("photo", self.seed, p.post_id, stored.post_id), default=None)
        return self._with_images(stored, (photo.data if photo else gradient(),), first=False, read=_read_photo)

    def _turned(self, stored: Post) -> Post | None:
        """The images in reverse order. With images left out the reverse order would show others, so such posts stay as they are."""
        images = stored.images[::-1]
        if images == stored.images:
            return None
        turned = replace(stored, images=images)
        return replace(turned, **_read_again(list(map(_read, images)))) if self.profile.ocr else turned

    def _with_images(
        self,
        post: Post,
        added: tuple[bytes, ...],
        first: bool,
        read: Callable[[bytes], ocr.ImageText | None] = _read,
    ) -> Post:
        """`post` with images before or after its own; what stood in its own need not be read again."""
        if not added:
            return post
        clean = tuple(clean_image(data, CleanSettings().images).data for data in added)
        images = (*clean, *post.images) if first else (*post.images, *clean)
        if not self.profile.ocr:
            return replace(post, images=images)
        known = ocr.ImageText(post.ocr_text or "", post.qr_codes or 0)
        found = list(map(read, clean))
        return replace(post, images=images, **_read_again([*found, known] if first else [known, *found]))


def _read_again(texts: Sequence[ocr.ImageText | None]) -> dict[str, Any]:
    found = ocr.merge(texts)
    return {"ocr_text": found.text or None, "qr_codes": found.qr_codes}


@functools.cache
def gradient() -> bytes:
    """A plain grey gradient as a JPEG, 256 x 256."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).convert("RGB").save(out, "JPEG", quality=85)
    return out.getvalue()


def _light(test: Path | pa.Table) -> Iterator[tuple[str, str, str, bool]]:
    """post_id, group_id, category and whether there are images, of every row."""
    names = ["post_id", "group_id", "category"]
    if isinstance(test, Path):
        table = open_parquet(test).read(columns=[*names, "images.list.element.path"])
    else:
        table = test.select([*names, "images"])
    pictured = [bool(n) for n in pc.list_value_length(table["images"]).to_pylist()]
    yield from zip(*(table[name].to_pylist() for name in names), pictured, strict=True)


def _batches(test: Path | pa.Table) -> Iterator[pa.RecordBatch]:
    if isinstance(test, Path):
        yield from open_parquet(test).iter_batches(batch_size=ROWS_AT_ONCE, columns=list(COLUMNS))
    else:
        yield from test.select(list(COLUMNS)).to_batches(max_chunksize=ROWS_AT_ONCE)
