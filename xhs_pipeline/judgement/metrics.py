"""Figures over a predictions frame: how often a model is right, for whom, and what its mistakes cost.

No model runs here and nothing is read or written. The frame's columns are named in this module and nowhere else.
One row is one judged post; every figure is `{"value": float | None, "n": int, "reason": str | None}`, where n is the
number of posts the value rests on and reason says why a value is None. NaN is never a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa

from xhs_pipeline.policy import Policy

if TYPE_CHECKING:  # pandas costs 0.4 s to import and only runs that judge need it
    import pandas as pd

# About the post.
POST_ID = "post_id"
GROUP_ID = "group_id"
WEEK = "week"
LABEL_SOURCE = "label_source"
TRUE_VERDICT = "true_verdict"
TRUE_CATEGORY = "true_category"
SEVERITY = "severity"
HAS_IMAGES = "has_images"
TEXT_LENGTH = "text_length"  # characters (code points) of title and body together
# About the answer.
VERDICT = "verdict"
CATEGORY = "category"
VALID = "valid"  # false: the model gave no usable answer
VERDICT_PROBABILITY = "p_verdict_"  # + verdict id
CATEGORY_PROBABILITY = "p_category_"  # + category name

POST_COLUMNS = (
    POST_ID, GROUP_ID, WEEK, LABEL_SOURCE, TRUE_VERDICT, TRUE_CATEGORY, SEVERITY, HAS_IMAGES, TEXT_LENGTH
)  # fmt: skip

INVALID = "(invalid)"  # stands in for an unusable answer while counting; never a policy term
VIOLATION, NORMAL = "violation", "normal"
SMALLEST_PROBABILITY = 1e-12  # log loss clips here, so that one impossible answer costs 27.6 nats and not infinity


class Figure(TypedDict):
    """One number, the posts it rests on, and why it is missing when it is."""

    value: float | None
    n: int
    reason: str | None


def figure(value: float | None, n: int, reason: str | None = None) -> Figure:
    """A figure; a NaN or infinite value becomes None with a reason, whatever the caller believed."""
    if n == 0:
        return Figure(value=None, n=0, reason=reason or "no posts")
    if value is None:
        return Figure(value=None, n=int(n), reason=reason or "not defined")
    if not np.isfinite(value):
        return Figure(value=None, n=int(n), reason=f"not a finite number ({value})")
    return Figure(value=float(value), n=int(n), reason=None)


def verdict_columns(policy: Policy) -> list[str]:
    """Names of the verdict probability columns, in the policy's order."""
    return [VERDICT_PROBABILITY + v for v in policy.verdict_ids]


def category_columns(policy: Policy) -> list[str]:
    """Names of the category probability columns, in the policy's order."""
    return [CATEGORY_PROBABILITY + c for c in policy.category_names]


def predictions_frame(
    posts: pa.Table | pd.DataFrame,
    verdicts: Sequence[str | None],
    categories: Sequence[str | None],
    verdict_probabilities: np.ndarray,
    category_probabilities: np.ndarray,
    valid: Sequence[bool],
    policy: Policy,
) -> pd.DataFrame:
    """Posts (UNIQUE_POSTS columns) and their answers as one frame, in the order given.

    `verdict_probabilities` has shape (posts, verdicts) and `category_probabilities` (posts, categories), columns in the
    policy's order. Raises ValueError when a shape does not fit the posts or the policy.
    """
    import pandas as pd

    table = posts if isinstance(posts, pa.Table) else pa.Table.from_pandas(posts, preserve_index=False)
    n = table.num_rows
    for name, array, wanted in (
        ("verdict_probabilities", verdict_probabilities, (n, len(policy.verdict_ids))),
        ("category_probabilities", category_probabilities, (n, len(policy.category_names))),
    ):
        if array.shape != wanted:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {wanted}: one row a post, columns in policy order"
            )
    if not len(verdicts) == len(categories) == len(valid) == n:
        raise ValueError(
            f"{len(verdicts)} verdicts, {len(categories)} categories, {len(valid)} valid flags for {n} posts"
        )
    names = set(table.column_names)

    def column(name: str) -> list[Any]:
        return table[name].to_pylist() if name in names else [None] * n

    titles, bodies = column("title"), column("body")
    frame = {
        POST_ID: column(POST_ID),
        GROUP_ID: column(GROUP_ID),
        WEEK: column(WEEK),
        LABEL_SOURCE: column(LABEL_SOURCE),
        TRUE_VERDICT: column("verdict"),
        TRUE_CATEGORY: column("category"),
        SEVERITY: [policy.severity(c) for c in column("category")],
        HAS_IMAGES: _has_images(table),
        TEXT_LENGTH: [len(t or "") + len(b or "") for t, b in zip(titles, bodies, strict=True)],
        VERDICT: list(verdicts),
        CATEGORY: list(categories),
        VALID: [bool(v) for v in valid],
        **{name: verdict_probabilities[:, i].astype(np.float64) for i, name in enumerate(verdict_columns(policy))},
        **{name: category_probabilities[:, i].astype(np.float64) for i, name in enumerate(category_columns(policy))},
    }
    return pd.DataFrame(frame)


def _has_images(table: pa.Table) -> list[bool]:
    """Whether each post has an image, from list lengths: image bytes are never copied into Python."""
    import pyarrow.compute as pc

    if "images" not in table.column_names or pa.types.is_null(table.schema.field("images").type):
        return [False] * table.num_rows
    return [bool(n) for n in pc.list_value_length(table["images"]).to_pylist()]


def usable(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    """Mask of rows whose answer counts: flagged valid, an allowed (verdict, category) pair, finite probabilities."""
    allowed = set(policy.answers())
    pairs = zip(predictions[VERDICT], predictions[CATEGORY], strict=True)
    known = np.array([pair in allowed for pair in pairs], dtype=bool)
    numbers = predictions[verdict_columns(policy) + category_columns(policy)].to_numpy(dtype=float)
    # `== True` so that a missing flag counts as not valid
    flagged = np.array([flag == True for flag in predictions[VALID]], dtype=bool)  # noqa: E712
    return flagged & known & np.isfinite(numbers).all(axis=1)


def check_predictions(predictions: pd.DataFrame, policy: Policy) -> None:
    """Raise ValueError that lists all faults: missing columns, repeated posts, true labels unknown to the policy."""
    wanted = [*POST_COLUMNS, VERDICT, CATEGORY, VALID, *verdict_columns(policy), *category_columns(policy)]
    faults = []
    missing = [name for name in wanted if name not in predictions.columns]
    if missing:
        faults.append(f"columns missing: {', '.join(missing)}")
    for name, allowed in ((TRUE_VERDICT, policy.verdict_ids), (TRUE_CATEGORY, policy.category_names)):
        if name in predictions.columns:
            unknown = sorted({str(v) for v in predictions[name] if v not in allowed})
            if unknown:
                faults.append(f"{name} holds {', '.join(unknown)}, policy {policy.version} allows {', '.join(allowed)}")
    if POST_ID in predictions.columns and predictions[POST_ID].duplicated().any():
        faults.append(f"{int(predictions[POST_ID].duplicated().sum())} posts are judged more than once")
    if faults:
        raise ValueError("predictions cannot be evaluated: " + "; ".join(faults))


def evaluate(predictions: pd.DataFrame, policy: Policy) -> dict[str, Any]:
    """Every figure of one model on one set of posts, ready for JSON.

    An unusable answer is a wrong answer in every share and F1: for the binary question it counts as the opposite of
    the truth. A violation is any category but the policy's harmless one. Macro averages are unweighted means of the F1
    of the classes that occur in the truth (sklearn.metrics.f1_score with labels = those, zero_division = 0), so a
    category without test posts neither helps nor hurts. Precision = TP / (TP + FP), recall = TP / (TP + FN),
    F1 = 2 TP / (2 TP + FP + FN). Raises ValueError as `check_predictions` does.
    """
    check_predictions(predictions, policy)
    ok = usable(predictions, policy)
    truth_v, answer_v = _labels(predictions, TRUE_VERDICT), np.where(ok, _labels(predictions, VERDICT), INVALID)
    truth_c, answer_c = _labels(predictions, TRUE_CATEGORY), np.where(ok, _labels(predictions, CATEGORY), INVALID)
    truth_b, answer_b = _binary(truth_c, answer_c, policy)
    n = len(predictions)
    sources = np.array(
        [str(s) if isinstance(s, str) and s else "(none)" for s in predictions[LABEL_SOURCE]], dtype=object
    )
    return {
        "n": n,
        "counts": {
            "posts": n,
            VIOLATION: int((truth_b == VIOLATION).sum()),
            NORMAL: int((truth_b == NORMAL).sum()),
            "invalid": int((~ok).sum()),
            "with_images": int(sum(bool(x) for x in predictions[HAS_IMAGES])),
            "distinct_true_verdicts": len(set(truth_v)),
            "distinct_answered_verdicts": len(set(answer_v) - {INVALID}),
        },
        "headline": {
            "binary_accuracy": _accuracy(truth_b, answer_b),
            "binary_macro_f1": _binary_macro_f1(truth_b, answer_b),
            "false_positive_rate": _false_positive_rate(truth_b, answer_b),
            "verdict_accuracy": _accuracy(truth_v, answer_v),
            "verdict_macro_f1": _macro_f1(truth_v, answer_v),
            "category_accuracy": _accuracy(truth_c, answer_c),
            "category_macro_f1": _macro_f1(truth_c, answer_c),
            "cost_per_1000": figure(1000 * float(np.mean(costs(predictions, policy))) if n else None, n),
            "verdict_log_loss": _log_loss(predictions, ok, TRUE_VERDICT, VERDICT_PROBABILITY),
            "category_log_loss": _log_loss(predictions, ok, TRUE_CATEGORY, CATEGORY_PROBABILITY),
            "invalid_share": figure(float((~ok).mean()) if n else None, n),
        },
        "per_verdict": _per_class(truth_v, answer_v, policy.verdict_ids),
        "per_category": _per_class(truth_c, answer_c, policy.category_names),
        "confusion": {
            "verdict": _confusion(truth_v, answer_v, policy.verdict_ids),
            "category": _confusion(truth_c, answer_c, policy.category_names),
        },
        "slices": {
            LABEL_SOURCE: {
                name: _slice(sources == name, truth_b, answer_b, truth_c, answer_c) for name in sorted(set(sources))
            }
        },
    }


def harmless_costs(policy: Policy) -> dict[str, float]:
    """Cost of each verdict on a post that should pass; the policy's order is pass, edits, removal, human review."""
    first, *middle, last = policy.verdict_ids
    edits = {v: float(policy.costs["over_edit"]) for v in middle[:-1]}
    return {first: 0.0, **edits, middle[-1]: float(policy.costs["over_block"]), last: float(policy.costs["escalate"])}


def costs(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    """Cost of each row by the policy's `costs`, shape (posts,), in the policy's units.

    Human review costs `escalate` whatever the truth, and so does an unusable answer, since a person has to look then
    too. On a harmless post edits cost `over_edit` and removal `over_block`; a violation that passes costs
    `missed[severity]`. Edits instead of removal, or the reverse, on a true violation cost nothing: no price is set.
    """
    harmless = harmless_costs(policy)
    missed = {int(k): float(v) for k, v in policy.costs["missed"].items()}
    review = float(policy.costs["escalate"])
    last = policy.verdict_ids[-1]
    rows = zip(predictions[TRUE_CATEGORY], predictions[VERDICT], usable(predictions, policy), strict=True)
    out = np.zeros(len(predictions))
    for i, (category, verdict, ok) in enumerate(rows):
        severity = policy.severity(category)
        if not ok or verdict == last:
            out[i] = review
        elif severity == 0:
            out[i] = harmless[verdict]
        elif verdict == policy.pass_verdict:
            out[i] = missed[severity]
    return out


def _labels(predictions: pd.DataFrame, column: str) -> np.ndarray:
    return np.array([v if isinstance(v, str) else INVALID for v in predictions[column]], dtype=object)


def _binary(truth: np.ndarray, answer: np.ndarray, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    truth_b = np.where(truth == policy.normal_category, NORMAL, VIOLATION)
    opposite = np.where(truth_b == NORMAL, VIOLATION, NORMAL)
    answer_b = np.where(answer == policy.normal_category, NORMAL, VIOLATION)
    return truth_b, np.where(answer == INVALID, opposite, answer_b)


def _accuracy(truth: np.ndarray, answer: np.ndarray) -> Figure:
    """Share of posts answered as in the truth."""
    return figure(float((truth == answer).mean()) if len(truth) else None, len(truth))


def _macro_f1(truth: np.ndarray, answer: np.ndarray) -> Figure:
    """Mean F1 over the classes present in the truth (sklearn.metrics.f1_score, average="macro")."""
    from sklearn.metrics import f1_score

    if not len(truth):
        return figure(None, 0)
    present = sorted(set(truth))
    value = f1_score(truth.astype(str), answer.astype(str), labels=present, average="macro", zero_division=0)
    return figure(value, len(truth))


def _binary_macro_f1(truth: np.ndarray, answer: np.ndarray) -> Figure:
    """Mean of the F1 of violations and of harmless posts; None where the truth has only one of the two."""
    present = sorted(set(truth))
    if len(present) == 1:
        return figure(None, len(truth), f"the truth holds {present[0]} posts only")
    return _macro_f1(truth, answer)


def _false_positive_rate(truth: np.ndarray, answer: np.ndarray) -> Figure:
    """FP / (FP + TN): share of harmless posts that are called a violation. n = harmless posts."""
    harmless = truth == NORMAL
    n = int(harmless.sum())
    return figure(float((answer[harmless] == VIOLATION).mean()) if n else None, n, None if n else "no harmless posts")


def _log_loss(predictions: pd.DataFrame, ok: np.ndarray, truth: str, prefix: str) -> Figure:
    """Mean of -ln p(true class) in nats over usable answers, p clipped to at least 1e-12.

    This is sklearn.metrics.log_loss without its renormalising: a row that does not sum to one is taken as it stands.
    """
    n = int(ok.sum())
    if not n:
        return figure(None, 0, "no usable answers")
    labels = predictions[truth].to_numpy()[ok]
    kept = predictions.loc[ok]
    p = np.empty(n)
    for name in set(labels):
        rows = labels == name
        p[rows] = kept[prefix + name].to_numpy(dtype=float)[rows]
    return figure(float(-np.log(np.clip(p, SMALLEST_PROBABILITY, 1.0)).mean()), n)


def _per_class(truth: np.ndarray, answer: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Counts, precision, recall and F1 of each class, in policy order. n: answers, true posts, and both together."""
    from sklearn.metrics import precision_recall_fscore_support

    if not len(truth):
        nothing = {"true": 0, "answered": 0, "correct": 0}
        return {name: {**nothing, **{k: figure(None, 0) for k in ("precision", "recall", "f1")}} for name in names}
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth.astype(str), answer.astype(str), labels=list(names), zero_division=0
    )
    out = {}
    for i, name in enumerate(names):
        true, answered = truth == name, answer == name
        n_true, n_answered, either = int(true.sum()), int(answered.sum()), int((true | answered).sum())
        out[name] = {
            "true": n_true,
            "answered": n_answered,
            "correct": int((true & answered).sum()),
            "precision": figure(precision[i], n_answered, None if n_answered else "never answered"),
            "recall": figure(recall[i], n_true, None if n_true else "no true posts"),
            "f1": figure(f1[i], either, None if either else "neither true nor answered"),
        }
    return out


def _confusion(truth: np.ndarray, answer: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Counts in policy order: row = true class, column = answered class; `invalid` = unusable answers of each row."""
    from sklearn.metrics import confusion_matrix

    labels = [*names, INVALID]
    if len(truth):
        matrix = confusion_matrix(truth.astype(str), answer.astype(str), labels=labels)
    else:
        matrix = np.zeros((len(labels), len(labels)), dtype=int)
    return {
        "labels": list(names),
        "matrix": [[int(x) for x in row[:-1]] for row in matrix[:-1]],
        "invalid": [int(row[-1]) for row in matrix[:-1]],
    }


def _slice(
    mask: np.ndarray, truth_b: np.ndarray, answer_b: np.ndarray, truth_c: np.ndarray, answer_c: np.ndarray
) -> dict[str, Any]:
    return {
        "n": int(mask.sum()),
        "binary_accuracy": _accuracy(truth_b[mask], answer_b[mask]),
        "binary_macro_f1": _binary_macro_f1(truth_b[mask], answer_b[mask]),
        "false_positive_rate": _false_positive_rate(truth_b[mask], answer_b[mask]),
        "category_macro_f1": _macro_f1(truth_c[mask], answer_c[mask]),
    }
