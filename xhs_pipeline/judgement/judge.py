"""A merged model folder that judges posts: what the evaluation, the command line and later the service all use."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.decisions import decide_judgement
from xhs_pipeline.policy import Policy
from xhs_pipeline.splits.conversation import prompt_digest, render_prompt, to_messages
from xhs_pipeline.vlm.batches import Example, Unfit, fit
from xhs_pipeline.vlm.card import MODEL_CARD, ModelCard, read_card
from xhs_pipeline.vlm.scoring import Judgement, Progress, at_temperature, judge_examples

# What is held at once: enough posts for batches of like length, whatever the number of posts altogether.
WINDOW_POSTS, WINDOW_BYTES = 2048, 128 * 2**20
DIGITS = 6  # of a probability, a confidence and a cost that are given away


@dataclass(frozen=True)
class Post:
    """A cleaned post to judge: de-identified title and body, JPEG bytes, what was read in those (None: not read)."""

    post_id: str
    title: str
    body: str
    images: tuple[bytes, ...] = ()
    ocr_text: str | None = None
    qr_codes: int | None = None


class Judge:
    """One loaded model that is asked in the words it was trained with; `policy` gives today's costs and limits.

    So a model in use can be compared with its successor after the policy's wording has changed: what it answers are the
    categories it knows (`self.policy`). A base model has no card of its own and is asked with the `card` given. Raises ValueError when the folder has no moderation.json or a broken one, or when its
    chat template is not the one of the training: its probabilities would mean something else.
    """

    def __init__(self, folder: Path, policy: Policy, card: ModelCard | None = None):
        from xhs_pipeline.vlm.base import load_model
        from xhs_pipeline.vlm.batches import quiet_libraries
        from xhs_pipeline.vlm.processor import load_processor

        quiet_libraries()
        card = card or read_card(folder, policy)
        self.profile, self.policy, self.folder = card.profile, card.policy, folder
        self.processor = load_processor(folder, self.profile.min_pixels, self.profile.max_pixels, keep_images=False)
        rendered = prompt_digest(self.policy, self.profile.prompt, self.processor.chat_template)
        if rendered != card.prompt:
            raise ValueError(
                f"{folder / MODEL_CARD}: the model was trained on prompt {card.prompt}, its folder renders {rendered}; "
                "its chat template or moderation.json was edited: copy the folder again, or merge the model again"
            )
        self.model = load_model(folder, self.profile)

    def example(self, post: Post) -> Example | Unfit:
        """The post as the tokens the model reads, or why it cannot be read. Text in images is for models trained with it."""
        settings = self.profile
        images = list(post.images[: settings.max_images])
        in_images = (post.ocr_text, post.qr_codes) if settings.ocr else ()
        prompt = render_prompt(
            post.title, post.body, self.policy, settings.prompt, settings.text_head, settings.text_tail, *in_images
        )
        messages = to_messages(prompt, len(images), None)
        return fit(self.processor, post.post_id, messages, images, settings.max_length, settings.answer_length)

    def judge(
        self, posts: Iterable[Post], log: Callable[[str], None] | None = None, total: int | None = None
    ) -> Iterator[Judgement | Unfit]:
        """A judgement for every post, in the order given; Unfit for one that the model cannot read whole.

        Posts are taken from `posts` as they are needed, WINDOW_POSTS or WINDOW_BYTES at once, batched by length among those,
        and let go of. `total` is how many will come, for the progress lines that `log` gets.
        """
        progress = Progress(log, total)
        for window in _windows(self.example(post) for post in posts):
            yield from self._judge_window(window, progress)
            del window  # or it would stand beside the next one while that fills
        if total is None and progress.done:
            progress.say()

    def _judge_window(self, window: list[Example | Unfit], progress: Progress) -> list[Judgement | Unfit]:
        fitting = [example for example in window if isinstance(example, Example)]
        progress.add(len(window) - len(fitting))
        judged = judge_examples(
            self.model, self.processor, self.policy, fitting, self.profile.score_batch_size, progress
        )
        return [next(judged) if isinstance(example, Example) else example for example in window]


def _windows(examples: Iterable[Example | Unfit]) -> Iterator[list[Example | Unfit]]:
    """Examples in lists of at most WINDOW_POSTS, cut as soon as their images reach WINDOW_BYTES."""
    window: list[Example | Unfit] = []
    size = 0
    for example in examples:
        window.append(example)
        size += sum(map(len, example.images)) if isinstance(example, Example) else 0
        if len(window) >= WINDOW_POSTS or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def as_post(row: Mapping[str, Any]) -> Post:
    """A cleaned post of a table (CLEAN_POSTS or SHAREGPT rows) as the model is asked about it."""
    images = tuple(image["bytes"] for image in row["images"])
    return Post(row["post_id"], row["title"], row["body"], images, row["ocr_text"], row["qr_codes"])


def decided_row(judgement: Judgement, policy: Policy, calibration: Calibration, model_version: str) -> dict[str, Any]:
    """What is said of a valid judgement wherever a model is used: at its temperature, decided by `policy`, the model's own.

    Probabilities, confidence and cost are rounded to DIGITS.
    """
    judgement = at_temperature(judgement, policy, calibration.temperature)
    made = decide_judgement(judgement, policy, calibration.min_confidence)
    return {
        "verdict": made.verdict,
        "category": made.category,
        "verdict_probs": {name: round(p, DIGITS) for name, p in judgement.verdict_probs.items()},
        "category_probs": {name: round(p, DIGITS) for name, p in judgement.category_probs.items()},
        "confidence": round(made.confidence, DIGITS),
        "expected_cost": round(made.expected_cost, DIGITS),
        "model_version": model_version,
        "policy_version": policy.version,
        "calibrated": calibration.reason is None,
    }
