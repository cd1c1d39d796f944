"""The report's tables as rows of cells; the template draws them all alike, and the reader sorts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.judgement import gate
from xhs_pipeline.judgement.page import words
from xhs_pipeline.judgement.page.words import COST, NUMBER, SHARE
from xhs_pipeline.policy import Policy


@dataclass(frozen=True)
class Cell:
    """`text` with a smaller line under it; `key` is what the column is sorted by (None: last, whichever way), `tone` its colour."""

    text: str
    small: str = ""
    key: float | str | None = None
    tone: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Row:
    name: Cell
    cells: Sequence[Cell]
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """`heads` are (Chinese, field name) of every column, the first one being the rows' names; `numbers` from which column on."""

    name: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    numbers: int = 1


def gates(report: Mapping[str, Any]) -> Table:
    """Every gate with what was observed, in the gate's order; sorted by outcome, failed ones come first."""
    order = {gate.FAIL: 0.0, gate.INSUFFICIENT: 1.0, gate.PASS: 2.0}
    rows = []
    for g in report["gate"]["gates"]:
        name = Cell(words.GATES.get(g["name"], g["name"]), g["name"], g["name"])
        numbers = [Cell("–" if v is None else f"{v:.4g}", key=v) for v in (g["observed"], g["limit"])]
        status = Cell(words.STATUS[g["status"]], key=order[g["status"]], tone=g["status"])
        rows.append(
            Row(
                name,
                [
                    status,
                    Cell(words.gate_reason(g["reason"]), key=g["reason"], tone="wide"),
                    *numbers,
                    Cell(f"{g['n']:,}", key=g["n"]),
                ],
            )
        )
    heads = [
        ("条件", "gate"),
        ("结果", "status"),
        ("说明", "reason"),
        ("观测值", "observed"),
        ("界限", "limit"),
        ("帖数", "n"),
    ]
    return Table("gates", heads, rows, 3)


def headline(report: Mapping[str, Any]) -> Table:
    """The headline figures of the model, the champion and the floors."""
    columns = models(report)
    rows = [
        Row(
            Cell(chinese, f"{name}　越{'高' if higher else '低'}越好", name),
            [_cell(f["headline"][name], unit) for _, _, f in columns],
        )
        for name, chinese, unit, higher in words.HEADLINE
    ]
    return Table("headline", [("指标", "figure"), *((name, field) for name, field, _ in columns)], rows)


def models(report: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(Chinese, field name, figures) of the model, then the champion, then the floors; the majority class last."""
    figures = report["figures"]
    champion = [(words.IN_USE, "champion", figures["champion"])] if figures["champion"] else []
    floors = sorted(figures["floors"].items(), key=lambda item: item[0] == "majority")
    return [(words.MODEL, "model", figures["model"]), *champion, *((words.floor_name(n), n, f) for n, f in floors)]


def classes(report: Mapping[str, Any], kind: str, policy: Policy) -> Table:
    """Per verdict or per category: counts and rates with their intervals."""
    rates = (("precision", "精确率"), ("recall", "召回率"), ("f1", "F1"), ("false_positive_rate", "误判率"), ("average_precision", "平均精确率"))  # fmt: skip
    heads = [(words.QUESTIONS[kind], kind), ("真实", "true"), ("回答", "answered"), ("答对", "correct")]
    heads += [(chinese, name) for name, chinese in rates] + [("误判率 1% 时召回", "at_fpr")]
    rows = []
    for name, row in report["figures"]["model"][f"per_{kind}"].items():
        label = words.labels_of(kind, [name], policy)[0]
        cells = [Cell(f"{row[count]:,}", key=row[count]) for count in ("true", "answered", "correct")]
        cells += [_cell(row[rate]) for rate, _ in rates] + [_cell(row["at_fpr"]["recall"])]
        empty = "" if row["true"] or row["answered"] else "empty"
        rows.append(Row(Cell(label, name if name != label else "", label), cells, empty))
    return Table(f"per_{kind}", heads, rows)


def slices(report: Mapping[str, Any]) -> Table:
    """All slices of the model: flagged ones are marked, the surer ones more strongly; with the champion, what the change costs."""
    compared = report["comparison"]["slices"] if report["comparison"] else {}
    heads = [("切片", "slice"), ("标记", "flagged"), ("帖数", "n"), ("正常帖", "harmless"), ("误判率", "false_positive_rate"),
             ("召回率", "recall"), ("F1", "f1"), ("类别宏平均 F1", "category_macro_f1")]  # fmt: skip
    heads += [("代价变化", "cost_per_1000")] if compared else []
    rows = []
    for cut, found in report["figures"]["model"]["slices"].items():
        for name, row in found.items():
            flag = Cell("", key=None)
            if row["flagged"]:
                flag = Cell("▲▲ 误判偏高", key=2, tone=gate.FAIL) if row["excludes_overall"] else Cell("▲ 也许偏高", key=1, tone=gate.INSUFFICIENT)  # fmt: skip
            cells = [flag, *(Cell(f"{row[count]:,}", key=row[count]) for count in ("n", "harmless"))]
            cells += [_cell(row[rate]) for rate in ("false_positive_rate", "recall", "f1", "category_macro_f1")]
            if compared:
                cells.append(_change(compared[cut][name]["cost_per_1000"], COST, False))
            label = words.slice_name(cut, name)
            rows.append(Row(Cell(label, cut, label), cells, "flagged" if row["flagged"] else ""))
    return Table("slices", heads, rows, 2)


def categories_compared(report: Mapping[str, Any]) -> Table:
    """Per category, model minus champion: recall, false-positive rate, and the tests."""
    heads = [("类别", "category"), ("真实", "true"), ("召回率变化", "recall"), ("误判率变化", "false_positive_rate"),
             ("只有本模型对", "only_model"), ("只有在用模型对", "only_champion"), ("McNemar p（Holm）", "p_holm")]  # fmt: skip
    rows = []
    for name, row in report["comparison"]["categories"].items():
        test = row["mcnemar"]
        cells = [Cell(f"{row['true']:,}", key=row["true"])]
        cells += [_change(row["recall"], SHARE, True), _change(row["false_positive_rate"], SHARE, False)]
        cells += [Cell(f"{test[side]:,}", key=test[side]) for side in ("only_model", "only_champion")]
        rows.append(Row(Cell(name, key=name), [*cells, Cell(f"{test['p_holm']:.3g}", key=test["p_holm"])]))
    return Table("comparison", heads, rows)


def evasion(report: Mapping[str, Any]) -> Table:
    """Every disguise: what is still recognised, and what it does to harmless posts."""
    heads = [("写法", "transform"), ("改动的违规帖", "changed_violating"), ("原召回率", "recall_before"), ("写成后召回率", "recall_after"),
             ("保持", "retention"), ("改动的正常帖", "changed_benign"), ("误判率变化", "fpr_change")]  # fmt: skip
    rows = []
    for name, row in report["evasion"]["transforms"].items():
        cells = [Cell(f"{row['changed_violating']:,}", key=row["changed_violating"])]
        cells += [_cell(row[rate]) for rate in ("recall_before", "recall_after", "retention")]
        cells += [
            Cell(f"{row['changed_benign']:,}", key=row["changed_benign"]),
            _change(row["fpr_change"], SHARE, False),
        ]
        rows.append(Row(Cell(row["chinese"], name, row["chinese"]), cells))
    return Table("evasion", heads, rows)


def metamorphic(report: Mapping[str, Any]) -> Table:
    """How often a change that means nothing changes the answer."""
    names = {"unrelated_photo": "加一张无关的照片", "image_order": "调换图片顺序"}
    rows = [
        Row(
            Cell(names[name], name, names[name]),
            [Cell(f"{row['n']:,}", key=row["n"]), _cell(row["verdict_changed"]), _cell(row["category_changed"])],
        )
        for name, row in report["evasion"]["metamorphic"].items()
    ]
    return Table("metamorphic", [("改动", "change"), ("帖数", "n"), ("结论变了", "verdict_changed"), ("类别变了", "category_changed")], rows)  # fmt: skip


def side_by_side(
    name: str, columns: Iterable[tuple[str, str, Mapping[str, Any] | None]], change: Mapping[str, Any] | None = None
) -> Table:
    """The compared headline figures of a few sets of posts; `change` adds the difference. A column of None is left out."""
    kept = [(chinese, field, figures) for chinese, field, figures in columns if figures]
    chosen = [row for row in words.HEADLINE if row[0] in ("category_macro_f1", "verdict_macro_f1", "cost_per_1000", "recall", "false_positive_rate")]  # fmt: skip
    rows = []
    for figure, chinese, unit, higher in chosen:
        cells = [_cell(f[figure], unit) for _, _, f in kept]
        if change:
            cells.append(_change(change[figure], unit, higher) if figure in change else Cell("–"))
        rows.append(Row(Cell(chinese, figure, figure), cells))
    heads = [("指标", "figure"), *((chinese, field) for chinese, field, _ in kept)]
    return Table(name, [*heads, *([("变化", "comparison")] if change else [])], rows)


def decisions(report: Mapping[str, Any]) -> Table:
    """What happens to posts, the share decided alone at an error rate, and precision at how common violations are."""
    model, columns = report["figures"]["model"], models(report)[: 2 if report["figures"]["champion"] else 1]
    named = {
        "automatic": "自动决定",
        "human_review": "交人工复核",
        "passed_violations": "违规帖被放过",
        "acted_on_harmless": "正常帖被处置",
    }
    rows = [Row(Cell(named[n], n, n), [_cell(f["decisions"][n]) for _, _, f in columns]) for n in model["decisions"]]
    for rate in model["risk_coverage"]["verdict"]["at"]:
        cells = [_cell(f["risk_coverage"]["verdict"]["at"][rate]) for _, _, f in columns]
        rows.append(
            Row(Cell(f"错误率不超过 {float(rate):.0%} 时可自动决定", "risk_coverage.verdict", f"r{rate}"), cells)
        )
    for i, row in enumerate(model["deployment"]):
        cells = [_cell(f["deployment"][i]["precision"]) for _, _, f in columns]
        rows.append(Row(Cell(f"违规占 {100 * row['prevalence']:g}% 时的精确率", "deployment", f"d{i}"), cells))
    return Table("decisions", [("项目", "figure"), *((n, field) for n, field, _ in columns)], rows)


def calibration(report: Mapping[str, Any]) -> Table:
    """Calibration error and Brier score per question, with the error that chance alone would show."""
    heads = [
        ("问题", "question"),
        ("校准误差", "ece"),
        ("完全校准时的误差", "ece_if_calibrated"),
        ("Brier 分", "brier"),
    ]
    rows = []
    for kind, row in report["figures"]["model"]["calibration"].items():
        chance = row["ece_if_calibrated"]
        expected = Cell("–" if chance is None else f"{100 * chance:.2f}%", key=chance)
        rows.append(
            Row(Cell(words.QUESTIONS[kind], kind, kind), [_cell(row["ece"]), expected, _cell(row["brier"], NUMBER)])
        )
    return Table("calibration", heads, rows)


def _cell(figure: Mapping[str, Any], unit: str = SHARE) -> Cell:
    """A figure with its interval under it; without a value a dash, and the reason as a hint."""
    return Cell(words.shown(figure, unit), words.interval(figure, unit), figure["value"], hint=figure["reason"] or "")


def _change(figure: Mapping[str, Any], unit: str, higher: bool) -> Cell:
    """A difference with its interval, marked where the whole interval is on one side."""
    tone = {1: "better", -1: "worse", 0: ""}[words.direction(figure, higher)]
    text = words.difference(figure, unit, ends=False)
    mark = {"better": " ✓", "worse": " ✗", "": ""}[tone]
    ends = words.signed_interval(figure, unit)
    return Cell(text + mark, ends, figure["value"], tone, figure["reason"] or "")
