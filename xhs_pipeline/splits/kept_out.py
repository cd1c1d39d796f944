"""What the golden set means for the splits of today: which groups may never be trained on, and whom a golden post stands for.

Freezes nothing (golden.py does). unique_posts may have lost a golden post by now, found it to be another's duplicate, or have
regrouped it; it stays golden, and what is alike to it stays out of training.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import CheckOutcome
from xhs_pipeline.curation.unique import THRESHOLD
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE
from xhs_pipeline.splits.golden import LEARNT_FROM

_COMPARED = [
    "post_id", "title", "body", "match_text", "image_hashes", "created_at", "verdict", "category", "rationale", "label_source",
]  # fmt: skip
_HELD = ["post_id", "group_id", "founders", "match_text", "image_hashes", "ocr_text", "qr_codes"]


@dataclass(frozen=True)
class Golden:
    """The golden posts as the splits take them.

    posts: by post_id, what stands in the splits in place of the snapshot's columns: group_id and founders of today, and the text
    in its images where only later weeks read images. stands_for: of every post in a golden post's set of duplicates the golden
    post (of itself too), which takes their place and the outcomes of their appeals. groups: the group_ids of today that touch a
    golden post. kin: ids of golden posts and of the founders that their groups have had.
    """

    file: Path | None = None
    posts: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    stands_for: Mapping[str, str] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()
    kin: frozenset[str] = frozenset()


def read_golden(file: Path | None, files: Sequence[Path], set_of: Mapping[str, str]) -> Golden:
    """The golden posts of `file` (golden.parquet; None: there are none) beside those of unique_posts.

    files: its posts and the posts it set aside. set_of: of every post that repeats another one its best duplicate. Images are
    not read. Where unique_posts does not hold a golden post with the text that was frozen, its groups do not know that text: it
    is compared with all posts, as the posts of a week are.
    """
    if file is None:
        return Golden()
    golden = pq.read_table(file, columns=[*_COMPARED, *(name for name in _HELD if name not in _COMPARED)])
    frozen = {row["post_id"]: row for row in golden.select(_HELD).to_pylist()}
    stands_for = _stands_for(frozen, set_of)
    kin = frozenset({*frozen, *(founder for row in frozen.values() for founder in row["founders"])})
    groups: set[str] = set()
    today: dict[str, dict[str, Any]] = {}
    for rows in (pq.read_table(part, columns=_HELD) for part in files):
        for row in rows.select(["post_id", "group_id", "founders"]).to_pylist():
            if row["post_id"] in stands_for or not kin.isdisjoint(row["founders"]):
                groups.add(row["group_id"])
        today |= {row["post_id"]: row for row in rows.filter(_is_one_of(rows, stands_for)).to_pylist()}
    held = {post_id: row["match_text"] for post_id, row in today.items()}
    strayed = [post_id for post_id, row in frozen.items() if held.get(post_id) != row["match_text"]]
    if strayed and files:
        groups |= _groups_near(golden.filter(_is_one_of(golden, strayed)), files, frozen)
    posts = {}
    for post_id, row in frozen.items():
        now = today.get(post_id) or today.get(set_of.get(post_id, ""), row)
        posts[post_id] = {"group_id": now["group_id"], "founders": sorted({*row["founders"], *now["founders"]})}
        if row["qr_codes"] is None and now["post_id"] == post_id and now["image_hashes"] == row["image_hashes"]:
            posts[post_id] |= {"ocr_text": now["ocr_text"], "qr_codes": now["qr_codes"]}
    return Golden(file, posts, stands_for, frozenset(groups), kin)


def _is_one_of(posts: pa.Table, post_ids: Collection[str]) -> pa.ChunkedArray:
    return pc.is_in(posts["post_id"], value_set=pa.array(list(post_ids), pa.string()))


def _stands_for(golden: Collection[str], set_of: Mapping[str, str]) -> dict[str, str]:
    """Of two golden posts that turn out to be duplicates both stay; the first stands for the others of their set."""
    first: dict[str, str] = {}
    for post_id in golden:
        first.setdefault(set_of.get(post_id, post_id), post_id)
    others = {post_id: first[best] for post_id, best in set_of.items() if best in first}
    return others | first | {post_id: post_id for post_id in golden}


def _groups_near(golden: pa.Table, files: Sequence[Path], frozen: Collection[str]) -> set[str]:
    """The group_ids of posts that would share a group with one of these golden posts, had it arrived before them."""
    from xhs_pipeline.curation.fold import History  # numba

    posts = pa.concat_tables([pq.read_table(file, columns=[*_COMPARED, "group_id"]) for file in files])
    posts = posts.filter(pc.invert(_is_one_of(posts, frozen)))
    with tempfile.TemporaryDirectory() as name:
        history = History()
        for week, table in (("golden", golden.select(_COMPARED)), ("today", posts)):
            pq.write_table(table, Path(name) / f"{week}.parquet")
            history.fold(Path(name) / f"{week}.parquet", Path(name) / week, THRESHOLD)
        oldest = history.leaders()[golden.num_rows :]
        rows = history.index.segments[1].read("posts")["row"].to_numpy()[(oldest >= 0) & (oldest < golden.num_rows)]
        return set(posts["group_id"].take(np.sort(rows)).to_pylist())


def beyond_policy(golden: Golden, light: Sequence[Mapping[str, Any]], policy: Policy) -> pa.RecordBatch:
    """QUARANTINE rows of the golden posts whose label, frozen under an older policy, this one does not know any more."""
    rows = [
        {
            "post_id": row["post_id"],
            "stage": "sharegpt_splits",
            "reason": "golden_label_not_in_policy",
            "detail": f"frozen as {row['verdict']}, {row['category']}; not judged, and still never trained on",
        }
        for row in light
        if row["post_id"] in golden.posts and not policy.allows(row["verdict"], row["category"])
    ]
    return pa.RecordBatch.from_pylist(rows, schema=QUARANTINE)


def check_never_trained(work: Path, golden: Golden, left_out: int) -> CheckOutcome:
    """Read the splits back: golden posts, their duplicates and their groups are in test alone, every golden post once."""
    strays = 0
    for name in LEARNT_FROM:
        for row in pq.read_table(
            work / f"{name}.parquet", columns=["post_id", "group_id", "founders", "golden"]
        ).to_pylist():
            related = row["post_id"] in golden.stands_for or row["group_id"] in golden.groups
            strays += row["golden"] or related or not golden.kin.isdisjoint(row["founders"])
    tests = pq.read_table(work / "test.parquet", columns=["post_id", "golden"])
    judged = tests.filter(tests["golden"])["post_id"].to_pylist()
    complete = len(judged) == len(set(judged)) == len(golden.posts) - left_out and set(judged) <= set(golden.posts)
    return CheckOutcome(
        "golden_never_trained",
        strays == 0 and complete,
        f"{len(judged)} of {len(golden.posts)} golden posts in test ({left_out} have a label that the policy does not know any "
        f"more); {strays} posts of theirs in other splits",
        {"golden_posts": len(judged)},
    )
