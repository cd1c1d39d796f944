"""Which outcomes can be trained on with the posts that there are: those about a post that exists and is as it was judged."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.appeals.outcomes import follow_duplicates
from xhs_pipeline.appeals.records import Content, is_known
from xhs_pipeline.posts.schema import kept_posts, open_parquet, rows_of, unique_files


@dataclass(frozen=True)
class Evidence:
    """The outcomes that a model can be trained on, and how many name posts that are not there, or were edited since."""

    outcomes: pa.Table
    missing: int
    edited: int


def as_judged(
    outcomes: pa.Table,
    contents: Mapping[str, Content],
    stands_for: Mapping[str, str] | None = None,
    max_images: int | None = None,
) -> pa.Table:
    """Without the outcomes about another content than that of the post which they would label: nobody judged that one.

    The post is the outcome's own, or the one that `stands_for` gives for it, a removed duplicate's kept post. Outcomes on posts
    that are not in `contents` stay, and so do those that no snapshot says the content of. max_images: how many images of a post
    a model is shown; later ones need not have been judged. None: all of them.
    """
    keep = []
    for post_id, group in zip(outcomes["post_id"].to_pylist(), outcomes["group_id"].to_pylist(), strict=True):
        content = contents.get((stands_for or {}).get(post_id, post_id))
        keep.append(content is None or not is_known(group) or content.is_what_was_judged(group, max_images))
    return outcomes.filter(pa.array(keep, pa.bool_()))


def evidence(outcomes: pa.Table, unique: Path, max_images: int | None = None) -> Evidence:
    """What of the outcomes can be trained on with the posts in the folder of unique_posts. See as_judged for `max_images`.

    Outcomes about copies of one post are one, on the post that was kept for them.
    """
    files, kept_for = unique_files(unique), kept_posts(unique)
    there = contents(files, landing(outcomes, kept_for))
    fitting = as_judged(outcomes, there, kept_for, max_images)
    followed = follow_duplicates(fitting, kept_for)
    known = pa.array([post_id in there for post_id in followed["post_id"].to_pylist()], pa.bool_())
    trainable = followed.filter(known)
    return Evidence(trainable, followed.num_rows - trainable.num_rows, outcomes.num_rows - fitting.num_rows)


def landing(outcomes: pa.Table, stands_for: Mapping[str, str]) -> set[str]:
    """The posts that the outcomes are about, and those that stand for them."""
    named = set(outcomes["post_id"].to_pylist())
    return named | {stands_for.get(post_id, post_id) for post_id in named}


def contents(files: Sequence[Path], post_ids: Iterable[str]) -> dict[str, Content]:
    """What those of these posts say and show that are in the files of unique_posts. Reads the images of no other row groups."""
    wanted, found = pa.array(sorted(post_ids), pa.string()), dict[str, Content]()
    for file in files:
        posts = open_parquet(file).read(columns=["post_id", "match_text", "images.list.element.path"])
        for row in posts.filter(pc.is_in(posts["post_id"], value_set=wanted)).to_pylist():
            found[row["post_id"]] = Content(row["match_text"] or "", ("",) * len(row["images"] or ()))
    illustrated = [post_id for post_id, content in found.items() if content.images]
    for table in rows_of(files, illustrated, ["post_id", "images"]):
        for post_id, images in zip(table["post_id"].to_pylist(), table["images"], strict=True):
            shown = tuple(hashlib.sha256(image["bytes"].as_buffer()).hexdigest() for image in images)
            found[post_id] = Content(found[post_id].match_text, shown)
    return found
