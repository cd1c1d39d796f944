"""Every figure of one model on one set of posts. No model runs here and nothing is read or written.

What is counted stands in `frame` (columns, usable answers), how it is counted in `classes`, `ranking`, `reliability`,
`decisions` and `slices`, and how sure it is in `intervals`. A figure is `figures.Figure`; NaN is never a value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xhs_pipeline.judgement import classes, ranking
from xhs_pipeline.judgement.costs import cost_matrix, costs
from xhs_pipeline.judgement.decisions import decision_figures, risk_coverage_figures
from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import (
    CATEGORY,
    CATEGORY_PROBABILITY,
    DISGUISED,
    GROUP_ID,
    HAS_IMAGES,
    INVALID,
    LABEL_SOURCE,
    LANGUAGE,
    NORMAL,
    POST_COLUMNS,
    POST_ID,
    SEVERITY,
    TEXT_LENGTH,
    TRUE_CATEGORY,
    TRUE_VERDICT,
    VALID,
    VERDICT,
    VERDICT_PROBABILITY,
    VIOLATION,
    WEEK,
    Answers,
    answers,
    category_columns,
    check_predictions,
    judged_frame,
    predictions_frame,
    usable,
    verdict_columns,
)
from xhs_pipeline.judgement.intervals import RESAMPLES, Resamples
from xhs_pipeline.judgement.reliability import calibration_figures, log_loss
from xhs_pipeline.judgement.slices import slice_figures
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:  # pandas costs 0.4 s to import and only runs that judge need it
    import pandas as pd

__all__ = [
    "CATEGORY", "CATEGORY_PROBABILITY", "DISGUISED", "GROUP_ID", "HAS_IMAGES", "INVALID", "LABEL_SOURCE", "LANGUAGE", "NORMAL",
    "POST_COLUMNS", "POST_ID", "SEVERITY", "TEXT_LENGTH", "TRUE_CATEGORY", "TRUE_VERDICT", "VALID", "VERDICT",
    "VERDICT_PROBABILITY", "VIOLATION", "WEEK", "Figure", "category_columns", "check_predictions", "cost_matrix", "costs",
    "evaluate", "figure", "judged_frame", "predictions_frame", "usable", "verdict_columns",
]  # fmt: skip


def evaluate(
    predictions: pd.DataFrame,
    policy: Policy,
    calibration: pd.DataFrame | None = None,
    seed: int = 0,
    times: int = RESAMPLES,
) -> dict[str, Any]:
    """Every figure of one model on one set of posts, ready for JSON; 95% intervals from `times` resamples (0: Wilson's only).

    `calibration` is the same model's frame over the calibration split, which thresholds are chosen on; without it what needs
    a threshold is missing. An unusable answer is a wrong answer in every share and F1: for the binary question it counts as the
    opposite of the truth. A violation is any category but the policy's harmless one. Macro averages are unweighted means over
    the classes that occur in the truth, so a category without test posts neither helps nor hurts.

    n, counts          numbers of posts
    headline           {name: Figure}, the figures that models are compared by
    per_verdict, per_category
                       {class: true, answered, correct: int; precision, recall, false_positive_rate, f1, average_precision: Figure;
                       curve (`ranking.precision_recall`); at_fpr: recall, fpr: Figure, threshold: float or None (`ranking.at_fpr`)}
    violation          the same at_fpr, curve and average_precision for the binary question, with precision, recall and
                       false_positive_rate of the answers
    by_severity        {"1", "2", "3": recall, not_passed: Figure}: share called a violation, share with another verdict than pass
    confusion          {verdict, category: labels, matrix (row = truth), invalid}
    calibration        {verdict, category, violation: ece, brier: Figure; ece_if_calibrated: float or None;
                       reliability: [{n, confidence, share: Figure}]}
    risk_coverage      {verdict, category, violation: at, aurc, curve} (`decisions.risk_coverage`)
    decisions          {name: Figure} (`decisions.decision_figures`)
    deployment         [{prevalence, precision: Figure}] for the policy's prevalences, of the answers as they were given
    slices             {way to cut: {slice: row}} (`slices.slice_figures`)

    Raises ValueError as `check_predictions` does.
    """
    judged = answers(predictions, policy)
    resamples = Resamples(list(predictions[GROUP_ID]), seed, times)
    cuts = ranking.thresholds(None if calibration is None else answers(calibration, policy))
    truth, answer = judged.binary.truth, judged.verdict.answer
    calibrated, decisions = calibration_figures(judged, resamples), decision_figures(judged, resamples)
    violation = _violation(judged, resamples, cuts)
    verdict, category, groups, n = judged.verdict, judged.category, resamples.codes, len(truth)
    return {
        "n": n,
        "counts": {
            "posts": n,
            "groups": resamples.size,
            VIOLATION: int((truth == 1).sum()),
            NORMAL: int((truth == 0).sum()),
            "invalid": int((~judged.ok).sum()),
            "with_images": int(sum(bool(x) for x in predictions[HAS_IMAGES])),
            "distinct_true_verdicts": len(verdict.present),
            "distinct_answered_verdicts": len(set(answer[judged.ok])),
        },
        "headline": {
            "binary_accuracy": classes.accuracy(judged.binary, groups),
            "binary_macro_f1": classes.binary_macro_f1(judged.binary, resamples),
            "recall": violation["recall"],
            "false_positive_rate": violation["false_positive_rate"],
            "average_precision": violation["average_precision"],
            "recall_at_fpr": violation["at_fpr"]["recall"],
            "verdict_accuracy": classes.accuracy(verdict, groups),
            "verdict_macro_f1": classes.averaged_f1(verdict, resamples, classes.MACRO),
            "verdict_weighted_f1": classes.averaged_f1(verdict, resamples, classes.WEIGHTED),
            "category_accuracy": classes.accuracy(category, groups),
            "category_macro_f1": classes.averaged_f1(category, resamples, classes.MACRO),
            "category_weighted_f1": classes.averaged_f1(category, resamples, classes.WEIGHTED),
            "cost_per_1000": _cost(predictions, policy, resamples),
            "verdict_log_loss": log_loss(verdict, judged.ok, resamples),
            "category_log_loss": log_loss(category, judged.ok, resamples),
            "ece": calibrated["category"]["ece"],
            "brier": calibrated["category"]["brier"],
            "automatic": decisions["automatic"],
            "invalid_share": share(~judged.ok, groups),
        },
        "per_verdict": _classes(verdict, resamples, cuts.get("verdict")),
        "per_category": _classes(category, resamples, cuts.get("category")),
        "violation": violation,
        "by_severity": _by_severity(predictions, judged, resamples),
        "confusion": {"verdict": classes.confusion(verdict), "category": classes.confusion(category)},
        "calibration": calibrated,
        "risk_coverage": risk_coverage_figures(judged, resamples),
        "decisions": decisions,
        "deployment": [
            {
                "prevalence": float(p),
                "precision": ranking.deployment_precision(violation["recall"], violation["false_positive_rate"], p),
            }
            for p in policy.deployment["prevalence"]
        ],
        "slices": slice_figures(predictions, judged, resamples),
    }


NOT_CHOSEN = ranking.Threshold(None, 0, "no calibration split was judged, so no threshold was chosen")


def _classes(question: Any, resamples: Resamples, cuts: list[ranking.Threshold] | None) -> dict[str, dict[str, Any]]:
    rows = classes.per_class(question, resamples)
    for i, row in enumerate(rows.values()):
        row["average_precision"] = ranking.average_precision(question, i, resamples)
        row["curve"] = ranking.precision_recall(question, i)
        row["at_fpr"] = ranking.at_fpr(question, i, cuts[i] if cuts else NOT_CHOSEN, resamples.codes)
    return rows


def _violation(judged: Answers, resamples: Resamples, cuts: dict[str, list[ranking.Threshold]]) -> dict[str, Any]:
    binary, groups = judged.binary, resamples.codes
    cut = cuts["binary"][1] if cuts else NOT_CHOSEN
    return {
        "precision": classes.precision(binary, 1, groups),
        "recall": classes.recall(binary, 1, groups, f"no {VIOLATION} posts"),
        "false_positive_rate": classes.false_positive_rate(binary, 1, groups, "no harmless posts"),
        "average_precision": ranking.average_precision(binary, 1, resamples),
        "curve": ranking.precision_recall(binary, 1),
        "at_fpr": ranking.at_fpr(binary, 1, cut, groups),
    }


def _by_severity(predictions: pd.DataFrame, judged: Answers, resamples: Resamples) -> dict[str, Any]:
    severity = predictions[SEVERITY].to_numpy(dtype=float)
    out = {}
    for level in (1, 2, 3):
        rows = severity == level
        groups, why = resamples.codes[rows], f"no posts of severity {level}"
        out[str(level)] = {
            "recall": share(judged.binary.answer[rows] == 1, groups, why),
            "not_passed": share((judged.verdict.answer != 0)[rows], groups, why),
        }
    return out


def _cost(predictions: pd.DataFrame, policy: Policy, resamples: Resamples) -> Figure:
    """Mean cost by the policy's matrix, times 1000."""
    each = 1000 * costs(predictions, policy)
    if not len(each):
        return figure(None, 0)
    blocks = [resamples.total(each), resamples.total(np.ones(len(each)))]
    samples = resamples.spread(blocks, lambda total, posts: total / posts)
    return resampled(float(each.mean()), len(each), samples[0] if len(samples) else None, limits=(0, np.inf))
