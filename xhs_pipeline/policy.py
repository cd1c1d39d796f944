"""The moderation policy as an object: verdicts, categories, costs, gates and wording, all read from one YAML file.

That is policy.yaml beside this module, or the file that `XHS_POLICY` names.

Nothing here knows about posts, models or Dagster; no other module may spell a verdict's or a category's name.
"""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

POLICY_FILE = Path(__file__).with_name("policy.yaml")
GATES = frozenset(
    {
        "max_invalid_share", "min_merge_agreement", "min_training_base_agreement", "max_champion_cost_rise",
        "max_champion_recall_loss", "max_champion_fpr_rise", "min_category_posts", "min_severity3_recall", "min_severity3_posts",
        "max_false_positive_rate", "max_false_positive_rate_upper", "min_harmless_posts", "max_ece",
        "min_evasion_retention", "min_worst_evasion_retention", "max_evasion_fpr_rise",
    }
)  # fmt: skip

# Numbers of the appeals section, those of its parts with a dot.
APPEALS = (
    "min_adjudicated", "min_audit", "audits_per_appeal", "cooldown_hours", "max_per_author_per_week", "max_per_group_per_week", "burst.minutes",
    "burst.per_author", "burst.per_group", "audit.size", "audit.random_share", "audit.days",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What happens to a post: `id` in tables, `label` in what the model reads and writes."""

    id: str
    label: str
    description: str


@dataclass(frozen=True)
class Category:
    """Why: a policy category, its severity (0 none to 3 illegal or dangerous) and the verdict ids it may lead to."""

    name: str
    severity: int
    verdicts: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class Policy:
    """One version of the policy. The first verdict and the category with severity 0 are what a harmless post gets."""

    version: str
    verdicts: tuple[Verdict, ...]
    categories: tuple[Category, ...]
    costs: dict[str, Any]
    gates: dict[str, float]
    golden: dict[str, int]
    appeals: dict[str, Any]
    trusted_sources: tuple[str, ...]
    deployment: dict[str, Any]
    prompt: dict[str, str]
    answer: dict[str, str]

    @property
    def verdict_ids(self) -> tuple[str, ...]:
        return tuple(v.id for v in self.verdicts)

    @property
    def category_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.categories)

    @property
    def pass_verdict(self) -> str:
        return self.verdicts[0].id

    @property
    def normal_category(self) -> str:
        return next(c.name for c in self.categories if c.severity == 0)

    def label(self, verdict_id: str) -> str:
        """The wording of a verdict id, e.g. 违规删除 for remove."""
        return next(v.label for v in self.verdicts if v.id == verdict_id)

    def verdict_id(self, term: str) -> str | None:
        """The verdict id for an id or a label, or None when the policy has no such verdict."""
        return next((v.id for v in self.verdicts if term in (v.id, v.label)), None)

    def category(self, name: str) -> Category | None:
        return next((c for c in self.categories if c.name == name), None)

    def allows(self, verdict_id: str, category: str) -> bool:
        """Whether this verdict may follow from this category (a 正常 post cannot be removed, a 诈骗 post cannot pass)."""
        found = self.category(category)
        return found is not None and verdict_id in found.verdicts

    def answers(self) -> list[tuple[str, str]]:
        """Every allowed (verdict id, category name) pair, in the policy's order."""
        return [(v.id, c.name) for v in self.verdicts for c in self.categories if v.id in c.verdicts]

    @property
    def labels(self) -> dict[str, Any]:
        """What reading labels depends on: the verdicts and the categories."""
        return {name: self.wording[name] for name in ("verdicts", "categories")}

    @property
    def wording(self) -> dict[str, Any]:
        """Everything of the policy that labels and prompts depend on; limits and costs are not among it."""
        return {
            "verdicts": [vars(v) for v in self.verdicts],
            "categories": [vars(c) for c in self.categories],
            "prompt": self.prompt,
            "answer": self.answer,
        }

    def with_wording(self, version: str, wording: dict[str, Any]) -> "Policy":
        """This policy's costs and limits with another version's `wording`. Raises KeyError or TypeError for what is none."""
        return replace(
            self,
            version=version,
            verdicts=tuple(Verdict(**v) for v in wording["verdicts"]),
            categories=tuple(Category(**{**c, "verdicts": tuple(c["verdicts"])}) for c in wording["categories"]),
            prompt=dict(wording["prompt"]),
            answer=dict(wording["answer"]),
        )

    def severity(self, category: str) -> int:
        found = self.category(category)
        if found is None:
            raise ValueError(
                f"category {category!r} is not in policy {self.version}; allowed: {', '.join(self.category_names)}"
            )
        return found.severity


def _require(condition: bool, path: Path, message: str) -> None:
    if not condition:
        raise ValueError(f"{path}: {message}")


def load_policy(path: Path | None = None) -> Policy:
    """Read and validate a policy file: `path`, else the one that `XHS_POLICY` names, else policy.yaml beside this module.

    Raises FileNotFoundError when there is no such file, and ValueError naming the file, the value and what was expected when a verdict is repeated, a category lists an
    unknown verdict, one name begins another, no category (or more than one) has severity 0, a section or a limit is missing or
    unknown, a limit of gates or appeals is no number, a prevalence is no share, or a prompt or an answer line lacks its placeholder.
    """
    path = path or Path(os.environ.get("XHS_POLICY") or POLICY_FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such policy file; see XHS_POLICY, or copy {POLICY_FILE}")
    return _load_policy(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_policy(path: Path, edited: int) -> Policy:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    sections = (
        "version", "verdicts", "categories", "costs", "gates", "golden", "appeals", "trusted_sources", "deployment", "prompt", "answer",
    )  # fmt: skip
    missing = [name for name in sections if name not in (raw or {})]
    _require(not missing, path, f"the policy lacks {', '.join(missing)}")
    verdicts = tuple(Verdict(**v) for v in raw["verdicts"])
    categories = tuple(
        Category(c["name"], int(c["severity"]), tuple(c["verdicts"]), c["description"]) for c in raw["categories"]
    )
    ids = [v.id for v in verdicts]
    names = [c.name for c in categories]
    _require(len(set(ids)) == len(ids), path, f"verdict ids repeat: {ids}")
    labels = [v.label for v in verdicts]
    _require(len(set(labels)) == len(labels), path, f"verdict labels repeat: {labels}")
    _require(len(set(names)) == len(names), path, f"category names repeat: {names}")
    for kind, terms in (("verdict labels", labels), ("category names", names)):
        # answers are compared word by word: one that another one begins with could never be more likely than it
        within = [f"{a} begins {b}" for a in terms for b in terms if a != b and b.startswith(a)]
        _require(not within, path, f"{kind} may not begin one another: {', '.join(within)}; rename one")
    _require([c.severity for c in categories].count(0) == 1, path, "exactly one category must have severity 0")
    for c in categories:
        unknown = [v for v in c.verdicts if v not in ids]
        _require(
            bool(c.verdicts) and not unknown,
            path,
            f"category {c.name} lists unknown verdicts {unknown}; allowed: {ids}",
        )
    trusted = raw["trusted_sources"]
    fits = isinstance(trusted, list) and all(isinstance(s, str) for s in trusted) and len(set(trusted)) == len(trusted)
    _require(fits, path, f"trusted_sources is {trusted!r}; expected a list of different label sources, e.g. [appeal]")
    frozen = raw["golden"].get("per_category") if isinstance(raw["golden"], dict) else None
    whole = isinstance(frozen, int) and not isinstance(frozen, bool) and frozen > 0
    _require(whole, path, f"golden.per_category is {frozen!r}, expected a number of posts, at least 1")
    shares = raw["deployment"].get("prevalence") if isinstance(raw["deployment"], dict) else None
    _require(
        isinstance(shares, list) and all(isinstance(p, float) and 0 < p < 1 for p in shares),
        path,
        f"deployment.prevalence is {shares!r}, expected a list of shares between 0 and 1",
    )
    gates = raw["gates"] if isinstance(raw["gates"], dict) else {}
    for fault, named in (("lacks", GATES - set(gates)), ("holds unknown", set(gates) - GATES)):
        _require(
            not named, path, f"gates {fault} {', '.join(sorted(map(str, named)))}; expected {', '.join(sorted(GATES))}"
        )
    wrong = [f"{k}={v!r}" for k, v in gates.items() if isinstance(v, bool) or not isinstance(v, int | float) or v < 0]
    _require(not wrong, path, f"gates: {', '.join(wrong)}; expected numbers from 0")
    limits = raw["appeals"] if isinstance(raw["appeals"], dict) else {}
    for setting in APPEALS:
        part, _, last = setting.rpartition(".")
        holder = limits.get(part, {}) if part else limits
        value = holder.get(last) if isinstance(holder, dict) else None
        good = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        _require(good, path, f"appeals.{setting} is {value!r}, expected a number from 0")
    for name in ("full", "short"):
        for placeholder in ("{title}", "{body}"):
            _require(placeholder in raw["prompt"][name], path, f"prompt.{name} lacks {placeholder}")
    for name, placeholder in (("image_text", "{ocr_text}"), ("image_codes", "{qr_codes}")):
        _require(placeholder in raw["prompt"].get(name, ""), path, f"prompt.{name} lacks {placeholder}")
    for name in ("verdict", "category", "rationale"):
        _require(f"{{{name}}}" in raw["answer"].get(name, ""), path, f"answer.{name} lacks {{{name}}}")
    return Policy(
        version=str(raw["version"]),
        verdicts=verdicts,
        categories=categories,
        costs=raw["costs"],
        gates=raw["gates"],
        golden=raw["golden"],
        appeals=raw["appeals"],
        trusted_sources=tuple(raw["trusted_sources"]),
        deployment=raw["deployment"],
        prompt=raw["prompt"],
        answer=raw["answer"],
    )
