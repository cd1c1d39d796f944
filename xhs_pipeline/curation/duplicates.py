"""What to do about posts that say the same: which one of them stays, and which labels contradict each other. Writes nothing.

Two relations, on purpose different:
- a GROUP holds posts whose texts are equal or near, whatever their images: they must stay in one split.
- a DUPLICATE SET holds posts of a group whose images agree as well: only here is one kept and the rest removed, since under
  the same text it may be the image that decides.
An equal image alone joins nothing, or every user of one stock photo would end up in one group; it counts only where the
texts are too short (under 4 characters) to say anything.

Weeks arrive one at a time (fold.py), and what they find is kept in an index (index.py), a segment a week:
- Whom a text is compared with depends on its place in a bucket alone, never on what is already connected, and weeks are always
  folded in calendar order. So a week costs what is in it, and gives exactly what all weeks at once give.
- group_id is the post_id of the group's oldest post. When a later post connects two groups, the younger one takes the older
  one's id.
- A post's FOUNDER is the group_id that it had in its first week, and it stays. A group has the founders of all its members, and
  its split goes by all of them (splits/grouping.py): as weeks arrive, a group that touched test stays there, whatever it grows
  into.
- Which post is kept depends on the group's posts alone, not on how they came together, so it is decided anew only in groups
  that a new week touched.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.curation.groups import CANDIDATES, Post, SimilarTexts, image_keys, images_agree, parse_images
from xhs_pipeline.curation.index import Index, Numbers
from xhs_pipeline.posts.schema import REMOVED

# set_id: the best post of the duplicate set whose labels contradict each other.
LABEL_CONFLICTS = pa.schema(
    [(name, pa.string()) for name in ("post_id", "group_id", "set_id", "verdict", "category", "label_source")]
)

KEPT, EXACT, NEAR, REPEATED, CONFLICT = range(5)
REASONS = pa.array([None, "exact_duplicate", "near_duplicate", "repeated_post_id", "label_conflict"])
NO_IMAGE = -1
# Posts that are turned into objects at a time.
POSTS_AT_ONCE = 8192


@dataclass(frozen=True)
class Decisions:
    """Of every post, by number: why it is not kept (KEPT: it is), the post that stands for it, and how alike the two are.

    target (int64): itself where kept; under CONFLICT the best post of its duplicate set. similarity (float32) is nan where there
    is none.
    """

    reason: npt.NDArray[np.uint8]
    target: Numbers
    similarity: npt.NDArray[np.float32]

    @classmethod
    def undecided(cls, first: Numbers) -> "Decisions":
        """Every post kept but repeated ids; `first` as index.POSTS has it."""
        repeated = first != np.arange(len(first))
        reason = np.where(repeated, REPEATED, KEPT).astype(np.uint8)
        return cls(reason, first.copy(), np.full(len(first), np.nan, np.float32))

    def removed(self, index: Index) -> pa.Table:
        """Every post that is not kept (REMOVED), oldest first; kept_post_id is null for label conflicts."""
        gone = np.flatnonzero(self.reason != KEPT)
        reason, similarity = self.reason[gone], self.similarity[gone]
        ids = [index.take_posts(numbers, ["post_id"])["post_id"] for numbers in (gone, self.target[gone])]
        kept = pc.if_else(pa.array(reason == CONFLICT), pa.scalar(None, pa.string()), ids[1])
        similar = pa.array(similarity, mask=np.isnan(similarity))
        labels = index.take_posts(gone, ["verdict", "category", "label_source"]).columns
        columns = [ids[0], kept, REASONS.take(pa.array(reason)), similar, *labels]
        return pa.table(columns, REMOVED.names).cast(REMOVED)

    def conflicts(self, index: Index, leaders: Numbers) -> pa.Table:
        """The posts whose labels contradict each other (LABEL_CONFLICTS), oldest first."""
        found = np.flatnonzero(self.reason == CONFLICT)
        posts = index.take_posts(found, ["post_id", "verdict", "category", "label_source"])
        for name, numbers in (("group_id", leaders[found]), ("set_id", self.target[found])):
            posts = posts.append_column(name, index.take_posts(numbers, ["post_id"])["post_id"])
        return posts.select(LABEL_CONFLICTS.names).cast(LABEL_CONFLICTS)


def decide(
    decisions: Decisions,
    places: Numbers,
    leaders: Numbers,
    texts: Numbers,
    index: Index,
    trusted_sources: Sequence[str],
    threshold: float,
) -> None:
    """Decide the groups whose posts are `places` (sorted by group, then age) and write the outcome into `decisions`.

    `leaders` and `texts` give the group and the text node of every post. A duplicate set keeps its best post (most complete,
    then label from the most trusted source, then oldest). If its labels differ, the label of the most trusted source wins;
    without a trusted one, or when that source contradicts itself, the whole set is removed as label_conflict. A post with
    images is never the duplicate of one without.
    """
    ends = np.append(np.flatnonzero(np.diff(leaders[places])) + 1, len(places)) if len(places) else places
    start = 0
    for end, following in zip(ends, [*ends[1:], None][: len(ends)], strict=True):
        if following is None or following - start > POSTS_AT_ONCE:
            batch = places[start:end]
            nodes = np.unique(texts[batch])
            similar = SimilarTexts(nodes, index.take_texts(nodes), threshold)
            posts = _posts(batch, texts, index, trusted_sources)
            for group in np.split(np.arange(len(batch)), np.flatnonzero(np.diff(leaders[batch])) + 1):
                for members in _duplicate_sets(posts[group[0] : group[-1] + 1], similar):
                    _decide(members, similar, len(trusted_sources), decisions)
            start = end


def _posts(places: Numbers, texts: Numbers, index: Index, trusted_sources: Sequence[str]) -> list[Post]:
    names = ["text_length", "length", "reasoned", "post_id", "hashes", "verdict", "category", "label_source"]
    table = index.take_posts(places, names)
    rank = {source: place for place, source in enumerate(trusted_sources)}
    posts = []
    for age, text, letters, size, has_reason, post_id, hashes, verdict, category, source in zip(
        places.tolist(), texts[places].tolist(), *(table[name].to_pylist() for name in names), strict=True
    ):
        images = parse_images(hashes)
        completeness = (len(images), int(has_reason), size)
        trust = rank.get(source, len(rank))
        posts.append(Post(age, post_id, text, letters, images, completeness, (verdict, category), trust))
    return posts


def _duplicate_sets(group: list[Post], similar: SimilarTexts) -> Iterator[list[Post]]:
    """Sets of two or more posts, the best first, each of which has near text and agreeing images with the best."""
    equal: dict[tuple[int, tuple[int, ...]], list[Post]] = defaultdict(list)
    for post in sorted(group, key=Post.preference):
        equal[post.text, post.images].append(post)
    leaders: dict[int, list[int]] = defaultdict(list)
    sets: list[list[Post]] = []
    for posts in equal.values():
        best = posts[0]
        keys = image_keys(best.images) or [NO_IMAGE]
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


def _decide(members: list[Post], similar: SimilarTexts, untrusted: int, decisions: Decisions) -> None:
    """One duplicate set, best post first."""
    kept = members[0]
    if len({post.label for post in members}) > 1:
        most = min(post.trust for post in members)
        trusted = sorted((post for post in members if post.trust == most), key=Post.preference)
        if most == untrusted or len({post.label for post in trusted}) > 1:
            for post in members:
                decisions.reason[post.age], decisions.target[post.age] = CONFLICT, kept.age
            return
        kept = trusted[0]
    for post in members:
        if post is not kept:
            same = post.text == kept.text and post.images == kept.images
            decisions.reason[post.age], decisions.target[post.age] = (EXACT if same else NEAR), kept.age
            decisions.similarity[post.age] = similar.similarity(post, kept)
