"""Reading text and QR codes in images: CPU seconds an image, memory of a worker, share of characters right, codes found.

    python -m xhs_pipeline_tests.benchmarks.ocr --photos ../shared/photos

One process, one thread, as a worker of clean_posts. CPU seconds count from JPEG bytes to text, the median over the pictures;
memory is the process's peak before the models load and at the end. Rendered pictures are 1,024 x 768, black on white, a font
of this machine, JPEG quality 85: screenshots of notes, not handwriting. Characters right: 1 - Levenshtein distance / length,
over the whole picture, blanks left out.
"""

import argparse
import io
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.images import ImageRejected, clean_image
from xhs_pipeline_tests.pictures import blank, jpeg, photographed, placed, qr_code, written
from xhs_pipeline_tests.test_curation_duplicates_texts import distance

LINK = "https://u.wechat.com/MAbCdEfGhIjKlMnOp"
SIZES = (10, 12, 16, 24, 36, 48)


def common_characters() -> list[str]:
    """The 3,755 most common characters (GB 2312, level 1)."""
    codes = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [code.decode("gb2312", "ignore") for code in codes if code.decode("gb2312", "ignore")]


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(pictures: Sequence[bytes]) -> tuple[list[ocr.ImageText], float, float]:
    """What was read, and the median and the largest CPU seconds of a picture."""
    read, seconds = [], []
    for picture in pictures:
        started = time.process_time()
        read.append(ocr.read(picture))
        seconds.append(time.process_time() - started)
    return read, statistics.median(seconds), max(seconds)


def text_table(rng: random.Random, pictures: int) -> None:
    """Ten lines of eighteen characters at several sizes, clean and photographed."""
    characters = common_characters()
    print("| text of 180 characters, height | read from | characters right | CPU s an image |\n|---|---|---|---|")
    for size in SIZES:
        pages = [["".join(rng.choices(characters, k=18)) for _ in range(10)] for _ in range(pictures)]
        for kind, change in (("screenshot", lambda p: p), ("photograph", photographed)):
            read, median, _ = timed(
                [jpeg(change(written(page, size)), 75 if change is photographed else 85) for page in pages]
            )
            wrong = sum(
                distance("".join(page), "".join(found.text.split())) for page, found in zip(pages, read, strict=True)
            )
            print(f"| {size} px | {kind} | {1 - wrong / (180 * pictures):.3f} | {median:.2f} |", flush=True)


def cost_table(photos: Path | None) -> None:
    print("\n| pictures | lines | QR codes | CPU s, median | CPU s, largest |\n|---|---|---|---|---|")

    def row(name: str, pictures: Sequence[bytes]) -> None:
        read, median, largest = timed(pictures)
        lines = sum(len(found.text.splitlines()) for found in read)
        codes = sum(found.qr_codes for found in read)
        print(f"| {name} ({len(pictures)}) | {lines} | {codes} | {median:.2f} | {largest:.2f} |", flush=True)

    row("blank, 1,024 x 768", [jpeg(blank())] * 3)
    dense = jpeg(written(["密密麻麻的小字说明文字一行接着一行没有尽头" * 4] * 60, 11, on=blank(1024, 1024)))
    row("page of small print, 1,024 x 1,024", [dense])
    bound, ocr.MAX_LINE_PIXELS = ocr.MAX_LINE_PIXELS, 10**9
    row("the same without MAX_LINE_PIXELS", [dense])
    ocr.MAX_LINE_PIXELS = bound
    eye = qr_code("x")[24:96:2, 24:96:2]
    sheet = jpeg(np.tile(eye, (28, 28, 1)))
    row("sheet of 784 eyes", [sheet])
    bound, ocr.MAX_FINDERS = ocr.MAX_FINDERS, 10**9
    row("the same without MAX_FINDERS", [sheet])
    ocr.MAX_FINDERS = bound
    row("sheet of 3,136 eyes, 2 pixels a module", [jpeg(np.tile(qr_code("x")[24:96:4, 24:96:4], (56, 56, 1)), 95)])
    if photos:
        clean = []
        for file in sorted(photos.glob("*.jpg"))[::6]:
            try:
                clean.append(clean_image(file.read_bytes()).data)
            except ImageRejected:
                continue
        row("photos, every sixth", clean)


def code_table(rng: random.Random, photos: Path | None, pictures: int) -> None:
    """How many of the codes pasted into photos (or grey) are found; side in pixels with the quiet zone, 37 modules."""
    grounds = [blank(colour="#a98")]
    if photos:
        opened = (Image.open(file) for file in sorted(photos.glob("clothing_*.jpg"))[:40])
        grounds = [np.asarray(image.convert("RGB").resize((768, 1024))) for image in opened]

    def found(make: Callable[[np.ndarray], bytes]) -> str:
        """Share of pictures in which exactly the one code is seen; the text is not read, which would take minutes."""
        hits = 0
        for _ in range(pictures):
            pixels = np.asarray(Image.open(io.BytesIO(make(rng.choice(grounds)))))[:, :, ::-1]
            hits += ocr._reader()._count_codes(np.ascontiguousarray(pixels)) == 1
        return f"{hits / pictures:.2f}"

    def at(ground: np.ndarray, side: float, angle: float = 0, skew: float = 0) -> np.ndarray:
        return placed(qr_code(LINK), ground, (rng.uniform(250, 518), rng.uniform(250, 500)), side, angle, skew)

    print("\n| QR codes | side | found |\n|---|---|---|")
    for side in (60, 80, 120, 200, 320):
        print(f"| upright | {side} px | {found(lambda g, s=side: jpeg(at(g, s)))} |", flush=True)
    for side in (120, 200):
        turned = found(lambda g, s=side: jpeg(at(g, s, angle=rng.uniform(0, 360))))
        print(f"| turned by any angle | {side} px | {turned} |", flush=True)
    for side in (120, 160, 240):
        shot = found(lambda g, s=side: jpeg(photographed(at(g, s, rng.uniform(-30, 30), rng.uniform(0, 0.1))), 75))
        print(f"| photographed askew | {side} px | {shot} |", flush=True)
    negative = 255 - qr_code(LINK)
    for side in (120, 200):
        seen = found(lambda g, s=side: jpeg(placed(negative, g, (384, 400), s)))
        print(f"| white on black | {side} px | {seen} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photos without QR codes")
    parser.add_argument(
        "--pictures", type=int, default=6, help="a row's rendered pictures; five times as many QR codes"
    )
    options = parser.parse_args()
    before = peak_mb()
    started = time.process_time()
    ocr.read(jpeg(blank(height=200)))
    print(f"first image, models loaded: {time.process_time() - started:.1f} CPU s\n")
    text_table(random.Random(7), options.pictures)
    cost_table(options.photos)
    print(f"\npeak memory: {before} MB before, {peak_mb()} MB after all of this")
    code_table(random.Random(7), options.photos, 5 * options.pictures)


if __name__ == "__main__":
    main()
