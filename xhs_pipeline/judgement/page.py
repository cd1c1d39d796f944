"""The page that people read (report.html), made of the report and of a few posts. It computes no figures and reads no files.

Field names are English, the page's words are Chinese.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from xhs_pipeline.judgement import gate, metrics, plots
from xhs_pipeline.judgement.report import COMPARED, MAX_EXAMPLES, below
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:
    from jinja2 import Template

# The figures of the first screen, and how people call them: (name, Chinese, unit, better when higher).
HEADLINE = (
    ("binary_accuracy", "违规二分类准确率", "share", True),
    ("binary_macro_f1", "违规二分类宏平均 F1", "share", True),
    ("false_positive_rate", "正常帖误判率", "share", False),
    ("category_accuracy", "类别准确率", "share", True),
    ("category_macro_f1", "类别宏平均 F1", "share", True),
    ("verdict_accuracy", "结论准确率", "share", True),
    ("verdict_macro_f1", "结论宏平均 F1", "share", True),
    ("cost_per_1000", "每千帖代价", "cost", False),
    ("category_log_loss", "类别对数损失", "nats", False),
    ("verdict_log_loss", "结论对数损失", "nats", False),
    ("invalid_share", "无效回答比例", "share", False),
)
FLOOR_NAMES = {"majority": "多数类基线", "tfidf": "TF-IDF 基线", "untuned": "未微调的基座"}
TEXT_SHOWN = 220  # characters of a post's text on the page
THUMBNAIL = 96  # pixels of the longer side
IMAGES_SHOWN = 3


def render_html(
    report: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    policy: Policy,
    regressions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One self-contained page: inline style and pictures, no script, nothing fetched (its CSP forbids it).

    Everything that comes from posts is escaped; of `examples` (see `worst_mistakes`) at most MAX_EXAMPLES are shown,
    each text cut to TEXT_SHOWN characters and each image shrunk to a thumbnail.
    """
    figures = report["figures"]
    columns = _columns(report)
    return _template().render(
        report=report,
        context=report["context"],
        verdict=_verdict_words(report["gate"]),
        below=[FLOOR_NAMES.get(name, name) for name, lost in report["below"].items() if lost],
        findings=_findings(report),
        columns=[name for name, _ in columns],
        headline=[
            (name, chinese, [shown(f["headline"][name], unit) for _, f in columns], unit, higher)
            for name, chinese, unit, higher in HEADLINE
        ],
        constant=_constant_answer(figures["model"]),
        gates=[
            (g, {"pass": "通过", "fail": "未通过", "insufficient": "证据不足"}[g["status"]])
            for g in report["gate"]["gates"]
        ],
        classes=[
            ("per_category", "按类别", [(n, n, r) for n, r in figures["model"]["per_category"].items()]),
            ("per_verdict", "按结论", [(policy.label(n), n, r) for n, r in figures["model"]["per_verdict"].items()]),
        ],
        slices=_slice_rows(report),
        pictures=_pictures(report, policy),
        examples=[_shown_example(example, policy) for example in examples[:MAX_EXAMPLES]],
        shown=shown,
    )


def shown(number: Mapping[str, Any] | None, unit: str = "share") -> str:
    """A figure as text: shares and nats with three decimals, costs whole; a missing one as a dash with its reason."""
    if number is None or number["value"] is None:
        return "–"
    return f"{number['value']:,.0f}" if unit == "cost" else f"{number['value']:.3f}"


def _columns(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    figures = report["figures"]
    champion = [("在用模型", figures["champion"])] if figures["champion"] else []
    floors = sorted(figures["floors"].items(), key=lambda item: item[0] == "majority")
    return [("本模型", figures["model"]), *champion, *((FLOOR_NAMES.get(name, name), f) for name, f in floors)]


def _verdict_words(stored: Mapping[str, Any]) -> dict[str, str]:
    words = {
        gate.PASS: ("可以发布", "全部放行条件通过。"),
        gate.FAIL: ("不得发布", "至少一项放行条件未通过，在用模型保持不变。"),
        gate.INSUFFICIENT: ("暂不发布", "证据不足，在用模型保持不变；缺失的数字见放行条件表。"),
    }[stored["status"]]
    held = [g["name"] for g in stored["gates"] if g["status"] != gate.PASS]
    return {"status": stored["status"], "title": words[0], "text": words[1], "held": "、".join(held)}


def _findings(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Sentences for the first screen: against each floor, and against the model in use. tone: bad, good or plain."""
    figures, names = report["figures"], {name: chinese for name, chinese, _, _ in HEADLINE}
    out = []
    for floor, other in sorted(figures["floors"].items(), key=lambda item: item[0] == "majority"):
        lost = report["below"][floor]
        chosen = lost or COMPARED[:2]
        numbers = "；".join(
            f"{names[m]} {shown(figures['model']['headline'][m])} 对 {shown(other['headline'][m])}" for m in chosen
        )
        title = FLOOR_NAMES.get(floor, floor)
        if lost:
            out.append({"tone": "bad", "title": f"低于 {title}", "text": f"本模型不如这个简单基线：{numbers}。"})
        else:
            out.append({"tone": "good", "title": f"不低于 {title}", "text": f"{numbers}。"})
    version = report["context"]["champion_version"]
    if version is None:
        out.append({"tone": "plain", "title": "没有在用模型", "text": "这是第一个候选模型，没有可以比较的对象。"})
    elif figures["champion"] is None:
        out.append(
            {"tone": "bad", "title": "未与在用模型比较", "text": f"在用模型 {version} 没有在同一批测试帖上评测。"}
        )
    else:
        mine, theirs = (figures[who]["headline"] for who in ("model", "champion"))
        worse = below(figures["model"], figures["champion"])
        text = "；".join(f"{names[m]} {shown(mine[m])} 对 {shown(theirs[m])}" for m in worse or COMPARED[:2])
        text += f"；每千帖代价 {shown(mine['cost_per_1000'], 'cost')} 对 {shown(theirs['cost_per_1000'], 'cost')}。"
        tone, title = ("bad", "低于在用模型") if worse else ("good", "不低于在用模型")
        out.append({"tone": tone, "title": f"{title} {version}", "text": text})
    return out


def _constant_answer(model: Mapping[str, Any]) -> str:
    """What the best constant answer to the binary question reaches, since accuracy means little without it."""
    violations, harmless, n = (model["counts"][k] for k in (metrics.VIOLATION, metrics.NORMAL, "posts"))
    if not n:
        return "没有测试帖。"
    best = "违规" if violations >= harmless else "正常"
    return (
        f"测试帖 {n} 条，其中违规 {violations} 条、正常 {harmless} 条；若对所有帖都答“{best}”，"
        f"违规二分类准确率就有 {max(violations, harmless) / n:.3f}。"
    )


def _slice_rows(report: Mapping[str, Any]) -> list[tuple[str, int, list[tuple[str, list[str]]]]]:
    """Per label source: name, n, and per figure the values of every column (model, champion, floors)."""
    columns = [f["slices"][metrics.LABEL_SOURCE] for _, f in _columns(report)]
    wanted = (
        ("binary_accuracy", "违规二分类准确率"),
        ("binary_macro_f1", "违规二分类宏平均 F1"),
        ("category_macro_f1", "类别宏平均 F1"),
    )
    return [
        (
            source,
            row["n"],
            [(chinese, [shown(c.get(source, {}).get(name)) for c in columns]) for name, chinese in wanted],
        )
        for source, row in columns[0].items()
    ]


def _pictures(report: Mapping[str, Any], policy: Policy) -> list[tuple[str, str, str]]:
    """(title, caption, data URI) of each picture; classes that are neither true nor answered are left out."""
    out = []
    chinese = {name: c for name, c, _, _ in HEADLINE}
    values = {name: {chinese[m]: f["headline"][m]["value"] for m in COMPARED} for name, f in _columns(report)}
    out.append(("与基线比较", "数值越高越好。", plots.as_data_uri(plots.comparison_bars(values))))
    for kind, title in (("verdict", "结论混淆矩阵"), ("category", "类别混淆矩阵")):
        stored = report["figures"]["model"]["confusion"][kind]
        matrix, labels = stored["matrix"], stored["labels"]
        used = [i for i in range(len(labels)) if sum(matrix[i]) + stored["invalid"][i] + sum(row[i] for row in matrix)]
        if not used:
            continue  # an empty test split
        names = [policy.label(labels[i]) if kind == "verdict" else labels[i] for i in used]
        picture = plots.confusion_matrix([[matrix[i][j] for j in used] for i in used], names)
        absent = [n for i, n in enumerate(labels) if i not in used]
        caption = "行为真实标签，列为模型的回答，颜色为该行中的比例。"
        if absent:
            unseen = [policy.label(n) if kind == "verdict" else n for n in absent]
            caption += f"测试帖和回答中都没有：{'、'.join(unseen)}。"
        if sum(stored["invalid"]):
            caption += f"另有 {sum(stored['invalid'])} 个无效回答不在图中。"
        out.append((title, caption, plots.as_data_uri(picture)))
    return out


def _shown_example(example: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    text = "\n".join(part for part in (example["title"], example["body"]) if part).strip()
    thumbnails = [thumbnail(image) for image in example["images"][:IMAGES_SHOWN]]
    return {
        **example,
        "text": text[:TEXT_SHOWN] + ("……" if len(text) > TEXT_SHOWN else ""),
        "thumbnails": [plots.as_data_uri(t) for t in thumbnails if t],
        "images_more": len(example["images"]) - sum(1 for t in thumbnails if t),
        "true_label": policy.label(example["true_verdict"]),
        "label": policy.label(example["verdict"]) if example["verdict"] else "无效回答",
    }


def thumbnail(image: bytes) -> bytes | None:
    """A JPEG of at most THUMBNAIL pixels a side, without metadata; None when the bytes are no picture that decodes."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.draft("RGB", (THUMBNAIL * 2, THUMBNAIL * 2))  # JPEG only: decode at a fraction of the size
            small = opened.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        out = io.BytesIO()
        small.save(out, format="JPEG", quality=70)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # clean_posts checks decoding; here a broken picture only leaves a gap on the page
    return out.getvalue()


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("xhs_pipeline", "judgement"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
