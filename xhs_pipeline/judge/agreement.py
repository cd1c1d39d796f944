"""How far judged posts agree with labels, counted from lines as they are written: memory holds counts, never rows."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xhs_pipeline.judgement.figures import Figure, share
from xhs_pipeline.policy import Policy

Pair = tuple[str | None, str | None, str, str]  # label's verdict and category, the answer's


def beside_label(verdict: str, category: str, label_verdict: str | None, label_category: str | None) -> dict[str, Any]:
    """What a line says of a post's label; `agrees` is None without one, else whether all that it says equals the answer."""
    given = [(label, answer) for label, answer in ((label_verdict, verdict), (label_category, category)) if label]
    return {
        "label_verdict": label_verdict,
        "label_category": label_category,
        "agrees": all(label == answer for label, answer in given) if given else None,
    }


class Agreement:
    """Counts of (label, answer) pairs, and of labels that could not be read, by reason."""

    def __init__(self) -> None:
        self._pairs: Counter[Pair] = Counter()
        self._problems: Counter[str] = Counter()

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a judged post's line."""
        label = (line["label_verdict"], line["label_category"])
        self._pairs[*label, line["verdict"], line["category"]] += 1
        self._problems.update(line.get("label_problems", ()))

    def figures(self, policy: Policy) -> dict[str, Any]:
        """Shares that agree, with Wilson's 95% interval and n each, every post a group of its own; and the verdicts' confusion.

        `compared` posts have a label. `violation`: whether the answer's category is a violation exactly where the label's is;
        of a label without a category every verdict but the passing one means a violation. `verdict_confusion` is
        {label: {answer: posts}}, all verdicts of `policy` in its order.
        """

        def violation(verdict: str | None, category: str | None) -> bool:
            return category != policy.normal_category if category else verdict != policy.pass_verdict

        confusion = {label: dict.fromkeys(policy.verdict_ids, 0) for label in policy.verdict_ids}
        for (label, _, answer, _), n in self._pairs.items():
            if label:
                confusion[label][answer] = confusion[label].get(answer, 0) + n
        labelled = {pair: n for pair, n in self._pairs.items() if pair[0] or pair[1]}
        return {
            "judged": self._pairs.total(),
            "compared": sum(labelled.values()),
            "labels_not_usable": dict(sorted(self._problems.items())),
            "verdict": self._share(lambda p: bool(p[0]), lambda p: p[0] == p[2]),
            "category": self._share(lambda p: bool(p[1]), lambda p: p[1] == p[3]),
            "violation": self._share(
                lambda p: bool(p[0] or p[1]), lambda p: violation(p[0], p[1]) == violation(p[2], p[3])
            ),
            "verdict_confusion": confusion,
        }

    def _share(self, counts: Callable[[Pair], bool], agrees: Callable[[Pair], bool]) -> Figure:
        chosen = [(agrees(pair), n) for pair, n in self._pairs.items() if counts(pair)]
        hits = np.repeat([hit for hit, _ in chosen], [n for _, n in chosen]).astype(bool)
        return share(hits, np.arange(len(hits)), "no judged post has such a label")


def table(figures: Mapping[str, Any]) -> str:
    """`Agreement.figures` as text for people."""
    unusable = ", ".join(f"{reason} {n}" for reason, n in figures["labels_not_usable"].items())
    lines = [f"compared with labels: {figures['compared']} of {figures['judged']} judged posts"]
    lines += [f"labels that could not be used: {unusable}"] if unusable else []
    for name in ("verdict", "category", "violation"):
        one = figures[name]
        if one["value"] is None:
            lines.append(f"  {name:10} no value: {one['reason']}")
        else:
            lines.append(f"  {name:10} {one['value']:.4f} agree ({one['low']:.4f} to {one['high']:.4f}), n {one['n']}")
    confusion = figures["verdict_confusion"]
    answers = list(dict.fromkeys(answer for row in confusion.values() for answer in row))
    width = max(8, *(len(name) for name in (*confusion, *answers))) + 1
    lines.append(
        f"  {'verdict':{width}}" + "".join(f"{name:>{width}}" for name in answers) + "   answers (labels down)"
    )
    for label, row in confusion.items():
        lines.append(f"  {label:{width}}" + "".join(f"{row.get(answer, 0):{width}}" for answer in answers))
    return "\n".join(lines)
