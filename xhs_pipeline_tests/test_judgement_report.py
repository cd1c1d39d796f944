"""What the report says, that it says it on a page of its own, and that nothing from a post can act in it."""

import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from xhs_pipeline.judgement import report
from xhs_pipeline.judgement.page import render_html, thumbnail
from xhs_pipeline_tests.reports import context, parts
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, POLICY, frame, posts_table

TRUTH = [HARMLESS] * 6 + [FRAUD] * 4 + [LURE] * 4
BETTER = TRUTH
MIDDLING = [HARMLESS] * 5 + [FRAUD] + [FRAUD] * 2 + [HARMLESS] * 2 + [LURE] * 4
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def build(model=MIDDLING, tfidf=BETTER, champion=None, **changes):
    floors = {"majority": frame(TRUTH, [HARMLESS] * 14), "tfidf": frame(TRUTH, tfidf)}
    in_use = frame(TRUTH, champion) if champion else None
    return report.build_report(parts(frame(TRUTH, model), floors, in_use), POLICY, context(**changes))


def page(content, examples=()):
    return render_html(content, list(examples), POLICY)


def jpeg(side: int = 400) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side // 2), "teal").save(out, format="JPEG")
    return out.getvalue()


def example(**changes):
    return {
        "post_id": "p1",
        "title": "标题",
        "body": "正文",
        "images": [],
        "true_verdict": FRAUD[0],
        "true_category": FRAUD[1],
        "verdict": HARMLESS[0],
        "category": HARMLESS[1],
        "probability": 0.8,
        "cost": 50.0,
        "label_source": "source",
        **changes,
    }


def test_a_model_below_the_linear_floor_is_told_so_in_words_and_in_red():
    content = build()
    assert "category_macro_f1" in content["below"]["tfidf"]
    assert content["below"]["majority"] == []
    html = page(content)
    assert '<div class="card bad"><b>低于 TF-IDF 基线</b>' in html
    assert "本模型的质量低于 TF-IDF 基线" in html
    assert re.search(r"\.card\.bad b, \.card\.bad p \{ color: var\(--red\)", html)


def test_a_model_above_every_floor_is_not_called_worse():
    html = page(build(model=BETTER, tfidf=MIDDLING))
    assert "低于 TF-IDF 基线</b>" not in html.replace("不低于 TF-IDF 基线</b>", "")
    assert "本模型的质量低于" not in html


def test_the_first_section_gives_the_gates_verdict_and_the_note_about_the_base():
    assert "可以发布" in page(build(model=BETTER, tfidf=BETTER))
    held = page(build(groups_across_splits=2, base_note="内置的极小模型，质量不代表真实模型"))
    first_screen = held[held.index("<header>") : held.index('id="headline"')]
    assert "不得发布" in first_screen
    assert "groups_across_splits" in first_screen
    assert "质量不代表真实模型" in first_screen
    assert "暂不发布" in page(build(merge_agreement=None))


def test_the_model_in_use_is_compared_on_the_same_posts_only():
    content = build(champion=BETTER, champion_version="0d1e2f3a4b5c")
    assert content["figures"]["champion"]["n"] == 14
    assert content["gate"]["status"] == "fail"
    assert "低于在用模型 0d1e2f3a4b5c" in page(content)
    floors = {"majority": frame(TRUTH, [HARMLESS] * 14)}
    others = frame(TRUTH, BETTER)
    others["post_id"] = [f"other{i}" for i in range(14)]
    told = report.build_report(frame(TRUTH, MIDDLING), floors, POLICY, context(champion_version="old"), others)
    assert told["figures"]["champion"] is None
    assert told["gate"]["status"] == "insufficient"
    assert "未与在用模型比较" in page(told)


def test_a_report_names_its_model_profile_policy_and_data():
    html = page(build())
    for fact in ("a3f9c1d27b60", "tiny", POLICY.version, "77aa88bb99cc"):
        assert fact in html


def test_the_json_holds_no_nan_and_survives_a_round_trip():
    content = build(champion=BETTER, champion_version="old")
    assert json.loads(json.dumps(content, allow_nan=False, ensure_ascii=False)) == content
    assert content["schema_version"] == report.SCHEMA_VERSION


def test_a_context_with_holes_and_a_floor_on_other_posts_are_refused():
    model = frame(TRUTH, BETTER)
    with pytest.raises(ValueError, match="merge_agreement"):
        report.build_report(model, {}, POLICY, {k: v for k, v in context().items() if k != "merge_agreement"})
    with pytest.raises(ValueError, match="floor tfidf was computed on other posts"):
        report.build_report(model, {"tfidf": frame(TRUTH[:3], BETTER[:3])}, POLICY, context())


def test_the_key_figures_keep_their_names_and_leave_out_what_has_no_value():
    figures = report.key_figures(build())
    assert figures["test_posts"] == 14.0
    assert {"binary_accuracy", "category_macro_f1", "tfidf_category_macro_f1", "majority_binary_accuracy"} <= set(
        figures
    )
    assert all(isinstance(value, float) for value in figures.values())
    empty = frame([], [])
    content = report.build_report(empty, {"majority": empty}, POLICY, context())
    assert report.key_figures(content) == {"test_posts": 0.0}
    assert "暂不发布" in page(content)


def test_the_worst_mistakes_are_the_dearest_and_then_the_surest():
    truth = [HARMLESS, FRAUD, LURE, FRAUD, HARMLESS]
    predictions = frame(truth, [FRAUD, HARMLESS, HARMLESS, None, HARMLESS])
    posts = posts_table(truth, images=[[{"bytes": jpeg(), "path": "a"}], [], [], [], []])
    found = report.worst_mistakes(predictions, lambda ids: posts, POLICY)
    assert [e["post_id"] for e in found] == ["p1", "p0", "p2", "p3"]
    assert [e["cost"] for e in found] == [50.0, 5.0, 2.0, 0.5]
    assert found[1]["images"] == [jpeg()]
    assert found[3]["verdict"] is None
    assert len(report.worst_mistakes(predictions, lambda ids: posts, POLICY, limit=2)) == 2
    assert "无效回答" in page(build(), found)


def test_text_of_a_post_is_escaped_and_shortened():
    hostile = "</article><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"
    html = page(build(), [example(title=hostile, body="字" * 1000, post_id='"><svg onload=alert(3)>')])
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "<svg onload" not in html
    assert "49" not in html[html.index('id="examples"') : html.index('id="origin"')]
    assert "字" * 300 not in html
    assert "……" in html


def test_images_become_small_thumbnails_and_a_broken_one_leaves_a_gap():
    small = thumbnail(jpeg(4000))
    assert small is not None and len(small) < 4000
    assert max(Image.open(io.BytesIO(small)).size) == report.THUMBNAIL
    assert thumbnail(b"") is None
    assert thumbnail(b"\xff\xd8\xff broken") is None
    html = page(build(), [example(images=[jpeg(), b"broken", jpeg(), jpeg(), jpeg()])])
    assert html.count('alt="帖子图片') == 2
    assert "另有 3 张图片未显示" in html


def test_the_page_fetches_nothing_and_shows_at_most_twenty_mistakes():
    html = page(build(), [example()] * 30)
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "http://" not in html and "https://" not in html
    assert html.count('<article class="example">') == report.MAX_EXAMPLES
    assert len(html) < 1_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; the page is not opened in a browser")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_in_a_browser_without_errors_and_fits_its_width(tmp_path: Path, width: int):
    content = build(champion=BETTER, champion_version="old")
    (tmp_path / "report.html").write_text(page(content, [example(images=[jpeg()])]), encoding="utf-8")
    # a frame gives the page exactly this width: headless windows have a minimum of their own
    probe = tmp_path / "probe.html"
    probe.write_text(
        f"""<iframe id="f" src="report.html" style="width:{width}px;height:800px;border:0"></iframe><pre id="out"></pre>
        <script>
        const frame = document.getElementById("f");
        frame.onload = () => {{
            const page = frame.contentDocument, images = [...page.images];
            document.getElementById("out").textContent = "RESULT " + JSON.stringify({{
                wide: page.documentElement.scrollWidth, images: images.length,
                broken: images.filter(i => !i.naturalWidth).length}});
        }};
        </script>""",
        encoding="utf-8",
    )
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += " --disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr"
    run = subprocess.run(
        [str(CHROMIUM), *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
        + ["--window-size=1400,1000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    found = re.search(r"RESULT (\{.*?\})", run.stdout)
    assert found, run.stderr[-2000:]
    measured = json.loads(found[1])
    assert measured["wide"] <= width
    assert measured["images"] == 5
    assert measured["broken"] == 0
    assert "CONSOLE" not in run.stderr, run.stderr[-2000:]
