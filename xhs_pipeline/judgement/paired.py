"""A model against the one in use, on the same posts: what changed, how sure that is, and which posts got worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xhs_pipeline.judgement.classes import MACRO, counts_block, mean_f1, mean_f1_value
from xhs_pipeline.judgement.costs import costs
from xhs_pipeline.judgement.figures import Figure, resampled
from xhs_pipeline.judgement.frame import (
    CATEGORY,
    GROUP_ID,
    POST_ID,
    TRUE_CATEGORY,
    TRUE_VERDICT,
    VERDICT,
    Answers,
    Question,
    answers,
    category_columns,
    usable,
    verdict_columns,
)
from xhs_pipeline.judgement.intervals import RESAMPLES, Resamples
from xhs_pipeline.judgement.slices import slice_names
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:
    import pandas as pd

REGRESSIONS = 100  # posts listed; their number is always told


def compare(
    model: pd.DataFrame, champion: pd.DataFrame, policy: Policy, seed: int = 0, times: int = RESAMPLES
) -> dict[str, Any]:
    """The paired comparison of two predictions frames over the same posts, ready for JSON.

    {n, groups,
     category_macro_f1, verdict_macro_f1, cost_per_1000: Figures of the difference, model minus champion,
     violation: {recall, false_positive_rate}: the same for the binary question,
     categories: {name: {true, recall, false_positive_rate: Figures of the difference, mcnemar}},
     slices: {way to cut: {slice: {n, cost_per_1000: Figure of the difference}}}, cut as in `slices.slice_names`,
     mcnemar: {category, verdict, violation: one test each},
     changed: {right_to_wrong, wrong_to_right, wrong_both}: numbers of posts,
     regressions: at most 100 rows {post_id, cost, probability}, see `regressions`}

    A difference's interval is a bootstrap by duplicate group that resamples both models alike (Koehn 2004): its `low` and `high`
    are the 2.5% and 97.5% percentiles, so a test against one of them alone is at 97.5%. Where the models differ on no post the
    interval is a point however few posts there are: read n. A recall's n is the posts of the class, a false-positive rate's the
    others. `mcnemar` of a category asks of every post whether it is rightly said to be, or not to be, of that category; `p_holm`
    is corrected over the categories. Raises ValueError when the posts or their labels differ.
    """
    champion = _aligned(model, champion)
    ours, theirs = answers(model, policy), answers(champion, policy)
    resamples = Resamples(list(model[GROUP_ID]), seed, times)
    cost = costs(model, policy) - costs(champion, policy)
    n = len(model)
    per_category: dict[str, dict[str, Any]] = {
        name: {
            "true": int((ours.category.truth == i).sum()),
            "recall": rate_difference(ours.category, theirs.category, i, True, resamples),
            "false_positive_rate": rate_difference(ours.category, theirs.category, i, False, resamples),
            "mcnemar": mcnemar(*(_said_rightly(a.category, i) for a in (ours, theirs))),
        }
        for i, name in enumerate(policy.category_names)
    }
    adjusted = holm([row["mcnemar"]["p"] for row in per_category.values()])
    for row, p in zip(per_category.values(), adjusted, strict=True):
        row["mcnemar"]["p_holm"] = p
    right, before = (_right(frame, policy) for frame in (model, champion))
    tests = {"category": "category", "verdict": "verdict", "violation": "binary"}
    return {
        "n": n,
        "groups": resamples.size,
        "category_macro_f1": f1_difference(ours.category, theirs.category, resamples),
        "verdict_macro_f1": f1_difference(ours.verdict, theirs.verdict, resamples),
        "cost_per_1000": mean_difference(1000 * cost, resamples),
        "violation": {
            "recall": rate_difference(ours.binary, theirs.binary, 1, True, resamples),
            "false_positive_rate": rate_difference(ours.binary, theirs.binary, 1, False, resamples),
        },
        "categories": per_category,
        "slices": {cut: slice_costs(names, cost, resamples) for cut, names in slice_names(model).items()},
        "mcnemar": {
            name: mcnemar(*((q := getattr(a, of)).answer == q.truth for a in (ours, theirs)))
            for name, of in tests.items()
        },
        "changed": {
            "right_to_wrong": int((before & ~right).sum()),
            "wrong_to_right": int((~before & right).sum()),
            "wrong_both": int((~before & ~right).sum()),
        },
        "regressions": regressions(model, champion, policy),
    }


def _aligned(model: pd.DataFrame, champion: pd.DataFrame) -> pd.DataFrame:
    """The champion's rows in the model's order."""
    mine, theirs = list(model[POST_ID]), list(champion[POST_ID])
    if len(set(mine)) != len(mine) or len(set(theirs)) != len(theirs) or set(mine) != set(theirs):
        only = len(set(mine) - set(theirs)), len(set(theirs) - set(mine))
        raise ValueError(
            f"the model was judged on {len(mine)} posts and the champion on {len(theirs)}, {only[0]} and {only[1]} of which "
            "the other lacks; a paired comparison needs the same posts, each once: judge both on one table"
        )
    row_of = {post: i for i, post in enumerate(theirs)}
    champion = champion.iloc[[row_of[post] for post in mine]].reset_index(drop=True)
    differ = [
        name
        for name in (TRUE_VERDICT, TRUE_CATEGORY)
        if list(model[name].astype(str)) != list(champion[name].astype(str))
    ]
    if differ:
        raise ValueError(f"{' and '.join(differ)} differ between model and champion; judge both on one table")
    return champion


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test on paired right/wrong (posts,): {only_model, only_champion, p}; p is 1 where they never differ.

    Two-sided binomial test that of the posts which one of them alone gets right, half are the model's (McNemar 1947;
    scipy.stats.binomtest). Posts are taken as independent: duplicates make p too small, which the bootstrap does not.
    """
    from scipy.stats import binomtest

    mine, other = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = float(binomtest(mine, mine + other, 0.5).pvalue) if mine + other else 1.0
    return {"only_model": mine, "only_champion": other, "p": p}


def holm(p: list[float]) -> list[float]:
    """p-values corrected for testing all of them: the i-th smallest of m times m - i + 1, never falling, at most 1 (Holm 1979)."""
    out, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, p[i] * (len(p) - rank)))
        out[i] = highest
    return out


def f1_difference(ours: Question, theirs: Question, resamples: Resamples) -> Figure:
    """Macro-F1 of the model minus the champion's; n = posts."""
    n = len(ours.truth)
    if not n:
        return resampled(None, 0, None)
    samples = resamples.spread(
        [counts_block(q, resamples) for q in (ours, theirs)], lambda a, b: mean_f1(a, MACRO) - mean_f1(b, MACRO)
    )
    value = mean_f1_value(ours, MACRO) - mean_f1_value(theirs, MACRO)
    return resampled(value, n, samples[0] if len(samples) else None, limits=(-1, 1))


def mean_difference(differences: np.ndarray, resamples: Resamples) -> Figure:
    """Mean of per-post differences, (posts,)."""
    n = len(differences)
    if not n:
        return resampled(None, 0, None)
    samples = resamples.spread(
        [resamples.total(differences), resamples.total(np.ones(n))], lambda total, of: total / of
    )
    return resampled(float(differences.mean()), n, samples[0] if len(samples) else None)


def slice_costs(names: np.ndarray, cost: np.ndarray, resamples: Resamples) -> dict[str, dict[str, Any]]:
    """{slice: {n, cost_per_1000}} of per-post cost differences; `names` and `cost` (posts,). A slice holds at least one post."""
    found, codes = np.unique(names, return_inverse=True)
    if not len(found):
        return {}
    posts = np.bincount(codes)
    means = 1000 * np.bincount(codes, weights=cost) / posts
    blocks = [resamples.block(codes, len(found), 1000 * cost), resamples.block(codes, len(found))]
    samples = resamples.spread(blocks, lambda total, of: total / of)
    return {
        str(name): {
            "n": int(posts[i]),
            "cost_per_1000": resampled(float(means[i]), int(posts[i]), samples[i] if len(samples) else None),
        }
        for i, name in enumerate(found)
    }


def rate_difference(ours: Question, theirs: Question, name: int, of_class: bool, resamples: Resamples) -> Figure:
    """Difference of recall (`of_class`) or of false-positive rate of class `name`: both are shares answered `name`."""
    rows = (ours.truth == name) == of_class
    n, why = int(rows.sum()), "no true posts" if of_class else "no other posts"
    if not n:
        return resampled(None, 0, None, why)
    change = ((ours.answer == name).astype(float) - (theirs.answer == name)) * rows
    samples = resamples.spread([resamples.total(change), resamples.total(rows)], lambda total, of: total / of)
    return resampled(float(change.sum() / n), n, samples[0] if len(samples) else None, why, limits=(-1, 1))


def regressions(
    model: pd.DataFrame, champion: pd.DataFrame, policy: Policy, limit: int = REGRESSIONS
) -> list[dict[str, Any]]:
    """Posts that the champion gets right and the model wrong, the biggest first: by added cost, then by how sure the model is.

    Right is verdict and category as in the truth. Rows: post_id; cost, what the model's answer costs more; probability, the
    lower of the model's for its verdict and its category (None where it gave no usable answer). Ids only, no text.
    """
    champion = _aligned(model, champion)
    worse = np.flatnonzero(_right(champion, policy) & ~_right(model, policy))
    added = costs(model, policy) - costs(champion, policy)
    sure = _sureness(model, policy)
    ids = list(model[POST_ID])
    order = sorted(worse, key=lambda i: (-added[i], -np.nan_to_num(sure[i], nan=-1.0), str(ids[i])))
    return [
        {"post_id": ids[i], "cost": float(added[i]), "probability": None if np.isnan(sure[i]) else float(sure[i])}
        for i in order[:limit]
    ]


def _right(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    judged: Answers = answers(predictions, policy)
    return (
        judged.ok & (judged.verdict.answer == judged.verdict.truth) & (judged.category.answer == judged.category.truth)
    )


def _said_rightly(question: Question, name: int) -> np.ndarray:
    """Whether each post is rightly said to be, or not to be, of class `name`; an unusable answer is never right."""
    return ((question.answer == name) == (question.truth == name)) & (question.answer >= 0)


def _sureness(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    ok = usable(predictions, policy)
    p = np.full(len(predictions), np.nan)
    for column, names, columns in (
        (VERDICT, policy.verdict_ids, verdict_columns(policy)),
        (CATEGORY, policy.category_names, category_columns(policy)),
    ):
        at = [names.index(v) if good else 0 for v, good in zip(predictions[column], ok, strict=True)]
        given = predictions[columns].to_numpy(dtype=float)[np.arange(len(at)), np.array(at, dtype=int)]
        p = np.fmin(p, np.where(ok, given, np.nan))
    return p
