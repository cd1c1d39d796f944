"""The audit sample: posts that passed, drawn for review, since only blocked posts are ever appealed.

Half of it, or what the policy says, is drawn at random; the rest evenly from strata, so that what the model was unsure of and
the rarer categories are looked at more often than they come.
"""

import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from xhs_pipeline.appeals.tables import DECISIONS, EVENTS, SNAPSHOTS
from xhs_pipeline.policy import Policy

BANDS = (0.05, 0.2)  # probability of a violation: below, between, and from there on
Row = Mapping[str, Any]


def candidates(db: sa.Connection, policy: Policy, now: datetime) -> list[Row]:
    """Decisions of the last `audit.days` that let a post pass, the oldest first; none that was erased, or whose content was sampled before."""
    since = now - timedelta(days=float(policy.appeals["audit"]["days"]))
    sampled = sa.select(EVENTS.c.group_id).where(EVENTS.c.kind == "sampled", EVENTS.c.group_id == DECISIONS.c.group_id)
    passed = (DECISIONS.c.verdict == policy.pass_verdict, DECISIONS.c.at > since, SNAPSHOTS.c.erased_at.is_(None))
    asked = sa.select(DECISIONS).join(SNAPSHOTS).where(*passed, ~sampled.exists())
    return [dict(row._mapping) for row in db.execute(asked.order_by(DECISIONS.c.number))]


def stratum(decision: Row, policy: Policy) -> tuple[str, str, int]:
    """(source, likeliest violation, band of the probability of any violation) of a decision."""
    probabilities = {name: p for name, p in decision["category_probs"].items() if name != policy.normal_category}
    likeliest = max(probabilities, key=lambda name: (probabilities[name], name), default="")
    band = sum(sum(probabilities.values()) >= limit for limit in BANDS)
    return str(decision["source"]), likeliest, band


def draw(decisions: Sequence[Row], policy: Policy, size: int | None, seed: int) -> list[Row]:
    """Up to `size` (None: the policy's) of `decisions`, no two about the same content; the same seed draws the same ones.

    `audit.random_share` of them are drawn from all alike; the others one from each stratum in turn, until enough are found.
    """
    settings, rng = policy.appeals["audit"], random.Random(seed)
    size = int(settings["size"]) if size is None else size
    shuffled = rng.sample(list(decisions), len(decisions))
    once = list({decision["group_id"]: decision for decision in shuffled}.values())
    count = min(size, round(size * float(settings["random_share"])))
    chosen, rest = once[:count], once[count:]
    strata: dict[tuple[str, str, int], list[Row]] = {}
    for decision in rest:
        strata.setdefault(stratum(decision, policy), []).append(decision)
    turns = [strata[name] for name in sorted(strata)]
    while len(chosen) < size and any(turns):
        for waiting in turns:
            if waiting and len(chosen) < size:
                chosen.append(waiting.pop())
    return chosen
