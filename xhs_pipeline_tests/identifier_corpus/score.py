"""Recall and precision of found spans against the corpus. A span counts only when type and both ends are right."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from xhs_pipeline.curation.identifiers import Span

_EDGE = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass
class Scores:
    """Counts by type, and by (type, evasion); `misses` and `false` hold the records for a closer look."""

    wanted: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    by_evasion: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    misses: list[tuple[str, str, str, list[str]]] = field(default_factory=list)
    false: list[tuple[str, str, str, str]] = field(default_factory=list)

    def recall(self, type_: str) -> float:
        return self.right[type_] / max(1, self.wanted[type_])

    def precision(self, type_: str) -> float:
        return self.right[type_] / max(1, self.found[type_])

    def table(self) -> str:
        rows = ["| type | spans | recall | found | precision |", "|---|---|---|---|---|"]
        for type_ in self.wanted:
            figures = (
                f"{self.wanted[type_]} | {self.recall(type_):.4f} | {self.found[type_]} | {self.precision(type_):.4f}"
            )
            rows.append(f"| {type_} | {figures} |")
        for type_ in self.found.keys() - self.wanted.keys():
            rows.append(f"| {type_} | 0 | | {self.found[type_]} | 0 |")
        total = sum(self.wanted.values()), sum(self.right.values()), sum(self.found.values())
        rows.append(f"| all | {total[0]} | {total[1] / total[0]:.4f} | {total[2]} | {total[1] / total[2]:.4f} |")
        return "\n".join(rows)


def score(records: Iterable[dict[str, Any]], find: Callable[[str], list[Span]]) -> Scores:
    """Run `find` over every record. Marks and blanks at the edge of a span are not compared: they identify nobody."""
    scores = Scores()
    for record in records:
        text = record["text"]
        wanted = {(*_trim(text, start, end), type_): evasion for start, end, type_, evasion in record["spans"]}
        found = [(*_trim(text, span.start, span.end), span.kind.partition(":")[0]) for span in find(text)]
        for key in found:
            scores.found[key[2]] += 1
            if key not in wanted:
                scores.false.append((key[2], record["kind"], text[key[0] : key[1]], text))
        for key, evasion in wanted.items():
            scores.wanted[key[2]] += 1
            cell = scores.by_evasion[key[2], evasion]
            cell[1] += 1
            if key in found:
                scores.right[key[2]] += 1
                cell[0] += 1
            else:
                scores.misses.append((key[2], evasion, text, [f"{k}={text[a:b]}" for a, b, k in found]))
    return scores


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    inside = text[start:end]
    left = _EDGE.match(inside)
    if left and left.end() == len(inside):
        return start, end
    right = re.search(r"[\W_]+$", inside)
    return start + (left.end() if left and left.start() == 0 else 0), end - (
        len(inside) - right.start() if right else 0
    )
