"""Answers that any model must beat: the commonest class, a linear model on character n-grams, and the base it was tuned from.

Each is a predictions frame as the model's (see frame), so that one `evaluate` judges them all. No files here, and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from xhs_pipeline.curation.learner import character_features, class_probabilities
from xhs_pipeline.judgement.frame import VALID, judged_frame, predictions_frame
from xhs_pipeline.policy import Policy
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

if TYPE_CHECKING:
    import pandas as pd

MAJORITY = "majority"
TFIDF = "tfidf"
UNTUNED = "untuned"


def majority_floor(train: pa.Table, test: pa.Table, policy: Policy) -> pd.DataFrame:
    """The training posts' commonest category, with the verdict that most often goes with it, for every test post.

    Ties go to the policy's earlier term. The probabilities are the shares in the training posts. `train` and `test`
    hold verdict and category as policy terms. Raises ValueError when `train` is empty or holds a pair that the policy
    does not allow.
    """
    verdicts, categories = _answers(train, policy)
    n = test.num_rows
    verdict_shares, category_shares = _shares(verdicts, policy.verdict_ids), _shares(categories, policy.category_names)
    category = policy.category_names[int(np.argmax(category_shares))]
    beside = Counter(v for v, c in zip(verdicts, categories, strict=True) if c == category)
    verdict = max(policy.verdict_ids, key=lambda v: beside[v])
    return predictions_frame(
        test,
        [verdict] * n,
        [category] * n,
        np.tile(verdict_shares, (n, 1)),
        np.tile(category_shares, (n, 1)),
        [True] * n,
        policy,
    )


def tfidf_floor(train: pa.Table, test: pa.Table, policy: Policy, seed: int) -> pd.DataFrame:
    """Character TF-IDF (1-3 grams, min_df 2, sublinear) and logistic regression (C = 10, balanced classes), text only.

    One classifier answers the category and one the verdict; the verdict given is the likeliest that the policy allows
    with the category given, so an answer is always a pair of `policy.answers()`. Where no n-gram occurs in two posts,
    min_df falls to 1; where there is no text at all, the answers are the majority floor's. A question with one class
    in `train` is answered with it. `frame.attrs["note"]` says which of these happened ("" when none did).
    Raises ValueError when `train` is empty or holds a pair that the policy does not allow.
    """
    verdicts, categories = _answers(train, policy)
    if not test.num_rows:
        return majority_floor(train, test, policy)
    features = character_features(post_texts(train), post_texts(test))
    if features is None:
        frame = majority_floor(train, test, policy)
        note = "the training posts hold no text, so the answers are the majority's"
    else:
        learned, asked, min_df = features
        note = "" if min_df > 1 else "no n-gram occurs in two training posts, so min_df is 1"
        p_category = class_probabilities(learned, asked, categories, policy.category_names, seed)
        p_verdict = class_probabilities(learned, asked, verdicts, policy.verdict_ids, seed)
        chosen = [policy.category_names[i] for i in p_category.argmax(axis=1)]
        allowed = {
            c.name: np.array([v in c.verdicts for v in policy.verdict_ids], dtype=bool) for c in policy.categories
        }
        best = [int(np.where(allowed[c], p, -1.0).argmax()) for c, p in zip(chosen, p_verdict, strict=True)]
        answers = [policy.verdict_ids[i] for i in best]
        frame = predictions_frame(test, answers, chosen, p_verdict, p_category, [True] * test.num_rows, policy)
    frame.attrs["note"] = note
    return frame


def untuned_floor(test: pa.Table, judged: Sequence[Judgement | Unfit], policy: Policy) -> pd.DataFrame:
    """What the base model says before any tuning: `judged` holds its answers to `test`, one for one.

    Same prompt, same scoring of the allowed answers: what a tuned model has above it, the tuning gave. Its temperature is 1, since
    nothing of ours calibrated it. `frame.attrs["note"]` says how many posts it could not answer ("" for none).
    """
    frame = judged_frame(test, judged, policy)
    lost = int((~frame[VALID]).sum()) if len(frame) else 0
    frame.attrs["note"] = f"the untuned base gave no usable answer to {lost} of {len(frame)} posts" if lost else ""
    return frame


def post_texts(posts: pa.Table) -> list[str]:
    """Title, a line break and body of each post; what is missing is empty."""
    names = posts.column_names
    titles = posts["title"].to_pylist() if "title" in names else [""] * posts.num_rows
    bodies = posts["body"].to_pylist() if "body" in names else [""] * posts.num_rows
    return [f"{title or ''}\n{body or ''}" for title, body in zip(titles, bodies, strict=True)]


def _answers(train: pa.Table, policy: Policy) -> tuple[list[str], list[str]]:
    if not train.num_rows:
        raise ValueError("a floor needs training posts, got 0 rows; check that the training split is not empty")
    pairs = list(zip(train["verdict"].to_pylist(), train["category"].to_pylist(), strict=True))
    wrong = sorted({f"{v} with {c}" for v, c in pairs if not policy.allows(v, c)})
    if wrong:
        raise ValueError(f"training posts hold answers that policy {policy.version} does not allow: {'; '.join(wrong)}")
    return [v for v, _ in pairs], [c for _, c in pairs]


def _shares(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    counts = Counter(labels)
    return np.array([counts[name] / len(labels) for name in names], dtype=float)
