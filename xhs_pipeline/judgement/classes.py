"""Figures of a classification: precision, recall, F1 and false-positive rate by class, their averages, confusion matrices.

Point values come from scikit-learn; what is resampled for intervals is the same formula over confusion counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import Question
from xhs_pipeline.judgement.intervals import Resamples

MACRO, WEIGHTED = "macro", "weighted"


def counts_block(question: Question, resamples: Resamples) -> Any:
    """Correct, true and answered posts of each class, by group: sparse (3 x classes, groups)."""
    from scipy.sparse import vstack

    size = len(question.names)
    right = np.where(question.answer == question.truth, question.truth, -1)
    return vstack([resamples.block(codes, size) for codes in (right, question.truth, question.answer)], format="csr")


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (2 TP + FP + FN) of each class from `counts_block` sums (3 x classes, k): (classes, k).

    NaN where a class is neither true nor answered, so that a resample without it says nothing about it.
    """
    right, true, answered = np.split(counts, 3)
    return np.where(true + answered > 0, 2 * right / np.maximum(true + answered, 1), np.nan)


def mean_f1(counts: np.ndarray, average: str) -> np.ndarray:
    """Macro or weighted F1 from `counts_block` sums (3 x classes, k): (1, k); NaN where no post is left.

    Over the classes with a true post: a resample may have lost all posts of a rare class, which then does not count.
    """
    true = np.split(counts, 3)[1]
    weights = (true > 0).astype(float) if average == MACRO else true
    return (np.nan_to_num(f1_scores(counts)) * weights).sum(axis=0, keepdims=True) / weights.sum(axis=0, keepdims=True)


def averaged_f1(question: Question, resamples: Resamples, average: str) -> Figure:
    """Mean F1 over the classes that occur in the truth, plain (macro) or by their true posts (weighted).

    sklearn.metrics.f1_score with those labels and zero_division=0; the interval is a bootstrap by duplicate group.
    """
    n = len(question.truth)
    if not n:
        return figure(None, 0)
    samples = resamples.spread([counts_block(question, resamples)], lambda counts: mean_f1(counts, average))
    return resampled(mean_f1_value(question, average), n, samples[0] if len(samples) else None, limits=(0, 1))


def mean_f1_value(question: Question, average: str) -> float:
    """The value of `averaged_f1` on its own; `question` holds at least one post."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(question.truth, question.answer, labels=list(question.present), average=average, zero_division=0)
    )


def one_sided(question: Question) -> str | None:
    """Why an F1 over both sides of the binary question means nothing: the truth has one of them only."""
    present = question.present
    return f"the truth holds {question.names[present[0]]} posts only" if len(present) == 1 else None


def binary_macro_f1(question: Question, resamples: Resamples) -> Figure:
    """Mean of the F1 of violations and of harmless posts; None where the truth has only one of the two."""
    why = one_sided(question)
    return figure(None, len(question.truth), why) if why else averaged_f1(question, resamples, MACRO)


def accuracy(question: Question, groups: np.ndarray) -> Figure:
    """Share of posts answered as in the truth, with Wilson's interval."""
    return share(question.truth == question.answer, groups)


def recall(question: Question, name: int, groups: np.ndarray, reason: str = "no true posts") -> Figure:
    """TP / (TP + FN) of class `name`: share of its posts that are answered so. n = its posts."""
    true = question.truth == name
    return share(question.answer[true] == name, groups[true], reason)


def precision(question: Question, name: int, groups: np.ndarray, reason: str = "never answered") -> Figure:
    """TP / (TP + FP) of class `name`: share of the answers that are right. n = the answers."""
    answered = question.answer == name
    return share(question.truth[answered] == name, groups[answered], reason)


def false_positive_rate(question: Question, name: int, groups: np.ndarray, reason: str = "no other posts") -> Figure:
    """FP / (FP + TN) of class `name`: share of all other posts that are answered so. n = the other posts."""
    others = question.truth != name
    return share(question.answer[others] == name, groups[others], reason)


def per_class(question: Question, resamples: Resamples) -> dict[str, dict[str, Any]]:
    """Counts, precision, recall, F1 and false-positive rate of each class, in policy order.

    n: answers, true posts, both together, and posts of other classes. sklearn.metrics.precision_recall_fscore_support and
    confusion_matrix give the same shares (tested); F1's interval is a bootstrap, the others' are Wilson's.
    """
    from sklearn.metrics import f1_score

    groups, indices = resamples.codes, list(range(len(question.names)))
    empty = not len(question.truth)
    f1 = (
        np.zeros(len(indices))
        if empty
        else f1_score(question.truth, question.answer, labels=indices, average=None, zero_division=0)
    )
    samples = resamples.spread([counts_block(question, resamples)], f1_scores)
    out: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(question.names):
        true, answered = question.truth == i, question.answer == i
        either = int((true | answered).sum())
        why = None if either else "neither true nor answered"
        out[name] = {
            "true": int(true.sum()),
            "answered": int(answered.sum()),
            "correct": int((true & answered).sum()),
            "precision": precision(question, i, groups),
            "recall": recall(question, i, groups),
            "false_positive_rate": false_positive_rate(question, i, groups),
            "f1": resampled(float(f1[i]), either, samples[i] if len(samples) else None, why, limits=(0, 1)),
        }
    return out


def confusion(question: Question) -> dict[str, Any]:
    """Counts in policy order: row = true class, column = answered class; `invalid` = unusable answers of each row."""
    from sklearn.metrics import confusion_matrix

    size = len(question.names)
    labels = [*range(size), -1]
    empty = not len(question.truth)
    matrix = (
        np.zeros((size + 1, size + 1), dtype=int)
        if empty
        else confusion_matrix(question.truth, question.answer, labels=labels)
    )
    return {
        "labels": list(question.names),
        "matrix": [[int(x) for x in row[:-1]] for row in matrix[:-1]],
        "invalid": [int(row[-1]) for row in matrix[:-1]],
    }
