"""Damaged images, JSON lines and texts through reading and cleaning, in workers as in production.

    python -m xhs_pipeline_tests.fuzz 20000 --seed 1

A case is one image, line or text. Valid pictures of every format and lines of the sample are flipped, cut, spliced, repeated,
given each other's headers or impossible lengths, from a seed. Counted are workers that died or were too slow, rows lost or
raised, and the largest memory of a worker; any of the first three ends it with exit code 1.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from xhs_pipeline.curation.clean import CleanSettings, clean_stream
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.sources import Tally, load_source, read_week

WEEK = "2026-02-16"
SAMPLE = Path(__file__).parents[1] / "data" / "sample"
IMAGES, LINES = 0.7, 0.2  # shares of the cases; the rest are texts
ROWS = 64


@dataclass
class Outcome:
    """What happened, over all cases. `felled` are log lines about workers."""

    cases: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    felled: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    peak_mb: float = 0.0


def valid_images(random: Random) -> list[bytes]:
    """Small pictures in every format and kind that Pillow writes: modes, progressive, interlaced, animated, with EXIF."""
    noise = np.random.default_rng(random.randrange(2**32))
    smooth = Image.fromarray(noise.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize(
        (96, 72), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8825] = 6, "maker", {1: "N", 2: (31.0, 14.0, 3.0)}
    deep = Image.fromarray(noise.integers(0, 65535, (64, 64), dtype=np.uint16))
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (smooth, "JPEG", {}),
        (smooth, "JPEG", {"progressive": True, "quality": 40}),
        (smooth, "JPEG", {"exif": exif, "comment": b"by somebody", "icc_profile": bytes(300)}),
        (smooth, "JPEG", {"subsampling": 0, "restart_marker_blocks": 2}),
        (smooth.convert("L"), "JPEG", {"optimize": True}),
        (smooth.convert("CMYK"), "JPEG", {"exif": exif}),
        (smooth.resize((1300, 40)), "JPEG", {}),
        (smooth, "PNG", {}),
        (smooth.convert("RGBA"), "PNG", {"exif": exif}),
        (smooth.quantize(8), "PNG", {"bits": 4, "transparency": 0}),
        (smooth.convert("LA"), "PNG", {}),
        (smooth.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (smooth, "PNG", {"save_all": True, "append_images": [smooth.rotate(90)]}),
        (smooth.quantize(32), "GIF", {}),
        (smooth.quantize(16), "GIF", {"save_all": True, "append_images": [smooth.rotate(180).quantize(16)], "transparency": 3}),
        (smooth, "WEBP", {"quality": 60, "exif": exif}),
        (smooth.convert("RGBA"), "WEBP", {"lossless": True}),
        (smooth, "WEBP", {"save_all": True, "append_images": [smooth.rotate(180)]}),
        (smooth, "AVIF", {"quality": 50, "speed": 10}),
        (smooth.convert("RGBA"), "AVIF", {"quality": 30, "speed": 10, "exif": exif}),
    ]  # fmt: skip
    files = []
    for image, kind, options in kinds:
        out = io.BytesIO()
        image.save(out, kind, **options)
        files.append(out.getvalue())
    return files


def flip(random: Random, data: bytearray, other: bytes) -> bytes:
    for _ in range(random.choice((1, 2, 8, 40))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def flip_head(random: Random, data: bytearray, other: bytes) -> bytes:
    for _ in range(random.randint(1, 4)):
        data[random.randrange(min(len(data), 200))] = random.randrange(256)
    return bytes(data)


def cut(random: Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: random.randrange(len(data))])


def cut_out(random: Random, data: bytearray, other: bytes) -> bytes:
    start = random.randrange(len(data))
    del data[start : start + random.choice((1, 7, 100, 5000))]
    return bytes(data)


def splice(random: Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: random.randrange(len(data))]) + other[random.randrange(len(other)) :]


def swap_head(random: Random, data: bytearray, other: bytes) -> bytes:
    size = random.choice((4, 12, 16, 40, 120))
    return other[:size] + bytes(data[size:])


def repeat(random: Random, data: bytearray, other: bytes) -> bytes:
    start = random.randrange(len(data))
    piece = bytes(data[start : start + random.randint(1, 400)])
    return bytes(data[:start]) + piece * random.choice((2, 9, 300)) + bytes(data[start:])


def lie(random: Random, data: bytearray, other: bytes) -> bytes:
    """Two or four bytes that may be a length, a size or an offset, made extreme."""
    value = random.choice(
        (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x1b\x58")
    )
    start = random.randrange(min(len(data), random.choice((64, 400, len(data)))))
    return bytes(data[:start]) + value + bytes(data[start + len(value) :])


WAYS: tuple[Callable[[Random, bytearray, bytes], bytes], ...] = (
    flip,
    flip_head,
    cut,
    cut_out,
    splice,
    swap_head,
    repeat,
    lie,
)


def damaged(random: Random, files: list[bytes]) -> bytes:
    data = random.choice(files)
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(WAYS)(random, bytearray(data), random.choice(files)) if data else data
    return data


PIECES = (
    "微信", "加薇", "V❤", "扣扣", "1三8", "①②③", "１３８", "13812345678", "a.b-c_1@", "http://x.cn/?id=", "第", "号楼", "京A", "<手机号>",
    "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "{{", "\\n", "\r\n", "\u2028", "\u200b", "\u200d", "\ufe0f", "\u202e", "👨", "🏽",
    "\u0301", "ᄀ", "ﷺ", "\U000e0041", "\x00", "\uffff", "\U0010ffff", " ", "\u3000", "0", "9", "-", ".", "@", "爱", "愛", "乾", "x",
)  # fmt: skip


def text(random: Random) -> str:
    """Identifiers, marks and tokens thrown together; now and then one piece thousands of times."""
    if random.random() < 0.05:
        return "".join(random.choices(PIECES, k=random.randint(1, 3))) * random.choice((500, 5_000, 30_000))
    if random.random() < 0.2:
        return "".join(
            chr(random.choice((random.randrange(0xD800), random.randrange(0xE000, 0x110000)))) for _ in range(40)
        )
    return "".join(random.choices(PIECES, k=random.choice((1, 5, 30, 200))))


def row(number: int, title: str | None, body: str | None, images: list[bytes]) -> dict[str, Any]:
    return {
        "post_id": f"f{number}", "title": title, "body": body, "created_at": datetime(2026, 2, 17, tzinfo=UTC), "week": WEEK,
        "images": [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)], "verdict": "pass",
        "image_errors": [None for _ in images], "category": "正常", "severity": 0, "rationale": body, "label_source": title,
        "author_hash": None, "schema_version": 1,
    }  # fmt: skip


def raw_batches(outcome: Outcome, random: Random, images: int, texts: int) -> Iterator[pa.RecordBatch]:
    files = valid_images(random)
    number = 0
    while images > 0 or texts > 0:
        rows = []
        while len(rows) < ROWS and (images > 0 or texts > 0):
            number += 1
            if random.random() * (images + texts) < images:
                pictures = [damaged(random, files) for _ in range(min(images, random.randint(1, 3)))]
                images -= len(pictures)
                outcome.cases["images"] += len(pictures)
                rows.append(row(number, "", None, pictures))
            else:
                texts -= 1
                outcome.cases["texts"] += 1
                rows.append(row(number, text(random), text(random), []))
        yield pa.RecordBatch.from_pylist(rows, RAW_POSTS)


def read_batches(outcome: Outcome, random: Random, lines: int) -> Iterator[pa.RecordBatch]:
    """Weeks of damaged JSON lines, read as raw_posts reads them; what is usable goes on to cleaning."""
    whole = [line for line in (SAMPLE / f"posts-{WEEK}.jsonl").read_bytes().splitlines() if line]
    policy = load_policy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source.yaml").write_text("format: jsonl\npath: posts-{week}.jsonl\n", encoding="utf-8")
        while lines > 0:
            count = min(lines, 500)
            lines -= count
            content = b"\n".join([*(damaged(random, whole) for _ in range(count)), random.choice(whole)])
            (folder / f"posts-{WEEK}.jsonl").write_bytes(content)
            outcome.cases["lines"] += count
            tally, read = Tally(), 0
            for good, bad in read_week(
                load_source(folder / "source.yaml", policy), WEEK, policy, bytes(16), tally=tally
            ):
                read += good.num_rows + bad.num_rows
                outcome.results.update(f"line {reason}" for reason in bad["reason"].to_pylist())
                yield good
            expected = sum(bool(line.strip()) for line in content.split(b"\n"))
            if not tally.rows == read + tally.other_weeks.total() == expected:
                outcome.lost.append(
                    f"{expected} lines, {tally.rows} met, {read} handed on, {tally.other_weeks.total()} other weeks"
                )


def run(cases: int, seed: int, processes: int = 2, settings: CleanSettings | None = None) -> Outcome:
    """`cases` damaged images, lines and texts through read_week and clean_stream."""
    outcome, random = Outcome(), Random(seed)
    images, lines = int(cases * IMAGES), int(cases * LINES)
    sent: list[pa.RecordBatch] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for source in (
            raw_batches(outcome, random, images, cases - images - lines),
            read_batches(outcome, random, lines),
        ):
            for batch in source:
                sent.append(batch)
                yield batch

    for index, result in enumerate(
        clean_stream(batches(), settings or CleanSettings(), processes, outcome.felled.append)
    ):
        kept, gone = (part["post_id"].to_pylist() for part in (result.posts, result.quarantine))
        if Counter(kept + gone) != Counter(sent[index]["post_id"].to_pylist()):
            outcome.lost.append(
                f"batch {index}: {sent[index].num_rows} rows in, {len(kept)} posts + {len(gone)} quarantined"
            )
        images_in = sum(
            len(images) for post_id, images in zip(*_columns(sent[index]), strict=True) if post_id not in _long(result)
        )
        images_out = result.image_digests.num_rows + result.dropped_images.num_rows
        if images_in != images_out:
            outcome.lost.append(f"batch {index}: {images_in} images in, {images_out} kept or dropped")
        outcome.results.update(f"image {reason}" for reason in result.dropped_images["reason"].to_pylist())
        outcome.results.update(f"post {reason}" for reason in result.quarantine["reason"].to_pylist())
        outcome.results.update({"image kept": result.image_digests.num_rows, "post kept": len(kept)})
        outcome.peak_mb = max(outcome.peak_mb, _workers_peak_mb())
    return outcome


def _columns(batch: pa.RecordBatch) -> tuple[list[str], list[list[Any]]]:
    return batch["post_id"].to_pylist(), batch["images"].to_pylist()


def _long(result: Any) -> set[str]:
    """Posts whose images are not looked at, or not kept, because of the post."""
    return {bad["post_id"] for bad in result.quarantine.to_pylist() if bad["reason"] != "nothing_to_judge"}


def _workers_peak_mb() -> float:
    """The largest resident size that any living worker has had (Linux; elsewhere 0)."""
    peak = 0.0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            try:
                lines = Path(f"/proc/{child}/status").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            peak = max([peak, *(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))])
    return peak


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("cases", type=int, nargs="?", default=20_000)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    started = time.monotonic()
    outcome = run(chosen.cases, chosen.seed)
    print(json.dumps({"cases": outcome.cases, "results": dict(sorted(outcome.results.items()))}, indent=1))
    print(
        f"{outcome.cases.total()} cases in {time.monotonic() - started:.0f} s, largest worker {outcome.peak_mb:.0f} MB"
    )
    for line in outcome.felled + outcome.lost:
        print(line)
    print(f"{len(outcome.felled)} workers died or were too slow; rows or images lost: {len(outcome.lost)}")
    sys.exit(bool(outcome.felled or outcome.lost))


if __name__ == "__main__":
    main()
