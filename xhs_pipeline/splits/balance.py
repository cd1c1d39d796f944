"""Balancing the train split by quotas. Never touches validation, calibration or test: those keep the real mixture."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xhs_pipeline.splits.grouping import unit_hash


@dataclass(frozen=True)
class Balance:
    """Post ids that stay in train, and for each label with a quota: asked for and found."""

    kept: frozenset[str]
    asked: dict[str, int]
    found: dict[str, int]


def balance(posts: Sequence[tuple[str, str]], quotas: dict[str, float], labels: Sequence[str], seed: int) -> Balance:
    """Choose among (post_id, label) pairs so that no label exceeds its quota; labels without a quota stay whole.

    Quotas are counts (`{正常: 15000, 诈骗: 6000}`) or shares in (0, 1) that sum to 1 over the labels they name, for the largest
    set that has these shares. The choice ranks posts by a seeded hash: adding posts never reshuffles the others.
    Raises ValueError for an unknown label, a negative count, or shares that do not sum to 1.
    """
    unknown = sorted(set(quotas) - set(labels))
    if unknown:
        raise ValueError(f"train_quotas names unknown labels {', '.join(unknown)}; allowed: {', '.join(labels)}")
    if any(value < 0 for value in quotas.values()):
        raise ValueError(f"train_quotas: a quota may not be negative: {quotas}")
    found = Counter(label for _, label in posts)
    are_shares = bool(quotas) and all(0 < value <= 1 for value in quotas.values()) and len(quotas) > 1
    if are_shares:
        if abs(sum(quotas.values()) - 1) > 1e-6:
            raise ValueError(f"train_quotas: shares sum to {sum(quotas.values()):g}, expected 1: {quotas}")
        absent = sorted(label for label in quotas if not found[label])
        if absent:
            raise ValueError(
                f"train_quotas gives a share to labels that no train post has: {', '.join(absent)}; leave them out"
            )
        size = min(found[label] / share for label, share in quotas.items())
        asked = {label: int(size * share + 1e-9) for label, share in quotas.items()}
    else:
        if any(value != int(value) for value in quotas.values()):
            raise ValueError(f"train_quotas: give counts for all labels or shares for all labels, not both: {quotas}")
        asked = {label: int(value) for label, value in quotas.items()}
    taken: Counter[str] = Counter()
    kept = set()
    for post_id, label in sorted(posts, key=lambda post: unit_hash("balance", seed, post[0])):
        if taken[label] < asked.get(label, len(posts)):
            taken[label] += 1
            kept.add(post_id)
    return Balance(frozenset(kept), asked, {label: found[label] for label in asked})
