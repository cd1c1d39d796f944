"""Cleaning raw posts, batch by batch: text normalised and de-identified, images made safe. Pure over Arrow; writes nothing."""

import hashlib
import io
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image

from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.identifiers import mask
from xhs_pipeline.curation.images import ImageLimits, ImageRejected, clean_image
from xhs_pipeline.curation.pool import Task, map_batches
from xhs_pipeline.curation.pool_worker import NO_ROW, WHOLE_ROW, Begin, GivenUp
from xhs_pipeline.curation.text import matching_form, normalise
from xhs_pipeline.posts.schema import CLEAN_POSTS, DROPPED_IMAGES, QUARANTINE

STAGE = "clean_posts"
CLEAN_TABLES = "xhs_pipeline.curation.clean:clean_tables"
# Title and body together. A note holds a thousand characters and a long article some ten thousand; masking takes about 3 s for
# a million, so one row of megabytes (a whole file in one cell) would hold up its week.
MAX_TEXT_CHARS = 100_000
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

# SHA-256 of every clean image, in the order of the posts: what is read back from a file is compared with what was decoded.
IMAGE_DIGESTS = pa.schema([("sha256", pa.binary(32))])
_OF_IMAGES = ("images", "image_hashes", "ocr_text", "qr_codes", "ocr_failed")

Row = dict[str, Any]


@dataclass(frozen=True)
class CleanSettings:
    """How posts are cleaned. Part of the artefact's version: the same settings and input give the same bytes.

    max_text_chars: of title and body together, and of rationale and label_source each.
    seconds_per_image: wall time for one image, or for the text of a post. The largest image that `images` admits takes about
        2 s of a core (benchmarks/clean_posts), so that only what was built to be slow reaches it.
    worker_memory_mb: address space for a worker beyond what it starts with; the largest image admitted takes about 1,000.
    ocr: read text and QR codes in the clean images; see curation.ocr.
    """

    images: ImageLimits = field(default_factory=ImageLimits)
    max_text_chars: int = MAX_TEXT_CHARS
    seconds_per_image: float = 30.0
    worker_memory_mb: int = 1536
    ocr: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain JSON values, to be hashed into the artefact's version."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CleanSettings":
        """The settings that `as_dict` wrote down."""
        return cls(**(values | {"images": ImageLimits(**values["images"])}))


@dataclass(frozen=True)
class CleanedBatch:
    """What became of one batch: posts (CLEAN_POSTS) + quarantine (QUARANTINE) = rows in; dropped_images of posts in either.

    image_digests: IMAGE_DIGESTS of the images in posts; each of them was decoded after it was made.
    """

    posts: pa.RecordBatch
    quarantine: pa.RecordBatch
    dropped_images: pa.RecordBatch
    image_digests: pa.RecordBatch


def _unwatched(row: int, part: int) -> None:
    pass


def clean_batch(
    batch: pa.RecordBatch, settings: CleanSettings, begin: Begin = _unwatched, given_up: GivenUp | None = None
) -> CleanedBatch:
    """Clean a batch of RAW_POSTS; see CleanedBatch. Rows keep their order.

    Title, body, rationale and label_source are normalised and de-identified. A post loses an image that cannot be used, with
    the reason in dropped_images; it goes to quarantine only when it has no text and no image left ("nothing_to_judge") or when
    its text is too long for a post ("text_too_long"; its images are then not looked at).
    begin: told the row and the image (or WHOLE_ROW for the text) about to be worked on. given_up: rows and images that are left
    out, the row to quarantine and the image to dropped_images, with reason and detail.
    """
    given_up = given_up or {}
    posts: list[Row] = []
    quarantine: list[Row] = []
    dropped: list[Row] = []
    digests: list[bytes] = []
    for index, raw in enumerate(batch.to_pylist()):
        if why := given_up.get((index, WHOLE_ROW)):
            quarantine.append(_quarantined(raw["post_id"], *why))
            continue
        begin(index, WHOLE_ROW)
        if too_long := _too_long(raw, settings.max_text_chars):
            quarantine.append(_quarantined(raw["post_id"], "text_too_long", too_long))
            continue
        post = _clean_text(raw)
        skip = {part: why for (row, part), why in given_up.items() if row == index}
        images, hashes, texts, lost = _clean_images(raw, settings, partial(begin, index), skip)
        dropped += lost
        if not post["title"] and not post["body"] and not images:
            quarantine.append(_quarantined(raw["post_id"], "nothing_to_judge", _nothing_left(lost)))
            continue
        posts.append(post | {"images": images, "image_hashes": hashes} | _in_images(post, texts, settings))
        digests += [hashlib.sha256(image["bytes"]).digest() for image in images]
    return CleanedBatch(
        pa.RecordBatch.from_pylist(posts, schema=CLEAN_POSTS),
        pa.RecordBatch.from_pylist(quarantine, schema=QUARANTINE),
        pa.RecordBatch.from_pylist(dropped, schema=DROPPED_IMAGES),
        pa.record_batch([pa.array(digests, pa.binary(32))], schema=IMAGE_DIGESTS),
    )


def clean_stream(
    batches: Iterable[pa.RecordBatch],
    settings: CleanSettings,
    processes: int = 1,
    log: Callable[[str], None] = print,
    function: str = CLEAN_TABLES,
) -> Generator[CleanedBatch, None, None]:
    """clean_batch over every batch, in order, in worker processes: a decoder that crashes, hangs or eats memory ends alone.

    A post that ends two workers goes to quarantine as "kills_worker"; an image that twice takes longer than
    `seconds_per_image` is dropped as "too_slow" (a text: its post is quarantined). The rest of the batch goes on, and `log`
    names the post each time. The result depends neither on the number of processes nor on accidents that hit no post twice.
    At most two batches per process are under way, so memory does not grow with the week. Close it to end the workers early.
    Raises as `pool.map_batches` does. function: what workers run, with the signature of clean_tables.
    """
    for tables in map_batches(task_of(settings, function), batches, max(1, processes), describe=_place, log=log):
        yield CleanedBatch(*tables)


def task_of(settings: CleanSettings, function: str = CLEAN_TABLES) -> Task:
    """Cleaning as a pool's task; each of its answers is the fields of a CleanedBatch."""
    return Task(function, settings.as_dict(), settings.seconds_per_image, settings.worker_memory_mb)


def clean_tables(
    batch: pa.RecordBatch, settings: dict[str, Any], begin: Begin, given_up: GivenUp
) -> Sequence[pa.RecordBatch]:
    """clean_batch as a pool's function: `settings` of CleanSettings.as_dict in, the fields of CleanedBatch out."""
    cleaned = clean_batch(batch, CleanSettings.from_dict(settings), begin, given_up)
    return cleaned.posts, cleaned.quarantine, cleaned.dropped_images, cleaned.image_digests


def _place(batch: pa.RecordBatch, row: int, part: int) -> tuple[str, str]:
    ids = batch.column("post_id")
    if row == NO_ROW:
        return (f"posts {ids[0]} to {ids[-1]}" if len(ids) else "no posts"), "before or after cleaning them"
    return f"post {ids[row]}", "text" if part == WHOLE_ROW else f"image {part + 1}"


def _too_long(raw: Row, most: int) -> str | None:
    lengths = {name: len(raw[name] or "") for name in ("title", "body", "rationale", "label_source")}
    lengths = {"title and body": lengths.pop("title") + lengths.pop("body"), **lengths}
    over = [f"{name}: {length:,} characters" for name, length in lengths.items() if length > most]
    return f"{'; '.join(over)}; at most {most:,}" if over else None


def _clean_text(raw: Row) -> Row:
    """The post's own columns with clean text, its matching form and the sorted placeholder types that went into it."""
    post = {name: raw.get(name) for name in CLEAN_POSTS.names if name not in _OF_IMAGES}
    found: set[str] = set()
    for name in ("title", "body", "rationale", "label_source"):
        post[name], types = mask(normalise(raw[name]))
        found.update(types)
    post["rationale"] = post["rationale"] or None
    post["label_source"] = post["label_source"] or None
    post["match_text"] = matching_form(post["title"], post["body"])
    post["identifiers"] = sorted(found)
    return post


def _clean_images(
    raw: Row, settings: CleanSettings, begin: Callable[[int], None], given_up: Mapping[int, tuple[str, str]]
) -> tuple[list[Row], list[str], list[ocr.ImageText | None], list[Row]]:
    """Clean images, their hashes, what stands in them, and DROPPED_IMAGES rows for those that are of no use."""
    kept: list[Row] = []
    hashes: list[str] = []
    texts: list[ocr.ImageText | None] = []
    lost: list[Row] = []
    images = raw["images"] or []
    errors = raw["image_errors"] or [None] * len(images)
    for index, (image, error) in enumerate(zip(images, errors, strict=True)):
        image = image or {"bytes": None, "path": None}
        try:
            if error:
                raise _reading_error(error)
            if index in given_up:
                raise ImageRejected(*given_up[index])
            begin(index)
            clean = clean_image(image["bytes"], settings.images)
            _prove_decodable(clean.data)
        except ImageRejected as rejected:
            lost.append(
                {
                    "post_id": raw["post_id"],
                    "path": shown_path(image["path"], index),
                    "reason": rejected.reason,
                    "detail": rejected.detail,
                }
            )
            continue
        kept.append({"bytes": clean.data, "path": f"{safe_name(raw['post_id'])}_{len(kept)}.jpg"})
        hashes.append(clean.phash)
        texts.append(_read(clean.data) if settings.ocr else None)
    return kept, hashes, texts, lost


def _read(jpeg: bytes) -> ocr.ImageText | None:
    """What stands in a clean image; None, which is counted in `ocr_failed`, when the reader fails on it."""
    try:
        return ocr.read(jpeg)
    except ocr.ReadingFailed:
        return None


def _in_images(post: Row, texts: list[ocr.ImageText | None], settings: CleanSettings) -> Row:
    """The columns about what stands in a post's images, and `identifiers` with what was found there; none when ocr is off."""
    if not settings.ocr:
        return {}
    found = ocr.merge(texts)
    return {
        "ocr_text": found.text or None,
        "qr_codes": found.qr_codes,
        "ocr_failed": found.failed,
        "identifiers": sorted({*post["identifiers"], *found.identifiers}),
    }


def _prove_decodable(data: bytes) -> None:
    """Decode a clean JPEG to an eighth of its size: every compressed byte is read, at less than half the cost of all pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageRejected("broken", f"its clean JPEG does not decode ({type(error).__name__})") from None


def _reading_error(error: str) -> ImageRejected:
    """An error of the reading stage, `code` or `code: sentence`; a sentence alone may hold anything, so it is not passed on."""
    code, _, sentence = error.partition(":")
    if not _CODE.fullmatch(code):
        return ImageRejected("unreadable", "the file could not be read")
    return ImageRejected(code, sentence.strip() or "found when the source was read")


def _nothing_left(lost: list[Row]) -> str:
    if not lost:
        return "no text and no image"
    reasons = ", ".join(row["reason"] for row in lost)
    return f"no text, and none of its {len(lost)} image(s) is usable: {reasons}"


def _quarantined(post_id: str, reason: str, detail: str) -> Row:
    return {"post_id": post_id, "stage": STAGE, "reason": reason, "detail": detail}


def safe_name(post_id: str) -> str:
    """`post_id` as a file name: itself when it is plain, else its plain characters and 8 hex digits that keep it unique."""
    plain = _UNSAFE.sub("_", post_id)[:64]
    return plain if plain == post_id else f"{plain}_{hashlib.sha256(post_id.encode()).hexdigest()[:8]}"


def shown_path(path: str | None, index: int) -> str:
    """The last part of an image's path, de-identified and at most 64 characters: fit for tables that people read."""
    name = re.split(r"[/\\]", path or "")[-1]
    shown, _ = mask(normalise(name[-200:]).replace("\n", " "))
    return shown[-64:] or f"image {index + 1}"
