"""The first screen: may this model be released, is it better than the one in use, for whom, how sure is that, and what next.

Every sentence is derived from the report's figures and their intervals; nothing here is said because a number merely looks large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xhs_pipeline.judgement import gate
from xhs_pipeline.judgement.page import words
from xhs_pipeline.judgement.page.words import COST, SHARE

TITLES = {
    gate.PASS: ("✓", "可以发布", "全部放行条件通过。"),
    gate.FAIL: ("✗", "不得发布", "在用模型保持不变。"),
    gate.INSUFFICIENT: ("?", "需要人工签字", "证据不足；签字之前在用模型保持不变。"),
}
REASONS = 3  # shown on the first screen; all stand in the gates' table
FEW = 30  # posts: a class with fewer is not called the best or the worst


def banner(report: Mapping[str, Any]) -> dict[str, Any]:
    """status, symbol, title, text, and the reasons that hold the release: failed gates first, then those without evidence."""
    stored = report["gate"]
    symbol, title, text = TITLES[stored["status"]]
    held = [g for wanted in (gate.FAIL, gate.INSUFFICIENT) for g in stored["gates"] if g["status"] == wanted]
    reasons = [
        (words.STATUS[g["status"]], words.GATES.get(g["name"], g["name"]), words.gate_reason(g["reason"]))
        for g in held[:REASONS]
    ]
    return {
        "status": stored["status"],
        "symbol": symbol,
        "title": title,
        "text": text,
        "reasons": reasons,
        "more": len(held) - len(reasons),
    }


def cards(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The four further questions: question, tone (good, bad or plain), answer, lines."""
    return [_better(report), _for_whom(report), _how_sure(report), _next(report)]


def _card(question: str, tone: str, answer: str, lines: list[str], command: str = "") -> dict[str, Any]:
    return {"question": question, "tone": tone, "answer": answer, "lines": lines, "command": command}


def _better(report: Mapping[str, Any]) -> dict[str, Any]:
    question, version = "比在用模型好吗？", report["context"]["champion_version"]
    comparison, below = report["comparison"], _below_lines(report)
    tone = "bad" if below else "plain"
    if version is None:
        return _card(question, tone, "没有在用模型", ["还没有发布过模型，没有可比的对象。", *below])
    if comparison is None:
        why = report["notes"].get("champion", "")
        lines = [f"在用模型 {version} 没有在同一批测试帖上评测。{why}", *below]
        return _card(question, "bad", "未与在用模型比较", lines)
    compared = (
        ("每千帖代价", comparison["cost_per_1000"], COST, False, "越低越好"),
        ("类别宏平均 F1", comparison["category_macro_f1"], SHARE, True, "越高越好"),
    )
    signs = {words.direction(figure, higher) for _, figure, _, higher, _ in compared}
    if signs >= {1, -1}:
        tone, answer = "plain", "有好有坏"
    elif 1 in signs:
        tone, answer = "good", "更好"
    elif -1 in signs:
        tone, answer = "bad", "更差"
    else:
        tone, answer = "plain", "分不出高下（区间都包含 0）"
    lines = [f"{name} {words.difference(figure, unit)}，{which}" for name, figure, unit, _, which in compared]
    changed = comparison["changed"]
    lines.append(f"由错变对 {changed['wrong_to_right']} 条，由对变错 {changed['right_to_wrong']} 条")
    return _card(question, "bad" if below else tone, answer, lines + below)


def _below_lines(report: Mapping[str, Any]) -> list[str]:
    """One line on the floors that the model loses to, with the first figure that it loses on."""
    figures, parts = report["figures"], []
    for floor, lost in report["below"].items():
        if lost:
            mine, theirs = (f["headline"][lost[0]] for f in (figures["model"], figures["floors"][floor]))
            numbers = f"{words.CHINESE[lost[0]]} {words.shown(mine)} 对 {words.shown(theirs)}"
            parts.append(f"{words.floor_name(floor)}（{numbers}）")
    return [f"质量低于 {'、'.join(parts)}：这样简单的方法也比它更准。"] if parts else []


def _for_whom(report: Mapping[str, Any]) -> dict[str, Any]:
    question, lines = "对谁更好，对谁更差？", []
    comparison, model = report["comparison"], report["figures"]["model"]
    if comparison:
        changes = [
            (f"{name} {words.CHINESE_RATES[rate]}", row[rate], higher)
            for name, row in comparison["categories"].items()
            for rate, higher in (("recall", True), ("false_positive_rate", False))
        ]
        costs = [
            (f"{words.slice_name(cut, name)} 每千帖代价", row["cost_per_1000"])
            for cut, rows in comparison["slices"].items()
            if cut != "category"
            for name, row in rows.items()
        ]
        sure = {sign: [c for c in changes if words.direction(c[1], c[2]) == sign] for sign in (1, -1)}
        for sign, word in ((1, "变好"), (-1, "变差")):
            found = sorted(sure[sign], key=lambda c: -abs(c[1]["value"]))
            lines.append(_most(word, [(name, figure, SHARE) for name, figure, _ in found]))
        worse = [(name, f, COST) for name, f in costs if words.direction(f, False) == -1]
        if worse:
            lines.append(_most("切片变差", sorted(worse, key=lambda c: -c[1]["value"])))
        answer = f"{len(sure[1])} 项明显变好，{len(sure[-1])} 项明显变差"
        tone = "bad" if sure[-1] or worse else "good" if sure[1] else "plain"
    else:
        rows = {n: r["recall"] for n, r in model["per_category"].items() if r["recall"]["n"] >= FEW}
        ranked = sorted(rows, key=lambda name: rows[name]["value"])
        answer, tone = "各类别差别如下" if ranked else "测试帖太少，看不出", "plain"
        for word, name in (("召回最低", ranked[0]), ("召回最高", ranked[-1])) if ranked else ():
            lines.append(f"{word}：{name} {words.with_interval(rows[name])}，n={rows[name]['n']}")
    lines.append(_flagged(model))
    return _card(question, tone, answer, lines)


def _most(word: str, changes: list[tuple[str, Mapping[str, Any], str]]) -> str:
    if not changes:
        return f"{word}：没有哪一类的区间能说明"
    name, figure, unit = changes[0]
    return f"{word}最多：{name} {words.difference(figure, unit)}"


def _flagged(model: Mapping[str, Any]) -> str:
    """Slices whose false-positive rate is twice the overall one, those that chance does not explain first."""
    found = [
        (not row["excludes_overall"], -row["false_positive_rate"]["value"], words.slice_name(cut, name))
        for cut, rows in model["slices"].items()
        for name, row in rows.items()
        if row["flagged"]
    ]
    if not found:
        return "没有切片的误判率达到总体的两倍"
    names = "、".join(name for _, _, name in sorted(found)[:2])
    sure = sum(not unsure for unsure, _, _ in found)
    more = f"等 {len(found)} 个" if len(found) > 2 else ""
    return f"误判率达到总体两倍的切片：{names}{more}（{sure} 个不像是偶然）"


def _how_sure(report: Mapping[str, Any]) -> dict[str, Any]:
    model = report["figures"]["model"]
    counts, headline = model["counts"], model["headline"]
    lines = [
        f"违规 {counts['violation']:,}，正常 {counts['normal']:,}，重复组 {counts['groups']:,}；括号内为 95% 区间",
        f"类别宏平均 F1 {words.with_interval(headline['category_macro_f1'])}",
        f"正常帖误判率 {words.with_interval(headline['false_positive_rate'])}",
        f"严重度 3 召回 {words.with_interval(model['by_severity']['3']['recall'])}，n={model['by_severity']['3']['recall']['n']:,}",
    ]
    lacking = sum(g["status"] == gate.INSUFFICIENT for g in report["gate"]["gates"])
    if lacking:
        lines.append(f"{lacking} 项放行条件证据不足")
    if report["context"]["seen_unknown"]:
        lines.append(f"不能确定模型没有见过这些帖子：{words.why(report['context']['seen_unknown'])}")
    return _card("有多大把握？", "plain", f"{model['n']:,} 条测试帖", lines)


def _next(report: Mapping[str, Any]) -> dict[str, Any]:
    question, status = "下一步", report["gate"]["status"]
    if status == gate.PASS:
        lines = ["运行资产 released_model，本模型就成为在用模型。以后要退回上一个："]
        return _card(
            question, "good", "发布", lines, "python -m xhs_pipeline.release rollback --name 姓名 --reason 原因"
        )
    if status == gate.FAIL:
        lines = ["签字不能放行未通过的条件。先看未通过的条件、由对变错的帖子和最严重的错误，再改数据或重新训练。"]
        return _card(question, "bad", "不发布，找出原因", lines)
    command = f"python -m xhs_pipeline.release sign-off {report['context']['model_version']} --name 姓名 --reason 原因"
    lines = ["看过证据不足的条件和错误之后，愿意负责的人执行下面一行，再运行资产 released_model；姓名和原因会留档。"]
    return _card(question, "plain", "有人负责才能发布", lines, command)
