"""Text and QR codes in images, by RapidOCR and OpenCV (the extra `ocr`): read here, de-identified here. Changes no image.

A QR code is found, never decoded: where it leads is an identifier, that there is one is the evidence.
"""

import functools
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xhs_pipeline.curation.identifiers import mask
from xhs_pipeline.curation.text import elide, normalise

INSTALL = "pip install 'xhs-pipeline[ocr]'"
QR_CODE = "二维码"  # beside the placeholder types in a post's `identifiers`
MIN_CONFIDENCE = 0.5  # of a line; RapidOCR's own default
# Lines are read at a height of 48 pixels, so that a character is about 48 wide and costs about 5 ms. An image's largest lines
# are read up to this width, some 500 characters: a page of small print would take 17 s, and cannot crowd out a headline.
# Figures here: benchmarks/ocr.md.
MAX_LINE_PIXELS = 24_000
NARROWEST_LINE = 320  # RapidOCR pads shorter ones to this width
# Characters kept of all images of a post together. The prompt has to hold them beside the body and the images' own tokens.
HEAD, TAIL = 350, 150
# A finder pattern (the square eye of a QR code) has a perimeter of at least this share of the image's longest side.
MIN_FINDER_PERIMETER = 0.04
# Pairing eyes into codes takes more than its share of time the more there are: 13 s for a sheet of 784. No photo has a hundred.
MAX_FINDERS = 100
_MODELS = {"Det": "PP-OCRv6_det_small", "Cls": "ch_ppocr_mobile_v2.0_cls_mobile", "Rec": "PP-OCRv6_rec_small"}


class ReadingFailed(ValueError):
    """An image that the reader could not cope with. Its post is judged without the text in it."""


@dataclass(frozen=True)
class ImageText:
    """What stands in one image: lines in reading order, as they were read (nothing masked), and the number of QR codes."""

    text: str
    qr_codes: int


@dataclass(frozen=True)
class PostText:
    """What stands in a post's images: normalised, de-identified text, the placeholder types in it, QR codes, images that failed."""

    text: str
    identifiers: tuple[str, ...]
    qr_codes: int
    failed: int


def require() -> None:
    """Raise ValueError, saying what to install, when the extra is missing. Loads nothing."""
    missing = [name for name in ("rapidocr", "onnxruntime", "cv2") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ocr: true needs {', '.join(missing)}, which are not installed; {INSTALL}, or set ocr: false")


def read(jpeg: bytes) -> ImageText:
    """Read one clean image (RGB or grey JPEG, sides 28 to 1,024). Loads the models on first use; needs no network.

    Raises ReadingFailed for an image that does not decode or that the models fail on.
    """
    return _reader().read(jpeg)


def merge(read: Sequence[ImageText | None]) -> PostText:
    """The images of one post, in their order, as one text that is fit to be kept; None stands for an image that failed.

    Identifiers are looked for in the whole text, before its middle is left out, and across lines and images: a cue may stand
    in one and the account in the next.
    """
    texts = [image for image in read if image]
    text, types = mask(normalise("\n".join(image.text for image in texts if image.text)))
    codes = sum(image.qr_codes for image in texts)
    found = sorted({*types, QR_CODE} if codes else set(types))
    return PostText(elide(text, HEAD, TAIL)[0], tuple(found), codes, len(read) - len(texts))


@functools.cache
def _reader() -> "_Reader":
    return _Reader()


class _Reader:
    """The models, loaded once in a process; one thread, so that a pool of N processes uses N cores."""

    def __init__(self) -> None:
        require()
        import cv2
        import rapidocr
        from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError

        cv2.setNumThreads(1)
        # By path: a model named otherwise is downloaded when the package's file is not the one expected.
        models = Path(rapidocr.__file__).with_name("models")
        self._engine: Any = rapidocr.RapidOCR(
            params={f"{part}.model_path": str(models / f"{name}.onnx") for part, name in _MODELS.items()}
            | {
                "Global.log_level": "critical",
                "Global.use_preprocess_img": False,  # enlarges lines before they are brought to their height
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                # One line at a time: faster on one thread, nothing being padded, and with less memory.
                "Rec.rec_batch_num": 1,
                "Cls.cls_batch_num": 1,
            }
        )
        self._eyes, self._codes = _code_detectors()
        # what OpenCV, the models' runtime and the code between them raise; an error of our own still surfaces
        self._errors = (cv2.error, ONNXRuntimeError, OSError, SyntaxError, ValueError, ArithmeticError, MemoryError)

    def read(self, jpeg: bytes) -> ImageText:
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
                pixels = np.ascontiguousarray(np.asarray(opened.convert("RGB"))[:, :, ::-1])
            return ImageText("\n".join(self._lines(pixels)), self._count_codes(pixels))
        except self._errors as error:
            raise ReadingFailed(f"{len(jpeg):,} bytes: {type(error).__name__}") from None

    def _lines(self, pixels: np.ndarray) -> list[str]:
        """Lines above the confidence, in reading order, the largest up to MAX_LINE_PIXELS; pixels (h, w, 3) uint8, BGR."""
        from rapidocr.utils.process_img import get_rotate_crop_image

        boxes = self._engine(pixels, use_det=True, use_cls=False, use_rec=False).boxes
        if boxes is None:
            return []
        crops = [get_rotate_crop_image(pixels, box.astype(np.float32)) for box in boxes]
        crops = [crop for crop in crops if crop.size]
        wanted, width = set(), 0.0
        # by size in steps of a factor of 1.4, so that lines of one size keep their order
        for index in sorted(range(len(crops)), key=lambda i: -round(2 * math.log2(crops[i].shape[0]))):
            width += max(48 * crops[index].shape[1] / crops[index].shape[0], NARROWEST_LINE)
            if width > MAX_LINE_PIXELS:
                break
            wanted.add(index)
        read = (self._engine(crops[i], use_det=False, use_cls=True, use_rec=True) for i in sorted(wanted))
        found = ((line.txts[0], line.scores[0]) for line in read if line.txts)
        return [text for text, score in found if score >= MIN_CONFIDENCE and text.strip()]

    def _count_codes(self, pixels: np.ndarray) -> int:
        import cv2

        grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        eyes = len(self._eyes.detectMarkers(grey)[0])
        if eyes < 3:
            return 0
        if eyes > MAX_FINDERS:
            return eyes // 3
        found, corners = self._codes.detectMulti(grey)
        return len(corners) if found else 0


def _code_detectors() -> tuple[Any, Any]:
    """OpenCV's finder of QR codes and, alone, its first step, which finds their eyes as markers of 5 x 5 (a frame of ones).

    The dictionary is the one that QRCodeDetectorAruco makes for itself (OpenCV, modules/objdetect/src/qrcode.cpp).
    """
    import cv2

    eye = np.ones((5, 5), np.uint8)
    eye[1:4, 1:4] = 0
    settings = cv2.aruco.DetectorParameters()
    settings.minMarkerPerimeterRate = MIN_FINDER_PERIMETER
    settings.detectInvertedMarker = True  # white on black is scanned as well
    dictionary = cv2.aruco.Dictionary(cv2.aruco.Dictionary.getByteListFromBits(eye), 5, 4)
    codes = cv2.QRCodeDetectorAruco()
    codes.setArucoParameters(settings)
    return cv2.aruco.ArucoDetector(dictionary, settings), codes
