"""Pictures with Chinese text and QR codes, drawn for tests and benchmarks of `curation.ocr`; uses what the extra installs."""

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xhs_pipeline.judgement.evasion.transforms import chinese_font

SIDE = 1024


def jpeg(pixels: np.ndarray, quality: int = 85) -> bytes:
    """RGB pixels, (h, w, 3) uint8, as a JPEG."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def blank(width: int = SIDE, height: int = 768, colour: str = "white") -> np.ndarray:
    return np.asarray(Image.new("RGB", (width, height), colour))


def written(lines: Sequence[str], size: int = 32, on: np.ndarray | None = None, colour: str = "black") -> np.ndarray:
    """Lines of text, `size` pixels high, from the top left corner. Raises evasion.FontMissing without a Chinese font."""
    image = Image.fromarray(blank() if on is None else on)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(str(chinese_font()), size)
    for number, line in enumerate(lines):
        draw.text((30, 30 + number * round(size * 1.6)), line, font=font, fill=colour)
    return np.asarray(image)


def qr_code(content: str) -> np.ndarray:
    """A QR code with its quiet zone of 4 modules (2 come from the encoder), 8 pixels a module, (n, n, 3) uint8."""
    modules = cv2.copyMakeBorder(cv2.QRCodeEncoder.create().encode(content), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=255)
    return cv2.cvtColor(cv2.resize(modules, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST), cv2.COLOR_GRAY2RGB)


def placed(
    code: np.ndarray, on: np.ndarray, centre: tuple[float, float], side: float, angle: float = 0.0, skew: float = 0.0
) -> np.ndarray:
    """`code` drawn on a picture: `side` in pixels with its quiet zone, `angle` in degrees; `skew` moves corners by that share."""
    if side < code.shape[0]:  # warping samples single pixels, which would drop modules
        code = cv2.resize(code, (round(side), round(side)), interpolation=cv2.INTER_AREA)
    size = code.shape[0]
    corners = np.array([[-1 + skew, -1], [1, -1 + skew], [1 - skew, 1], [-1, 1 - skew]]) * side / 2
    turn = np.deg2rad(angle)
    corners = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre
    source = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    matrix = cv2.getPerspectiveTransform(source, corners.astype(np.float32))
    shape = (on.shape[1], on.shape[0])
    drawn = cv2.warpPerspective(code, matrix, shape, flags=cv2.INTER_LINEAR)
    inside = cv2.warpPerspective(np.full(code.shape[:2], 255, np.uint8), matrix, shape) > 127
    return np.where(inside[:, :, None], drawn, on)


def photographed(pixels: np.ndarray, seed: int = 0) -> np.ndarray:
    """As from a phone in poor light: blurred (sigma 1.2), lit from one side (0.6 to 1.1), noisy (sigma 8)."""
    blurred = cv2.GaussianBlur(pixels, (0, 0), 1.2).astype(np.float32)
    light = np.linspace(0.6, 1.1, pixels.shape[1], dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(seed).normal(0, 8, pixels.shape).astype(np.float32)
    return (blurred * light + noise).clip(0, 255).astype(np.uint8)
