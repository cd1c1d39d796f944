"""A merged model folder that judges posts: what the evaluation, the command line and later the service all use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xhs_pipeline.artifacts import read_json
from xhs_pipeline.judgement.scoring import Judgement, judge_examples
from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.conversation import prompt_digest, render_prompt, to_messages
from xhs_pipeline.vlm.batches import Example, Unfit, fit

MODEL_CARD = "moderation.json"  # beside the weights: profile, policy version and the hash of the prompt's wording


@dataclass(frozen=True)
class Post:
    """A cleaned post to judge: de-identified title and body, JPEG bytes."""

    post_id: str
    title: str
    body: str
    images: tuple[bytes, ...] = ()


class Judge:
    """One loaded model with the prompt it was trained on.

    Raises ValueError when the folder has no moderation.json or a broken one, or when the policy's wording is no longer the
    one the model was trained with: its probabilities would mean something else.
    """

    def __init__(self, folder: Path, policy: Policy):
        from xhs_pipeline.vlm.base import load_model
        from xhs_pipeline.vlm.batches import quiet_libraries
        from xhs_pipeline.vlm.processor import load_processor

        quiet_libraries()
        card_file = folder / MODEL_CARD
        if not card_file.is_file():
            raise ValueError(f"{card_file}: missing; expected a folder that merged_model wrote")
        self.profile, trained_prompt, trained_policy = _read_card(card_file)
        self.policy, self.folder = policy, folder
        self.processor = load_processor(folder, self.profile.min_pixels, self.profile.max_pixels)
        current = prompt_digest(policy, self.profile.prompt, self.processor.chat_template)
        if current != trained_prompt:
            raise ValueError(
                f"{card_file}: the model was trained on prompt {trained_prompt} (policy {trained_policy}), "
                f"policy {policy.version} renders {current}; retrain, or use the policy file it was trained with"
            )
        self.model = load_model(folder, self.profile)

    def example(self, post: Post) -> Example | Unfit:
        """The post as the tokens the model reads, or why it cannot be read."""
        settings = self.profile
        images = list(post.images[: settings.max_images])
        prompt = render_prompt(
            post.title, post.body, self.policy, settings.prompt, settings.text_head, settings.text_tail
        )
        messages = to_messages(prompt, len(images), None)
        return fit(self.processor, post.post_id, messages, images, settings.max_length, settings.answer_length)

    def judge(self, posts: Sequence[Post], log: Callable[[str], None] | None = None) -> list[Judgement | Unfit]:
        """A judgement for every post, in the order given; Unfit for one that the model cannot read whole."""
        prepared = [self.example(post) for post in posts]
        fitting = [example for example in prepared if isinstance(example, Example)]
        judged = judge_examples(self.model, self.processor, self.policy, fitting, self.profile.score_batch_size, log)
        return [next(judged) if isinstance(example, Example) else example for example in prepared]


def _read_card(file: Path) -> tuple[Profile, str, str]:
    """Profile, digest of the prompt and policy version that a model was trained with. Raises ValueError naming the file."""
    remedy = "expected what merged_model wrote; copy the folder again"
    try:
        card = read_json(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file}: not JSON ({error}); {remedy}") from error
    if not isinstance(card, dict) or not isinstance(card.get("profile"), dict):
        raise ValueError(f"{file}: holds no profile; {remedy}")
    missing = [name for name in ("prompt", "policy_version") if not isinstance(card.get(name), str)]
    if missing:
        raise ValueError(f"{file}: holds no {' and no '.join(missing)}; {remedy}")
    try:
        return Profile.model_validate(card["profile"]), card["prompt"], card["policy_version"]
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: profile: {problems}; {remedy}") from error


def as_row(judgement: Judgement) -> dict[str, Any]:
    """The line that judging writes for a post: probabilities rounded to 6 digits."""
    return {
        "post_id": judgement.post_id,
        "verdict": judgement.verdict,
        "category": judgement.category,
        "verdict_probs": {name: round(p, 6) for name, p in judgement.verdict_probs.items()},
        "category_probs": {name: round(p, 6) for name, p in judgement.category_probs.items()},
    }
