"""May this model be released? A pure decision over a report's numbers and the policy's limits.

A missing number is never a pass: it makes its gate insufficient, and an insufficient gate holds the release too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xhs_pipeline.policy import Policy

PASS, FAIL, INSUFFICIENT = "pass", "fail", "insufficient"


@dataclass(frozen=True)
class Gate:
    """One condition: what was observed, the limit, on how many posts, and the outcome in a Chinese sentence."""

    name: str
    status: str
    observed: float | None
    limit: float | None
    n: int
    reason: str


@dataclass(frozen=True)
class GateVerdict:
    """pass only when every gate passed; fail when any failed; otherwise insufficient."""

    status: str
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        return self.status == PASS

    @property
    def summary(self) -> str:
        """One English line for logs and checks: the status and the gates that did not pass."""
        open_gates = [
            f"{g.name} {g.status} ({g.observed} against {g.limit}, n={g.n})" for g in self.gates if g.status != PASS
        ]
        return f"{self.status}: " + ("; ".join(open_gates) if open_gates else f"all {len(self.gates)} gates passed")

    def as_dict(self) -> dict[str, Any]:
        """The form that stands in report.json and in manifests."""
        return {"status": self.status, "gates": [asdict(g) for g in self.gates]}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "GateVerdict":
        """The reverse of `as_dict`. The status is derived from the gates again, so an edited status changes nothing."""
        return _combined([Gate(**g) for g in stored["gates"]])


def decide(report: Mapping[str, Any], policy: Policy) -> GateVerdict:
    """Judge a report (`report.build_report`) against `policy.gates`.

    Reads `figures.model`, `figures.floors.majority`, `figures.champion`, and from `context`: groups_across_splits (int),
    merge_agreement (figure), champion_version (str or None).
    """
    context = report.get("context", {})
    model = report.get("figures", {}).get("model")
    gates = [
        _groups(context.get("groups_across_splits")),
        _at_most(
            "invalid_share", _headline(model, "invalid_share"), policy.gates["max_invalid_share"], "无效回答的比例"
        ),
        _at_least(
            "merge_agreement",
            context.get("merge_agreement"),
            policy.gates["min_merge_agreement"],
            "合并模型与适配器的一致率",
        ),
        _beats_majority(model, report.get("figures", {}).get("floors", {}).get("majority")),
        _distinct_verdicts(model),
        *_champion(report, policy),
    ]
    return _combined(gates)


def _combined(gates: list[Gate]) -> GateVerdict:
    statuses = {g.status for g in gates}
    if FAIL in statuses:
        return GateVerdict(FAIL, tuple(gates))
    return GateVerdict(PASS if statuses == {PASS} else INSUFFICIENT, tuple(gates))


def _headline(figures: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    return None if figures is None else figures["headline"].get(name)


def _value(number: Mapping[str, Any] | None) -> tuple[float | None, int, str]:
    """Value, n and reason of a figure that may be absent altogether."""
    if number is None:
        return None, 0, "没有测量"
    return number.get("value"), int(number.get("n") or 0), str(number.get("reason") or "没有数值")


def _groups(count: int | None) -> Gate:
    if count is None:
        return Gate(
            "groups_across_splits",
            INSUFFICIENT,
            None,
            0,
            0,
            "不知道适配器训练时见过哪些帖子，无法检查重复组是否跨数据集",
        )
    status, reason = (PASS, "没有重复组跨数据集") if count == 0 else (FAIL, f"{count} 个重复组跨数据集，测试结果不可信")
    return Gate("groups_across_splits", status, float(count), 0, int(count), reason)


def _at_most(name: str, number: Mapping[str, Any] | None, limit: float, what: str) -> Gate:
    value, n, why = _value(number)
    if value is None:
        return Gate(name, INSUFFICIENT, None, limit, n, f"{what}缺失：{why}")
    ok = value <= limit
    return Gate(name, PASS if ok else FAIL, value, limit, n, f"{what} {value:.4f}，上限 {limit:g}")


def _at_least(name: str, number: Mapping[str, Any] | None, limit: float, what: str) -> Gate:
    value, n, why = _value(number)
    if value is None:
        return Gate(name, INSUFFICIENT, None, limit, n, f"{what}缺失：{why}")
    ok = value >= limit
    return Gate(name, PASS if ok else FAIL, value, limit, n, f"{what} {value:.4f}，下限 {limit:g}")


def _beats_majority(model: Mapping[str, Any] | None, majority: Mapping[str, Any] | None) -> Gate:
    name, what = "above_majority_floor", "类别宏平均 F1"
    value, n, why = _value(_headline(model, "category_macro_f1"))
    floor, _, floor_why = _value(_headline(majority, "category_macro_f1"))
    if value is None or floor is None:
        return Gate(name, INSUFFICIENT, value, floor, n, f"{what}缺失：{why if value is None else floor_why}")
    status = PASS if value > floor else FAIL
    return Gate(name, status, value, floor, n, f"{what} {value:.3f}，必须高于多数类基线 {floor:.3f}")


def _distinct_verdicts(model: Mapping[str, Any] | None) -> Gate:
    """A model that gives every post the same verdict is held, however good its averages look on a lopsided test set."""
    name = "distinct_verdicts"
    if model is None or not model["n"]:
        return Gate(name, INSUFFICIENT, None, 2, 0, "没有测试帖")
    answered, true = model["counts"]["distinct_answered_verdicts"], model["counts"]["distinct_true_verdicts"]
    limit = min(2, true)
    if limit < 2:
        return Gate(name, INSUFFICIENT, answered, 2, model["n"], "测试帖只有一种真实结论，看不出模型是否会区分")
    status = PASS if answered >= limit else FAIL
    return Gate(name, status, answered, limit, model["n"], f"模型给出 {answered} 种结论，测试帖有 {true} 种")


def _champion(report: Mapping[str, Any], policy: Policy) -> list[Gate]:
    names = ("champion_category_macro_f1", "champion_cost_per_1000")
    context, figures = report.get("context", {}), report.get("figures", {})
    if "champion_version" not in context:
        return [Gate(name, INSUFFICIENT, None, None, 0, "不知道是否有在用模型") for name in names]
    if context["champion_version"] is None:
        return [Gate(name, PASS, None, None, 0, "没有在用模型，无需比较") for name in names]
    champion = figures.get("champion")
    if champion is None:
        return [Gate(name, INSUFFICIENT, None, None, 0, "在用模型没有在这批测试帖上评测") for name in names]
    loss = policy.gates["max_champion_f1_loss"]
    model = figures.get("model")
    mine, n, _ = _value(_headline(model, "category_macro_f1"))
    theirs, _, _ = _value(_headline(champion, "category_macro_f1"))
    my_cost, n_cost, _ = _value(_headline(model, "cost_per_1000"))
    their_cost, _, _ = _value(_headline(champion, "cost_per_1000"))
    f1 = (
        Gate(names[0], INSUFFICIENT, mine, theirs, n, "类别宏平均 F1 缺失")
        if mine is None or theirs is None
        else Gate(
            names[0],
            PASS if mine >= theirs - loss else FAIL,
            mine,
            theirs - loss,
            n,
            f"类别宏平均 F1 {mine:.3f}，在用模型 {theirs:.3f}，最多可低 {loss:g}",
        )
    )
    cost = (
        Gate(names[1], INSUFFICIENT, my_cost, their_cost, n_cost, "每千帖代价缺失")
        if my_cost is None or their_cost is None
        else Gate(
            names[1],
            PASS if my_cost <= their_cost else FAIL,
            my_cost,
            their_cost,
            n_cost,
            f"每千帖代价 {my_cost:.0f}，在用模型 {their_cost:.0f}，不得更高",
        )
    )
    return [f1, cost]
