"""Peak memory of judging a large split: as it is read, against all of its posts at once.

    python -m xhs_pipeline_tests.benchmarks.scoring_memory --data /tmp/x --posts 2000

Judges that many posts of the test split, repeated, each with up to three distinct JPEGs of 1024 x 768 (file sizes like photos'):
whole is all posts read first and judged as one window, as_read is `predict`. Each in a process of its own.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xhs_pipeline.worker import run
from xhs_pipeline_tests.benchmarks.scoring import latest, resident


def write_large(file: Path, split: Path, posts: int) -> int:
    """`posts` rows of `split`, repeated under new ids; each image is a distinct file of 1024 x 768. Returns the images' bytes."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from xhs_pipeline.posts.schema import TableWriter

    def photo(number: int) -> bytes:
        coarse = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        return out.getvalue()

    photos = [photo(number) for number in range(16)]
    schema, rows, size, serial = pq.read_schema(split), pq.read_table(split).to_pylist(), 0, 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal size, serial
        for begin in range(0, posts, 64):
            made = []
            for number in range(begin, min(begin + 64, posts)):
                row = rows[number % len(rows)]
                images = []
                for _ in row["images"]:
                    serial += 1
                    data = photos[serial % len(photos)]
                    # a JPEG comment makes every file a different one
                    images.append(
                        {
                            "bytes": data[:2] + b"\xff\xfe\x00\x06" + serial.to_bytes(4) + data[2:],
                            "path": f"{serial}.jpg",
                        }
                    )
                    size += len(images[-1]["bytes"])
                made.append(row | {"post_id": f"{row['post_id']}-{number}", "images": images})
            yield pa.RecordBatch.from_pylist(made, schema)

    with TableWriter(file, schema) as writer:
        for batch in batches():
            writer.write(batch)
    return size


def memory(data: str, file: str, way: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Judge a split in one of two ways. The worker adds the process's peak memory and CPU seconds."""
    import pyarrow.parquet as pq

    from xhs_pipeline.judgement import judge as judging
    from xhs_pipeline.judgement import predict
    from xhs_pipeline.policy import load_policy

    judge = judging.Judge(latest(Path(data), "merged_model"), load_policy())
    start = resident("VmRSS")
    if way == "as_read":
        found = predict.predict(judge, Path(file), log)
    else:
        judging.WINDOW_POSTS = judging.WINDOW_BYTES = 1 << 60
        table = pq.read_table(file)
        posts = list(predict.read_posts(Path(file)))
        found = list(judge.judge(posts, log, table.num_rows))
    return {"start": start, "posts": len(found)}


def judge_large(data: Path, posts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.parquet"
        size = write_large(file, latest(data, "sharegpt_splits") / "test.parquet", posts)
        print(f"{posts} posts, {size / 2**20:.0f} MB of images\n")
        print("| way | peak MB | of it before judging | CPU s |\n|---|---|---|---|")
        for way in ("whole", "as_read"):
            arguments = {"data": str(data), "file": str(file), "way": way}
            f = run("xhs_pipeline_tests.benchmarks.scoring_memory:memory", arguments, print)
            print(f"| {way} | {f['peak_memory_mb']:,} | {f['start']:,.0f} | {f['cpu_seconds']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="XHS_DATA_DIR of a materialised sample")
    parser.add_argument("--posts", type=int, default=2000)
    asked = parser.parse_args()
    judge_large(asked.data, asked.posts)


if __name__ == "__main__":
    main()
