"""What mistakes cost, by the policy: one matrix that prices verdicts after the fact and chooses them beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xhs_pipeline.judgement.frame import TRUE_CATEGORY, VERDICT, usable
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:
    import pandas as pd


def cost_matrix(policy: Policy) -> np.ndarray:
    """Cost of each verdict on a post of each true category: float64 (categories, verdicts), in the policy's order and units.

    Human review, the policy's last verdict, costs `escalate` whatever the truth. On a harmless post edits cost `over_edit` and
    removal `over_block`; a violation that passes costs `missed[severity]`. Edits instead of removal, or the reverse, on a
    violation cost nothing: the policy sets no price on them.
    """
    missed = {int(severity): float(price) for severity, price in policy.costs["missed"].items()}
    passing, *middle, review = range(len(policy.verdict_ids))
    matrix = np.zeros((len(policy.categories), len(policy.verdict_ids)))
    for row, category in enumerate(policy.categories):
        if category.severity:
            matrix[row, passing] = missed[category.severity]
        else:
            matrix[row, middle[:-1]] = float(policy.costs["over_edit"])
            matrix[row, middle[-1]] = float(policy.costs["over_block"])
    matrix[:, review] = float(policy.costs["escalate"])
    return matrix


def costs(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    """Cost of each row by `cost_matrix`, shape (posts,), in the policy's units.

    An unusable answer costs what human review costs, since a person has to look then too.
    """
    ok = usable(predictions, policy)
    verdict_of = {name: i for i, name in enumerate(policy.verdict_ids)}
    category_of = {name: i for i, name in enumerate(policy.category_names)}
    review = len(policy.verdict_ids) - 1
    given = [verdict_of[v] if good else review for v, good in zip(predictions[VERDICT], ok, strict=True)]
    true = [category_of[c] for c in predictions[TRUE_CATEGORY]]
    return cost_matrix(policy)[np.array(true, dtype=int), np.array(given, dtype=int)]
