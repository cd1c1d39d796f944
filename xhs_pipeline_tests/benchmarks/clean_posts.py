"""clean_posts on 10,000 posts with 8,000 images of 1280 x 960: processes, memory, and where the time goes.

    python -m xhs_pipeline_tests.benchmarks.clean_posts --repeats 3

Runs are paired: every repeat cleans the same week with one process and with two, each run in a program of its own, and the
ratio is the median of the ratios within a repeat. Wall time is of write_clean, CPU of its whole tree of processes, memory the
largest sum of proportional set sizes over that tree, seen every 0.2 s. The parts are measured by calling each step alone, in
one process, on the same rows (on the first --part-posts of them, scaled); the whole divided by their sum says what the rest
(starting, pipes, Arrow to Python and back, waiting) costs. Texts are the sample's, pictures made from a seed: gradients, soft
shapes and sensor-like noise, 64 different ones, about 300 KB each.

--largest times clean_image on the largest pictures that the limits admit, with the memory each takes on top of the program.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from xhs_pipeline.curation import clean, pool_worker, stages
from xhs_pipeline.curation.images import clean_image
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import CLEAN_POSTS, RAW_POSTS, TableWriter
from xhs_pipeline.posts.sources import load_source, read_week

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
SIZE = (1280, 960)
PICTURES = 64
WEEK = "2026-02-16"


def picture(random: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    """Something with the statistics of a photograph: soft shapes at several scales, and a little noise."""
    width, height = size
    whole = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((4, 110), (16, 60), (64, 30), (320, 12)):
        grid = random.integers(0, 255, (max(2, cells * height // width), cells, 3), dtype=np.uint8)
        whole += np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC), np.float32) * (weight / 212)
    whole += random.normal(0, 3, (height, width, 1)).astype(np.float32)
    return Image.fromarray(whole.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def make_week(file: Path, posts: int, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pictures = [jpeg(picture(random)) for _ in range(PICTURES)]
    source, policy = load_source(SAMPLE / "source.yaml"), load_policy()
    texts = [
        (row["title"], row["body"])
        for batch, _ in read_week(source, WEEK, policy, b"only for a benchmark")
        for row in batch.select(["title", "body"]).to_pylist()
    ]
    start = datetime.fromisoformat(WEEK).replace(tzinfo=UTC)
    with TableWriter(file, RAW_POSTS) as table:
        for first in range(0, posts, 64):
            rows = []
            for n in range(first, min(first + 64, posts)):
                has = range(n * images // posts, (n + 1) * images // posts)
                title, body = texts[n % len(texts)]
                rows.append({
                    "post_id": f"b{n:06}", "title": title, "body": body, "week": WEEK, "verdict": "pass",
                    "images": [{"bytes": pictures[i % PICTURES], "path": f"{i}.jpg"} for i in has],
                    "image_errors": [None for _ in has], "created_at": start + timedelta(seconds=n), "category": "正常",
                    "severity": 0, "rationale": None, "label_source": "source", "author_hash": "0" * 32, "schema_version": 1,
                })  # fmt: skip
            table.write(pa.RecordBatch.from_pylist(rows, RAW_POSTS))


def run_once(file: Path, out: Path, processes: int) -> None:
    started = time.monotonic()
    built = stages.write_clean(file, out, clean.CleanSettings(), lambda line: print(line, file=sys.stderr), processes)
    wall = time.monotonic() - started
    assert all(check.passed for check in built.checks), built.checks
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = [one.ru_utime + one.ru_stime for one in used]
    print(json.dumps({"wall": wall, "parent_cpu": cpu[0], "cpu": sum(cpu), **built.counts}))


def measured(file: Path, folder: Path, processes: int) -> dict[str, Any]:
    """One run of write_clean in a program of its own, its memory watched from here."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", __spec__.name, "--run", str(processes), str(file), str(out)]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            peak = max(peak, _tree_mb(run.pid))
            time.sleep(0.2)
        assert run.stdout is not None and run.returncode == 0
        result = json.loads(run.stdout.read())
    for path in out.iterdir():
        path.unlink()
    return result | {"peak_mb": peak}


def _tree_mb(pid: int) -> float:
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1])
        children = " ".join(task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children"))
    except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
        return 0.0
    return total / 1024 + sum(_tree_mb(int(child)) for child in children.split())


def parts(file: Path, folder: Path, posts: int) -> dict[str, float]:
    """CPU seconds of every step alone, on the first `posts` rows."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        before = time.process_time()
        value = work()
        spent[name] = spent.get(name, 0.0) + time.process_time() - before
        return value

    settings = clean.CleanSettings()
    out = folder / "parts.parquet"
    digests = []
    with TableWriter(out, CLEAN_POSTS) as table:
        for batch in _first(timed, stages._batches(pq.ParquetFile(file)), posts):
            rows = timed("rest: Arrow to Python", batch.to_pylist)
            timed("text", lambda rows=rows: [clean._clean_text(row) for row in rows])
            images = [image["bytes"] for row in rows for image in row["images"]]
            made = timed("images: clean_image", lambda images=images: [clean_image(image) for image in images])
            timed("images: decoded once more", lambda made=made: [clean._prove_decodable(one.data) for one in made])
            sent = timed("rest: Arrow IPC", lambda batch=batch: pool_worker.encode(batch))
            timed("rest: Arrow IPC", lambda sent=sent: pool_worker.decode(memoryview(sent)))
            done = clean.clean_batch(batch, settings)
            back = done.posts.to_pylist()
            timed("rest: Python to Arrow", lambda back=back: pa.RecordBatch.from_pylist(back, CLEAN_POSTS))
            sent = timed("rest: Arrow IPC", lambda done=done: pool_worker.encode(done.posts))
            timed("rest: Arrow IPC", lambda sent=sent: pool_worker.decode(memoryview(sent)))
            timed("writing", lambda done=done: table.write(done.posts))
            digests.append(done.image_digests)
    assert timed("checking", lambda: stages._read_back(out, digests))[1] == 0
    return spent


def _first(timed: Callable[..., Any], batches: Iterator[pa.RecordBatch], posts: int) -> Iterator[pa.RecordBatch]:
    while posts > 0 and (batch := timed("reading", lambda: next(batches, None))):
        yield batch
        posts -= batch.num_rows


LARGEST = {
    "JPEG": lambda image: jpeg(image),
    "JPEG, progressive": lambda image: jpeg(image, progressive=True),
    "PNG, alpha": lambda image: _saved(image.quantize(16).convert("RGBA"), "PNG", compress_level=1),
    "PNG, 16-bit grey": lambda image: _saved(
        Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) >> 4) << 12), "PNG", compress_level=1
    ),
    "WebP, alpha": lambda image: _saved(image.convert("RGBA"), "WEBP", quality=20, method=0),
    "AVIF": lambda image: _saved(image, "AVIF", quality=30, speed=10),
}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def largest_once(name: str, file: Path) -> None:
    data = file.read_bytes()
    clean_image(jpeg(Image.new("RGB", (64, 64))))  # what is loaded on first use
    before, started = _status("VmSize"), time.process_time()
    clean_image(data)
    seconds = time.process_time() - started
    print(f"| {name} | {len(data) / 2**20:.1f} | {seconds:.2f} | {_status('VmPeak') - before:.0f} |")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) / 1024


def largest(folder: Path) -> None:
    image = picture(np.random.default_rng(1), (8064, 6200))
    print("| largest picture admitted, 8064 x 6200 | MB | CPU s | MB of address space |\n|---|---|---|---|", flush=True)
    for name, save in LARGEST.items():
        file = folder / "largest"
        file.write_bytes(save(image))
        subprocess.run([sys.executable, "-m", __spec__.name, "--largest-once", name, str(file)], check=True)


def compare(file: Path, folder: Path, repeats: int) -> list[dict[str, Any]]:
    runs = []
    print(
        "| repeat | processes | posts/s | wall s | CPU s | of it in the parent | peak MB |\n|---|---|---|---|---|---|---|"
    )
    for repeat in range(repeats):
        pair = {processes: measured(file, folder, processes) for processes in (1, 2)}
        for processes, one in pair.items():
            rate = one["rows_in"] / one["wall"]
            print(f"| {repeat + 1} | {processes} | {rate:.1f} | {one['wall']:.1f} | {one['cpu']:.1f} | {one['parent_cpu']:.1f} | {one['peak_mb']:.0f} |", flush=True)  # fmt: skip
        runs.append(pair[1] | {"ratio": pair[1]["wall"] / pair[2]["wall"]})
    print(f"\nTwo processes are {statistics.median(one['ratio'] for one in runs):.2f}x one.\n")
    return runs


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--posts", type=int, default=10_000)
    options.add_argument("--images", type=int, default=8_000)
    options.add_argument("--part-posts", type=int, default=1_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--seed", type=int, default=20260216)
    options.add_argument("--largest", action="store_true")
    options.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options.add_argument("--largest-once", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.run:
        run_once(Path(chosen.run[1]), Path(chosen.run[2]), int(chosen.run[0]))
        return
    if chosen.largest_once:
        largest_once(chosen.largest_once[0], Path(chosen.largest_once[1]))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="clean-posts-") as name:
        folder = Path(name)
        if chosen.largest:
            largest(folder)
            return
        file = folder / "raw.parquet"
        make_week(file, chosen.posts, chosen.images, chosen.seed)
        runs = compare(file, folder, chosen.repeats)
        sample = min(chosen.part_posts, chosen.posts)
        spent = {part: seconds * chosen.posts / sample for part, seconds in parts(file, folder, sample).items()}
    print("| part, alone in one process | CPU s |\n|---|---|")
    for part, seconds in sorted(spent.items()):
        print(f"| {part} | {seconds:.1f} |")
    total = sum(seconds for part, seconds in spent.items() if not part.startswith("rest"))
    whole = statistics.median(one["cpu"] for one in runs)
    wall = statistics.median(one["wall"] for one in runs)
    print(f"\nSum of the parts without the rest {total:.1f} s; the whole with one process {whole:.1f} CPU s "
          f"({whole / total:.2f}x) in {wall:.1f} s ({wall / total:.2f}x).")  # fmt: skip


if __name__ == "__main__":
    main()
