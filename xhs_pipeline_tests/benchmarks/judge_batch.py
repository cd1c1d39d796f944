"""Judging a file from the command line: peak memory and CPU time against the number of posts.

    python -m xhs_pipeline_tests.benchmarks.judge_batch --texts 20000 --pictured 2000

Every file is judged by the command itself in a process of its own, with an untrained model of the embedded size: the answers mean
nothing, the work is the same. Memory is the peak resident set of the largest process of the run (the command; its workers are
smaller), CPU time of all of them, user and system. Posts with images are a week's parquet, one JPEG of 1024 x 768 each.
Each file is judged to a quarter of its rows and whole: memory that follows the rows would grow by three quarters of the file.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from xhs_pipeline.posts.schema import RAW_POSTS, TableWriter
from xhs_pipeline.profile import load_profile
from xhs_pipeline_tests.benchmarks.clean_posts import jpeg, picture
from xhs_pipeline_tests.small import model_folder

DISTINCT = 64
WORDS = [
    "今天",
    "周末",
    "老码头",
    "散步",
    "拍照",
    "面包",
    "咖啡",
    "推荐",
    "好物",
    "稳赚",
    "导师",
    "返利",
    "保证",
    "私聊",
    "主页",
    "资料",
    "群",
    "效果",
    "亲测",
    "分享",
]


def body(rng: random.Random) -> str:
    return "，".join(rng.choices(WORDS, k=rng.randint(5, 120))) + "。"


def texts(file: Path, rows: int, seed: int) -> None:
    rng = random.Random(seed)
    with file.open("w", encoding="utf-8") as lines:
        for n in range(rows):
            post = {"post_id": f"p{n:07}", "title": "标题", "body": body(rng), "verdict": "pass", "category": "正常"}
            lines.write(json.dumps(post, ensure_ascii=False) + "\n")


def pictured(file: Path, rows: int, seed: int) -> None:
    rng, generator = random.Random(seed), np.random.default_rng(seed)
    pictures = [jpeg(picture(generator, (1024, 768))) for _ in range(DISTINCT)]
    with TableWriter(file, RAW_POSTS) as table:
        for begin in range(0, rows, 64):
            posts = [
                {
                    "post_id": f"p{n:07}", "title": "标题", "body": body(rng), "verdict": "pass", "category": "正常",
                    "images": [{"bytes": pictures[n % DISTINCT], "path": "a.jpg"}], "image_errors": [None],
                }
                for n in range(begin, min(begin + 64, rows))
            ]  # fmt: skip
            table.write(pa.RecordBatch.from_pylist(posts, RAW_POSTS))


def run(model: Path, posts: Path, out: Path) -> tuple[float, float]:
    """(peak MB, CPU seconds) of judging a file with --compare."""
    command = [sys.executable, "-m", "xhs_pipeline.judge", str(model), str(posts), str(out), "--compare"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--pictured", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(
        "| posts | file MB | peak MB | peak against a quarter | CPU s | posts a CPU s, without starting |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model").mkdir()
        model = model_folder(work / "model", load_profile("tiny"), WORDS)
        texts(work / "none.jsonl", 1, options.seed)
        start_mb, start_s = run(model, work / "none.jsonl", work / "out")
        print(f"| 1, text | | {start_mb:.0f} | | {start_s:.1f} | |")
        for name, write, rows in (
            ("texts.jsonl", texts, options.texts),
            ("pictured.parquet", pictured, options.pictured),
        ):
            before = 0.0
            for count in (rows // 4, rows):
                write(work / name, count, options.seed)
                size = (work / name).stat().st_size / 10**6
                peak, seconds = run(model, work / name, work / "out")
                against = f"{peak / before:.2f}x" if before else ""
                rate = count / (seconds - start_s)
                print(
                    f"| {count:,} in {name} | {size:.0f} | {peak:.0f} | {against} | {seconds:.1f} | {rate:.0f} |",
                    flush=True,
                )
                before = peak


if __name__ == "__main__":
    main()
