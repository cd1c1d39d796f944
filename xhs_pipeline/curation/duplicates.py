"""Which posts say the same, which one of them stays, and which labels contradict each other. Pure over Arrow; writes nothing.

Two relations, on purpose different:
- a GROUP holds posts whose texts are equal or near, whatever their images: they must stay in one split.
- a DUPLICATE SET holds posts of a group whose images agree as well: only here is one kept and the rest removed, since under
  the same text it may be the image that decides.
An equal image alone joins nothing, or every user of one stock photo would end up in one group; it counts only where the
texts are too short (under 4 characters) to say anything.

Not built yet: weeks one at a time, and groups that never change sides. All weeks are compared anew, and a group takes the id of
its oldest post, so when a later post connects two groups, the younger one changes its id and may leave the test split. What is
decided, so that it can be built without changing results:
- The index is an artefact of its own, a segment a week that is never rewritten: the week's distinct texts (Arrow, mapped), of
  every band the entries (key << 32 | text) in order, and post_id, week and founder. write_unique stays a function of weeks and
  index; the index of week N is made from that of week N - 1 and week N.
- Texts are numbered as they arrive, and whom a member of a bucket is compared with depends on its place in the bucket alone
  (minhash.REPRESENTATIVES), so merging a week's sorted entries into each band and comparing only its members gives the
  pairs that all weeks at once give. Weeks are always folded in, from an empty index too: one code path, equal by construction.
- founder = the group_id that a post had in its first week, and it stays. A group has the founders of its members; a split
  goes by all of them, and test wins over calibration, validation and train in that order. So nothing leaves test; it can gain.
- Which post is kept is decided anew only in groups that the week touched.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xhs_pipeline.curation.groups import (
    CANDIDATES,
    TRUSTED_SOURCE,
    Aged,
    Post,
    SimilarTexts,
    image_chunks,
    images_agree,
)
from xhs_pipeline.posts.schema import REMOVED

LABEL_CONFLICTS = pa.schema(
    [(name, pa.string()) for name in ("post_id", "group_id", "verdict", "category", "label_source")]
)
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


def find_duplicates(posts: pa.Table, threshold: float = 0.8) -> Duplicates:
    """Group, compare and choose over CLEAN_POSTS columns (images need not be loaded). `threshold` is a Jaccard similarity.

    A duplicate set keeps its best post (most complete, then label from an appeal, then oldest). If its labels differ, the label
    of the trusted source wins; without one, or when trusted labels differ too, the whole set is removed as label_conflict.
    A post_id seen before (in an earlier week) is removed as repeated_post_id. A post with images is never the duplicate of
    one without. group_id is the post_id of the group's oldest post, a post alone is its own group. The result does not depend
    on the order of the rows.
    """
    aged = Aged(posts)
    similar = SimilarTexts(aged.texts, threshold)
    leaders = aged.leaders(similar)
    again = np.flatnonzero(~aged.is_first)
    repeated = aged.table.select(["post_id", "verdict", "category", "label_source"]).take(again).to_pylist()
    removed = [
        (place, {**row, "kept_post_id": row["post_id"], "reason": "repeated_post_id", "similarity": None})
        for place, row in zip(again.tolist(), repeated, strict=True)
    ]
    conflicts: list[tuple[int, dict[str, Any]]] = []
    for group in aged.groups(leaders):
        for members in _duplicate_sets(group, similar):
            records, contradicting = _decide(members, similar)
            removed += records
            conflicts += [(post.age, _conflict(post, group[0].post_id)) for post in contradicting]
    kept = np.ones(len(aged), np.bool_)
    kept[aged.rows[[place for place, _ in removed]]] = False
    group_ids = aged.ids.take(leaders).take(np.argsort(aged.rows))
    return Duplicates(kept, group_ids, _by_age(removed, REMOVED), _by_age(conflicts, LABEL_CONFLICTS))


def _by_age(records: list[tuple[int, dict[str, Any]]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([record for _, record in sorted(records, key=lambda pair: pair[0])], schema=schema)


def _duplicate_sets(group: list[Post], similar: SimilarTexts) -> Iterator[list[Post]]:
    """Sets of two or more posts, the best first, each of which has near text and agreeing images with the best."""
    equal: dict[tuple[int, tuple[int, ...]], list[Post]] = defaultdict(list)
    for post in sorted(group, key=Post.preference):
        equal[post.text, post.images].append(post)
    leaders: dict[tuple[int, int], list[int]] = defaultdict(list)
    sets: list[list[Post]] = []
    for posts in equal.values():
        best = posts[0]
        keys = [chunk for image in best.images for chunk in image_chunks(image)] or [NO_IMAGE]
        candidates = dict.fromkeys(place for key in keys for place in leaders.get(key, ()))
        for place in candidates:
            if images_agree(best.images, sets[place][0].images) and similar.are_near(best, sets[place][0]):
                sets[place] += posts
                break
        else:
            for key in keys:
                if len(leaders[key]) < CANDIDATES:
                    leaders[key].append(len(sets))
            sets.append(list(posts))
    yield from (members for members in sets if len(members) > 1)


def _decide(members: list[Post], similar: SimilarTexts) -> tuple[list[tuple[int, dict[str, Any]]], list[Post]]:
    """Removal records of a duplicate set, best post first, and its posts again if their labels contradict each other."""
    kept = members[0]
    if len({post.label for post in members}) > 1:
        trusted = sorted((post for post in members if post.source == TRUSTED_SOURCE), key=Post.preference)
        if len({post.label for post in trusted}) != 1:
            return [(post.age, _removal(post, None, "label_conflict", None)) for post in members], members
        kept = trusted[0]
    records = []
    for post in members:
        if post is kept:
            continue
        same = post.text == kept.text and post.images == kept.images
        reason = "exact_duplicate" if same else "near_duplicate"
        records.append((post.age, _removal(post, kept.post_id, reason, similar.similarity(post, kept))))
    return records, []


def _removal(post: Post, kept_post_id: str | None, reason: str, similarity: float | None) -> dict[str, Any]:
    verdict, category = post.label
    return {
        "post_id": post.post_id,
        "kept_post_id": kept_post_id,
        "reason": reason,
        "similarity": similarity,
        "verdict": verdict,
        "category": category,
        "label_source": post.source,
    }


def _conflict(post: Post, group_id: str) -> dict[str, Any]:
    verdict, category = post.label
    return {
        "post_id": post.post_id,
        "group_id": group_id,
        "verdict": verdict,
        "category": category,
        "label_source": post.source,
    }
