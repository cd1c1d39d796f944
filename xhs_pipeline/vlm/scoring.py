"""Probabilities of every allowed answer for a post, by log-likelihood; the model never writes free text here."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xhs_pipeline.policy import Policy
from xhs_pipeline.vlm.answers import answer_tree, inputs_for, log_likelihoods, read_once
from xhs_pipeline.vlm.batches import Example

SECONDS_BETWEEN_LINES = 10


@dataclass(frozen=True)
class Judgement:
    """What the model says of one post: the most likely allowed answer, and probabilities that sum to 1 each.

    `scores` are the log-likelihoods that they come from, in nats, one per answer in the order of `Policy.answers()` of the
    model's policy; `temperature` is what they were divided by.
    """

    post_id: str
    verdict: str
    category: str
    verdict_probs: dict[str, float]
    category_probs: dict[str, float]
    valid: bool
    scores: tuple[float, ...] = ()
    temperature: float = 1.0


@dataclass
class Progress:
    """Says done/total, rate and time left every 10 seconds and at the end; without `total`, which nobody may know, no time left."""

    log: Callable[[str], None] | None = None
    total: int | None = None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    def add(self, posts: int) -> None:
        """Count `posts` more as done."""
        self.done += posts
        if self.done == self.total or time.monotonic() - self.spoken > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self.spoken = time.monotonic()
        rate = self.done / max(self.spoken - self.started, 1e-9)
        if self.log and self.total is None:
            self.log(f"judged {self.done} posts, {rate:.1f} posts/s")
        elif self.log and self.total is not None:
            left = (self.total - self.done) / max(rate, 1e-9)
            self.log(f"judged {self.done}/{self.total} posts, {rate:.1f} posts/s, {left:.0f} s left")


def judge_examples(
    model: Any,
    processor: Any,
    policy: Policy,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None = None,
    temperature: float = 1.0,
) -> Iterator[Judgement]:
    """Judge examples in batches of like length, yielding in the order given; every batch is added to `progress`.

    `temperature` is the model's own, fitted on its calibration split; 1 leaves the probabilities as the model gives them.
    """
    tree = answer_tree(processor.tokenizer, policy)
    prompts = [example.prompt for example in examples]
    pictured = [bool(example.images) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    scores = np.empty((len(examples), len(tree.answers)))
    was_training = model.training
    model.eval()
    batches: list[tuple[list[int], Any]] = []
    # texts apart from posts with images, which stand before the policy's words and leave less to share
    for kind in ([i for i in order if not pictured[i]], [i for i in order if pictured[i]]):
        known = read_once(model, [prompts[i] for i in kind], processor.image_token_id)
        batches += [(kind[begin : begin + batch_size], known) for begin in range(0, len(kind), batch_size)]

    def inputs(batch: tuple[list[int], Any]) -> dict[str, Any]:
        return inputs_for(model, processor, tree, [examples[i] for i in batch[0]], batch[1])

    # images are decoded in a thread while the model computes, one batch ahead: two of them are held at a time
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(inputs, batch) for batch in batches[:1]]
        for number, (chosen, known) in enumerate(batches, start=1):
            made = coming.pop().result()
            coming += [thread.submit(inputs, batch) for batch in batches[number : number + 1]]
            scores[chosen] = log_likelihoods(model, tree, made, known)
            if progress:
                progress.add(len(chosen))
    model.train(was_training)
    for example, row in zip(examples, scores, strict=True):
        yield _judgement(example.post_id, row, policy, temperature)


def at_temperature(judgement: Judgement, policy: Policy, temperature: float) -> Judgement:
    """The same scores at another temperature, without asking the model again; `policy` is the one it was judged with.

    Raises ValueError when the judgement's scores are not one per answer of `policy`.
    """
    expected = len(policy.answers())
    if len(judgement.scores) != expected:
        raise ValueError(
            f"post {judgement.post_id}: {len(judgement.scores)} scores, policy {policy.version} has {expected} answers; "
            "give the policy that the model was asked with"
        )
    return _judgement(judgement.post_id, np.array(judgement.scores), policy, temperature)


def _judgement(post_id: str, scores: np.ndarray, policy: Policy, temperature: float) -> Judgement:
    """Softmax of scores / temperature over the allowed answers, then sums over those that share a verdict, or a category."""
    answers = policy.answers()
    valid = bool(np.isfinite(scores).all())
    if valid:
        share = np.exp((scores - scores.max()) / temperature)
        share /= share.sum()
    else:
        share = np.full(len(scores), 1 / len(scores))
    verdicts = dict.fromkeys(policy.verdict_ids, 0.0)
    categories = dict.fromkeys(policy.category_names, 0.0)
    for (verdict, category), probability in zip(answers, share, strict=True):
        verdicts[verdict] += float(probability)
        categories[category] += float(probability)
    verdict, category = answers[int(share.argmax())]
    return Judgement(
        post_id, verdict, category, verdicts, categories, valid, tuple(map(float, scores)), float(temperature)
    )
