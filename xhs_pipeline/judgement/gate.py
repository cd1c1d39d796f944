"""May this model be released? A pure decision over a report's numbers and the policy's limits.

A missing number is never a pass: it makes its gate insufficient, and an insufficient gate holds the release until a person
signs for it. A failed gate is nobody's to lift.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from xhs_pipeline.policy import Policy

PASS, FAIL, INSUFFICIENT = "pass", "fail", "insufficient"
CHAMPION_CATEGORIES = "champion_categories"  # the note where the model in use answers categories that are no more
SURE = 0.05  # of an exact test, where a category has too few posts for an interval


@dataclass(frozen=True)
class Gate:
    """One condition: what was observed, the limit, on how many posts, and the outcome in a Chinese sentence.

    Where the limit is for the end of a 95% interval, `observed` is that end.
    """

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
            f"{g.name} {g.status} ({_short(g.observed)} against {_short(g.limit)}, n={g.n})"
            for g in self.gates
            if g.status != PASS
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
    """Judge a report's parts (`report.build_report`) against `policy.gates`.

    Reads figures, comparison, evasion, and from context groups_across_splits, seen_unknown, merge_agreement and
    champion_version. Part of a report that is not there counts as not measured.
    """
    context, limits = report.get("context", {}), policy.gates
    figures = report.get("figures", {})
    model, evasion = figures.get("model"), report.get("evasion") or {}
    return _combined(
        [
            _groups(context, model["n"] if model else 0),
            _at_most("invalid_share", _headline(model, "invalid_share"), limits["max_invalid_share"], "无效回答的比例"),
            _at_least(
                "merge_agreement", context.get("merge_agreement"), limits["min_merge_agreement"], "合并模型与适配器的一致率"
            ),
            _beats_majority(model, figures.get("floors", {}).get("majority")),
            _distinct_verdicts(model),
            *_against_champion(report, policy),
            _severity3(model, limits),
            _false_positives(model, limits),
            _calibrated(model, limits),
            *_disguised(evasion, limits),
        ]
    )  # fmt: skip


def _combined(gates: list[Gate]) -> GateVerdict:
    statuses = {g.status for g in gates}
    if FAIL in statuses:
        return GateVerdict(FAIL, tuple(gates))
    return GateVerdict(PASS if statuses == {PASS} else INSUFFICIENT, tuple(gates))


def _short(number: float | None) -> str:
    return "no value" if number is None else f"{number:.4g}"


def _headline(figures: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    return None if figures is None else figures["headline"].get(name)


def _value(number: Mapping[str, Any] | None) -> tuple[float | None, int, str]:
    """Value, n and reason of a figure that may be absent altogether."""
    if number is None:
        return None, 0, "没有测量"
    return number.get("value"), int(number.get("n") or 0), str(number.get("reason") or "没有数值")


def _groups(context: Mapping[str, Any], n: int) -> Gate:
    name, count = "groups_across_splits", context.get("groups_across_splits")
    if count is None:
        why = context.get("seen_unknown") or "没有检查"
        return Gate(
            name, INSUFFICIENT, None, 0, 0, f"不知道适配器训练时见过哪些帖子，无法检查重复组是否跨数据集：{why}"
        )
    status, reason = (PASS, "没有重复组跨数据集") if count == 0 else (FAIL, f"{count} 个重复组跨数据集，测试结果不可信")
    return Gate(name, status, float(count), 0, n, reason)


def _limited(
    name: str, number: Mapping[str, Any] | None, limit: float, what: str, fits: Callable[[float], bool], side: str
) -> Gate:
    value, n, why = _value(number)
    if value is None:
        return Gate(name, INSUFFICIENT, None, limit, n, f"{what}缺失：{why}")
    return Gate(name, PASS if fits(value) else FAIL, value, limit, n, f"{what} {value:.4f}，{side} {limit:g}")


def _at_most(name: str, number: Mapping[str, Any] | None, limit: float, what: str) -> Gate:
    return _limited(name, number, limit, what, lambda value: value <= limit, "上限")


def _at_least(name: str, number: Mapping[str, Any] | None, limit: float, what: str) -> Gate:
    return _limited(name, number, limit, what, lambda value: value >= limit, "下限")


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


def _severity3(model: Mapping[str, Any] | None, limits: Mapping[str, float]) -> Gate:
    name, limit, wanted = "severity3_recall", limits["min_severity3_recall"], int(limits["min_severity3_posts"])
    number = None if model is None else model["by_severity"]["3"]["recall"]
    value, n, why = _value(number)
    if value is not None and n < wanted:
        return Gate(
            name, INSUFFICIENT, value, limit, n, f"最高严重级别的召回率 {value:.4f}，只有 {n} 帖，至少要 {wanted} 帖"
        )
    return _at_least(name, number, limit, f"最高严重级别（{n} 帖）的召回率")


def _false_positives(model: Mapping[str, Any] | None, limits: Mapping[str, float]) -> Gate:
    """The rate itself and the upper end of its interval both have a limit; `observed` is the rate."""
    name, limit, upper = (
        "false_positive_rate",
        limits["max_false_positive_rate"],
        limits["max_false_positive_rate_upper"],
    )
    number, wanted = _headline(model, "false_positive_rate"), int(limits["min_harmless_posts"])
    value, n, _ = _value(number)
    if number is None or value is None:
        return _at_most(name, number, limit, "正常帖误判率")
    if n < wanted:
        return Gate(
            name, INSUFFICIENT, value, limit, n, f"正常帖误判率 {value:.4f}，只有 {n} 条正常帖，至少要 {wanted} 条"
        )
    if value <= limit and (number["high"] is None or number["high"] > upper):
        high = "没有区间" if number["high"] is None else f"区间上端 {number['high']:.4f}"
        return Gate(name, INSUFFICIENT, value, limit, n, f"正常帖误判率 {value:.4f}，{high}，须不超过 {upper:g}")
    return _at_most(name, number, limit, "正常帖误判率")


def _calibrated(model: Mapping[str, Any] | None, limits: Mapping[str, float]) -> Gate:
    """On few posts even perfect probabilities show an error (`ece_if_calibrated`): where that alone is beyond the limit, only an
    error that surely is, is the model's."""
    number, limit, what = _headline(model, "ece"), limits["max_ece"], "类别概率的期望校准误差"
    gate = _at_most("ece", number, limit, what)
    chance = None if model is None else model["calibration"]["category"]["ece_if_calibrated"]
    if gate.status != FAIL or number is None or chance is None or chance <= limit or (number["low"] or 0) > limit:
        return gate
    why = f"{what} {gate.observed:.4f}，上限 {limit:g}；只有 {gate.n} 帖，概率完全准确时也会有约 {chance:.4f}"
    return replace(gate, status=INSUFFICIENT, reason=why)


def _disguised(evasion: Mapping[str, Any], limits: Mapping[str, float]) -> list[Gate]:
    """What a disguise does that this machine could not make, nobody knows: the others cannot pass for it."""
    gates = [
        _at_least(
            "evasion_macro_retention", evasion.get("macro_retention"), limits["min_evasion_retention"],
            "各种规避手法下召回保持率的平均",
        ),
        _at_least(
            "evasion_worst_retention", evasion.get("worst_retention"), limits["min_worst_evasion_retention"],
            "最差规避手法下的召回保持率",
        ),
        _at_most(
            "evasion_benign_fpr", evasion.get("benign_fpr_change"), limits["max_evasion_fpr_rise"],
            "规避手法使正常帖误判率上升",
        ),
    ]  # fmt: skip
    unmade = evasion.get("unmade") or {}
    if not unmade:
        return gates
    names = "、".join(f"{evasion['transforms'][name]['chinese']}（{why}）" for name, why in unmade.items())
    return [_doubted(gate, f"没有测量：{names}") for gate in gates]


def _doubted(gate: Gate, why: str) -> Gate:
    """The gate, which `why` keeps from passing."""
    return replace(gate, status=INSUFFICIENT, reason=f"{gate.reason}；{why}") if gate.status == PASS else gate


def _against_champion(report: Mapping[str, Any], policy: Policy) -> list[Gate]:
    """Cost, and recall and false-positive rate of every category, against the model in use on the same posts."""
    context, compared, limits = report.get("context", {}), report.get("comparison"), policy.gates
    limit_of = {
        "champion_cost": limits["max_champion_cost_rise"],
        "champion_category_recall": limits["max_champion_recall_loss"],
        "champion_category_fpr": limits["max_champion_fpr_rise"],
    }

    def all_three(status: str, why: str) -> list[Gate]:
        return [Gate(name, status, None, limit, 0, why) for name, limit in limit_of.items()]

    if "champion_version" not in context:
        return all_three(INSUFFICIENT, "不知道是否有在用模型")
    if context["champion_version"] is None:
        return all_three(PASS, "没有在用模型，无需比较")
    if compared is None:
        return all_three(INSUFFICIENT, "在用模型没有在这批测试帖上评测")
    rows = compared["categories"].items()
    recall = {c: {**_negative(row["recall"]), "p": row["mcnemar"]["p"]} for c, row in rows}
    false = {c: {**row["false_positive_rate"], "p": row["mcnemar"]["p"]} for c, row in rows}
    few = int(limits["min_category_posts"])
    cost, *categories = (
        _worst_rise(name, differences, limit_of[name], what, least)
        for name, differences, what, least in (
            ("champion_cost", {"": compared["cost_per_1000"]}, "每千帖代价的上升", 0),
            ("champion_category_recall", recall, "类别召回率的下降", few),
            ("champion_category_fpr", false, "类别误判率的上升", few),
        )
    )
    other = report.get("notes", {}).get(CHAMPION_CATEGORIES)
    return [cost, *(_doubted(gate, other) if other else gate for gate in categories)]


def _negative(number: Mapping[str, Any]) -> dict[str, Any]:
    """A fall as a rise, so that one rule judges both."""
    flipped = {"value": number["value"], "low": number["high"], "high": number["low"]}
    return {**number, **{key: None if v is None else 0.0 - v for key, v in flipped.items()}}


def _worst_rise(
    name: str, differences: Mapping[str, Mapping[str, Any]], limit: float, what: str, at_least: int
) -> Gate:
    """Over several paired differences (model minus champion, higher is worse): the worst of their gates.

    pass: the upper end of the 95% interval is within the limit. fail: the estimate is beyond it and the whole interval is above
    zero, so the model is surely worse. insufficient: the interval says neither; or there are fewer than `at_least` posts, of
    which one alone that changes, or none, would look like certainty to a bootstrap, and an exact test (McNemar's `p`, before
    Holm's correction) is not sure either. A category that no post has is named.
    """
    found = []
    for category, d in differences.items():
        of = f"{category}：" if category else ""
        if category and not d["n"]:
            continue
        surely = d["value"] is not None and d["value"] > limit and (d["low"] or 0) > 0
        if d["n"] < at_least and not (surely and d["p"] < SURE):
            found.append(
                Gate(name, INSUFFICIENT, d["value"], limit, d["n"], f"{of}只有 {d['n']} 帖，至少要 {at_least} 帖")
            )
            continue
        if d["value"] is None:
            continue
        if d["high"] is None:
            found.append(Gate(name, INSUFFICIENT, d["value"], limit, d["n"], f"{of}{what} {d['value']:.4f}，没有区间"))
            continue
        status = PASS if d["high"] <= limit else FAIL if surely else INSUFFICIENT
        said = f"{of}{what} {d['value']:.4f}，95% 区间 {d['low']:.4f} 至 {d['high']:.4f}，上端须不超过 {limit:g}"
        found.append(Gate(name, status, d["high"], limit, d["n"], said))
    if not found:
        why = "；".join(sorted({_value(d)[2] for d in differences.values()})) or "没有测量"
        return Gate(name, INSUFFICIENT, None, limit, 0, f"{what}缺失：{why}")
    order, lowest = (PASS, INSUFFICIENT, FAIL), float("-inf")
    worst = max(found, key=lambda g: (order.index(g.status), lowest if g.observed is None else g.observed))
    absent = [category for category, d in differences.items() if category and not d["n"]]
    return replace(worst, reason=f"{worst.reason}；没有测试帖的类别：{'、'.join(absent)}") if absent else worst
