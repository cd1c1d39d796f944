"""One image file in, one clean JPEG out, or a reason why not. Knows nothing about posts; reads no files."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, features
from PIL import __version__ as pillow_version

from xhs_pipeline.curation.jpeg import strip_metadata

_LENDS_BORROWED = int(pillow_version.split(".")[0]) >= 13
WHITE = (255, 255, 255)
HASH_BITS = 256
# Measured by xhs_pipeline_tests/benchmarks/images.py, results beside it: bits moved by a new encoding at quality 60 or 0.7 of
# the size, and by a telephone number written onto the photo. Must stay below the number of pieces that groups.py cuts a hash into.
MAX_HAMMING = 6
_HASH_SIDE, _GREY_SIDE = 16, 64
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow and the decoders beneath it raise on damaged files, found by damaging files. Named one by one, so that an error
# of our own (a NameError, an interrupt) still surfaces.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, BufferError,
    EOFError, RuntimeError, SystemError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class ImageLimits:
    """What is accepted, checked from the header before any pixel is decoded, and what comes out. Sides in pixels."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000
    min_side: int = 28
    max_aspect_ratio: float = 200.0
    longest_side: int = 1024
    jpeg_quality: int = 85
    # Encoders write 10 to 20. At 50 megapixels 490 scans of 12 bytes each keep a decoder busy for 24 s, 64 for 3 s
    # (xhs_pipeline_tests/benchmarks/images.py --worst).
    max_scans: int = 64


@dataclass(frozen=True)
class CleanImage:
    """A JPEG (RGB or grey, upright, no metadata), its size in pixels and its perceptual hash as 64 hex digits."""

    data: bytes
    width: int
    height: int
    phash: str


class ImageRejected(ValueError):
    """An image that cannot be used; `reason` is a stable code that is counted, `detail` a sentence with the numbers.

    Reasons: file_empty, file_too_large, unsupported_format, broken, too_many_pixels, too_many_scans, too_small,
    extreme_aspect_ratio, out_of_memory.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def clean_image(data: bytes | None, limits: ImageLimits | None = None) -> CleanImage:
    """Decode a JPEG, PNG, WebP, GIF or AVIF (its first frame) and return it as a clean JPEG within the limits.

    The EXIF orientation is applied and then every metadata segment is gone, colour profiles included (pixels are taken as
    sRGB). Transparency is flattened on white; CMYK, palette and 16-bit become 8-bit RGB; the longest side is brought down to
    `limits.longest_side`, never up. A JPEG that already is all that keeps its compressed bytes. A strip so long that it would
    end up thinner than `min_side` is padded with white to that side, since image processors fail on thinner ones.

    Raises ImageRejected, and nothing else, for any bytes at all.
    """
    limits = limits or ImageLimits()
    if not data:
        raise ImageRejected("file_empty", "the file has 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageRejected("file_too_large", f"{len(data):,} bytes, at most {limits.max_bytes:,}")
    kind = sniff(data)
    if kind is None:
        raise ImageRejected("unsupported_format", "not a JPEG, PNG, WebP, GIF or AVIF file")
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        raise ImageRejected("unsupported_format", f"{kind}, which the installed Pillow was built without")
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own pixel limit; ours is lower and rejects.
            warnings.simplefilter("ignore")
            return _clean(data, kind, limits)
    except Image.DecompressionBombError:
        raise ImageRejected("too_many_pixels", f"more than {limits.max_pixels:,} pixels") from None
    except MemoryError:
        raise ImageRejected("out_of_memory", f"decoding {len(data):,} bytes of {kind} needs too much memory") from None
    except ImageRejected:
        raise
    except _DECODER_ERRORS as error:
        raise ImageRejected(
            "broken", f"{kind} of {len(data):,} bytes does not decode ({type(error).__name__})"
        ) from None


def sniff(data: bytes) -> str | None:
    """The format by its first bytes, whatever the file is called: JPEG, PNG, WEBP, GIF, AVIF, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[4:8] == b"ftyp" and (b"avif" in data[8:64] or b"avis" in data[8:64]):
        return "AVIF"
    return None


def _clean(data: bytes, kind: str, limits: ImageLimits) -> CleanImage:
    if kind == "WEBP" and (size := _webp_size(data)):
        _check_size(*size, limits)  # Pillow's decoder allocates the whole canvas on opening
    if kind == "JPEG" and _scans(data) > limits.max_scans:
        raise ImageRejected("too_many_scans", f"more than {limits.max_scans} progressive scans")
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _check_size(*image.size, limits)
        full_size = image.size
        target = _fit(full_size, limits.longest_side)
        if kind == "JPEG":
            if image.mode in ("RGB", "L") and target == full_size and _orientation(image) == 1:
                stripped = strip_metadata(data)
                if stripped is not None:
                    return CleanImage(stripped, *full_size, _hash_of_jpeg(image))
            # libjpeg decodes straight to 1/2, 1/4 or 1/8 while that stays above the wanted size.
            image.draft(None, target)
        pixels = _fast_jpeg(data, full_size, image) if kind == "JPEG" else None
        if pixels is None:
            image.load()
            pixels = _to_rgb(image)
        orientation = _orientation(image)
    if pixels.size != target:
        pixels = _shrink(pixels, target)
    if orientation in _TURNS:
        pixels = pixels.transpose(_TURNS[orientation])
    if min(pixels.size) < limits.min_side:
        padded = Image.new("RGB", (max(pixels.width, limits.min_side), max(pixels.height, limits.min_side)), WHITE)
        padded.paste(pixels, ((padded.width - pixels.width) // 2, (padded.height - pixels.height) // 2))
        pixels = padded
    encoded = simplejpeg.encode_jpeg(_rgbx(pixels), limits.jpeg_quality, "RGBX", "420")
    return CleanImage(encoded, *pixels.size, perceptual_hash(pixels))


def _fast_jpeg(data: bytes, full_size: tuple[int, int], image: Image.Image) -> Image.Image | None:
    """The pixels of a plain JPEG by libjpeg-turbo's own interface, at the size that `image`, opened but not loaded, stands at.

    None, and nothing said, for whatever is not plain: Pillow then has the last word. That is any other colour space than
    YCbCr, a header that the two read differently, and anything that libjpeg-turbo refuses or only warns about.
    """
    if image.mode != "RGB":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != full_size or colours != "YCbCr":
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=image.height, min_width=image.width)
    except (ValueError, LookupError):
        return None
    return _from_rgbx(pixels) if pixels.shape[:2] == (image.height, image.width) else None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageRejected("too_many_pixels", f"{width} x {height} pixels, at most {limits.max_pixels:,} in all")
    if min(width, height) < limits.min_side:
        raise ImageRejected("too_small", f"{width} x {height} pixels, each side at least {limits.min_side}")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise ImageRejected(
            "extreme_aspect_ratio", f"{width} x {height} pixels, at most {limits.max_aspect_ratio:g} to 1"
        )


def _scans(data: bytes) -> int:
    """How often the marker SOS occurs: once per scan, and in a thumbnail."""
    values = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA)))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas size from the first WebP chunk (RFC 9649, sections 2.5 to 2.7); None when there is no readable one."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _fit(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """`size` shrunk so that its longest side is at most `longest_side`; never enlarged, no side below 1."""
    scale = min(1.0, longest_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when the tag is absent or the EXIF block is damaged, which does not spoil the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB with transparency flattened on white; 16-bit grey keeps its upper byte instead of being clipped to white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F":
            values = values.astype(np.int32)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values >> 8
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8), "L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, WHITE)
        flat.paste(image, mask=image.getchannel("A"))
        return flat
    return image.convert("RGB")


def _shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An RGB image brought down to `size`: by averaging whole blocks until less than 4 times as large, then by a cubic filter."""
    from xhs_pipeline.curation.resampling import shrink

    factor = max(1, max(image.size) // (2 * max(size)))
    extent = (image.width / factor, image.height / factor)
    if factor > 1:
        image = image.reduce(factor)
    return _from_rgbx(shrink(_rgbx(image), extent, size))


def _rgbx(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image (height, width, 4), uint8, read-only: Pillow's own memory where that is in one piece.

    Before version 13 Pillow crashed on giving out the memory of an image that `_from_rgbx` made.
    """
    if _LENDS_BORROWED:
        try:
            return pa.array(image).flatten().to_numpy().reshape(image.height, image.width, 4)
        except ValueError:
            pass  # several pieces, above 16 MB
    flat = np.frombuffer(image.convert("RGBX").tobytes(), np.uint8)
    return flat.reshape(image.height, image.width, 4)


def _from_rgbx(pixels: np.ndarray) -> Image.Image:
    """An RGB image on the memory of `pixels` (height, width, 4), uint8."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 4)
    return Image.fromarrow(flat, "RGB", (pixels.shape[1], pixels.shape[0]))


def perceptual_hash(image: Image.Image) -> str:
    """256 bits, as 64 hex digits: which of the 16 x 16 lowest DCT coefficients of the 64 x 64 grey image exceed their median.

    The pHash of Zauner (2010), "Implementation and Benchmarking of Perceptual Image Hash Functions", with four times its bits,
    since 64 do not see a telephone number drawn onto a photo. The first coefficient (mean brightness) stays out of the median.
    A flat image hashes by its noise, so its coefficients are rounded to zero. `image` is RGB or L, at most 2,048 pixels a side.
    """
    across, down = (max(1, side // (2 * _GREY_SIDE)) for side in image.size)
    extent = (0, 0, image.width / across, image.height / down)
    if image.mode == "RGB":
        from xhs_pipeline.curation.resampling import grey_blocks

        blocks = Image.fromarray(grey_blocks(_rgbx(image), across, down))
    else:
        blocks = image.reduce((across, down))
    grey = np.asarray(blocks.resize((_GREY_SIDE, _GREY_SIDE), Image.Resampling.BICUBIC, extent), dtype=np.float64)
    cosines = _cosines()
    low = np.round(cosines @ grey @ cosines.T, 3).ravel()
    return np.packbits(low > np.median(low[1:])).tobytes().hex()


def _hash_of_jpeg(image: Image.Image) -> str:
    """The hash of an opened JPEG, of which libjpeg decodes only brightness, as small as the hash needs; all of it is read."""
    image.draft("L", (2 * _GREY_SIDE, 2 * _GREY_SIDE))
    image.load()
    return perceptual_hash(image)


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The first 16 rows of the 64-point DCT-II matrix, unnormalised."""
    k, n = np.arange(_HASH_SIDE)[:, None], np.arange(_GREY_SIDE)[None, :]
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _GREY_SIDE))
