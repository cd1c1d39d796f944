"""From conversations to padded token batches: what the model reads, with the loss on the answer only. Knows no recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER, chat_parts
from xhs_pipeline.vlm.processor import pixels

IGNORED = -100  # label of a token without loss, as in torch.nn.functional.cross_entropy
DECISION_LINES = 2  # verdict and category; see splits.conversation.render_answer


@dataclass(frozen=True)
class Example:
    """One tokenised record: `prompt` ids with image tokens expanded, `answer` ids ending in <|im_end|>, JPEG bytes.

    The answer's first `decided` ids are verdict and category; what follows is the rationale, and the end of the turn.
    `weight` is what the record counts in the loss beside others.
    """

    post_id: str
    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    decided: int = 0
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def tokenise(processor: Any, post_id: str, messages: Sequence[dict[str, str]], images: list[bytes]) -> Example:
    """Token ids of a conversation. Prompt and answer are tokenised apart, so that training and scoring meet the same ids.

    Raises ValueError when placeholders and images differ in number.
    """
    has_answer = messages[-1]["role"] == "assistant"
    turns = chat_parts(messages[:-1] if has_answer else messages)
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    placeholders = ids.count(processor.image_token_id)
    if placeholders != len(images):
        raise ValueError(f"post {post_id}: {placeholders} image placeholders but {len(images)} images")
    # An image's one token becomes as many as it has patches here, among the ids: no character of a post can stand for one.
    counts = iter(_token_counts(processor, images))
    prompt: list[int] = []
    for token in ids:
        prompt += [token] * (next(counts) if token == processor.image_token_id else 1)
    if not has_answer:
        return Example(post_id, prompt, [], images)
    answer = messages[-1]["content"]
    decision = "\n".join(answer.split("\n")[:DECISION_LINES])
    decided = len(answer_ids(processor.tokenizer, decision, end=False))
    return Example(post_id, prompt, answer_ids(processor.tokenizer, answer), images, decided)


def answer_ids(tokenizer: Any, answer: str, end: bool = True) -> list[int]:
    """Token ids of an answer, with the end-of-turn token unless `end` is false."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")] if end else list(ids)


def _token_counts(processor: Any, images: list[bytes]) -> list[int]:
    import io

    from PIL import Image

    from xhs_pipeline.vlm.processor import image_tokens

    sizes = (Image.open(io.BytesIO(data), formats=["JPEG"]).size for data in images)
    return [image_tokens(processor, *size) for size in sizes]


def pad(examples: Sequence[Example], processor: Any, rationale_weight: float = 1.0) -> dict[str, Any]:
    """Left-padded tensors of shape (batch, length), which scoring can append its answers to.

    int64: input_ids, attention_mask, labels (answer only), mm_token_type_ids; float32: loss_weights, 1 for the decision and
    the end of the turn, `rationale_weight` between them, times the record's weight. With images also pixel_values (patches, 1176) float32 and
    image_grid_thw (images, 3) int64.
    """
    import torch

    width = max(len(e) for e in examples)
    empty = processor.tokenizer.pad_token_id
    ids, mask, labels, weights = [], [], [], []
    for example in examples:
        space = width - len(example)
        ids.append([empty] * space + example.prompt + example.answer)
        mask.append([0] * space + [1] * len(example))
        labels.append([IGNORED] * (space + len(example.prompt)) + example.answer)
        answer = [weight * example.weight for weight in _answer_weights(example, rationale_weight)]
        weights.append([0.0] * (width - len(example.answer)) + answer)
    batch: dict[str, Any] = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
        "loss_weights": torch.tensor(weights),
    }
    batch["mm_token_type_ids"] = (batch["input_ids"] == processor.image_token_id).int()
    images = [image for example in examples for image in example.images]
    if images:
        batch |= pixels(processor, images)
    return batch


def loss_total(examples: Sequence[Example], rationale_weight: float = 1.0) -> float:
    """What the loss of these records is divided by: the sum of their tokens' weights as if every record counted 1.

    Divided by loss_weights' own sum, a record's weight would cancel out in a batch of one.
    """
    return sum(sum(_answer_weights(example, rationale_weight)) for example in examples)


def _answer_weights(example: Example, rationale_weight: float) -> list[float]:
    rationale = max(len(example.answer) - example.decided - 1, 0)
    rest = len(example.answer) - example.decided - rationale
    return [1.0] * example.decided + [rationale_weight] * rationale + [1.0] * rest


@dataclass(frozen=True)
class Unfit:
    """A record that cannot be put before the model, and why."""

    post_id: str
    reason: str
    detail: str


def fit(
    processor: Any, post_id: str, messages: Sequence[dict[str, str]], images: list[bytes], max_length: int
) -> Example | Unfit:
    """Tokenise within `max_length` tokens: too long a record first loses its last images, then is set aside.

    Text is never cut here, and image tokens never are; the reason names the tokens counted.
    """
    example = tokenise(processor, post_id, messages, images)
    tokens = len(example)
    while len(example) > max_length and images:
        images = images[:-1]
        messages = [
            {**m, "content": _drop_last_placeholder(m["content"])} if m["role"] == "user" else m for m in messages
        ]
        example = tokenise(processor, post_id, messages, images)
    if len(example) <= max_length:
        return example
    return Unfit(
        post_id,
        "too_long",
        f"{tokens} tokens, {len(example)} without its images; the profile's max_length is {max_length}",
    )


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
