"""Numbers and names as the page says them: figures with their intervals, and what English field names are called in Chinese."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xhs_pipeline.judgement import gate
from xhs_pipeline.policy import Policy

Shown = Mapping[str, Any] | None

SHARE, COST, NUMBER = "share", "cost", "number"
# Figures of the headline, and how people call them: (name, Chinese, unit, better when higher).
HEADLINE = (
    ("category_macro_f1", "类别宏平均 F1", SHARE, True),
    ("verdict_macro_f1", "结论宏平均 F1", SHARE, True),
    ("cost_per_1000", "每千帖代价", COST, False),
    ("recall", "违规召回率", SHARE, True),
    ("false_positive_rate", "正常帖误判率", SHARE, False),
    ("binary_accuracy", "违规二分类准确率", SHARE, True),
    ("binary_macro_f1", "违规二分类宏平均 F1", SHARE, True),
    ("average_precision", "违规平均精确率", SHARE, True),
    ("recall_at_fpr", "误判率 1% 时的违规召回率", SHARE, True),
    ("category_accuracy", "类别准确率", SHARE, True),
    ("category_weighted_f1", "类别加权 F1", SHARE, True),
    ("verdict_accuracy", "结论准确率", SHARE, True),
    ("verdict_weighted_f1", "结论加权 F1", SHARE, True),
    ("ece", "类别校准误差", SHARE, False),
    ("brier", "类别 Brier 分", NUMBER, False),
    ("category_log_loss", "类别对数损失", NUMBER, False),
    ("verdict_log_loss", "结论对数损失", NUMBER, False),
    ("automatic", "自动决定的比例", SHARE, True),
    ("invalid_share", "无效回答比例", SHARE, False),
)
CHINESE = {name: chinese for name, chinese, _, _ in HEADLINE}
UNITS = {name: unit for name, _, unit, _ in HEADLINE}
CHINESE_RATES = {"recall": "召回率", "false_positive_rate": "误判率"}
MODEL, IN_USE, EARLIER = "本模型", "在用模型", "上一个候选模型（未发布）"
FLOORS = {"majority": "多数类基线", "tfidf": "TF-IDF 基线", "untuned": "未微调的基座"}
NOTED = FLOORS | {"champion": "在用模型", "champion_categories": "在用模型"}
GATES = {
    "groups_across_splits": "重复组不跨数据集",
    "invalid_share": "无效回答够少",
    "merge_agreement": "合并前后一致",
    "above_majority_floor": "高于多数类基线",
    "distinct_verdicts": "不是只给一种结论",
    "champion_cost": "代价不高于在用模型",
    "champion_category_recall": "各类别召回不低于在用模型",
    "champion_category_fpr": "各类别误判不高于在用模型",
    "severity3_recall": "最严重违规的召回",
    "false_positive_rate": "正常帖误判率",
    "ece": "校准误差",
    "evasion_macro_retention": "躲避写法下的召回保持（平均）",
    "evasion_worst_retention": "躲避写法下的召回保持（最差）",
    "evasion_benign_fpr": "躲避写法下的正常帖误判",
}
STATUS = {gate.PASS: "✓ 通过", gate.FAIL: "✗ 未通过", gate.INSUFFICIENT: "? 证据不足"}
CUTS = {
    "category": "类别",
    "label_source": "标签来源",
    "images": "有图片",
    "disguised": "联系方式写成变体",
    "appeal": "申诉改判过",
    "length": "字数",
    "language": "语言",
    "week": "周次",
}
NAME = 40  # characters of a slice's name
VALUES = {"yes": "是", "no": "否", "(none)": "（未注明）"}
LANGUAGES = {"zh": "中文", "mixed": "中外文混合", "other": "其他"}
# Why something was not measured, as evaluation and newest_week say it; what is not listed is shown as it is.
REASONS = {
    "no model in use to judge it": "没有在用模型",
    "it is not known which posts the model in use was trained on": "不知道在用模型用哪些帖子训练过",
    "the model in use was trained on this week already": "在用模型已经用这一周的帖子训练过",
    "every post of it repeats one that the model in use was trained on": "这一周的每条帖子都与在用模型训练过的帖子重复",
    "it is not known which posts the earlier candidate was trained on": "不知道上一个候选模型用哪些帖子训练过",
    "the earlier candidate was trained on this week already": "上一个候选模型已经用这一周的帖子训练过",
    "every post of it repeats one that the earlier candidate was trained on": "这一周的每条帖子都与上一个候选模型训练过的帖子重复",
    "the golden set is empty": "还没有固定测试集",
    "not fitted": "没有拟合",
    "no transform has a retention": "改动到的违规帖太少，算不出保持的比例",
}
QUESTIONS = {"verdict": "结论", "category": "类别", "violation": "是否违规"}

# all but U+200D, which joins emoji
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc]"
)


def shown(figure: Shown, unit: str = SHARE) -> str:
    """A figure's value as text: shares in percent, costs with one decimal, others with three; a dash for none."""
    return "–" if figure is None or figure["value"] is None else _number(figure["value"], unit)


def interval(figure: Shown, unit: str = SHARE) -> str:
    """Its 95% interval as text, "" where there is none."""
    if figure is None or figure["low"] is None or figure["high"] is None:
        return ""
    return f"{_number(figure['low'], unit)} 到 {_number(figure['high'], unit)}"


def with_interval(figure: Shown, unit: str = SHARE) -> str:
    """Value and interval in one: 61.2%（59.8% 到 62.9%）."""
    return shown(figure, unit) + (f"（{interval(figure, unit)}）" if interval(figure, unit) else "")


def difference(figure: Shown, unit: str = SHARE, ends: bool = True) -> str:
    """A difference with its sign and interval, shares in percentage points: +1.20 点（−0.30 到 +2.60）."""
    if figure is None or figure["value"] is None:
        return "–"
    text = _signed(figure["value"], unit) + (" 点" if unit == SHARE else "")
    return text + (f"（{signed_interval(figure, unit)}）" if ends and figure["low"] is not None else "")


def signed_interval(figure: Mapping[str, Any], unit: str = SHARE) -> str:
    """Both ends of a difference's interval with their signs, "" where there is none."""
    if figure["low"] is None:
        return ""
    return f"{_signed(figure['low'], unit)} 到 {_signed(figure['high'], unit)}"


def direction(figure: Shown, higher: bool) -> int:
    """1 where the whole interval of a difference is on the better side, -1 on the worse, 0 where it holds zero or is missing."""
    if figure is None or figure["low"] is None or figure["high"] is None:
        return 0
    low, high = (figure["low"], figure["high"]) if higher else (-figure["high"], -figure["low"])
    return 1 if low > 0 else -1 if high < 0 else 0


def why(reason: str | None) -> str:
    """A reason in Chinese, as far as it is a known one."""
    return REASONS.get(reason or "", visible(reason or ""))


def gate_reason(reason: str) -> str:
    """A gate's sentence, where it ends with a figure's own reason with that in Chinese."""
    said, mark, own = reason.rpartition("：")
    return f"{said}{mark}{why(own)}"


def floor_name(name: str) -> str:
    """A floor as people call it; one that is not known here keeps its name."""
    return FLOORS.get(name, name)


def noted(name: str) -> str:
    """What a note of the report is about."""
    return NOTED.get(name, name)


def slice_name(cut: str, name: str) -> str:
    """One slice in words: 有图片：否."""
    value = LANGUAGES.get(name, name) if cut == "language" else name.replace("over ", "超过 ")
    value = visible(VALUES.get(value, value))
    return f"{CUTS.get(cut, cut)}：{value[:NAME] + '……' if len(value) > NAME else value}"


def labels_of(kind: str, names: list[str], policy: Policy) -> list[str]:
    """Classes as people call them: verdicts by their labels, categories by their names."""
    return [policy.label(name) for name in names] if kind == "verdict" else list(names)


def visible(text: str) -> str:
    """`text` with characters that do not show, or turn the direction of what follows, written out: ⟦U+202E⟧."""
    return _UNSEEN.sub(lambda found: f"⟦U+{ord(found[0]):04X}⟧", text.replace("\r\n", "\n"))


def _number(value: float, unit: str) -> str:
    if unit == SHARE:
        percent = 100 * value
        return f"{percent:.1f}%" if abs(percent) >= 10 else f"{percent:.2f}%"
    return f"{value:,.1f}" if unit == COST else f"{value:.3f}"


def _signed(value: float, unit: str) -> str:
    text = {SHARE: f"{100 * value:+.2f}", COST: f"{value:+,.1f}"}.get(unit, f"{value:+.3f}")
    return text.replace("-", "−") if float(text.replace(",", "")) else text[1:]
