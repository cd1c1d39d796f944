"""What a report costs: every figure, the comparison, report.json and report.html, over made-up predictions of 10,000 posts.

    python -m xhs_pipeline_tests.benchmarks.report [--posts 10000]

The model, a champion and three floors are judged on the same posts (seeded probabilities, 13 categories, duplicate groups),
with thresholds from a calibration split of 3,000; intervals are from 2,000 resamples. Each post has 1 to 3 JPEGs of 448 x 448 noise
over a gradient, some 40 KB each, in a parquet file in row groups of 500, as a test split is. Made before the clock starts:
predictions and posts. Evasion, golden set and newest week are made up: judging posts is another matter. CPU seconds; memory is
this process's peak (VmHWM).
"""

import argparse
import functools
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from xhs_pipeline.judgement import metrics, paired, report
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.page import render_html
from xhs_pipeline.judgement.predict import rows_with_images
from xhs_pipeline_tests.reports import POLICY, answered, context, evasion, no_evasion
from xhs_pipeline_tests.simulated import simulated

SIDE, DIFFERENT, AT_ONCE = 448, 200, 500


def images(count: int) -> list[bytes]:
    """Different JPEGs whose size is that of a photo as clean_posts keeps it."""
    rng, out = np.random.default_rng(0), []
    ramp = np.linspace(0, 200, SIDE)[None, :, None]
    for _ in range(count):
        pixels = (ramp + rng.integers(0, 40, (SIDE, SIDE, 3))).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=80)
        out.append(buffer.getvalue())
    return out


def write_posts(file: Path, ids: list[str]) -> None:
    """Title, body and 1 to 3 images of every post, a few hundred posts at a time."""
    pictures = images(DIFFERENT)

    def batches() -> Iterator[pa.Table]:
        for begin in range(0, len(ids), AT_ONCE):
            places = range(begin, min(begin + AT_ONCE, len(ids)))
            held = [
                [{"bytes": pictures[(7 * i + k) % DIFFERENT], "path": f"{k}.jpg"} for k in range(1 + i % 3)]
                for i in places
            ]
            texts = {"title": ["标题<b>"] * len(places), "body": ["正文，加<微信号>" * (i % 60) for i in places]}
            yield pa.table({"post_id": [ids[i] for i in places], **texts, "images": held})

    writer = None
    for batch in batches():
        writer = writer or pq.ParquetWriter(file, batch.schema, compression="none", use_dictionary=False)
        writer.write_table(batch)
    assert writer is not None
    writer.close()


def peak() -> int:
    """Peak resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--posts", type=int, default=10_000)
    posts = parser.parse_args().posts
    rows: list[tuple[str, float, int]] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        made = work()
        rows.append((name, time.process_time() - started, peak()))
        return made

    model, champion, calibration = simulated(posts), simulated(posts, sharpness=0.5), simulated(3000, 1)
    champion = answered(champion, np.random.default_rng(0).random(posts) < 0.05)
    floors = {"tfidf": answered(model, np.arange(posts) % 3 == 0), "untuned": simulated(posts, sharpness=0.2),
              "majority": answered(model, np.ones(posts, dtype=bool))}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        write_posts(Path(name) / "test.parquet", list(model[metrics.POST_ID]))
        rows.append(("(predictions and posts made)", 0.0, peak()))
        everything = time.process_time()
        figures = {
            who: timed(f"figures of {who}", lambda frame=frame: metrics.evaluate(frame, POLICY, calibration))
            for who, frame in {"model": model, "champion": champion, **floors}.items()
        }
        comparison = timed("comparison with the champion", lambda: paired.compare(model, champion, POLICY))
        read = functools.partial(rows_with_images, Path(name) / "test.parquet")
        mistakes = timed("worst mistakes", lambda: report.worst_mistakes(model, read, POLICY))
        regressions = timed("regressions", lambda: report.worst_regressions(comparison, model, read, POLICY))
        size = (Path(name) / "test.parquet").stat().st_size
    head, other = figures["model"]["headline"], figures["champion"]["headline"]
    compared = {name: comparison[name] for name in ("category_macro_f1", "verdict_macro_f1", "cost_per_1000")}
    parts = {
        "calibration": {"model": Calibration().as_dict(), "champion": Calibration().as_dict()},
        "figures": {"model": figures["model"], "champion": figures["champion"], "floors": {n: figures[n] for n in floors}},
        "comparison": comparison,
        "golden": {"n": posts, "reason": None, "model": head, "champion": other, "comparison": compared},
        "newest_week": {"week": "2026-02-16", "reason": None, "n": 900, "champion": other, "before": other, "model": head, "n_model": 300},
        "evasion": evasion(head["recall"]) if head["recall"]["value"] else no_evasion(),
        "notes": {},
    }  # fmt: skip
    built = timed("report.json", lambda: report.build_report(parts, POLICY, context(champion_version="0d1e2f3a4b5c")))
    text = json.dumps(built, ensure_ascii=False, allow_nan=False)
    html = timed("report.html", lambda: render_html(built, mistakes, POLICY, regressions))
    rows.append(("all of it", time.process_time() - everything, peak()))
    shown = sum(len(row["images"]) for row in [*mistakes, *regressions])
    print(
        f"{posts:,} posts, {size / 1e6:,.0f} MB of parquet; {len(mistakes)} mistakes and {len(regressions)} regressions shown"
    )
    print(f"with {shown} images of {sum(map(len, images(5))) / 5000:.0f} KB")
    print(f"report.json {len(text.encode()) / 1e6:.2f} MB, report.html {len(html.encode()) / 1e6:.2f} MB\n")
    print("| step | CPU s | peak MB so far |\n|---|---|---|")
    for step, seconds, memory in rows:
        print(f"| {step} | {seconds:.1f} | {memory:,} |")


if __name__ == "__main__":
    main()
