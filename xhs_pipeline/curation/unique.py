"""unique_posts as a function over folders: weeks folded into the index, groups decided, and the weeks' parts written.

    posts/<week>.parquet        the kept posts of the week (UNIQUE_POSTS); pandas.read_parquet("posts") reads all
    set_aside/<week>.parquet    its posts in label_conflicts, in full, for an appeal to bring back; only where there are any
    removed.parquet, label_conflicts.parquet
    index/<week>/...            segments (index.py); index/state.json, decisions.arrow and founders.arrow are of all weeks

What a published version before this one has the same is linked from it and not written again.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, Built, CheckOutcome, write_json
from xhs_pipeline.curation.duplicates import CONFLICT, KEPT, Decisions, decide
from xhs_pipeline.curation.index import FORMAT, Index, Numbers, Segment
from xhs_pipeline.curation.previous import Founders, Previous, Result
from xhs_pipeline.posts.schema import UNIQUE_POSTS, TableWriter

if TYPE_CHECKING:
    from xhs_pipeline.curation.fold import History

THRESHOLD = 0.8
BATCH_ROWS = 64
FOLDERS = {"posts": KEPT, "set_aside": CONFLICT}
Log = Callable[[str], None]


def write_unique(
    weeks: Mapping[str, Artifact],
    work: Path,
    trusted_sources: Sequence[str],
    previous: Artifact | None = None,
    log: Log = print,
) -> Built:
    """Remove duplicates over all weeks (week -> its clean_posts) into `work`; `trusted_sources`, the most trusted first.

    `previous` is a published unique_posts that spares work and changes nothing: its segments of the weeks that both have from
    the start are taken over where they are sound, and later weeks are folded. Memory holds some 60 bytes of numbers for a post,
    the texts of one week, and one batch of images.
    """
    from xhs_pipeline.curation.fold import History  # numba

    names = sorted(weeks)
    settings = {"format": FORMAT, "threshold": THRESHOLD, "trusted_sources": list(trusted_sources)}
    said = [[name, weeks[name].content] for name in names]
    before = Previous(previous, settings, said, log)
    history = History()
    for name in names[: before.weeks]:
        before.link(f"index/{name}", work)
        history.append(Segment.load(work / "index" / name))
    _fold(history, weeks, names[before.weeks :], work, log)
    leaders = history.leaders()
    decisions = _decided(history, leaders, before, trusted_sources)
    result = Result(decisions, leaders, Founders.of(history.founder, leaders))
    written = _write_parts(history.index, weeks, result, before, work, log)
    pq.write_table(decisions.removed(history.index), work / "removed.parquet", compression="zstd")
    conflicts = decisions.conflicts(history.index, leaders)
    pq.write_table(conflicts, work / "label_conflicts.parquet", compression="zstd")
    result.save(work / "index")
    write_json(work / "index" / "state.json", settings | {"weeks": said})
    return _built(weeks, result, conflicts.num_rows, written, before, work)


def _fold(history: "History", weeks: Mapping[str, Artifact], names: list[str], work: Path, log: Log) -> None:
    sizes = [pq.read_metadata(weeks[name].file("posts.parquet")).num_rows for name in names]
    started, done = time.monotonic(), 0
    for number, (name, size) in enumerate(zip(names, sizes, strict=True), len(weeks) - len(names) + 1):
        history.fold(weeks[name].file("posts.parquet"), work / "index" / name, THRESHOLD)
        done += size
        rate = max(1, done) / (time.monotonic() - started)
        log(
            f"unique_posts: week {number}/{len(weeks)} ({name}), {done}/{sum(sizes)} new posts compared, {rate:.0f} posts/s, "
            f"{(sum(sizes) - done) / rate:.0f} s left"
        )


def _decided(history: "History", leaders: Numbers, before: Previous, trusted_sources: Sequence[str]) -> Decisions:
    """Decide every group, or, where all of the previous version still holds, those that a new week touched."""
    decisions = Decisions.undecided(history.first)
    alone = np.flatnonzero(leaders >= 0)
    sizes = np.bincount(leaders[alone], minlength=len(leaders))
    chosen = sizes > 1
    known = before.settled
    if known:
        touched = np.zeros(len(leaders), np.bool_)
        new = leaders[known:]
        touched[new[new >= 0]] = True
        earlier = before.result.decisions
        stays = np.flatnonzero((leaders[:known] < 0) | ~touched[leaders[:known]])
        decisions.reason[stays], decisions.target[stays] = earlier.reason[stays], earlier.target[stays]
        decisions.similarity[stays] = earlier.similarity[stays]
        chosen &= touched
    places = alone[chosen[leaders[alone]]]
    places = places[np.argsort(leaders[places], kind="stable")]
    decide(decisions, places, leaders, history.text, history.index, trusted_sources, THRESHOLD)
    return decisions


def _write_parts(
    index: Index, weeks: Mapping[str, Artifact], result: Result, before: Previous, work: Path, log: Log
) -> int:
    """Write posts/ and set_aside/ week by week, or link what is as it was; returns how many files were written."""
    written, spoken = 0, time.monotonic()
    changed = before.changed_groups(result)
    for folder in FOLDERS:
        (work / folder).mkdir()
    for place, name in enumerate(sorted(weeks)):
        span = index.week(place)
        for folder, reason in FOLDERS.items():
            file, chosen = work / folder / f"{name}.parquet", np.flatnonzero(result.decisions.reason[span] == reason)
            if reason != KEPT and not len(chosen):
                continue
            same = place < before.weeks and before.same(result, span, reason, changed)
            if same and before.link(f"{folder}/{name}.parquet", work):
                continue
            with TableWriter(file, UNIQUE_POSTS) as table:
                for batch in _rows(weeks[name].file("posts.parquet"), chosen, span.start, index, result):
                    table.write(batch)
            written += 1
        if time.monotonic() - spoken > 10:
            log(f"unique_posts: {place + 1}/{len(weeks)} weeks' parts in place, {written} files written")
            spoken = time.monotonic()
    return written


def _rows(file: Path, chosen: Numbers, base: int, index: Index, result: Result) -> Iterator[pa.RecordBatch]:
    """Posts base + chosen of a week in the order of its file, with their group and its founders."""
    rows = index.take_posts(base + chosen, ["row"])["row"].to_numpy()
    order = np.argsort(rows)
    leaders = result.leaders[base + chosen[order]]
    groups = index.take_posts(leaders, ["post_id"])["post_id"].to_pylist()
    several = result.founders.names(leaders, index)
    founders = [several.get(leader) or [group] for leader, group in zip(leaders.tolist(), groups, strict=True)]
    source = pq.ParquetFile(file)
    wanted = np.zeros(source.metadata.num_rows, np.bool_)
    wanted[rows] = True
    place = done = 0
    for batch in source.iter_batches(batch_size=BATCH_ROWS):
        kept = wanted[place : place + batch.num_rows]
        place += batch.num_rows
        count = int(kept.sum())
        if count:
            taken = batch.filter(pa.array(kept))
            taken = taken.append_column("group_id", pa.array(groups[done : done + count], pa.string()))
            taken = taken.append_column("founders", pa.array(founders[done : done + count], pa.list_(pa.string())))
            yield taken.cast(UNIQUE_POSTS)
            done += count


def _built(
    weeks: Mapping[str, Artifact], result: Result, conflicts: int, written: int, before: Previous, work: Path
) -> Built:
    rows = sum(pq.read_metadata(artifact.file("posts.parquet")).num_rows for artifact in weeks.values())
    kept, aside = (sum(pq.read_metadata(f).num_rows for f in (work / name).glob("*.parquet")) for name in FOLDERS)
    removed = pq.read_metadata(work / "removed.parquet").num_rows
    counts: dict[str, Any] = {
        "rows_in": rows, "posts": kept, "removed": removed, "weeks": len(weeks), "label_conflicts": conflicts,
        "groups": len(np.unique(result.leaders[result.decisions.reason == KEPT])),
        "weeks_folded": len(weeks) - before.weeks, "files_written": written,
    }  # fmt: skip
    checks = [
        CheckOutcome("rows_accounted", rows == kept + removed, f"{rows} rows in = {kept} kept + {removed} removed"),
        CheckOutcome("conflicts_set_aside", conflicts == aside, f"{aside} of {conflicts} posts with contradicting labels set aside"),
    ]  # fmt: skip
    return Built(counts, checks, before.linked)
