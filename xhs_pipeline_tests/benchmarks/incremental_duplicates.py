"""unique_posts week by week: what one more week costs, against comparing all weeks at once.

    python -m xhs_pipeline_tests.benchmarks.incremental_duplicates [--weeks 20] [--posts 25000] [--contradictions 0.0] [--repeats 3]

The posts are those of near_duplicates.py, dealt out in order: a post may be an edit of any earlier one of any week. They have
no images. `--contradictions` is the share of edits that carry another label than the post they were made from: each takes its
duplicates out of the part of an earlier week, which is then written again. Every version is built in a process of its own, as
a step is: CPU seconds and peak resident memory (which counts mapped pages) of the whole process after its imports and the
loading of the compiled kernels. The last columns build the same weeks from nothing; it is checked that both give the same files.

The second table repeats single weeks in turn, so that a busy machine slows all of them: medians, and the ratio to week 2.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xhs_pipeline_tests.benchmarks import near_duplicates
from xhs_pipeline_tests.benchmarks.near_duplicates import ONE_THREAD, make_corpus

MONDAY = datetime(2026, 2, 16, tzinfo=UTC)
OTHER = {"verdict": "remove", "category": "诈骗"}


def write_weeks(corpus: Path, folder: Path, weeks: int, posts: int, contradictions: float, seed: int) -> None:
    """clean_posts of every week, without images, once."""
    from xhs_pipeline.posts.schema import CLEAN_POSTS, write_table

    texts = near_duplicates.engines.read_texts(corpus / "texts.arrow")
    base_of = dict(np.load(corpus / "planted.npy")[:, ::-1].tolist())
    random = np.random.default_rng(seed)
    labels = np.zeros(weeks * posts, np.int8)
    for number in range(weeks * posts):
        labels[number] = labels[base_of.get(number, number)] ^ (random.random() < contradictions)
    for week in range(weeks):
        file = folder / name_of(week) / "posts.parquet"
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = range(week * posts, (week + 1) * posts)
        batches = (
            pa.RecordBatch.from_pylist([_post(n, texts[n].as_py(), bool(labels[n]), week, posts) for n in rows[at : at + 4096]], CLEAN_POSTS)
            for at in range(0, posts, 4096)
        )  # fmt: skip
        write_table(file, CLEAN_POSTS, batches)


def name_of(week: int) -> str:
    return (MONDAY + timedelta(weeks=week)).date().isoformat()


def _post(number: int, text: str, other: bool, week: int, posts: int) -> dict[str, Any]:
    at = MONDAY + timedelta(weeks=week) + timedelta(weeks=1) * (number % posts / posts)
    label = OTHER if other else {"verdict": "pass", "category": "正常"}
    return {
        "post_id": f"post-{number:010}", "title": text[:12], "body": text[12:], "match_text": text, "images": [],
        "image_hashes": [], "identifiers": [], "created_at": at, "week": name_of(week), "label_source": "source",
    } | label  # fmt: skip


def build(weeks: Path, store: Path, count: int, previous: Path | None) -> dict[str, Any]:
    """One version of the first `count` weeks, after the version in folder `previous`, in this process; figures for main()."""
    from xhs_pipeline.artifacts import Artifact, ArtifactStore
    from xhs_pipeline.curation import fold  # noqa: F401
    from xhs_pipeline.curation.minhash import near_duplicate_pairs
    from xhs_pipeline.curation.short_texts import short_text_pairs
    from xhs_pipeline.curation.unique import write_unique

    for find in (near_duplicate_pairs, short_text_pairs):
        find(["load the compiled kernels"] * 2)
    names = [name_of(week) for week in range(count)]
    clean = {name: Artifact("clean_posts", weeks / name, {"content": name}) for name in names}
    earlier = ArtifactStore(previous.parents[1]).get("unique_posts", previous.name) if previous else None
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    made = ArtifactStore(store).build(
        "unique_posts", lambda work: write_unique(clean, work, ["appeal"], earlier, lambda line: None),
        inputs={name: name for name in names}, settings={}, code_version="1", log=lambda line: None,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_SELF)
    counts = made.manifest["counts"]
    return {
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": time.monotonic() - started,
        "peak_mb": _peak_mb(),
        "content": made.content,
        "folder": str(made.path),
        "index_mb": sum(f["bytes"] for n, f in made.manifest["files"].items() if n.startswith("index/")) / 2**20,
        **{name: counts[name] for name in ("posts", "removed", "label_conflicts", "files_written")},
    }


def _peak_mb() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 2**10


def child(weeks: Path, store: Path, count: int, previous: Path | None = None) -> dict[str, Any]:
    arguments = [str(weeks), str(store), str(count), str(previous or "")]
    command = [sys.executable, "-m", "xhs_pipeline_tests.benchmarks.incremental_duplicates", "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_THREAD)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def paired(clean: Path, stores: Path, folders: list[Path], repeats: int) -> list[str]:
    """Week 2 and later ones built again on what came before them, in turn."""
    size = len(folders)
    places = sorted({2, size // 4, size // 2, size} - {0, 1})
    taken: dict[int, list[float]] = {count: [] for count in places}
    for _ in range(repeats):
        for count in places:
            with tempfile.TemporaryDirectory(dir=stores) as store:
                taken[count].append(child(clean, Path(store), count, folders[count - 2])["cpu_s"])
    ratios = {c: statistics.median(t / two for t, two in zip(taken[c], taken[2], strict=True)) for c in places}
    rows = [f"| {count} | {statistics.median(taken[count]):.2f} | {ratios[count]:.2f}x |" for count in places]
    return ["| week | CPU s | of week 2 |", "|---|---|---|", *rows]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--weeks", type=int, default=20)
    options.add_argument("--posts", type=int, default=25_000, help="posts of a week")
    options.add_argument("--contradictions", type=float, default=0.0)
    options.add_argument("--again", type=int, nargs="*", help="weeks after which all is also built from nothing")
    options.add_argument("--seed", type=int, default=20260216)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "incremental_duplicates")
    options.add_argument("--repeats", type=int, default=3, help="of the second table; 0 leaves it out")
    options.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        clean, store, count, previous = chosen.child
        print(json.dumps(build(Path(clean), Path(store), int(count), Path(previous) if previous else None)))
        return
    size = chosen.weeks * chosen.posts
    folder = chosen.work / f"{chosen.weeks}x{chosen.posts}-{chosen.contradictions}-{chosen.seed}"
    write_weeks(make_corpus(chosen.work, size, chosen.seed), folder / "clean", chosen.weeks, chosen.posts, chosen.contradictions, chosen.seed)  # fmt: skip
    again = {chosen.weeks} if chosen.again is None else set(chosen.again)
    print("| week | CPU s | wall s | peak MB | index MB | files written | removed | from nothing: CPU s | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=folder) as stores:
        folders: list[Path] = []
        for count in range(1, chosen.weeks + 1):
            one = child(folder / "clean", Path(stores) / "steps", count, folders[-1] if folders else None)
            folders.append(Path(one["folder"]))
            row = [count, f"{one['cpu_s']:.2f}", f"{one['wall_s']:.2f}", one["peak_mb"], f"{one['index_mb']:.0f}", one["files_written"], one["removed"]]  # fmt: skip
            if count in again:
                other = child(folder / "clean", Path(stores) / f"again-{count}", count)
                assert other["content"] == one["content"], "week by week and all at once gave different files"
                row += [f"{other['cpu_s']:.2f}", other["peak_mb"]]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
        if chosen.repeats:
            print("\n" + "\n".join(paired(folder / "clean", Path(stores), folders, chosen.repeats)))


if __name__ == "__main__":
    main()
