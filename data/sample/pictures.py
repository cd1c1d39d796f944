"""Draws the sample's small pictures: harmless scenes, and the handles, QR-like codes and posters that break a rule.

Every picture follows from its key alone (one random generator per key), so one picture can change without the others.
Only Pillow; its built-in font knows Latin letters and digits, which is why drawn text is never Chinese.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

HARMLESS_WORDS = [
    "MENU",
    "HELLO",
    "DAY 12",
    "BUS 305",
    "BOOKS",
    "OPEN",
    "FEB 2026",
    "TEA",
    "ROOM 8",
    "5 KM",
    "GARDEN",
    "NOTES",
]
HINTS = ["SEE MY BIO", "LINK IN BIO", "DM ME", "ASK IN GROUP", "CODE IN PROFILE"]
STRONG_CLAIMS = ["CURES ALL", "100% EFFECTIVE", "NO.1 IN WORLD", "WHITE IN 3 DAYS", "LOSE 10KG"]
MILD_CLAIMS = ["-50% BEST EVER", "RMB 99 ONLY", "TOP CHOICE", "SUPER SALE -70%", "BUY 1 GET 3"]


def random_color(rng: random.Random, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _scene(rng: random.Random) -> Image.Image:
    """A gradient with shapes; the size is 96 to 320 pixels a side."""
    width, height = rng.randrange(96, 321, 8), rng.randrange(96, 321, 8)
    top, bottom = random_color(rng, 60), random_color(rng, 60)
    strip = Image.new("RGB", (1, 2))
    strip.putdata([top, bottom])
    image = strip.resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(4, 9)):
        x, y = rng.randint(-20, width - 10), rng.randint(-20, height - 10)
        box = (x, y, x + rng.randint(15, width // 2 + 20), y + rng.randint(15, height // 2 + 20))
        shape = rng.choice(["ellipse", "rectangle", "triangle", "line"])
        color = random_color(rng)
        if shape == "ellipse":
            draw.ellipse(box, fill=color)
        elif shape == "rectangle":
            draw.rectangle(box, fill=color)
        elif shape == "triangle":
            draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=color)
        else:
            draw.line(box, fill=color, width=rng.randint(2, 9))
    return image


def _write(image: Image.Image, text: str, rng: random.Random, dark: bool) -> None:
    """A band across the picture with text as large as fits."""
    width, height = image.size
    size = max(12, min(int(width / (0.62 * len(text))), height // 3))
    top = rng.randint(4, max(5, height - size - 12))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, width, top + size + 6), fill=random_color(rng, 0, 50) if dark else random_color(rng, 220))
    ink = (255, 255, 255) if dark else (0, 0, 0)
    draw.text((4, top + 1), text, font=ImageFont.load_default(size), fill=ink)


def _code(image: Image.Image, rng: random.Random, covered: bool) -> None:
    """A QR-like code: three finder squares and random modules (it decodes to nothing), perhaps half covered."""
    cells = 21
    scale = max(3, min(image.size) * rng.randint(60, 90) // 100 // cells)
    side = cells * scale
    left, top = rng.randint(0, max(0, image.width - side)), rng.randint(0, max(0, image.height - side))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 4, top - 4, left + side + 4, top + side + 4), fill="white")
    for row in range(cells):
        for column in range(cells):
            finder = [(r, c) for r, c in ((0, 0), (0, 14), (14, 0)) if r <= row < r + 7 and c <= column < c + 7]
            if finder:
                ring = max(abs(row - finder[0][0] - 3), abs(column - finder[0][1] - 3))
                dark = ring != 2
            else:
                dark = rng.random() < 0.5
            if dark:
                x, y = left + column * scale, top + row * scale
                draw.rectangle((x, y, x + scale - 1, y + scale - 1), fill="black")
    if covered:
        draw.rectangle((left + side // 3, top - 4, left + side + 4, top + side + 4), fill=random_color(rng, 80))


def handle_text(rng: random.Random) -> str:
    name = "".join(rng.choice("abcdefghkmnpqrstwxyz") for _ in range(rng.randint(3, 5)))
    return f"{rng.choice(['VX', 'WX', 'V', 'QQ', 'vx'])}: {name}{rng.randint(10, 999)}"


def draw(kind: str, key: str) -> Image.Image:
    """kind: scene, word (a scene with a harmless word), handle, hint, code, half_code, strong_poster or mild_poster."""
    rng = random.Random(key)
    image = _scene(rng)
    if kind == "word":
        _write(image, rng.choice(HARMLESS_WORDS), rng, rng.random() < 0.5)
    elif kind == "handle":
        _write(image, handle_text(rng), rng, rng.random() < 0.5)
    elif kind == "hint":
        _write(image, rng.choice(HINTS), rng, rng.random() < 0.5)
    elif kind in ("code", "half_code"):
        _code(image, rng, covered=kind == "half_code")
    elif kind in ("strong_poster", "mild_poster"):
        claims = STRONG_CLAIMS if kind == "strong_poster" else MILD_CLAIMS
        for text in rng.sample(claims, 2 if image.height > 160 else 1):
            _write(image, text, rng, dark=kind == "strong_poster")
    return image


def encode(image: Image.Image, extension: str) -> bytes:
    """The image as jpg (quality 70), png, webp or gif bytes."""
    buffer = io.BytesIO()
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}
    image.save(buffer, formats[extension], quality=70)
    return buffer.getvalue()


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 grey cells is brighter than its right neighbour."""
    grey = list(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR).tobytes())
    bits = 0
    for row in range(8):
        for column in range(8):
            bits = bits << 1 | (grey[row * 9 + column] > grey[row * 9 + column + 1])
    return bits


# --- pictures that something must survive -------------------------------------------------------------------------------


def _truncated() -> bytes:
    data = encode(draw("scene", "truncated"), "jpg")
    return data[: len(data) // 3]


def _bomb() -> bytes:
    """A PNG of 30,000 x 30,000 one-bit pixels: about 110 kB on disk, 900 million pixels when decoded."""
    side = 30_000
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _animated() -> bytes:
    frames = [draw("scene", f"frame-{i}").resize((120, 90)) for i in range(4)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    return buffer.getvalue()


def _exif() -> bytes:
    """A JPEG that says it lies on its side (orientation 6), where (in the ocean, 0 N 0 E) and by which camera."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "FictionalCam"
    gps = exif.get_ifd(0x8825)
    gps.update({1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)})
    buffer = io.BytesIO()
    draw("scene", "exif").save(buffer, "JPEG", quality=70, exif=exif)
    return buffer.getvalue()


def _cmyk() -> bytes:
    return encode(draw("scene", "cmyk").convert("CMYK"), "jpg")


def _sixteen_bit() -> bytes:
    pixels = b"".join(struct.pack("<H", (x * 300 + y * 200) % 65536) for y in range(96) for x in range(96))
    return encode(Image.frombytes("I;16", (96, 96), pixels), "png")


def _rgba() -> bytes:
    image = draw("scene", "rgba").convert("RGBA")
    image.putalpha(image.convert("L"))
    return encode(image, "png")


# kind -> (file extension, maker)
SPECIAL: dict[str, tuple[str, Callable[[], bytes]]] = {
    "image_truncated": ("jpg", _truncated),
    "image_text_named_jpg": ("jpg", lambda: "这不是一张图片\n".encode()),
    "image_zero_bytes": ("jpg", lambda: b""),
    "image_bomb": ("png", _bomb),
    "image_tiny": ("png", lambda: encode(Image.new("RGB", (10, 10), (200, 30, 30)), "png")),
    "image_extreme_aspect": ("jpg", lambda: encode(Image.linear_gradient("L").resize((2000, 8)), "jpg")),
    "image_animated_gif": ("gif", _animated),
    "image_exif_gps": ("jpg", _exif),
    "image_cmyk": ("jpg", _cmyk),
    "image_16bit": ("png", _sixteen_bit),
    "image_rgba": ("png", _rgba),
}
