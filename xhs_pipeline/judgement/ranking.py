"""How well scores separate a class from the rest: average precision, recall at a false-positive rate, precision in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import Answers, Question
from xhs_pipeline.judgement.intervals import Resamples

FPR = 0.01  # the false-positive rate that recall is asked at
CURVE_POINTS = 101
MIN_NEGATIVES = 100  # of fewer, 1% is less than one post
LAST, FIRST = -1.0, 2.0  # scores outside [0, 1]: an unusable answer ranks as wrongly as can be


@dataclass(frozen=True)
class Threshold:
    """Posts with a probability above `value` are called the class; `n` negatives chose it. None, with a reason, without it."""

    value: float | None
    n: int
    reason: str | None = None


def scores(question: Question, name: int) -> np.ndarray:
    """Probability of class `name`, (posts,); for an unusable answer below every other if the post is of the class, else above."""
    p = question.probabilities[:, name]
    return np.where(np.isfinite(p), p, np.where(question.truth == name, LAST, FIRST))


def average_precision(question: Question, name: int, resamples: Resamples) -> Figure:
    """Sum over thresholds of (R_k - R_{k-1}) P_k for one class against the rest; n = its posts.

    sklearn.metrics.average_precision_score. A resample's value comes from weighted counts at the thresholds of the class's own
    posts, the only ones where recall rises.
    """
    from sklearn.metrics import average_precision_score

    true, score = question.truth == name, scores(question, name)
    n = int(true.sum())
    if not n or n == len(true):
        return figure(None, n, "no true posts" if not n else "no other posts")
    cuts = -np.unique(-score[true])  # descending
    # the first threshold that lets a post in; past the last one no recall is left to gain
    step = np.searchsorted(-cuts, -score, side="left")
    step = np.where(step == len(cuts), -1, step)
    blocks = [resamples.block(np.where(side, step, -1), len(cuts)) for side in (true, ~true)]

    def value(gained: np.ndarray, let_in: np.ndarray) -> np.ndarray:
        right = gained.cumsum(axis=0)
        every = right + let_in.cumsum(axis=0)
        return (gained * right / np.maximum(every, 1)).sum(axis=0, keepdims=True) / right[-1:]

    samples = resamples.spread(blocks, value)
    point = float(average_precision_score(true, score))
    return resampled(point, n, samples[0] if len(samples) else None, limits=(0, 1))


def precision_recall(question: Question, name: int) -> list[dict[str, float]]:
    """At most 101 points {recall, precision} of one class against the rest for drawing, by rising recall; [] where there is none.

    sklearn.metrics.precision_recall_curve at the thresholds where recall rises, the ones that `average_precision` sums over, evenly
    thinned with both ends kept, to 4 decimals. No point is made up for recall 0.
    """
    from sklearn.metrics import precision_recall_curve

    true = question.truth == name
    if not true.any() or true.all():
        return []
    precision, recall, _ = precision_recall_curve(true, scores(question, name))
    rises = np.flatnonzero(recall[:-1] > recall[1:])[
        ::-1
    ]  # scikit-learn's order is by falling recall, and ends at recall 0
    kept = rises[np.unique(np.linspace(0, len(rises) - 1, min(CURVE_POINTS, len(rises))).round().astype(int))]
    return [{"recall": round(float(recall[i]), 4), "precision": round(float(precision[i]), 4)} for i in kept]


def threshold(question: Question, name: int, fpr: float = FPR) -> Threshold:
    """The lowest cut that at most the share `fpr` of the posts of other classes lie above, chosen on these posts.

    Give it the calibration split: a threshold chosen on the test posts would flatter the recall measured there.
    """
    others = np.sort(scores(question, name)[question.truth != name])[::-1]
    if len(others) < MIN_NEGATIVES:
        why = f"{len(others)} posts of other classes in the calibration split, at least {MIN_NEGATIVES} are needed"
        return Threshold(None, len(others), why)
    value = float(others[int(fpr * len(others) + 1e-9)])
    if value >= 1.0:
        return Threshold(None, len(others), f"more than {fpr:.0%} of the other posts have probability 1 or no answer")
    return Threshold(max(value, 0.0), len(others))


def at_fpr(question: Question, name: int, cut: Threshold, groups: np.ndarray) -> dict[str, Any]:
    """Recall at the false-positive rate that `cut` was chosen for, the rate that it has on these posts, and the cut.

    The rate here may differ from the one aimed at: that is what a threshold does on new posts.
    """
    if cut.value is None:
        return {"recall": figure(None, 0, cut.reason), "fpr": figure(None, 0, cut.reason), "threshold": None}
    called, true = scores(question, name) > cut.value, question.truth == name
    return {
        "recall": share(called[true], groups[true], "no true posts"),
        "fpr": share(called[~true], groups[~true], "no other posts"),
        "threshold": cut.value,
    }


def thresholds(calibration: Answers | None) -> dict[str, list[Threshold]]:
    """The cut of every class of the three questions, chosen on the calibration split; None: it was not judged."""
    out = {}
    for name in ("verdict", "category", "binary"):
        question: Question | None = getattr(calibration, name, None)
        if question is not None:
            out[name] = [threshold(question, i) for i in range(len(question.names))]
    return out


def deployment_precision(recall: Figure, fpr: Figure, prevalence: float) -> Figure:
    """Precision where the share `prevalence` of posts are violations: pi TPR / (pi TPR + (1 - pi) FPR), by Bayes' rule.

    A test set richer in violations flatters precision: 90% recall at 1% FPR is 98.9% precise at 50% violations and 64.7% at 2%.
    The interval joins the worst ends of both intervals (low recall with high FPR) and the best: it is too wide rather than too
    narrow, and does not shrink to a point where no false positive was seen. n = posts behind both rates.
    """
    n = recall["n"] + fpr["n"]

    def at(tpr: float | None, rate: float | None) -> float | None:
        if tpr is None or rate is None:
            return None
        called = prevalence * tpr + (1 - prevalence) * rate
        return prevalence * tpr / called if called > 0 else None

    if recall["value"] is None or fpr["value"] is None:
        return figure(None, n, recall["reason"] or fpr["reason"])
    low, high = at(recall["low"], fpr["high"]), at(recall["high"], fpr["low"])
    bounds = (low, high) if low is not None and high is not None else None
    return figure(at(recall["value"], fpr["value"]), n, "no post is called a violation", bounds)
