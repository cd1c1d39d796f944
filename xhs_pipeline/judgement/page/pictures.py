"""Which pictures stand on the page, with what a reader must know to read each; every number comes from the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.judgement import charts, plots, ranking
from xhs_pipeline.judgement.page import words
from xhs_pipeline.judgement.page.tables import models
from xhs_pipeline.judgement.page.words import COST, SHARE
from xhs_pipeline.policy import Policy

PREVALENCES = (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5)
COMPARED = ("category_macro_f1", "verdict_macro_f1", "recall", "binary_accuracy")


@dataclass(frozen=True)
class Picture:
    """`uri` is the picture itself; `alt` says in words what it shows."""

    title: str
    caption: str
    uri: str
    alt: str


def _picture(title: str, caption: str, svg: str) -> Picture:
    return Picture(title, caption, plots.as_data_uri(svg), f"{title}：{caption}" if caption else title)


def beside(report: Mapping[str, Any]) -> list[Picture]:
    """The model beside the champion and the floors."""
    columns = models(report)
    looks = {name: charts.SERIES[_series(field, i)] for i, (name, field, _) in enumerate(columns)}
    rows = [
        (words.CHINESE[figure], [(looks[name], f["headline"][figure]) for name, _, f in columns]) for figure in COMPARED
    ]
    if all(figure["value"] is None for _, marks in rows for _, figure in marks):
        return []
    svg = charts.intervals(rows, "%，越高越好", 100, (0, 1), legend=looks)
    return [_picture("与在用模型和基线比较", "点为数值，横线为 95% 区间。", svg)]


def _series(field: str, place: int) -> int:
    """The look of a column: the same for the champion and for each floor, whichever others are there."""
    fixed = {"model": 0, "champion": 1, "tfidf": 2, "untuned": 3, "majority": 4}
    return fixed.get(field, place % len(charts.SERIES))


def compared(report: Mapping[str, Any]) -> list[Picture]:
    """Forest plots of model minus champion."""
    comparison = report["comparison"]
    if not comparison or not comparison["n"]:
        return []
    legend = {"变好": charts.BETTER, "变差": charts.WORSE, "区间含 0": charts.UNCLEAR}

    def forest(title: str, rows: list[tuple[str, Any, bool]], unit: str, note: str) -> Picture:
        marks = [(name, [(_side(figure, higher), figure)]) for name, figure, higher in rows]
        scale, label = (100, "百分点") if unit == SHARE else (1, "每千帖代价")
        svg = charts.intervals(marks, f"{label}，{note}", scale, lines=[(0, "")], legend=legend)
        return _picture(title, "", svg)

    overall = [
        ("类别宏平均 F1", comparison["category_macro_f1"], True),
        ("结论宏平均 F1", comparison["verdict_macro_f1"], True),
        ("违规召回率", comparison["violation"]["recall"], True),
        ("正常帖误判率", comparison["violation"]["false_positive_rate"], False),
    ]
    rows = comparison["categories"]
    costs = [(words.slice_name(cut, name), row["cost_per_1000"], False)
             for cut, found in comparison["slices"].items() if cut not in ("category", "week") for name, row in found.items()]  # fmt: skip
    return [
        forest("总体变化", overall, SHARE, "误判率越低越好"),
        forest("代价变化", [("全部", comparison["cost_per_1000"], False), *costs], COST, "越低越好"),
        forest("各类别召回率变化", [(n, r["recall"], True) for n, r in rows.items()], SHARE, "越高越好"),
        forest("各类别误判率变化", [(n, r["false_positive_rate"], False) for n, r in rows.items()], SHARE, "越低越好"),
    ]


def _side(figure: Mapping[str, Any], higher: bool) -> charts.Look:
    return {1: charts.BETTER, -1: charts.WORSE, 0: charts.UNCLEAR}[words.direction(figure, higher)]


def confusion(report: Mapping[str, Any], policy: Policy) -> list[Picture]:
    """Confusion matrices; classes that are neither true nor answered are left out and named."""
    out = []
    for kind in ("verdict", "category"):
        stored = report["figures"]["model"]["confusion"][kind]
        matrix, labels = stored["matrix"], stored["labels"]
        used = [i for i in range(len(labels)) if sum(matrix[i]) + stored["invalid"][i] + sum(row[i] for row in matrix)]
        if not used:
            continue  # an empty test split
        names = words.labels_of(kind, labels, policy)
        svg = plots.confusion_matrix([[matrix[i][j] for j in used] for i in used], [names[i] for i in used])
        caption = "行为真实标签，列为模型的回答，颜色越深占该行的比例越大。"
        absent = [names[i] for i in range(len(labels)) if i not in used]
        if absent:
            caption += f"测试帖和回答中都没有：{'、'.join(absent)}。"
        if sum(stored["invalid"]):
            caption += f"另有 {sum(stored['invalid'])} 个无效回答不在图中。"
        out.append(_picture(f"{words.QUESTIONS[kind]}混淆矩阵", caption, svg))
    return out


def precision_recall(report: Mapping[str, Any]) -> list[Picture]:
    """One small curve for violations and for each category with test posts, the champion's dashed beside it."""
    model, champion = report["figures"]["model"], report["figures"]["champion"]
    named = {"违规": (model["violation"], champion and champion["violation"])}
    named |= {n: (row, champion and champion["per_category"].get(n)) for n, row in model["per_category"].items()}
    out = []
    for name, (row, other) in named.items():
        if not row["curve"]:
            continue
        lines = [("", look, [(p["recall"], p["precision"]) for p in found["curve"]])
                 for look, found in zip(charts.SERIES, (row, other), strict=False) if found]  # fmt: skip
        svg = charts.curves(lines, ("", ""), name, (charts.SMALL, 1.45))
        caption = f"平均精确率 {words.shown(row['average_precision'])}"
        if other:
            caption += f"，在用 {words.shown(other['average_precision'])}"
        out.append(_picture(name, caption, svg))
    return out


def reliability(report: Mapping[str, Any]) -> list[Picture]:
    """Promised against observed for the three questions."""
    out = []
    for kind, row in report["figures"]["model"]["calibration"].items():
        if row["reliability"]:
            svg = charts.reliability([(b["confidence"], b["share"]) for b in row["reliability"]], ("模型说的概率 %", "实际的比例 %"))  # fmt: skip
            title = f"{words.QUESTIONS[kind]}：概率说得准不准"
            out.append(_picture(title, "每点约含相同数量的帖子；在虚线下方说明模型过于自信。", svg))
    return out


def risk_coverage(report: Mapping[str, Any]) -> list[Picture]:
    """Error rate against the share decided alone, beside the champion."""
    figures, out = report["figures"], []
    for kind in ("verdict", "category", "violation"):
        found = [
            (words.MODEL, charts.SERIES[0], figures["model"]),
            (words.IN_USE, charts.SERIES[1], figures["champion"]),
        ]
        lines = [(name, look, [(p["coverage"], p["risk"]) for p in f["risk_coverage"][kind]["curve"]]) for name, look, f in found if f]  # fmt: skip
        lines = [line for line in lines if line[2]]
        if lines:
            top = max(0.1, *(risk for _, _, points in lines for _, risk in points))
            svg = charts.curves(lines, ("自动决定的比例 %", "其中答错的比例 %"), limits=(1.0, min(1.0, 1.1 * top)))
            out.append(
                _picture(f"{words.QUESTIONS[kind]}：自动决定多少，错多少", "最有把握的先决定；曲线越低越好。", svg)
            )
    return out


def deployment(report: Mapping[str, Any]) -> list[Picture]:
    """Precision over how common violations are, from recall and false-positive rate of the test posts."""
    figures = report["figures"]
    found = [(words.MODEL, charts.SERIES[0], figures["model"]), (words.IN_USE, charts.SERIES[1], figures["champion"])]
    lines: list[tuple[str, charts.Look, list[tuple[float, float]]]] = []
    band: list[tuple[float, float, float]] = []
    for name, look, f in found:
        if not f:
            continue
        rates = f["violation"]["recall"], f["violation"]["false_positive_rate"]
        drawn = [(p, ranking.deployment_precision(*rates, p)) for p in PREVALENCES]
        points = [(p, figure["value"]) for p, figure in drawn if figure["value"] is not None]
        if points:
            lines.append((name, look, points))
            band = band or [
                (p, f["low"], f["high"]) for p, f in drawn if f["low"] is not None and f["high"] is not None
            ]
    if not lines:
        return []
    svg = charts.curves(
        lines, ("违规帖占全部帖子的 %", "判违规中真违规的 %"), limits=(0.5, 1.0), band=band, logarithmic=True
    )
    caption = "测试帖里违规比线上多，会高估精确率；按线上的比例读。色带为本模型的 95% 区间。"
    return [_picture("上线后的精确率", caption, svg)]


def evasion(report: Mapping[str, Any]) -> list[Picture]:
    """Retention of recall per disguise, with the gates' limits."""
    rows = report["evasion"]["transforms"]
    marks = [(row["chinese"], [(charts.SERIES[0], row["retention"])]) for row in rows.values()]
    if all(marks_of[0][1]["value"] is None for _, marks_of in marks):
        return []
    limits = {g["name"]: g["limit"] for g in report["gate"]["gates"]}
    named = (("evasion_worst_retention", "最差不低于"), ("evasion_macro_retention", "平均不低于"))
    lines = [
        (limits[name], f"{text} {100 * limits[name]:.0f}%") for name, text in named if limits.get(name) is not None
    ]
    svg = charts.intervals(marks, "仍被认出的 %（原来认出的为 100）", 100, (0, 1.15), lines, bars=True)
    return [_picture("躲避写法下的召回保持", "条为仍被认出的比例，横线为 95% 区间。", svg)]
