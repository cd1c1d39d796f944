"""Predictions of a made-up model: probabilities that are right as often as they say, and duplicate groups. No posts behind them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from xhs_pipeline.judgement.frame import predictions_frame
from xhs_pipeline.policy import Policy, load_policy

POLICY = load_policy()


def simulated_scores(
    n: int, seed: int, sharpness: float = 1.0, policy: Policy = POLICY
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Log-likelihoods (n, answers) and true answers drawn from them; `sharpness` > 1 makes a model too sure of itself."""
    rng = np.random.default_rng(seed)
    answers = policy.answers()
    logits = rng.normal(0, 2.5, (n, len(answers)))
    logits[:, 0] += 2.5  # half of the posts are harmless, about
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    true = (p.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(max=len(answers) - 1)
    return logits * sharpness, [answers[i] for i in true]


def frame_of_scores(
    scores: np.ndarray, truth: Sequence[tuple[str, str]], policy: Policy = POLICY, **columns: list
) -> pd.DataFrame:
    """The predictions frame of a model that gives these log-likelihoods, the likeliest answer being the one given."""
    answers, n = policy.answers(), len(truth)
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    by_verdict = np.array([[v == name for name in policy.verdict_ids] for v, _ in answers], dtype=float)
    by_category = np.array([[c == name for name in policy.category_names] for _, c in answers], dtype=float)
    given = [answers[i] for i in p.argmax(axis=1)]
    posts = pa.table(
        {
            "post_id": [f"p{i}" for i in range(n)],
            "group_id": [f"g{i // 2 if i % 4 == 1 else i}" for i in range(n)],
            "week": [f"2026-02-{2 + 7 * (i % 3):02d}" for i in range(n)],
            "label_source": [("platform", "volunteers", "appeal")[i % 3] for i in range(n)],
            "title": ["标题"] * n,
            "body": ["正文" * (i % 300) for i in range(n)],
            "verdict": [v for v, _ in truth],
            "category": [c for _, c in truth],
            **columns,
        }
    )
    return predictions_frame(
        posts, [v for v, _ in given], [c for _, c in given], p @ by_verdict, p @ by_category, [True] * n, policy
    )


def simulated(n: int, seed: int = 0, sharpness: float = 1.0) -> pd.DataFrame:
    """A predictions frame over `n` posts; the same seed gives the same posts, whatever the sharpness."""
    return frame_of_scores(*simulated_scores(n, seed, sharpness))
