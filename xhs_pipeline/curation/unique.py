"""unique_posts as a function over folders: weeks folded into the index, groups decided, and the weeks' parts written.

    posts/<week>-<part>.parquet      the kept posts (UNIQUE_POSTS); pandas.read_parquet("posts") reads all
    set_aside/<week>-<part>.parquet  the posts in label_conflicts, in full, for an appeal to bring back
    removed.parquet, label_conflicts.parquet
    index/<week>/...                 segments (index.py); index/state.json, decisions.arrow and founders.arrow are of all weeks

What a published version before this one has the same is linked from it and not written again.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, Built, CheckOutcome, write_json
from xhs_pipeline.curation.duplicates import KEPT, Decisions, decide
from xhs_pipeline.curation.index import FORMAT, Index, Numbers
from xhs_pipeline.curation.parts import PART_ROWS, Written, write_parts
from xhs_pipeline.curation.previous import Founders, Previous, Result

if TYPE_CHECKING:
    from xhs_pipeline.curation.fold import History

THRESHOLD = 0.8
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
    settings = {
        "format": FORMAT,
        "threshold": THRESHOLD,
        "part_rows": PART_ROWS,
        "trusted_sources": list(trusted_sources),
    }
    said = [[name, weeks[name].content] for name in names]
    before = Previous(previous, settings, said, log)
    history = History()
    history.load([before.link_segment(name, work) for name in names[: before.weeks]])
    _fold(history, weeks, names[before.weeks :], work, log)
    leaders = history.leaders()
    decisions = _decided(history, leaders, before, trusted_sources)
    result = Result(decisions, leaders, Founders.of(history.founder, leaders))
    written = write_parts(history.index, weeks, result, before, work, log)
    pq.write_table(decisions.removed(history.index), work / "removed.parquet", compression="zstd")
    conflicts = decisions.conflicts(history.index, leaders)
    pq.write_table(conflicts, work / "label_conflicts.parquet", compression="zstd")
    result.save(work / "index")
    write_json(work / "index" / "state.json", settings | {"weeks": said})
    return _built(weeks, history.index, result, conflicts.num_rows, written, before, work)


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


def _built(
    weeks: Mapping[str, Artifact],
    index: Index,
    result: Result,
    conflicts: int,
    written: Written,
    before: Previous,
    work: Path,
) -> Built:
    rows = sum(segment.posts for segment in index.segments[: before.weeks])  # counted in their files when they were new
    for name in sorted(weeks)[before.weeks :]:
        rows += pq.read_metadata(weeks[name].file("posts.parquet")).num_rows
    removed = pq.read_metadata(work / "removed.parquet").num_rows
    kept, aside = written.rows["posts"], written.rows["set_aside"]
    counts: dict[str, Any] = {
        "rows_in": rows, "posts": kept, "removed": removed, "weeks": len(weeks), "label_conflicts": conflicts,
        "groups": int(np.count_nonzero(np.bincount(result.leaders[result.decisions.reason == KEPT]))),
        "categories": _categories(index, result), "weeks_folded": len(weeks) - before.weeks, "files_written": written.files,
    }  # fmt: skip
    checks = [
        CheckOutcome("rows_accounted", rows == kept + removed, f"{rows} rows in = {kept} kept + {removed} removed"),
        CheckOutcome("conflicts_set_aside", conflicts == aside, f"{aside} of {conflicts} posts with contradicting labels set aside"),
    ]  # fmt: skip
    return Built(counts, checks, before.linked)


def _categories(index: Index, result: Result) -> dict[str, int]:
    """How many posts are kept of each category."""
    counted: Counter[str] = Counter()
    for place, segment in enumerate(index.segments):
        kept = pa.array(result.decisions.reason[index.week(place)] == KEPT)
        for entry in pc.value_counts(segment.read("posts")["category"].filter(kept)):
            counted[entry["values"].as_py()] += entry["counts"].as_py()
    return dict(counted)
