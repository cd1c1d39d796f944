"""Every kind of image file becomes a clean JPEG or a reason."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from xhs_pipeline.curation.images import MAX_HAMMING, ImageLimits, ImageRejected, clean_image
from xhs_pipeline.curation.jpeg import strip_metadata

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "photos"


def picture(width: int = 320, height: int = 240, mode: str = "RGB") -> Image.Image:
    """A gradient with a few shapes: compresses like a photo and hashes distinctly."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).ellipse((width // 8, height // 8, width // 2, height // 2), fill=(200, 30, 60))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def hamming(left: str, right: str) -> int:
    return (int(left, 16) ^ int(right, 16)).bit_count()


def reason(data: bytes | None, limits: ImageLimits | None = None) -> str:
    with pytest.raises(ImageRejected) as rejected:
        clean_image(data, limits)
    assert rejected.value.detail
    return rejected.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_every_format_becomes_a_jpeg_of_the_same_picture(kind: str) -> None:
    clean = clean_image(encoded(picture(), kind))
    image = opened(clean.data)
    assert (
        (image.format, image.mode, image.size)
        == ("JPEG", "RGB", (clean.width, clean.height))
        == ("JPEG", "RGB", (320, 240))
    )
    assert hamming(clean.phash, clean_image(encoded(picture())).phash) <= (30 if kind == "GIF" else 10)
    assert abs(np.asarray(image, float) - np.asarray(picture(), float)).mean() < 20


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_of_an_animation_the_first_frame_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    red, _, blue = opened(clean_image(data).data).getpixel((32, 32))  # type: ignore[misc]
    assert red > 200 and blue < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_and_then_gone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "camera of somebody"
    clean = clean_image(encoded(picture(300, 200), exif=exif))
    image = opened(clean.data)
    assert not image.getexif() and b"camera" not in clean.data
    assert (clean.width, clean.height) == ((200, 300) if orientation >= 5 else (300, 200))
    upright = ImageOps.exif_transpose(opened(encoded(picture(300, 200), exif=exif)))
    assert abs(np.asarray(image, float) - np.asarray(upright, float)).mean() < 6


def test_a_jpeg_that_conforms_keeps_its_compressed_bytes() -> None:
    for options in ({}, {"progressive": True}, {"quality": 30}):
        plain = encoded(picture(), **options)
        assert clean_image(plain).data == plain
    exif = Image.Exif()
    exif[0x010F] = "maker"
    tagged = encoded(picture(), exif=exif, comment=b"secret", icc_profile=b"x" * 500)
    assert clean_image(tagged + b"hidden archive").data == clean_image(encoded(picture())).data
    assert opened(clean_image(encoded(picture(mode="L"))).data).mode == "L"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize("progressive", [False, True])
def test_of_a_jpeg_only_the_segments_that_decode_it_are_kept(progressive: bool) -> None:
    plain = encoded(picture(), progressive=progressive, restart_marker_rows=2)
    assert any(bytes((0xFF, 0xD0 + n)) in plain for n in range(8)), "restart markers are part of the test"
    secret = b"31.2304 N, 121.4737 E"
    # Application data, comments, JPGn, DNL, reserved markers, JFXX; a table is kept only where a scan follows that uses it.
    for marker in (*range(0xE1, 0xF0), 0xFE, *range(0xF0, 0xFE), 0xDC, 0xC8, 0x02, 0xBF, 0xE0):
        payload = b"JFXX\0" + secret if marker == 0xE0 else secret
        assert strip_metadata(plain[:20] + segment(marker, payload) + plain[20:]) == plain, hex(marker)
    for marker in (0xFE, 0xF5, 0xDC, 0xE1, 0xC4, 0xDB, 0xDD, 0xC0):
        late = plain[:-2] + segment(marker, secret) + plain[-2:] + secret
        assert strip_metadata(late) == plain, hex(marker)
        if marker in (0xFE, 0xE1):  # the decoder refuses the others there
            assert secret not in clean_image(late).data
    for marker in (0xCC, 0xDE, 0xDF):
        assert strip_metadata(plain[:20] + segment(marker, secret) + plain[20:]) is None, "its look would change"
    assert clean_image(plain).data == plain


def test_an_adobe_jpeg_that_stores_rgb_keeps_its_colours() -> None:
    data = encoded(picture(), keep_rgb=True)
    assert strip_metadata(data) is None or b"JFIF" in data or b"Adobe" not in data
    after, before = opened(clean_image(data).data), opened(data)
    assert abs(np.asarray(after, float) - np.asarray(before, float)).mean() < 6


def test_a_jpeg_that_not_every_decoder_reads_alike_is_encoded_anew() -> None:
    plain = encoded(picture())
    frame = plain.index(b"\xff\xc0")
    for offset, value in [(1, 0xC3), (1, 0xC9), (1, 0xCA), (4, 12), (9, 2), (11, 0x44), (14, 0x21)]:
        odd = bytearray(plain)
        odd[frame + offset] = value
        assert strip_metadata(bytes(odd)) is None, "lossless, arithmetic, 12 bits, two components, odd sampling"
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        usual = encoded(picture(), subsampling=sampling)
        assert strip_metadata(usual) == usual
    stored_as_rgb = encoded(picture(), keep_rgb=True)
    adobe = stored_as_rgb.index(b"\xff\xee")
    unnamed = stored_as_rgb[:adobe] + stored_as_rgb[adobe + 16 :]
    assert opened(unnamed).getpixel((90, 90)) == opened(stored_as_rgb).getpixel((90, 90)), (
        "its component numbers say RGB"
    )
    assert strip_metadata(unnamed) is None
    after, before = opened(clean_image(unnamed).data), opened(stored_as_rgb)
    assert abs(np.asarray(after, float) - np.asarray(before, float)).mean() < 6


def test_transparency_is_flattened_on_white() -> None:
    for image, kind in [
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "PNG"),
        (Image.new("LA", (64, 64), (0, 0)), "PNG"),
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "WEBP"),
    ]:
        assert opened(clean_image(encoded(image, kind)).data).getpixel((30, 30)) == (255, 255, 255)
    palette = Image.new("P", (64, 64), 0)
    assert opened(clean_image(encoded(palette, "PNG", transparency=0)).data).getpixel((30, 30)) == (255, 255, 255)


def test_cmyk_palette_and_16_bit_become_rgb() -> None:
    for data in (encoded(picture(mode="CMYK")), encoded(picture(mode="P"), "PNG"), encoded(picture(mode="1"), "PNG")):
        assert opened(clean_image(data).data).mode == "RGB"
    deep = Image.fromarray(np.full((64, 64), 0x8000, np.uint16))
    grey = opened(clean_image(encoded(deep, "PNG")).data).getpixel((5, 5))
    assert grey == (128, 128, 128), "scaled, not clipped to white"


def test_a_large_image_comes_down_to_1024_and_a_small_one_stays() -> None:
    assert (lambda c: (c.width, c.height))(clean_image(encoded(picture(3000, 1500)))) == (1024, 512)
    assert (lambda c: (c.width, c.height))(clean_image(encoded(picture(40, 30), "PNG"))) == (40, 30)


def cubic(source: int, extent: float, wanted: int) -> np.ndarray:
    """The matrix (wanted, source) of Keys' cubic filter, in floating point, stretched by 0.8 of the ratio but never narrowed."""
    scale = extent / wanted
    reach = max(1.0, 0.8 * scale)
    x = abs(np.arange(source) + 0.5 - (np.arange(wanted)[:, None] + 0.5) * scale) / reach
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(1500, 1125), (1025, 1023), (1999, 801), (2900, 1601), (5600, 28), (41, 5001)])
def test_shrinking_is_a_cubic_filter(size: tuple[int, int]) -> None:
    """In noise of black and white every weight counts in full and sums are at their extremes: weights of whole 128ths err by
    some levels there, a sum that did not fit would err by 255."""
    width, height = size
    target = tuple(max(1, round(side * 1024 / max(size))) for side in size)
    factor = max(1, max(size) // 2048)
    noise = np.random.default_rng(5).integers(0, 2, (height, width, 1), np.uint8) * np.full(3, 255, np.uint8)
    flat = np.full((height, width, 3), (255, 0, 7), np.uint8)
    for image, mean, most in [
        (Image.fromarray(noise), 5, 50),
        (picture(*size), 1.2, 25),
        (Image.fromarray(flat), 1, 2),
    ]:
        pixels = np.asarray(image.reduce(factor) if factor > 1 else image, float)
        rows = cubic(pixels.shape[0], height / factor, target[1])
        columns = cubic(pixels.shape[1], width / factor, target[0])
        exact = columns @ np.tensordot(rows, pixels, axes=1).clip(0, 255)
        wanted = opened(encoded(Image.fromarray(exact.clip(0, 255).round().astype(np.uint8)), quality=100))
        limits = ImageLimits(min_side=1, max_aspect_ratio=1e9, jpeg_quality=100)
        made = opened(clean_image(encoded(image, "PNG", compress_level=1), limits).data)
        difference = np.abs(np.asarray(wanted, int) - np.asarray(made, int))
        assert made.size == target and difference.mean() <= mean and difference.max() <= most


def test_a_picture_too_large_for_one_block_of_memory_shrinks_like_any_other() -> None:
    large = picture(3600, 3000)
    made = opened(clean_image(encoded(large, "PNG")).data)
    wanted = large.resize(made.size, Image.Resampling.BICUBIC)
    assert abs(np.asarray(made, float) - np.asarray(wanted, float)).mean() < 3


def test_a_long_strip_is_padded_rather_than_made_too_thin() -> None:
    clean = clean_image(encoded(picture(5600, 28), "PNG"))
    assert (clean.width, clean.height) == (1024, 28)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_each_kind_of_bad_file_has_its_reason() -> None:
    good = encoded(picture())
    assert reason(None) == reason(b"") == "file_empty"
    assert reason(good, ImageLimits(max_bytes=1000)) == "file_too_large"
    assert reason(png_header(60_000, 60_000)) == reason(png_header(8_000, 7_000)) == "too_many_pixels"
    assert reason(encoded(picture(27, 100), "PNG")) == "too_small"
    assert reason(encoded(Image.new("RGB", (5629, 28)), "PNG")) == "extreme_aspect_ratio"
    assert reason(good[: len(good) // 2]) == reason(good[:20]) == reason(png_header(64, 64)) == "broken"
    assert reason(encoded(picture(), "BMP")) == reason(encoded(picture(), "TIFF")) == "unsupported_format"
    assert reason(b"<html><img src=x>") == reason(b"\0" * 100) == "unsupported_format"
    assert reason(good.replace(b"\xff\xda", b"\xff\xda" * 600, 1)) == "too_many_scans"


def test_a_format_that_this_pillow_lacks_is_named() -> None:
    lacking = (
        "import sys; sys.modules['PIL._avif'] = None\n"
        "from xhs_pipeline.curation.images import ImageRejected, clean_image\n"
        "try: clean_image(sys.stdin.buffer.read())\n"
        "except ImageRejected as rejected: print(rejected)"
    )
    command = [sys.executable, "-c", lacking]
    said = subprocess.run(command, input=encoded(picture(), "AVIF"), capture_output=True, check=True).stdout.decode()
    assert said.startswith("unsupported_format: AVIF") and "Pillow" in said


def test_a_webp_that_claims_a_huge_canvas_is_refused_before_decoding() -> None:
    data = bytearray(encoded(picture(mode="RGBA"), "WEBP", exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\x00" * 2
    assert reason(bytes(data)) == "too_many_pixels"


def test_a_text_bomb_in_a_png_is_a_reason_not_a_crash() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "A" * 30_000_000, zip=True)
    data = encoded(picture(), "PNG", pnginfo=info)
    try:
        assert b"comment" not in clean_image(data).data
    except ImageRejected as rejected:
        assert rejected.reason == "broken"


def test_damaged_files_are_rejected_or_cleaned_but_never_crash() -> None:
    generator = random.Random(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    sources = [encoded(picture(96, 64), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "AVIF")]
    sources += [encoded(picture(96, 64), "GIF"), encoded(picture(96, 64), progressive=True)]
    outcomes = set()
    for turn in range(1_500):
        data = bytearray(sources[turn % len(sources)])
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if turn % 5 == 0:
            del data[generator.randrange(len(data)) :]
        if turn % 7 == 0:
            other = sources[generator.randrange(len(sources))]
            data += other[generator.randrange(len(other)) :]
        try:
            clean = clean_image(bytes(data))
        except ImageRejected as rejected:
            outcomes.add(rejected.reason)
            continue
        assert opened(clean.data).size == (clean.width, clean.height)
    assert "broken" in outcomes


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about damaged EXIF blocks
def test_a_damaged_jpeg_is_accepted_if_and_only_if_pillow_decodes_it_and_then_looks_the_same() -> None:
    """A faster decoder reads the plain ones; whatever it would see differently has to be left to Pillow."""
    generator = random.Random(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    small = picture(160, 120)
    sources = [encoded(small, exif=exif, progressive=progressive) for progressive in (False, True)]
    sources += [
        encoded(small, restart_marker_rows=1),
        encoded(small, subsampling="4:2:2"),
        encoded(small, keep_rgb=True),
    ]
    sources += [encoded(small.convert(mode)) for mode in ("L", "CMYK")]
    outcomes = []
    for turn in range(1_400):
        data = bytearray(sources[turn % len(sources)])
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if turn % 6 == 0:
            del data[generator.randrange(len(data)) :]
        try:
            clean = clean_image(bytes(data), ImageLimits(longest_side=100, min_side=1, max_aspect_ratio=1e9))
        except ImageRejected as rejected:
            outcomes.append(rejected.reason)
            if rejected.reason == "broken":
                with pytest.raises((OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError)):
                    opened(bytes(data)).convert("RGB")
            continue
        before = ImageOps.exif_transpose(opened(bytes(data))).convert("RGB").resize((clean.width, clean.height))
        difference = np.abs(np.asarray(opened(clean.data), float) - np.asarray(before, float))
        assert difference.mean() < 12, turn
        outcomes.append("clean")
    assert outcomes.count("clean") > 700 and outcomes.count("broken") > 200


def test_the_hash_survives_reencoding_and_tells_pictures_apart() -> None:
    original = clean_image(encoded(picture(800, 600))).phash
    smaller = clean_image(encoded(picture(800, 600).resize((500, 375)), quality=60)).phash
    other = clean_image(encoded(picture(800, 600).transpose(Image.Transpose.ROTATE_180))).phash
    assert hamming(original, smaller) <= MAX_HAMMING < 60 < hamming(original, other)
    assert len(original) == 64 and clean_image(encoded(Image.new("RGB", (64, 64), "red"))).phash == "8" + "0" * 63


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not on this machine")
def test_the_hash_sees_a_number_written_on_a_photo_and_hardly_a_new_encoding() -> None:
    moved: dict[str, list[int]] = {"encoded": [], "smaller": [], "written on": []}
    for file in sorted(PHOTOS.glob("*.jpg"))[::6]:
        photo = opened(file.read_bytes()).convert("RGB")
        original = clean_image(encoded(photo)).phash
        small = photo.resize((photo.width * 7 // 10, photo.height * 7 // 10), Image.Resampling.BICUBIC)
        written = photo.copy()
        box = (photo.width // 8, photo.height // 2)
        ImageDraw.Draw(written).text(box, "vx 13800138000", "white", font_size=photo.width // 10)
        for name, image, quality in [("encoded", photo, 60), ("smaller", small, 85), ("written on", written, 85)]:
            moved[name].append(hamming(original, clean_image(encoded(image, quality=quality)).phash))
    near = {name: sum(bits <= MAX_HAMMING for bits in values) / len(values) for name, values in moved.items()}
    assert near["encoded"] >= 0.95 and near["smaller"] >= 0.95 and near["written on"] <= 0.4, near


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} is not on this machine")
def test_real_photos_come_out_clean() -> None:
    files = sorted(file for file in PHOTOS.iterdir() if file.suffix in (".jpg", ".png"))
    for file in files[::4] + [file for file in files if file.name.startswith("immich")]:
        clean = clean_image(file.read_bytes())
        image = opened(clean.data)
        assert image.format == "JPEG" and max(image.size) <= 1024 and not image.getexif(), file.name
        assert not {"exif", "icc_profile", "xmp", "comment", "photoshop"} & set(image.info), file.name
