"""The posts of unique_posts in many small files, so that a post which changes sides has only its neighbours written again.

A part holds what stays of some consecutive row groups of a week's clean posts, about PART_ROWS rows. Among 25,000 new posts there
are one or two hundred that change what is kept of earlier weeks, anywhere in them (benchmarks/incremental_duplicates.md): with
one file a week every week would be written again every time, images and all. Smaller parts are more files to link.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact
from xhs_pipeline.curation.duplicates import CONFLICT, KEPT
from xhs_pipeline.curation.index import Index, Numbers
from xhs_pipeline.curation.previous import Previous, Result
from xhs_pipeline.posts.schema import UNIQUE_POSTS, TableWriter, open_parquet

PART_ROWS = 128
BATCH_ROWS = 64
FOLDERS = {"posts": KEPT, "set_aside": CONFLICT}
SAY_EVERY_SECONDS = 10.0


@dataclass
class Written:
    """Files written, and rows of each folder: counted in the files written, and when they were written in those linked."""

    files: int
    rows: dict[str, int]


def part_groups(metadata: pq.FileMetaData) -> list[list[int]]:
    """The row groups of each part of a week's clean posts, and so which rows it may hold."""
    parts: list[list[int]] = [[]]
    rows = 0
    for group in range(metadata.num_row_groups):
        if rows >= PART_ROWS:
            parts.append([])
            rows = 0
        parts[-1].append(group)
        rows += metadata.row_group(group).num_rows
    return parts


def part_starts(file: Path) -> list[int]:
    """The first row of each part of a week's clean posts."""
    metadata = pq.read_metadata(file)
    sizes = [sum(metadata.row_group(group).num_rows for group in groups) for groups in part_groups(metadata)]
    return [0, *np.cumsum(sizes[:-1]).tolist()]


def write_parts(
    index: Index,
    weeks: Mapping[str, Artifact],
    result: Result,
    before: Previous,
    work: Path,
    log: Callable[[str], None],
) -> Written:
    """Write posts/ and set_aside/ week by week, or link what is as it was."""
    written, spoken = Written(0, dict.fromkeys(FOLDERS, 0)), time.monotonic()
    for folder in FOLDERS:
        (work / folder).mkdir()
    for place, name in enumerate(sorted(weeks)):
        week = _Week(name, weeks[name].file("posts.parquet"), index, place, result)
        for folder, reason in FOLDERS.items():
            chosen = result.decisions.reason[index.week(place)] == reason
            stale = before.changed(result, index.week(place), reason) if place < before.weeks else chosen
            parts, sizes = np.unique(week.part[chosen], return_counts=True)
            dirty = set(week.part[stale].tolist())
            files = {part: f"{folder}/{name}-{part:04}.parquet" for part in parts.tolist()}
            fresh = [part for part, file in files.items() if part in dirty or not before.link(file, work)]
            week.write(fresh, chosen, [work / files[part] for part in fresh])
            linked = ~np.isin(parts, fresh)
            written.files += len(fresh)
            written.rows[folder] += int(sizes[linked].sum())
            written.rows[folder] += sum(pq.read_metadata(work / files[part]).num_rows for part in fresh)
        if time.monotonic() - spoken > SAY_EVERY_SECONDS:
            log(
                f"unique_posts: the posts of {place + 1}/{len(weeks)} weeks are in place, {written.files} files written"
            )
            spoken = time.monotonic()
    return written


class _Week:
    """One week's posts in order of arrival: `row` in its clean posts, and the `part` that the row falls into."""

    def __init__(self, name: str, file: Path, index: Index, place: int, result: Result) -> None:
        self._file, self._index, self._result = file, index, result
        self._span = index.week(place)
        self._starts = index.segments[place].part_starts
        self.row: Numbers = index.segments[place].read("posts")["row"].to_numpy()
        self.part: Numbers = np.searchsorted(self._starts, self.row, side="right") - 1

    def write(self, parts: list[int], chosen: npt.NDArray[np.bool_], files: list[Path]) -> None:
        """Write the chosen posts of these parts, each part into its file."""
        if not parts:
            return
        places = np.flatnonzero(chosen & np.isin(self.part, parts))
        places = places[np.argsort(self.row[places])]
        leaders = self._result.leaders[self._span][places]
        groups = self._index.take_posts(leaders, ["post_id"])["post_id"].to_pylist()
        several = self._result.founders.names(leaders, self._index)
        founders = [several.get(leader) or [group] for leader, group in zip(leaders.tolist(), groups, strict=True)]
        added = pa.table([groups, founders], pa.schema([UNIQUE_POSTS.field(name) for name in ("group_id", "founders")]))
        source = open_parquet(self._file)
        groups_of, cuts = part_groups(source.metadata), np.searchsorted(self.part[places], [*parts, parts[-1] + 1])
        for part, file, start, end in zip(parts, files, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            rows = self.row[places[start:end]] - self._starts[part]
            with TableWriter(file, UNIQUE_POSTS) as table:
                for batch in _rows(source, groups_of[part], rows, added[start:end]):
                    table.write(batch)


def _rows(source: pq.ParquetFile, groups: list[int], rows: Numbers, added: pa.Table) -> Iterator[pa.RecordBatch]:
    """These rows (ascending) of some row groups, with columns added to them."""
    wanted = np.zeros(sum(source.metadata.row_group(group).num_rows for group in groups), np.bool_)
    wanted[rows] = True
    place = done = 0
    for batch in source.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, use_threads=False):
        kept = wanted[place : place + batch.num_rows]
        place += batch.num_rows
        if kept.any():
            taken = pa.table(batch.filter(pa.array(kept)))
            for name in added.column_names:
                taken = taken.append_column(name, added[name][done : done + taken.num_rows])
            done += taken.num_rows
            yield from taken.cast(UNIQUE_POSTS).combine_chunks().to_batches()
