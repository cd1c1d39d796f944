"""For whom the model is right: the same figures over parts of the posts, and the parts where harmless posts suffer most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xhs_pipeline.appeals.states import APPEAL
from xhs_pipeline.judgement import classes
from xhs_pipeline.judgement.figures import Figure, resampled
from xhs_pipeline.judgement.frame import (
    DISGUISED,
    HAS_IMAGES,
    LABEL_SOURCE,
    LANGUAGE,
    TEXT_LENGTH,
    TRUE_CATEGORY,
    WEEK,
    Answers,
    Question,
)
from xhs_pipeline.judgement.intervals import Resamples

if TYPE_CHECKING:
    import pandas as pd

LENGTHS = (20, 100, 500)  # characters of title and body: a title, a short note, a note, a long one
TWICE = 2.0  # a slice whose false-positive rate is this many times the overall one is flagged
NONE = "(none)"


def slice_names(predictions: pd.DataFrame) -> dict[str, np.ndarray]:
    """For each way to cut the posts, the name of every post's slice, (posts,) str; "(none)" where the post does not say.

    category: the true one. label_source: who labelled it. images, disguised (an identifier written in disguise, the only evasion
    that cleaning records), appeal (its label was decided on appeal): yes or no. length: in characters of title and body.
    language: see frame.language. week: as the post says.
    """
    edges = [0, *(top + 1 for top in LENGTHS)]
    buckets = [f"{low}-{top}" for low, top in zip(edges, LENGTHS, strict=False)] + [f"over {LENGTHS[-1]}"]
    lengths = np.searchsorted(LENGTHS, predictions[TEXT_LENGTH].to_numpy(dtype=float), side="left")
    words = {name: [str(v) if isinstance(v, str) and v else NONE for v in predictions[name]] for name in _WORDS}
    flags = {
        "images": [bool(v) for v in predictions[HAS_IMAGES]],
        "disguised": [bool(v) for v in predictions[DISGUISED]],
        "appeal": [source == APPEAL for source in words[LABEL_SOURCE]],
    }
    return {
        "category": np.array(words[TRUE_CATEGORY], dtype=str),
        LABEL_SOURCE: np.array(words[LABEL_SOURCE], dtype=str),
        **{name: np.where(np.array(values, dtype=bool), "yes", "no") for name, values in flags.items()},
        "length": np.array(buckets, dtype=str)[lengths],
        LANGUAGE: np.array(words[LANGUAGE], dtype=str),
        WEEK: np.array(words[WEEK], dtype=str),
    }


_WORDS = (TRUE_CATEGORY, LABEL_SOURCE, LANGUAGE, WEEK)


def slice_figures(predictions: pd.DataFrame, judged: Answers, resamples: Resamples) -> dict[str, Any]:
    """{way to cut: {slice: row}}; see `slice_names` for the ways. A slice holds at least one post.

    A row: n, harmless (its harmless posts); recall, false_positive_rate and f1 of violations; binary_accuracy, binary_macro_f1,
    category_macro_f1; `flagged`: its false-positive rate is at least twice that of all posts; `excludes_overall`: its interval
    lies above the overall rate, so that chance does not explain it. Both are None where either rate is missing.
    """
    overall = classes.false_positive_rate(judged.binary, 1, resamples.codes, "no harmless posts")
    return {cut: _rows(names, judged, resamples, overall) for cut, names in slice_names(predictions).items()}


def _rows(names: np.ndarray, judged: Answers, resamples: Resamples, overall: Figure) -> dict[str, Any]:
    found, codes = np.unique(names, return_inverse=True)
    samples = _f1_samples(codes, len(found), judged, resamples)
    out = {}
    for i, name in enumerate(found):
        rows = codes == i
        groups, binary, category = resamples.codes[rows], _part(judged.binary, rows), _part(judged.category, rows)
        rate = classes.false_positive_rate(binary, 1, groups, "no harmless posts")
        f1, macro, category_macro = (s[i] if len(s) else None for s in samples)
        out[str(name)] = {
            "n": int(rows.sum()),
            "harmless": int((binary.truth == 0).sum()),
            "recall": classes.recall(binary, 1, groups, "no violation posts"),
            "false_positive_rate": rate,
            "f1": _f1(binary, f1),
            "binary_accuracy": classes.accuracy(binary, groups),
            "binary_macro_f1": _macro(binary, macro, classes.one_sided(binary)),
            "category_macro_f1": _macro(category, category_macro, None),
            **_flag(rate, overall),
        }
    return out


def _flag(rate: Figure, overall: Figure) -> dict[str, bool | None]:
    if rate["value"] is None or overall["value"] is None:
        return {"flagged": None, "excludes_overall": None}
    flagged = rate["value"] > 0 and rate["value"] >= TWICE * overall["value"]
    return {"flagged": flagged, "excludes_overall": rate["low"] is not None and rate["low"] > overall["value"]}


def _part(question: Question, rows: np.ndarray) -> Question:
    return Question(question.names, question.truth[rows], question.answer[rows], question.probabilities[rows])


def _f1(binary: Question, samples: np.ndarray | None) -> Figure:
    """F1 of violations, 2 TP / (2 TP + FP + FN); n: posts that are, or are called, a violation. No value without a true one."""
    right = int(((binary.truth == 1) & (binary.answer == 1)).sum())
    true = int((binary.truth == 1).sum())
    total = true + int((binary.answer == 1).sum())
    return resampled(2 * right / total if true else None, total - right, samples, "no violations in it", limits=(0, 1))


def _macro(question: Question, samples: np.ndarray | None, why: str | None) -> Figure:
    n = len(question.truth)
    value = None if why else classes.mean_f1_value(question, classes.MACRO)
    return resampled(value, n, samples, why, limits=(0, 1))


def _f1_samples(codes: np.ndarray, size: int, judged: Answers, resamples: Resamples) -> tuple[np.ndarray, ...]:
    """Resamples of violation F1, binary macro-F1 and category macro-F1 of every slice: three (slices, resamples)."""
    blocks = []
    for question in (judged.binary, judged.category):
        right = np.where(question.answer == question.truth, question.truth, -1)
        for labels in (right, question.truth, question.answer):
            width = len(question.names)
            blocks.append(resamples.block(np.where(labels >= 0, labels * size + codes, -1), width * size))

    def figures(*sums: np.ndarray) -> np.ndarray:
        by_class = [s.reshape(-1, size * s.shape[1]) for s in sums]  # (classes, slices x resamples)
        binary, category = np.concatenate(by_class[:3]), np.concatenate(by_class[3:])
        rows = [classes.f1_scores(binary)[1:], *(classes.mean_f1(c, classes.MACRO) for c in (binary, category))]
        return np.concatenate([r.reshape(size, -1) for r in rows])

    samples = resamples.spread(blocks, figures)
    return tuple(np.split(samples, 3)) if len(samples) else (samples,) * 3
