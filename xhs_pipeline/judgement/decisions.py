"""From calibrated probabilities to a decision by the policy's prices, and what deciding alone costs in mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xhs_pipeline.judgement.costs import cost_matrix
from xhs_pipeline.judgement.figures import Figure, resampled, share
from xhs_pipeline.judgement.frame import (
    CATEGORY,
    NORMAL,
    VERDICT,
    VIOLATION,
    Answers,
    category_columns,
    usable,
    verdict_columns,
)
from xhs_pipeline.judgement.intervals import Resamples
from xhs_pipeline.policy import Policy
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = "confidence"
EXPECTED_COST = "expected_cost"
ERROR_RATES = (0.01, 0.02, 0.05, 0.10)
CURVE_POINTS = 101
STEPS = 500  # thresholds at most that a resample tries, evenly spaced among those there are
SAME = 12  # decimals: expected costs that agree so far are a tie


@dataclass(frozen=True)
class Decisions:
    """Per post: indices of verdict and category in the policy's order, confidence in [0, 1], expected cost in its units."""

    verdict: np.ndarray
    category: np.ndarray
    confidence: np.ndarray
    expected_cost: np.ndarray


def decide(verdict_p: np.ndarray, category_p: np.ndarray, policy: Policy, min_confidence: float = 0.0) -> Decisions:
    """The cheapest of letting pass, acting and human review, by expected cost: sum over categories of p(category) cost.

    `verdict_p` (posts, verdicts) and `category_p` (posts, categories) are calibrated probabilities in the policy's order; the
    costs are `cost_matrix` (minimum-risk decision, Duda, Hart & Stork 2001, section 2.2). The policy sets no price on edits
    instead of removal for a violation, so prices cannot choose between those two: with them alone edits, the cheaper mistake on a
    harmless post, would always win and nothing would ever be removed. Acting therefore means the likeliest category of
    violation with the likeliest verdict that the policy allows for it, at that verdict's cost. Human review keeps the likeliest
    category of all. Of equal costs the verdict that stands first in the policy wins, of equal probabilities the first too.

    `confidence` is the probability of passing, or of the verdict that acts, whichever costs less. Where it is below
    `min_confidence` the verdict is human review; 0 turns that off.
    """
    n, matrix = len(category_p), cost_matrix(policy)
    rows, passing, review = np.arange(n), 0, len(policy.verdict_ids) - 1
    normal = policy.category_names.index(policy.normal_category)
    acts = np.zeros((len(policy.categories), len(policy.verdict_ids)), dtype=bool)
    for row, category in enumerate(policy.categories):
        acts[row] = [passing < v < review and name in category.verdicts for v, name in enumerate(policy.verdict_ids)]
    # a category that only a person may judge cannot be acted on
    of_violation = np.where(acts.sum(axis=1) > 0, category_p, -1.0).argmax(axis=1)
    verdict_of_violation = np.where(acts[of_violation], verdict_p, -1.0).argmax(axis=1)
    expected = category_p @ matrix
    options = np.column_stack([expected[:, passing], expected[rows, verdict_of_violation], expected[:, review]])
    options = options.round(SAME)
    alone = options[:, :2].argmin(axis=1)  # of a tie, the first: passing
    confidence = verdict_p[rows, np.where(alone == 0, passing, verdict_of_violation)]
    choice = np.where(confidence < min_confidence, 2, options.argmin(axis=1))
    verdict = np.select([choice == 0, choice == 1], [np.full(n, passing), verdict_of_violation], review)
    given = np.select([choice == 0, choice == 1], [np.full(n, normal), of_violation], category_p.argmax(axis=1))
    return Decisions(verdict, given, confidence, options[rows, choice])


def decided(predictions: pd.DataFrame, policy: Policy, min_confidence: float = 0.0) -> pd.DataFrame:
    """The frame with decisions in place of the likeliest answers, and columns `confidence` and `expected_cost`.

    Its probabilities are taken to be calibrated. Rows without a usable answer stay as they are, with NaN in both columns.
    """
    out, ok = predictions.copy(), usable(predictions, policy)
    made = decide(
        predictions.loc[ok, verdict_columns(policy)].to_numpy(dtype=float),
        predictions.loc[ok, category_columns(policy)].to_numpy(dtype=float),
        policy,
        min_confidence,
    )
    verdicts, categories = (np.array(predictions[name], dtype=object) for name in (VERDICT, CATEGORY))
    verdicts[ok] = [policy.verdict_ids[i] for i in made.verdict]
    categories[ok] = [policy.category_names[i] for i in made.category]
    out[VERDICT], out[CATEGORY] = verdicts, categories
    for name, values in ((CONFIDENCE, made.confidence), (EXPECTED_COST, made.expected_cost)):
        column = np.full(len(out), np.nan)
        column[ok] = values
        out[name] = column
    return out


def decided_in_own_terms(
    predictions: pd.DataFrame,
    judged: Sequence[Judgement | Unfit],
    asked_with: Policy,
    policy: Policy,
    min_confidence: float = 0.0,
) -> pd.DataFrame:
    """`decided` for a model whose categories (`asked_with`) are not those of `policy`: it decides as it does in use, by its own.

    `judged` is what the frame was made of, row by row. A verdict means the same in both. A category that `policy` does not have,
    or not with that verdict, is read as the one it has that the model finds likeliest.
    """
    verdicts, categories = (np.array(predictions[name], dtype=object) for name in (VERDICT, CATEGORY))
    numbers = np.full((2, len(predictions)), np.nan)
    review = policy.verdict_ids[-1]
    for row, judgement in enumerate(judged):
        if not isinstance(judgement, Judgement) or not judgement.valid:
            continue
        made = decide_judgement(judgement, asked_with, min_confidence)
        may_be = [c.name for c in policy.categories if made.verdict == review or made.verdict in c.verdicts]
        likely = judgement.category_probs
        verdicts[row] = made.verdict
        categories[row] = (
            made.category if made.category in may_be else max(may_be, key=lambda name: likely.get(name, 0.0))
        )
        numbers[:, row] = made.confidence, made.expected_cost
    return predictions.assign(
        **{VERDICT: verdicts, CATEGORY: categories, CONFIDENCE: numbers[0], EXPECTED_COST: numbers[1]}
    )


class Decision(NamedTuple):
    """One post's row of `Decisions`, in the policy's terms."""

    verdict: str
    category: str
    confidence: float
    expected_cost: float


def decide_judgement(judgement: Judgement, policy: Policy, min_confidence: float = 0.0) -> Decision:
    """What `decide` makes of one valid judgement with calibrated probabilities, for whoever serves a model.

    `policy` is the model's own, whose wording its answers are in.
    """
    made = decide(
        np.array([[judgement.verdict_probs[name] for name in policy.verdict_ids]]),
        np.array([[judgement.category_probs[name] for name in policy.category_names]]),
        policy,
        min_confidence,
    )
    return Decision(
        policy.verdict_ids[made.verdict[0]],
        policy.category_names[made.category[0]],
        float(made.confidence[0]),
        float(made.expected_cost[0]),
    )


def decision_figures(judged: Answers, resamples: Resamples) -> dict[str, Any]:
    """What the verdicts do, as shares with Wilson's intervals.

    automatic: posts with a usable answer other than human review; human_review: posts with that answer. passed_violations:
    violations that pass, of all violations. acted_on_harmless: harmless posts that are edited or removed, of all harmless.
    """
    groups, answer, truth = resamples.codes, judged.verdict.answer, judged.binary.truth
    review = len(judged.verdict.names) - 1
    alone = judged.ok & (answer != review)
    violation, acted = truth == 1, alone & (answer > 0)
    return {
        "automatic": share(alone, groups),
        "human_review": share(judged.ok & (answer == review), groups),
        "passed_violations": share((answer == 0)[violation], groups[violation], f"no {VIOLATION} posts"),
        "acted_on_harmless": share(acted[~violation], groups[~violation], f"no {NORMAL} posts"),
    }


def risk_coverage_figures(judged: Answers, resamples: Resamples) -> dict[str, Any]:
    """`risk_coverage` of the likeliest answer to each question: `verdict`, `category`, `violation`.

    The confidence is the likeliest class's probability. Posts without a usable answer, and for `verdict` those whose likeliest
    verdict is human review, are not decided alone at any confidence.
    """
    out = {}
    for name, question in (("verdict", judged.verdict), ("category", judged.category), ("violation", judged.binary)):
        p = np.where(judged.ok[:, None], question.probabilities, -1.0)
        likeliest = p.argmax(axis=1)
        alone = judged.ok & ~((name == "verdict") & (likeliest == len(question.names) - 1))
        out[name] = risk_coverage(p.max(axis=1), likeliest != question.truth, alone, resamples)
    return out


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray, alone: np.ndarray, resamples: Resamples) -> dict[str, Any]:
    """How many posts can be decided alone at which error rate, taking the most confident first.

    `confidence`, `wrong`, `alone` (posts,); posts outside `alone` are never decided but count in the share. Coverage is the
    share decided, risk the share of those that are wrong (El-Yaniv & Wiener 2010). `at` gives, for 1, 2, 5 and 10% risk, the
    largest coverage with no more; `aurc` the area under the curve, the mean risk over its coverages (Geifman & El-Yaniv 2017);
    `curve` at most 101 points {coverage, risk} for drawing. Posts of equal confidence are decided together.
    """
    n = len(confidence)
    steps, codes = np.unique(-confidence[alone], return_inverse=True)
    at = np.full(n, -1)
    at[alone] = codes
    size = min(STEPS, len(steps))
    coarse = np.where(at < 0, -1, at * size // max(len(steps), 1))
    blocks = [resamples.block(coarse, size), resamples.block(coarse, size, wrong), resamples.total(np.ones(n))]

    def figures(*sums: np.ndarray) -> np.ndarray:
        decided, mistakes, total = sums
        count = decided.cumsum(axis=0)
        risk = mistakes.cumsum(axis=0) / np.maximum(count, 1)
        coverages = [(np.where(risk <= rate, count, 0).max(axis=0, initial=0) / total[0]) for rate in ERROR_RATES]
        return np.stack([*coverages, (risk * decided).sum(axis=0) / count[-1:].sum(axis=0)])

    point = [np.bincount(codes, weights=w, minlength=len(steps))[:, None] for w in (np.ones(len(codes)), wrong[alone])]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = figures(point[0], point[1], np.full((1, 1), float(n)))[:, 0]
    samples = resamples.spread(blocks, figures)

    def of(i: int, size: int, reason: str | None = None) -> Figure:
        value = None if np.isnan(values[i]) else float(values[i])
        return resampled(value, size, samples[i] if len(samples) else None, reason, limits=(0, 1))

    count, mistakes = (p[:, 0].cumsum() for p in point)
    drawn = np.unique(np.linspace(0, len(steps) - 1, min(CURVE_POINTS, len(steps))).round().astype(int))
    return {
        "at": {f"{rate:g}": of(i, n) for i, rate in enumerate(ERROR_RATES)},
        "aurc": of(len(ERROR_RATES), int(alone.sum()), None if alone.any() else "no post is decided alone"),
        "curve": [{"coverage": float(count[i] / n), "risk": float(mistakes[i] / count[i])} for i in drawn],
    }
