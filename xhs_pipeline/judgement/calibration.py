"""One temperature per model, fitted on the calibration split, so that its probabilities say how often it is right.

Files are not read or written here: `Calibration.as_dict` is what stands in calibration.json, `from_dict` reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CALIBRATION = "calibration.json"
MIN_POSTS = 50  # fewer say little about one more parameter: the temperature stays 1
SMALLEST, LARGEST = 0.05, 20.0  # the search; an optimum at its end is no optimum


@dataclass(frozen=True)
class Calibration:
    """What turns a model's scores into decisions: softmax(scores / temperature), and the confidence asked for.

    `n` posts fitted the temperature, `left_out` could not (no finite score, or a label that is none of the model's answers).
    `nll_before` and `nll_after` are their mean negative log-likelihoods in nats at temperature 1 and at `temperature`, None
    without posts; `reason` says why the temperature is 1 when it was not fitted. `min_confidence` is the profile's.
    """

    temperature: float = 1.0
    min_confidence: float = 0.0
    n: int = 0
    left_out: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    reason: str | None = "not fitted"

    def as_dict(self) -> dict[str, Any]:
        """The form that stands in calibration.json and in report.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], source: str) -> Calibration:
        """The reverse of `as_dict`; `source` names the file in errors. Raises ValueError that lists all faults at once."""
        unknown = sorted(set(stored) ^ set(cls.__dataclass_fields__))
        faults = [f"entries missing or unknown: {', '.join(unknown)}"] if unknown else []
        for name, low, high in (("temperature", SMALLEST, LARGEST), ("min_confidence", 0.0, 1.0)):
            value = stored.get(name, low)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                faults.append(f"{name} is {value!r}, expected a number from {low:g} to {high:g}")
        if faults:
            raise ValueError(f"{source}: {'; '.join(faults)}; materialise evaluation_report again")
        return cls(**stored)


def fit_temperature(
    scores: np.ndarray,
    truth: Sequence[tuple[str, str]],
    answers: Sequence[tuple[str, str]],
    min_confidence: float = 0.0,
) -> Calibration:
    """The temperature T that minimises the mean negative log-likelihood of the true answers under softmax(scores / T).

    `scores` (posts, answers) are log-likelihoods in nats, columns as `answers` (`Policy.answers()` of the model's policy);
    `truth` are the posts' (verdict, category). Temperature scaling, Guo et al. 2017 (On Calibration of Modern Neural Networks,
    section 4.2): a single parameter, which never changes the likeliest answer. The loss is convex in 1 / T, so the bounded
    search over ln T (scipy.optimize.minimize_scalar) finds its only minimum. With fewer than 50 posts, or with the minimum at
    an end of the search (as where every post is answered rightly), T is 1 and `reason` says so.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    index = {answer: i for i, answer in enumerate(answers)}
    true = np.array([index.get((v, c), -1) for v, c in truth], dtype=np.int64)
    scores = np.asarray(scores, dtype=float).reshape(len(true), len(answers))
    kept = (true >= 0) & np.isfinite(scores).all(axis=1)
    scores, true = scores[kept], true[kept]
    n, left_out = int(kept.sum()), int((~kept).sum())

    def loss(log_temperature: float) -> float:
        scaled = scores / np.exp(log_temperature)
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(n), true]).mean())

    if n < MIN_POSTS:
        reason = f"{n} posts to calibrate on, at least {MIN_POSTS} are needed"
        before = loss(0.0) if n else None
        return Calibration(1.0, min_confidence, n, left_out, before, before, reason)
    ends = np.log([SMALLEST, LARGEST])
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    if min(found.x - ends[0], ends[1] - found.x) < 1e-3:
        reason = f"no temperature from {SMALLEST:g} to {LARGEST:g} is best: the split holds nothing to fit it to"
        return Calibration(1.0, min_confidence, n, left_out, loss(0.0), loss(0.0), reason)
    return Calibration(float(np.exp(found.x)), min_confidence, n, left_out, loss(0.0), float(found.fun), None)
