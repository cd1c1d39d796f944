"""The page that people read (report.html), made of the report and of a few posts. It computes no figures and reads no data.

Field names are English, the page's words are Chinese. `summary` is the first screen, `tables` and `pictures` what follows,
`words` how numbers are said; the template, its style and its script lie beside them.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from xhs_pipeline.judgement import plots
from xhs_pipeline.judgement.page import pictures, summary, tables, words
from xhs_pipeline.judgement.report import MAX_EXAMPLES
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:
    from jinja2 import Template

TEXT_SHOWN = 220  # characters of a post's text on the page
THUMBNAIL = 160  # pixels of the longer side
IMAGES_SHOWN = 3


def render_html(
    report: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    policy: Policy,
    regressions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One self-contained page: its CSP lets nothing be fetched and runs no script but the one that sorts tables, by its hash.

    Everything that comes from posts is escaped, and characters that do not show are written out; of `examples` and of
    `regressions` (`report.worst_mistakes`, `report.worst_regressions`) at most MAX_EXAMPLES each are shown, their texts cut to
    TEXT_SHOWN characters and their images shrunk to thumbnails. The same arguments give the same page.
    """
    golden, newest = report["golden"], report["newest_week"]
    before = words.EARLIER if newest["judged_by"] == "candidate" else words.IN_USE
    style, script = _asset("report.css"), _asset("report.js")
    headline = tables.headline(report)
    return _template().render(
        report=report,
        context=report["context"],
        before=before,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        banner=summary.banner(report),
        cards=summary.cards(report),
        constant=_constant_answer(report["figures"]["model"]),
        notes={words.noted(name): words.visible(note) for name, note in report["notes"].items()},
        headline=headline,
        gates=tables.gates(report),
        compared=tables.categories_compared(report) if report["comparison"] else None,
        classes=[tables.classes(report, kind, policy) for kind in ("category", "verdict")],
        decisions=tables.decisions(report),
        calibration=tables.calibration(report),
        slices=tables.slices(report),
        evasion=tables.evasion(report),
        metamorphic=tables.metamorphic(report),
        golden=tables.side_by_side(
            "golden",
            [(words.MODEL, "model", golden["model"]), (words.IN_USE, "champion", golden["champion"])],
            golden["comparison"],
        ),
        newest=tables.side_by_side(
            "newest_week",
            [
                (f"{before}，这一周（n={newest['n']:,}）", "champion", newest["champion"]),
                (f"{before}，更早的测试帖", "before", newest["before"]),
                (f"本模型，这一周的测试帖（n={newest['n_model']:,}）", "model", newest["model"]),
            ],
        ),
        drawn={
            "beside": pictures.beside(report),
            "compared": pictures.compared(report),
            "confusion": pictures.confusion(report, policy),
            "precision_recall": pictures.precision_recall(report),
            "probabilities": pictures.reliability(report),
            "decisions": [*pictures.risk_coverage(report), *pictures.deployment(report)],
            "evasion": pictures.evasion(report),
        },
        examples=[_shown_example(example, policy) for example in examples[:MAX_EXAMPLES]],
        regressions=[_shown_example(example, policy) for example in regressions[:MAX_EXAMPLES]],
        shown=words.with_interval,
        why=words.why,
    )


def _constant_answer(model: Mapping[str, Any]) -> str:
    """What the best constant answer to the binary question reaches, since accuracy means little without it."""
    violations, harmless, n = (model["counts"][k] for k in ("violation", "normal", "posts"))
    if not n:
        return "没有测试帖。"
    best = "违规" if violations >= harmless else "正常"
    return (
        f"测试帖 {n:,} 条，其中违规 {violations:,} 条、正常 {harmless:,} 条；若对所有帖都答“{best}”，"
        f"违规二分类准确率就有 {100 * max(violations, harmless) / n:.1f}%。"
    )


def _shown_example(example: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    text = "\n".join(part for part in (example["title"], example["body"]) if part).strip()
    thumbnails = [thumbnail(image) for image in example["images"][:IMAGES_SHOWN]]
    return {
        **example,
        "post_id": words.visible(str(example["post_id"])),
        "label_source": words.visible(str(example["label_source"] or "")),
        "text": words.visible(text[:TEXT_SHOWN]) + ("……" if len(text) > TEXT_SHOWN else ""),
        "thumbnails": [plots.as_data_uri(t) for t in thumbnails if t],
        "images_more": len(example["images"]) - sum(1 for t in thumbnails if t),
        "true_label": policy.label(example["true_verdict"]),
        "label": policy.label(example["verdict"]) if example["verdict"] else "无效回答",
        "added_cost": example.get("added_cost"),
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


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a Content-Security-Policy calls an inline style or script with exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@lru_cache(maxsize=1)
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("xhs_pipeline.judgement", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
