"""Cleaning images: time and likeness against Pillow and libjpeg-turbo, what the perceptual hash sees, the slowest input.

    OMP_NUM_THREADS=1 python -m xhs_pipeline_tests.benchmarks.images --photos ../shared/photos
    OMP_NUM_THREADS=1 python -m xhs_pipeline_tests.benchmarks.images --photos ../shared/photos --hashes --worst

One thread, CPU time. Runs are paired: each repeat runs every engine once on one image, in turn; an image's time is the least
of its repeats, a ratio the sum of the peer's times over the sum of ours.

clean_image       what is measured: header checks, decoding, shrinking to 1,024, encoding at quality 85, perceptual hash
pillow bilinear   decoding with draft, BILINEAR, encoding at quality 85, perceptual hash of 64 bits by Pillow and numpy
no hash           the same without the hash
pillow lanczos    the same with LANCZOS
turbo alone       decoding and encoding by libjpeg-turbo at full size, as simplejpeg calls it; no shrinking, no hash

Input: the photos enlarged to 1280 x 960 (cropped to 4:3) and 4000 x 3000, which makes them soft, and mosaics of photos at
their own resolution, sharper than photos from a camera. JPEG, quality 90.
SSIM is that of Wang et al. 2004 (Gaussian window of 11 pixels, sigma 1.5, on brightness) against LANCZOS on the fully decoded
picture: `pixels` before either is encoded (clean_image's taken from encoding at quality 100), `encoded` after both are, at 85.
"""

import argparse
import io
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter1d

from xhs_pipeline.curation.images import HASH_BITS, MAX_HAMMING, ImageLimits, ImageRejected, clean_image

LANCZOS, BICUBIC, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64)
SMALL, LARGE = (1280, 960), (4000, 3000)


def encode(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def enlarged(photo: Image.Image, size: tuple[int, int]) -> bytes:
    if photo.width < photo.height:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    scale = max(size[0] / photo.width, size[1] / photo.height)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), BICUBIC)
    return encode(photo.crop((0, 0, *size)), 90)


def mosaic(photos: list[Image.Image], first: int, size: tuple[int, int]) -> bytes:
    canvas = Image.new("RGB", size)
    place = first
    for top in range(0, size[1], 340):
        left = 0
        while left < size[0]:
            tile = photos[place % len(photos)]
            canvas.paste(tile.crop((0, 0, tile.width, 340)), (left, top))
            left, place = left + tile.width, place + 7
    return encode(canvas, 90)


def pillow(data: bytes, resampling: Image.Resampling, hashed: bool = True) -> bytes:
    image: Image.Image = Image.open(io.BytesIO(data))
    image.draft(None, (1024, 768))
    image = image.resize((1024, 768), resampling)
    if hashed:
        grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float64)
        low = COSINES @ grey @ COSINES.T
        _ = np.packbits(low > np.median(low)).tobytes().hex()
    return encode(image, 85)


def turbo(data: bytes) -> bytes:
    return simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(data), 85, colorsubsampling="420")


ENGINES: dict[str, Callable[[bytes], object]] = {
    "clean_image": clean_image,
    "pillow bilinear": lambda data: pillow(data, BILINEAR),
    "no hash": lambda data: pillow(data, BILINEAR, hashed=False),
    "pillow lanczos": lambda data: pillow(data, LANCZOS),
    "turbo alone": turbo,
}


def timed(images: list[bytes], repeats: int) -> dict[str, float]:
    """Milliseconds of CPU time per image and engine."""
    least = {name: [np.inf] * len(images) for name in ENGINES}
    clean_image(images[0])  # compiles
    for place, data in enumerate(images):
        for _ in range(repeats):
            for name, engine in ENGINES.items():
                start = time.process_time()
                engine(data)
                least[name][place] = min(least[name][place], time.process_time() - start)
    return {name: float(np.mean(times)) * 1000 for name, times in least.items()}


def brightness(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image.convert("L"), np.float64)


def ssim(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    def local(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        once = gaussian_filter1d(values, 1.5, axis=0, radius=5)
        return gaussian_filter1d(once, 1.5, axis=1, radius=5)[5:-5, 5:-5]

    mean_a, mean_b = local(a), local(b)
    variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


def likeness(data: bytes) -> tuple[float, float, float, float]:
    """SSIM of clean_image and of Pillow draft + bilinear against Lanczos: pixels, encoded; pixels, encoded."""
    wanted = decode(data).resize((1024, 768), LANCZOS)
    draft = Image.open(io.BytesIO(data))
    draft.draft(None, (1024, 768))
    peer = draft.resize((1024, 768), BILINEAR)
    ours = decode(clean_image(data, ImageLimits(jpeg_quality=100)).data)
    encoded = brightness(decode(encode(wanted, 85)))
    return (
        ssim(brightness(ours), brightness(wanted)),
        ssim(brightness(decode(clean_image(data).data)), encoded),
        ssim(brightness(peer), brightness(wanted)),
        ssim(brightness(decode(encode(peer, 85))), encoded),
    )


def speed_table(photos: list[Image.Image], step: int, repeats: int) -> None:
    chosen = photos[::step]
    inputs = {
        "1.2 MP photos": [enlarged(photo, SMALL) for photo in chosen],
        "1.2 MP mosaics": [mosaic(photos, first, SMALL) for first in range(0, len(photos), 4 * step)],
        "12 MP photos": [enlarged(photo, LARGE) for photo in chosen[::8]],
        "12 MP mosaics": [mosaic(photos, first, LARGE) for first in range(0, len(photos), 16 * step)],
    }
    print(
        "| input | images | ms: " + " | ms: ".join(ENGINES) + " | x bilinear | x no hash | x lanczos | of turbo alone |"
    )
    print("|---" * (6 + len(ENGINES)) + "|")
    for name, images in inputs.items():
        took = timed(images, repeats)
        ours = took["clean_image"]
        ratios = [took[peer] / ours for peer in ("pillow bilinear", "no hash", "pillow lanczos")]
        cells = [f"{took[engine]:.2f}" for engine in ENGINES] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {name} | {len(images)} | " + " | ".join(cells) + f" | {took['turbo alone'] / ours:.0%} |", flush=True)
    print("\n| SSIM against Lanczos, least / mean | pixels | encoded | pillow bilinear: pixels | encoded |")
    print("|---|---|---|---|---|")
    for name, images in inputs.items():
        values = np.array([likeness(data) for data in images])
        cells = [f"{least:.4f} / {mean:.4f}" for least, mean in zip(values.min(0), values.mean(0), strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def with_number(photo: Image.Image, share: float, seed: int) -> Image.Image:
    """A telephone number whose box covers `share` of the photo, or as much as fits into its width, anywhere, in any colour."""
    chance = random.Random(seed)
    text = chance.choice(("wx ", "+86 ", "vx:")) + "".join(chance.choice("0123456789") for _ in range(11))
    drawn = photo.copy()
    draw = ImageDraw.Draw(drawn)
    for size in range(6, 400):
        font = ImageFont.load_default(size)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = int(right - left), int(bottom - top)
        if width * height >= share * photo.width * photo.height or width >= 0.98 * photo.width:
            break
    x, y = chance.randint(0, max(0, photo.width - width)), chance.randint(0, max(0, photo.height - height))
    draw.text((x - left, y - top), text, chance.choice(("white", "black", "red", "yellow")), font=font)
    return drawn


def changed(photo: Image.Image, seed: int) -> Iterator[tuple[str, bytes]]:
    def scaled(by: float) -> Image.Image:
        return photo.resize((round(photo.width * by), round(photo.height * by)), LANCZOS)

    yield "quality 60", encode(photo, 60)
    yield "0.7 of the size", encode(scaled(0.7), 85)
    yield "0.7 and quality 60", encode(scaled(0.7), 60)
    yield "posted at 2.4 times the size", encode(scaled(2.4), 85)
    for share in (0.01, 0.03, 0.1):
        yield f"number on {share:.0%}", encode(with_number(photo, share, seed), 85)


def hash_table(photos: list[Image.Image]) -> None:
    originals = [int(clean_image(encode(photo, 95)).phash, 16) for photo in photos]
    distances: dict[str, list[int]] = {}
    for seed, (photo, original) in enumerate(zip(photos, originals, strict=True)):
        for name, data in changed(photo, seed):
            distances.setdefault(name, []).append((original ^ int(clean_image(data).phash, 16)).bit_count())
    pairs = [(a ^ b).bit_count() for place, a in enumerate(originals) for b in originals[:place]]
    print(
        f"\n| bits of {HASH_BITS} that differ | within {MAX_HAMMING} | least | median | 99% | most |\n|---|---|---|---|---|---|"
    )
    for name, values in [*distances.items(), ("different photos", pairs)]:
        near = np.mean(np.array(values) <= MAX_HAMMING)
        cells = (min(values), np.median(values), np.percentile(values, 99), max(values))
        print(f"| {name} | {near:.1%} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")


def worst_inputs() -> Iterator[tuple[str, bytes]]:
    """Files within the limits that keep a decoder busiest, one of each kind."""
    side = 7071
    rough = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    photo = Image.fromarray(rough).resize((side, side), BILINEAR)
    for kind, options in [
        ("JPEG", {"quality": 50}),
        ("WEBP", {"quality": 10, "method": 0}),
        ("AVIF", {"quality": 20, "speed": 10}),
    ]:
        out = io.BytesIO()
        photo.save(out, kind, **options)
        yield f"{kind}, 50 MP", out.getvalue()
    for name, image in [
        ("PNG, 50 MP, transparent", Image.new("RGBA", (side, side), (1, 2, 3, 90))),
        ("PNG, 50 MP, 16-bit grey", Image.fromarray(np.full((side, side), 30_000, np.uint16))),
        ("GIF, 50 MP", photo.quantize(16)),
    ]:
        out = io.BytesIO()
        image.save(out, name[:3], compress_level=1)
        yield name, out.getvalue()
    frames = [Image.fromarray(np.roll(rough[:64, :64], step, axis=0)) for step in range(1000)]
    for kind, count in [("GIF", 1000), ("WEBP", 1000), ("AVIF", 200), ("PNG", 1000)]:
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:count], duration=20)
        yield f"{kind}, {count} frames of 64 x 64", out.getvalue()
    for scans in (64, 490):
        yield f"JPEG, 50 MP, {scans} scans", many_scans(side, scans)


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, a few bytes that refine nothing, is repeated."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (120, 130, 140)).save(out, "JPEG", progressive=True)
    body = out.getvalue()[:-2]
    last = body.rindex(b"\xff\xc4")  # its table, then the scan
    return body + body[last:] * (scans - body.count(b"\xff\xda")) + b"\xff\xd9"


def worst_table() -> None:
    print("\n| within the limits on bytes and pixels | MB | CPU s | result |\n|---|---|---|---|")
    for name, data in worst_inputs():
        start = time.process_time()
        try:
            result = "cleaned" if clean_image(data, ImageLimits(max_scans=500)) else ""
        except ImageRejected as rejected:
            result = rejected.reason
        print(f"| {name} | {len(data) / 1e6:.1f} | {time.process_time() - start:.2f} | {result} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs, at least a few dozen")
    parser.add_argument("--step", type=int, default=1, help="every which photo is used for speed and likeness")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hashes", action="store_true", help="what the perceptual hash sees, instead of speed")
    parser.add_argument("--worst", action="store_true", help="the slowest input, instead of speed")
    settings = parser.parse_args()
    photos = [decode(file.read_bytes()) for file in sorted(settings.photos.glob("*.jpg"))]
    if settings.hashes:
        hash_table(photos)
    if settings.worst:
        worst_table()
    if not settings.hashes and not settings.worst:
        speed_table(photos, settings.step, settings.repeats)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, inputs included")


if __name__ == "__main__":
    main()
