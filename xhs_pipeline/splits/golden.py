"""The golden set: posts that are frozen once, content and label, and that every later model is judged on.

golden.parquet of a version holds every row of the version before it, in order, and after them the posts that were enrolled.
Nothing is ever taken away or frozen anew. What the set keeps out of training is kept_out.py's matter.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, CheckOutcome, digest, file_digest
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import UNIQUE_POSTS, open_parquet, rows_of, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import split_of, unit_hash

KEY, FILE = "golden_set", "golden.parquet"
# frozen_at: the newest week of unique_posts when the post was enrolled.
GOLDEN = pa.schema([*UNIQUE_POSTS, pa.field("frozen_at", pa.string())])
LEARNT_FROM = ("train", "validation", "calibration")
_LIGHT = ["post_id", "group_id", "founders", "category", "images.list.element.path"]


def newest(store: ArtifactStore) -> Artifact | None:
    """The version that the next one continues, byte for byte what was published, or None where there never was one.

    Raises ValueError when there was one and it cannot be found or is damaged: a set that is frozen anew is another set.
    """
    folder = store.folder(KEY)
    if not (folder / "latest.json").is_file():
        splits = store.latest("sharegpt_splits")
        named = splits.manifest["lineage"].get(KEY) if splits else None
        if named or store.has_been_published(KEY):
            raise ValueError(
                f"{folder / 'latest.json'}: missing, though a golden set was frozen here; expected "
                f'{{"version": "{named or "<the folder with the most posts>"}"}}. {_REMEDY}'
            )
        return None
    try:
        found = store.latest(KEY)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{folder / 'latest.json'}: names no version that can be read ({problem}). {_REMEDY}"
        ) from problem
    assert found is not None
    require_sound(found)
    return found


_REMEDY = (
    "It is never frozen anew: restore the folder from a backup. To give the set up on purpose, move golden_set away and remove "
    "latest.json of sharegpt_splits"
)


def require_sound(artifact: Artifact) -> None:
    """Raise ValueError unless golden.parquet is, to the last byte, what was published. Reads all of it."""
    file, said = artifact.file(FILE), artifact.manifest["files"][FILE]["sha256"]
    found = file_digest(file) if file.is_file() else "no file"
    if found != said:
        older = artifact.manifest["lineage"].get(KEY)
        back = f", or remove this version's folder and let latest.json name the one before it, {older}" if older else ""
        raise ValueError(
            f"{file}: not the golden set that was published (SHA-256 {found[:16]}, expected {said[:16]}). Golden posts are "
            f"never edited: restore the file from a backup{back}"
        )


@dataclass(frozen=True)
class Plan:
    """The next version: the one that it continues, the post_ids that it adds, and what the store is to know it by."""

    unique: Path
    previous: Artifact | None
    enrolled: list[str]
    inputs: dict[str, str]
    settings: dict[str, Any]

    def write(self, work: Path) -> Built:
        return write_golden(self.unique, self.previous.file(FILE) if self.previous else None, self.enrolled, work)


def plan(store: ArtifactStore, unique: Artifact, issues: Artifact, policy: Policy, profile: Profile) -> Plan:
    """What to publish next, which is what is there where nothing is to be added. Hold `store.alone(KEY)` until it is published.

    unique, issues: unique_posts and label_issues. Raises ValueError as `newest` does.
    """
    previous = newest(store)
    splits = sorted(path.parent for path in store.folder("sharegpt_splits").glob("*/manifest.json"))
    before = previous.file(FILE) if previous else None
    enrolled = enrol(unique.path, issues.file("label_issues.parquet"), before, splits, policy, profile)
    if previous and not enrolled:
        return Plan(unique.path, previous, enrolled, previous.manifest["inputs"], previous.manifest["settings"])
    inputs = {"unique_posts": unique.content, "label_issues": issues.content, "enrolled": digest(enrolled)}
    inputs[KEY] = previous.content if previous else "none"
    return Plan(unique.path, previous, enrolled, inputs, {"per_category": policy.golden["per_category"]})


def enrol(
    unique: Path, issues_file: Path, previous: Path | None, splits: Sequence[Path], policy: Policy, profile: Profile
) -> list[str]:
    """The post_ids to freeze now, sorted, beside those in `previous` (golden.parquet).

    Of every category policy.golden["per_category"] posts with and as many without images, the first by a hash that no setting
    changes, one of a duplicate group: from the groups that the profile puts into test, without those that a model may have
    learned from (train, validation or calibration of the folders `splits`) and without suspected labels (`issues_file`).
    unique: the folder of unique_posts, of which the posts set aside are not looked at. Images are not read.
    """
    frozen = _light([previous] if previous else [])
    room = Counter(
        {(c, pictured): policy.golden["per_category"] for c in policy.category_names for pictured in (True, False)}
    )
    room.subtract(_stratum(row) for row in frozen)
    taken = {name for row in frozen for name in _names(row)}
    suspected = set(pq.read_table(issues_file, columns=["post_id"])["post_id"].to_pylist())
    candidates = [
        row
        for row in _light(sorted((unique / "posts").glob("*.parquet")))
        if room[_stratum(row)] > 0
        and row["post_id"] not in suspected
        and taken.isdisjoint(_names(row))
        and split_of(row["founders"], profile) == "test"
    ]
    learnt = _learnt_from(splits) if candidates else set()
    chosen = []
    for row in sorted(candidates, key=lambda row: unit_hash("golden", row["post_id"])):
        if room[_stratum(row)] > 0 and taken.isdisjoint(_names(row)) and learnt.isdisjoint(_names(row)):
            room[_stratum(row)] -= 1
            taken.update(_names(row))
            chosen.append(row["post_id"])
    return sorted(chosen)


def write_golden(unique: Path, previous: Path | None, enrolled: Sequence[str], work: Path) -> Built:
    """Write golden.parquet: all of `previous`, then the enrolled posts in the order of unique_posts. Streams the images."""
    files = sorted((unique / "posts").glob("*.parquet"))
    week = max((pc.max(pq.read_table(file, columns=["week"])["week"]).as_py() or "" for file in files), default="")

    def batches() -> Iterator[pa.RecordBatch]:
        if previous:
            yield from open_parquet(previous).iter_batches(batch_size=64)
        for rows in rows_of(files, enrolled):
            yield from rows.append_column("frozen_at", pa.array([week] * rows.num_rows, pa.string())).to_batches()

    rows = write_table(work / FILE, GOLDEN, batches())
    before = pq.read_metadata(previous).num_rows if previous else 0
    counts: dict[str, Any] = {"posts": rows, "frozen_before": before, "enrolled": len(enrolled)}
    return Built(counts, _check(work / FILE, previous, before, enrolled))


def category_table(file: Path) -> list[tuple[str, int, int, int]]:
    """Of every category in golden.parquet: posts with images, without, and how many of both the newest week brought."""
    posts, weeks = _light([file]), pq.read_table(file, columns=["frozen_at"])["frozen_at"].to_pylist()
    strata = Counter(map(_stratum, posts))
    new = Counter(post["category"] for post, week in zip(posts, weeks, strict=True) if week == max(weeks))
    return [(name, strata[name, True], strata[name, False], new[name]) for name in sorted({name for name, _ in strata})]


def _check(file: Path, previous: Path | None, before: int, enrolled: Sequence[str]) -> list[CheckOutcome]:
    """Read the file back, images too, beside the one that it continues."""
    ids = pq.read_table(file, columns=["post_id"])["post_id"].to_pylist()
    now, same = _row_by_row(file), 0
    for row in _row_by_row(previous) if previous else ():
        same += row.equals(next(now, None))
    found, twice = len(ids), len(ids) - len(set(ids))
    accounted = not twice and sorted(ids[before:]) == list(enrolled)
    return [
        CheckOutcome("nothing_changed", same == before, f"{same} of {before} posts frozen before stand there unchanged"),
        CheckOutcome("rows_accounted", accounted, f"{found} posts = {before} frozen before + {len(enrolled)} enrolled, {twice} twice"),
    ]  # fmt: skip


def _row_by_row(file: Path) -> Iterator[pa.RecordBatch]:
    for batch in open_parquet(file).iter_batches(batch_size=64):
        yield from (batch.slice(place, 1) for place in range(batch.num_rows))


def _light(files: Sequence[Path]) -> list[dict[str, Any]]:
    return [row for file in files for row in open_parquet(file).read(columns=_LIGHT).to_pylist()]


def _stratum(row: dict[str, Any]) -> tuple[str, bool]:
    return row["category"], bool(row["images"])


def _names(row: dict[str, Any]) -> set[str]:
    """What tells that two posts have to do with each other: their ids, and those of their groups then and now."""
    return {row["post_id"], row["group_id"], *row["founders"]}


def _learnt_from(splits: Sequence[Path]) -> set[str]:
    """The names of all posts that models trained on these folders may know."""
    learnt: set[str] = set()
    for file in (folder / f"{name}.parquet" for folder in splits for name in LEARNT_FROM):
        if file.is_file():  # an older version may have been thinned out by hand
            there = [name for name in ("post_id", "group_id", "founders") if name in pq.read_schema(file).names]
            for column in pq.read_table(file, columns=there).columns:  # the oldest versions know no founders
                learnt.update((pc.list_flatten(column) if pa.types.is_list(column.type) else column).to_pylist())
    return learnt
