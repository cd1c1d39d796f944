"""Whether probabilities mean what they say: expected calibration error, Brier score, log loss and the reliability table."""

from __future__ import annotations

from typing import Any

import numpy as np

from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import Answers, Question
from xhs_pipeline.judgement.intervals import Resamples

BINS = 15
SMALLEST_PROBABILITY = 1e-12  # log loss clips here, so that one impossible answer costs 27.6 nats and not infinity
NO_ANSWERS = "no usable answers"


def calibration_figures(judged: Answers, resamples: Resamples) -> dict[str, dict[str, Any]]:
    """ECE, Brier score and reliability table of each question over the usable answers.

    `verdict`, `category`: the likeliest class's probability against how often it is the true one (top-label; what the decision
    made of it plays no part). `violation`: the probability of a violation against how often the post is one.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, question in (("verdict", judged.verdict), ("category", judged.category)):
        p = question.probabilities[judged.ok]
        hit = p.argmax(axis=1) == question.truth[judged.ok]
        row_brier = ((p - np.eye(len(question.names))[question.truth[judged.ok]]) ** 2).sum(axis=1)
        out[name] = _of(p.max(axis=1), hit, row_brier, 2.0, judged.ok, resamples)
    p, true = judged.binary.probabilities[judged.ok, 1], judged.binary.truth[judged.ok]
    out["violation"] = _of(p, true == 1, (p - true) ** 2, 1.0, judged.ok, resamples)
    return out


def _of(
    confidence: np.ndarray, hit: np.ndarray, row_brier: np.ndarray, worst: float, ok: np.ndarray, resamples: Resamples
) -> dict[str, Any]:
    bins = equal_mass_bins(confidence)
    return {
        "ece": ece(confidence, hit, bins, ok, resamples),
        "ece_if_calibrated": ece_if_calibrated(confidence, bins),
        "brier": brier(row_brier, worst, ok, resamples),
        "reliability": [
            {
                "n": int((bins == b).sum()),
                "confidence": float(confidence[bins == b].mean()),
                "share": share(hit[bins == b], resamples.codes[ok][bins == b]),
            }
            for b in range(bins.max() + 1 if len(bins) else 0)
        ],
    }


def equal_mass_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each post, (posts,) from 0: sorted by confidence, cut into `bins` of equal size (Nguyen & O'Connor 2015, 3.2).

    Posts of equal confidence share the bin of the first of them, so that the order of the rows plays no part; bins are then
    fewer, and not of equal size.
    """
    n = len(confidence)
    _, first, inverse = np.unique(np.sort(confidence), return_index=True, return_inverse=True)
    of_sorted = (first * bins // max(n, 1))[inverse]
    out = np.empty(n, dtype=np.int64)
    out[np.argsort(confidence, kind="stable")] = np.unique(of_sorted, return_inverse=True)[1]
    return out


def ece(confidence: np.ndarray, hit: np.ndarray, bins: np.ndarray, ok: np.ndarray, resamples: Resamples) -> Figure:
    """Expected calibration error: sum over bins of n_bin / n |mean confidence - share of hits| (Naeini et al. 2015).

    Its bins are fixed before resampling. Noise adds to absolute gaps, so the value is too high, the more the fewer posts there
    are; the interval is corrected for that (intervals.without_bias) and reaches further down than up. It still lies too high
    where the true error is far below `ece_if_calibrated`: read the value beside that.
    """
    n = len(hit)
    if not n:
        return figure(None, 0, NO_ANSWERS)
    size = int(bins.max()) + 1
    value = float(np.abs(np.bincount(bins, weights=confidence - hit, minlength=size)).sum() / n)
    codes, gaps = np.full(len(ok), -1), np.zeros(len(ok))
    codes[ok], gaps[ok] = bins, confidence - hit
    blocks = [resamples.block(codes, size, gaps), resamples.total(ok)]
    samples = resamples.spread(blocks, lambda gap, of: np.abs(gap).sum(axis=0, keepdims=True) / of)
    return resampled(value, n, samples[0] if len(samples) else None, biased=True, limits=(0, 1))


def ece_if_calibrated(confidence: np.ndarray, bins: np.ndarray) -> float | None:
    """The ECE that chance alone gives a perfectly calibrated model with these confidences; None without posts.

    In a bin the gap times n is then about normal with variance sum p (1 - p), and E|N(0, v)| = sqrt(2 v / pi).
    """
    if not len(bins):
        return None
    variance = np.bincount(bins, weights=confidence * (1 - confidence))
    return float(np.sqrt(2 / np.pi * variance).sum() / len(bins))


def brier(rows: np.ndarray, worst: float, ok: np.ndarray, resamples: Resamples) -> Figure:
    """Mean over usable posts of sum over classes (p - [class is true]) squared; 0 to 2 (Brier 1950).

    For the violation question the one class of violations is summed over, 0 to 1. sklearn.metrics.brier_score_loss, without
    its demand that probabilities sum to exactly 1 (tested to be equal where they do).
    """
    return _mean(rows, ok, resamples, (0.0, worst))


def log_loss(question: Question, ok: np.ndarray, resamples: Resamples) -> Figure:
    """Mean of -ln p(true class) in nats over usable answers, p clipped to at least 1e-12.

    This is sklearn.metrics.log_loss without its renormalising: a row that does not sum to one is taken as it stands.
    """
    p = question.probabilities[ok, question.truth[ok]]
    return _mean(-np.log(np.clip(p, SMALLEST_PROBABILITY, 1.0)), ok, resamples, (0.0, np.inf))


def _mean(rows: np.ndarray, ok: np.ndarray, resamples: Resamples, limits: tuple[float, float]) -> Figure:
    if not len(rows):
        return figure(None, 0, NO_ANSWERS)
    values = np.zeros(len(ok))
    values[ok] = rows
    samples = resamples.spread([resamples.total(values), resamples.total(ok)], lambda total, of: total / of)
    return resampled(float(rows.mean()), len(rows), samples[0] if len(samples) else None, limits=limits)
