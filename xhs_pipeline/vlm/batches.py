"""From conversations to padded token batches: what the model reads, with the loss on the answer only. Knows no recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER, chat_parts
from xhs_pipeline.vlm.processor import pixels

IGNORED = -100  # label of a token without loss, as in torch.nn.functional.cross_entropy
DECISION_LINES = 2  # verdict and category; see splits.conversation.render_answer


@dataclass(frozen=True)
class Example:
    """One tokenised record: `prompt` ids with image tokens expanded, `answer` ids ending in <|im_end|>, JPEG bytes.

    The answer's first `decided` ids are verdict and category; what follows is the rationale, and the end of the turn.
    `max_pixels` is the largest area its images are shown with (0 = the limit of the processor), `images_left_out` how many `fit`
    left out, `weight` what the tokens of its answer count in the loss.
    """

    post_id: str
    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    decided: int = 0
    max_pixels: int = 0
    images_left_out: int = 0
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def tokenise(
    processor: Any, post_id: str, messages: Sequence[dict[str, str]], images: list[bytes], max_pixels: int | None = None
) -> Example:
    """Token ids of a conversation. Prompt and answer are tokenised apart, so that training and scoring meet the same ids.

    Images are shown within `max_pixels` (area), the processor's own limit by default. Raises ValueError when placeholders
    and images differ in number.
    """
    shown = max_pixels or processor.image_processor.size["longest_edge"]
    has_answer = messages[-1]["role"] == "assistant"
    turns = chat_parts(messages[:-1] if has_answer else messages)
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    placeholders = ids.count(processor.image_token_id)
    if placeholders != len(images):
        raise ValueError(f"post {post_id}: {placeholders} image placeholders but {len(images)} images")
    # An image's one token becomes as many as it has patches here, among the ids: no character of a post can stand for one.
    counts = iter(_token_counts(processor, images, shown))
    prompt: list[int] = []
    for token in ids:
        prompt += [token] * (next(counts) if token == processor.image_token_id else 1)
    if not has_answer:
        return Example(post_id, prompt, [], images, max_pixels=shown)
    answer = messages[-1]["content"]
    decision = "\n".join(answer.split("\n")[:DECISION_LINES])
    decided = len(answer_ids(processor.tokenizer, decision, end=False))
    return Example(post_id, prompt, answer_ids(processor.tokenizer, answer), images, decided, shown)


def answer_ids(tokenizer: Any, answer: str, end: bool = True) -> list[int]:
    """Token ids of an answer, with the end-of-turn token unless `end` is false."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")] if end else list(ids)


def _token_counts(processor: Any, images: list[bytes], max_pixels: int) -> list[int]:
    import io

    from PIL import Image

    from xhs_pipeline.vlm.processor import image_tokens

    sizes = (Image.open(io.BytesIO(data), formats=["JPEG"]).size for data in images)
    return [image_tokens(processor, *size, max_pixels) for size in sizes]


def columns(example: Example, rationale_weight: float = 1.0) -> tuple[list[int], list[int], list[float]]:
    """input_ids, labels (answer only) and loss_weights of a record, each as long as it.

    A weight is the record's for the decision and the end of the turn, times `rationale_weight` between them.
    """
    rationale = max(len(example.answer) - example.decided - 1, 0)
    shares = [1.0] * example.decided + [rationale_weight] * rationale
    shares += [1.0] * (len(example.answer) - len(shares))
    weights = [0.0] * len(example.prompt) + [example.weight * share for share in shares]
    return example.prompt + example.answer, [IGNORED] * len(example.prompt) + example.answer, weights


def seen(examples: Sequence[Example], ids: Any, processor: Any) -> dict[str, Any]:
    """What goes with `ids`, an int64 tensor of these records' tokens: mm_token_type_ids (int32, 1 = image), and with images
    also pixel_values (patches, 1176) float32 and image_grid_thw (images, 3) int64, in the records' order.
    """
    found: dict[str, Any] = {"mm_token_type_ids": (ids == processor.image_token_id).int()}
    if images := [(image, example.max_pixels) for example in examples for image in example.images]:
        found |= pixels(processor, images)
    return found


def pad(examples: Sequence[Example], processor: Any, rationale_weight: float = 1.0) -> dict[str, Any]:
    """Left-padded tensors of shape (batch, length), which scoring can append its answers to.

    int64: input_ids, attention_mask, labels; float32: loss_weights (both as `columns` gives them); and what `seen` adds.
    """
    import torch

    width = max(len(e) for e in examples)
    empty = processor.tokenizer.pad_token_id
    ids, mask, labels, weights = [], [], [], []
    for example in examples:
        space = width - len(example)
        own_ids, own_labels, own_weights = columns(example, rationale_weight)
        ids.append([empty] * space + own_ids)
        mask.append([0] * space + [1] * len(example))
        labels.append([IGNORED] * space + own_labels)
        weights.append([0.0] * space + own_weights)
    batch = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
        "loss_weights": torch.tensor(weights),
    }
    return batch | seen(examples, batch["input_ids"], processor)


@dataclass(frozen=True)
class Unfit:
    """A record that cannot be put before the model, and why."""

    post_id: str
    reason: str
    detail: str


def fit(
    processor: Any,
    post_id: str,
    messages: Sequence[dict[str, str]],
    images: list[bytes],
    max_length: int,
    answer_length: int,
) -> Example | Unfit:
    """Tokenise within `max_length` tokens, of which `answer_length` are the answer's even where it is not there yet.

    The prompt decides alone, so training, evaluation and use show a post in the same way: too long, its images are shown
    smaller, down to an eighth of the area; if that is not enough the last one is left out, and so on; a text that is too
    long by itself is set aside. Text is never cut here, and image tokens never are; the reason names the tokens counted.
    """
    room, left_out = max_length - answer_length, 0
    whole = example = tokenise(processor, post_id, messages, images)
    while len(example.prompt) > room and images:
        without = len(example.prompt) - sum(_token_counts(processor, images, example.max_pixels))
        sizes = _smaller(processor)
        size = next((s for s in sizes if without + sum(_token_counts(processor, images, s)) <= room), None)
        if size is None:
            left_out, images = left_out + 1, images[:-1]
            messages = [
                {**m, "content": _drop_last_placeholder(m["content"])} if m["role"] == "user" else m for m in messages
            ]
        example = replace(tokenise(processor, post_id, messages, images, size), images_left_out=left_out)
    if len(example.prompt) > room:
        return Unfit(
            post_id,
            "too_long",
            f"{len(whole.prompt)} tokens, {len(example.prompt)} without its images; the profile's max_length "
            f"{max_length} less answer_length {answer_length} leaves {room}",
        )
    if len(example) > max_length:
        return Unfit(
            post_id,
            "answer_too_long",
            f"{len(example.prompt)} tokens and {len(example.answer)} of answer; the profile's max_length is {max_length}",
        )
    return example


def _smaller(processor: Any) -> list[int]:
    """Image areas to try, largest first: half, a quarter, an eighth of the processor's limit, not below its smallest."""
    limits = processor.image_processor.size
    return [max(limits["longest_edge"] // part, limits["shortest_edge"]) for part in (2, 4, 8)]


def _drop_last_placeholder(content: str) -> str:
    head, _, tail = content.rpartition(IMAGE_PLACEHOLDER)
    return head + tail


def quiet_libraries() -> None:
    """No progress bars, advice or notices of coming changes in step logs; errors stay."""
    import warnings

    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
