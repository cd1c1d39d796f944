"""Parquet with embedded JPEGs: what TableWriter writes a second of one core, and how long one random image takes, warm.

    python -m xhs_pipeline_tests.benchmarks.parquet_images --repeats 5

The peer is pyarrow.parquet.write_table with its defaults (snappy, dictionaries, a million rows a group), and the same with our
row groups; further lines vary one setting of ours each. Runs are paired: every repeat writes each file once, in turn, to the
folder given (a memory file system by default, so that it is the program that is measured and not the disk). GB/s are of
CPU time, user and system, by one thread, over the bytes of the Arrow table. One random image is read as a trainer would:
open file, row group found by number, its images column alone, one value; the median of 60 (6 where groups are huge). CLEAN_POSTS rows, one picture each.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.posts.schema import CLEAN_POSTS, TableWriter
from xhs_pipeline_tests.benchmarks.clean_posts import jpeg, picture

DISTINCT = 64


def make_batches(megabytes: int, seed: int) -> list[pa.RecordBatch]:
    """Batches of 64 cleaned posts, each with a JPEG of 1024 x 768."""
    generator = np.random.default_rng(seed)
    pictures = [jpeg(picture(generator, (1024, 768))) for _ in range(DISTINCT)]
    batches, size, number = [], 0, 0
    while size < megabytes * 10**6:
        rows = []
        for _ in range(64):
            number += 1
            rows.append({
                "post_id": f"p{number:07}", "title": f"标题{number}", "body": "今天在老码头散步，拍了几张照片，回家路上买了花" * 4,
                "images": [{"bytes": pictures[number % DISTINCT], "path": f"p{number:07}_0.jpg"}], "week": "2026-02-16",
                "created_at": datetime(2026, 2, 17, tzinfo=UTC), "verdict": "pass", "category": "正常", "severity": 0,
                "label_source": "source", "author_hash": f"{number:032x}", "schema_version": 1,
                "match_text": "今天在老码头散步拍了几张照片回家路上买了花" * 4, "image_hashes": [f"{number:016x}"], "identifiers": [],
            })  # fmt: skip
        batches.append(pa.RecordBatch.from_pylist(rows, CLEAN_POSTS))
        size += batches[-1].nbytes
    return batches


def ours(**options: int) -> Callable[[list[pa.RecordBatch], Path], None]:
    def write(batches: list[pa.RecordBatch], file: Path) -> None:
        with TableWriter(file, CLEAN_POSTS, **options) as table:
            for batch in batches:
                table.write(batch)

    return write


def defaults(batches: list[pa.RecordBatch], file: Path) -> None:
    pq.write_table(pa.Table.from_batches(batches), file)


def defaults_in_groups(batches: list[pa.RecordBatch], file: Path) -> None:
    pq.write_table(pa.Table.from_batches(batches), file, row_group_size=32)


WRITERS = {
    "ours: 64 rows or 4 MB a group": ours(),
    "64 rows a group, however large": ours(bytes_per_group=2**40),
    "8 MB a group": ours(bytes_per_group=8 * 2**20),
    "4,000 rows a group": ours(rows_per_group=4000, bytes_per_group=2**40),
    "pyarrow's defaults": defaults,
    "pyarrow's defaults, 32 rows a group": defaults_in_groups,
}


def cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def read(file: Path) -> None:
    for _ in pq.ParquetFile(file).iter_batches(batch_size=64, use_threads=False):
        pass


def one_image_ms(file: Path) -> tuple[float, float]:
    """Median milliseconds for one image: CPU, wall."""
    source = pq.ParquetFile(file)
    starts = [0, *np.cumsum([source.metadata.row_group(g).num_rows for g in range(source.num_row_groups)]).tolist()]
    chosen = random.Random(3)
    picks = 60 if source.num_row_groups > 9 else 6  # a group of hundreds of megabytes takes its time
    taken = []
    for row in (chosen.randrange(starts[-1]) for _ in range(picks)):
        before = time.process_time(), time.perf_counter()
        group = int(np.searchsorted(starts, row, "right")) - 1
        images = source.read_row_group(group, columns=["images"], use_threads=False)["images"]
        data = images[row - starts[group]][0]["bytes"].as_buffer()
        taken.append([(time.process_time() - before[0]) * 1000, (time.perf_counter() - before[1]) * 1000])
        assert data.size > 1000
    cpu_ms, wall_ms = np.median(taken, axis=0).tolist()
    return cpu_ms, wall_ms


def lines(batches: list[pa.RecordBatch], folder: Path, repeats: int) -> Iterator[str]:
    size = sum(batch.nbytes for batch in batches)
    yield f"{size / 1e6:.0f} MB, {sum(batch.num_rows for batch in batches)} rows\n"
    yield "| settings | GB/s written | ours is | GB/s read | one image, CPU ms | wall ms | file MB |\n|---|---|---|---|---|---|---|"
    file = folder / "posts.parquet"
    written: dict[str, list[float]] = {name: [] for name in WRITERS}
    reads: dict[str, list[float]] = {name: [] for name in WRITERS}
    single: dict[str, list[tuple[float, float]]] = {name: [] for name in WRITERS}
    sizes = {}
    for _ in range(repeats):
        for name, write in WRITERS.items():
            written[name].append(cpu(lambda write=write: write(batches, file)))
            reads[name].append(cpu(lambda: read(file)))
            single[name].append(one_image_ms(file))
            sizes[name] = file.stat().st_size / 1e6
            file.unlink()
    first = next(iter(WRITERS))
    for name in WRITERS:
        ratio = statistics.median(other / mine for other, mine in zip(written[name], written[first], strict=True))
        yield (
            f"| {name} | {size / statistics.median(written[name]) / 1e9:.2f} | {ratio:.2f}x "
            f"| {size / statistics.median(reads[name]) / 1e9:.2f} | {' | '.join(f'{ms:.2f}' for ms in np.median(single[name], axis=0))} | {sizes[name]:.0f} |"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=379)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--seed", type=int, default=20260216)
    options.add_argument("--folder", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    chosen = options.parse_args()
    pa.set_cpu_count(1)
    batches = make_batches(chosen.megabytes, chosen.seed)
    with tempfile.TemporaryDirectory(prefix="parquet-images-", dir=chosen.folder) as name:
        for line in lines(batches, Path(name), chosen.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
