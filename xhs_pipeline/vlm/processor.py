"""One processor for every checkpoint: Qwen2-VL's tokenizer, chat template and image preprocessing, without torchvision.

transformers' AutoProcessor wants a video processor, which needs torchvision, for which no CPU wheel is published beside
this torch; so the processor here holds the image part and the tokenizer only. Posts have no videos.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from xhs_pipeline.vlm.layout import CheckpointError, processor_file_problems, processor_problems

CACHED_BYTES = 256 * 2**20  # resized images kept in memory: thousands for the tiny profile, some hundred for a real one


@cache
def _processor_class() -> Any:
    from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class ImageTextProcessor(Qwen2VLProcessor):
        """Qwen2VLProcessor without videos. The parameters of __init__ decide what transformers loads from a folder."""

        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
        ):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return ImageTextProcessor


def load_processor(folder: Path, min_pixels: int, max_pixels: int, keep_images: bool = True) -> Any:
    """The processor of a checkpoint folder, resizing every image into [min_pixels, max_pixels] (area in pixels).

    Uses the Pillow image processor everywhere, so that training, scoring and serving see the same pixels. `keep_images`
    keeps resized images in memory for a training, which comes back to each of them every epoch; judging sees each once.
    Raises CheckpointError naming everything that is missing or does not belong to the model of the folder's config.json.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    problems = processor_file_problems(folder)
    if problems:
        raise CheckpointError(problems)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    image_processor.size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    template = _chat_template(folder) or tokenizer.chat_template
    problems = processor_problems(folder, tokenizer, image_processor, template)
    if problems:
        raise CheckpointError(problems)
    processor = _processor_class()(image_processor, tokenizer, chat_template=template)
    processor.resized = _resizing(image_processor, keep_images)
    processor.levels = _levels(image_processor)
    return processor


def save_processor(processor: Any, folder: Path) -> None:
    """Write tokenizer, chat template and image preprocessing in the published layout (preprocessor_config.json beside them).

    The processor's own save writes one processor_config.json instead, which other tools and older versions do not read.
    """
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")


def _chat_template(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        import json

        return json.loads(legacy.read_text(encoding="utf-8"))["chat_template"]
    return None


def image_tokens(processor: Any, width: int, height: int, max_pixels: int) -> int:
    """How many tokens an image of that size (pixels) becomes within `max_pixels`: 28 x 28 pixels a token after resizing."""
    limits = {"min_pixels": processor.image_processor.size["shortest_edge"], "max_pixels": max_pixels}
    patches = processor.image_processor.get_number_of_image_patches(height, width, limits)
    return int(patches) // processor.image_processor.merge_size**2


def pixels(processor: Any, images: Sequence[tuple[bytes, int]]) -> dict[str, Any]:
    """(JPEG bytes, max_pixels) as `pixel_values` (patches, 1176) float32 and `image_grid_thw` (images, 3) int64 tensors.

    A max_pixels of 0 is the processor's own limit. Exactly what the image processor makes of the decoded images, whose grey
    levels are put in order while they are still bytes.
    """
    import numpy as np
    import torch

    side, merge, frames = (
        getattr(processor.image_processor, name) for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    found, grids = [], []
    for data, max_pixels in images:
        image = np.asarray(processor.resized(data, max_pixels))
        rows, columns = image.shape[0] // side, image.shape[1] // side
        blocks = image.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
        patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, 1, side * side)
        found.append(np.empty((rows * columns, 3, frames, side * side), np.float32))
        for channel in range(3):
            found[-1][:, channel] = np.take(processor.levels[channel], patches[:, channel])
        grids.append([1, rows, columns])
    return {
        "pixel_values": torch.from_numpy(np.concatenate(found).reshape(-1, 3 * frames * side * side)),
        "image_grid_thw": torch.tensor(grids),
    }


def _levels(image_processor: Any) -> Any:
    """What the image processor makes of the grey levels 0 to 255 of each channel: float32 (3, 256)."""
    import numpy as np

    levels = np.tile(np.arange(256, dtype=np.uint8), (3, 1))[:, None]  # (channel, height, width)
    if image_processor.do_rescale:
        levels = image_processor.rescale(levels, image_processor.rescale_factor)
    if image_processor.do_normalize:
        levels = image_processor.normalize(levels, image_processor.image_mean, image_processor.image_std)
    return levels[:, 0].astype(np.float32)


def _resizing(image_processor: Any, keep: bool) -> Callable[[bytes, int], Any]:
    """Decode and resize one image to the size that the image processor gives it (its own filter and rounding)."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    smallest, largest = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
    factor = image_processor.patch_size * image_processor.merge_size

    def resized(data: bytes, max_pixels: int) -> Any:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as opened:
            image = opened.convert("RGB")
        height, width = smart_resize(image.height, image.width, factor, smallest, max_pixels or largest)
        return image.resize((width, height), image_processor.resample)

    kept: dict[tuple[bytes, int], Any] = {}

    def kept_or_resized(data: bytes, max_pixels: int) -> Any:
        key = (
            hashlib.sha256(data).digest(),
            max_pixels,
        )  # not the file itself, which would stay in memory beside its pixels
        if (image := kept.get(key)) is None:
            if len(kept) >= CACHED_BYTES // (3 * largest):
                del kept[next(iter(kept))]
            image = kept[key] = resized(data, max_pixels)
        return image

    return kept_or_resized if keep else resized
