"""Which outcomes can be trained on with the posts that there are: those about a post that exists and is as it was judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.appeals.outcomes import follow_duplicates
from xhs_pipeline.appeals.records import IMAGES_GROUP, TEXT_GROUP, text_group
from xhs_pipeline.posts.schema import kept_posts, unique_files


@dataclass(frozen=True)
class Evidence:
    """The outcomes that a model can be trained on, and how many name posts that are not there, or were edited since."""

    outcomes: pa.Table
    missing: int
    edited: int


def as_judged(outcomes: pa.Table, match_texts: Mapping[str, str | None]) -> pa.Table:
    """Without the outcomes about posts whose text is another one now than when it was judged: their label would not fit it.

    `match_texts` by post_id; outcomes about posts that are not in it stay, and so do those that no snapshot says the content of.
    """
    keep = []
    for post_id, group in zip(outcomes["post_id"].to_pylist(), outcomes["group_id"].to_pylist(), strict=True):
        text, judged = match_texts.get(post_id) or "", group or ""
        edited = (
            text_group(text) != judged if judged.startswith(TEXT_GROUP) else judged.startswith(IMAGES_GROUP) and text
        )
        keep.append(post_id not in match_texts or not edited)
    return outcomes.filter(pa.array(keep, pa.bool_()))


def evidence(outcomes: pa.Table, unique: Path) -> Evidence:
    """What of the outcomes can be trained on with the posts in the folder of unique_posts. Reads no image.

    Outcomes about copies of one post are one, on the post that was kept for them.
    """
    files = unique_files(unique)
    fitting = as_judged(outcomes, match_texts(files, outcomes["post_id"]))
    followed = follow_duplicates(fitting, kept_posts(unique))
    there = set(match_texts(files, followed["post_id"]))
    known = pa.array([post_id in there for post_id in followed["post_id"].to_pylist()], pa.bool_())
    trainable = followed.filter(known)
    return Evidence(trainable, followed.num_rows - trainable.num_rows, outcomes.num_rows - fitting.num_rows)


def match_texts(files: list[Path], post_ids: pa.ChunkedArray) -> dict[str, str | None]:
    """The matching form of those of these posts that are in the files of unique_posts."""
    found: dict[str, str | None] = {}
    named = pc.field("post_id").isin(pa.array(post_ids.to_pylist(), pa.string()))
    for file in files:
        posts = pq.read_table(file, columns=["post_id", "match_text"], filters=named)
        found |= dict(zip(posts["post_id"].to_pylist(), posts["match_text"].to_pylist(), strict=True))
    return found
