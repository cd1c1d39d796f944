"""What the page says, that a browser shows it without errors on a desk and on a phone, and that nothing from a post can act in it."""

import copy
import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from xhs_pipeline.judgement import page, report
from xhs_pipeline.judgement.figures import figure
from xhs_pipeline.judgement.page import summary, tables, words
from xhs_pipeline_tests.reports import build, context, example, full, jpeg, parts
from xhs_pipeline_tests.test_judgement_metrics import POLICY, frame
from xhs_pipeline_tests.test_judgement_report import BETTER, MIDDLING, TRUTH

SCREENS = {1280: 800, 390: 844}
HOSTILE = (
    "</article></main><script>window.acted=1</script><img src=x onerror='window.acted=2'><svg onload=window.acted=3>"
    '"><a href="javascript:window.acted=4">点我</a>{{ 7*7 }}{% raw %}=cmd|\'/C calc\'!A0\u202eexe.gpj\u200b'
)


def shown(content: dict[str, Any], examples: tuple = (), regressions: tuple = ()) -> str:
    return page.render_html(content, list(examples), POLICY, list(regressions))


def first_screen(content: dict[str, Any]) -> str:
    """All that the first screen says, one line each."""
    top = summary.banner(content)
    lines = [top["title"], top["text"], *("：".join(reason) for reason in top["reasons"]), f"另有 {top['more']} 项"]
    for card in summary.cards(content):
        lines += [f"{card['question']} [{card['tone']}] {card['answer']}", *card["lines"], card["command"]]
    return "\n".join(lines)


def changed(**gates: str) -> dict[str, Any]:
    """The full report with these outcomes of its gates."""
    content = copy.deepcopy(full())
    for g in content["gate"]["gates"]:
        g["status"] = gates.get(g["name"], "pass")
    outcomes = set(gates.values())
    content["gate"]["status"] = next((s for s in ("fail", "insufficient") if s in outcomes), "pass")
    return content


# what the first screen says


def test_the_first_screen_gives_the_verdict_its_reasons_and_what_to_do() -> None:
    assert "可以发布" in first_screen(changed())
    failed = first_screen(changed(merge_agreement="fail", invalid_share="insufficient"))
    assert "不得发布" in failed and "签字不能放行" in failed
    assert failed.index("合并前后一致") < failed.index("无效回答够少"), "what failed stands before what lacks evidence"
    lacking = first_screen(changed(merge_agreement="insufficient"))
    assert "需要人工签字" in lacking
    assert "python -m xhs_pipeline.release sign-off a3f9c1d27b60 --name 姓名 --reason 原因" in lacking


def test_more_reasons_than_fit_are_counted_and_all_stand_in_the_gates_table() -> None:
    names = [g["name"] for g in full()["gate"]["gates"]]
    content = changed(**dict.fromkeys(names, "fail"))
    assert first_screen(content).count("✗ 未通过：") == 3
    assert f"另有 {len(names) - 3} 项" in first_screen(content)
    assert [row.cells[0].text for row in tables.gates(content).rows] == ["✗ 未通过"] * len(names)


def test_all_that_the_first_screen_says_stands_on_the_page_before_everything_else() -> None:
    content = changed(merge_agreement="insufficient")
    content["context"]["base_note"] = "内置的极小模型 <b>"
    html = shown(content)
    top = unescape(re.sub(r"<[^>]*>", "", html[html.index("<header>") : html.index("<nav")]))
    for line in first_screen(content).splitlines():
        for part in re.split(r"：| \[\w+\] |另有 0 项", line):
            assert part in top
    assert "内置的极小模型 <b>" in top


def test_better_is_said_only_where_an_interval_says_so() -> None:
    content = copy.deepcopy(full())
    answers = {}
    for name, cost, f1 in (
        ("更好", (-9, -1), (0.01, 0.05)),
        ("更差", (1, 9), (-0.01, 0.01)),
        ("有好有坏", (-9, -1), (-0.05, -0.01)),
        ("分不出高下（区间都包含 0）", (-9, 1), (-0.01, 0.05)),
    ):
        content["comparison"]["cost_per_1000"] = figure(sum(cost) / 2, 600, bounds=cost)
        content["comparison"]["category_macro_f1"] = figure(sum(f1) / 2, 600, bounds=f1)
        answers[name] = summary.cards(content)[0]["answer"]
    assert answers == {name: name for name in answers}


def test_a_model_below_the_linear_floor_is_told_so_on_the_first_screen() -> None:
    below = first_screen(build(TRUTH, MIDDLING, tfidf=BETTER))
    assert re.search(r"比在用模型好吗？ \[bad\]", below)
    assert re.search(r"质量低于 TF-IDF 基线（类别宏平均 F1 [0-9.]+% 对 100.0%）", below)
    assert "质量低于" not in first_screen(build(TRUTH, BETTER, tfidf=MIDDLING))


def test_without_a_champion_and_with_one_that_was_not_compared_the_page_says_so() -> None:
    assert "没有在用模型" in first_screen(build(TRUTH, BETTER, tfidf=MIDDLING))
    told = build(TRUTH, BETTER, tfidf=MIDDLING, champion_version="old", notes={"champion": "它的文件夹不见了"})
    assert "未与在用模型比较" in first_screen(told) and "它的文件夹不见了" in first_screen(told)


def test_the_reader_is_told_when_it_is_not_known_which_posts_the_model_was_trained_on() -> None:
    assert "训练数据已删除" in first_screen(build(TRUTH, BETTER, tfidf=MIDDLING, seen_unknown="训练数据已删除"))


def test_for_whom_names_the_categories_and_slices_whose_interval_says_so() -> None:
    content = copy.deepcopy(full())
    unclear = figure(0.0, 50, bounds=(-0.1, 0.1))
    for row in content["comparison"]["categories"].values():
        row["recall"], row["false_positive_rate"] = unclear, unclear
    for rows in content["comparison"]["slices"].values():
        for row in rows.values():
            row["cost_per_1000"] = figure(-1.0, 50, bounds=(-2.0, 1.0))
    content["comparison"]["categories"]["诈骗"]["recall"] = figure(-0.2, 50, bounds=(-0.3, -0.1))
    content["comparison"]["slices"]["week"]["2026-02-09"]["cost_per_1000"] = figure(70.0, 50, bounds=(20.0, 120.0))
    slice_row = content["figures"]["model"]["slices"]["week"]["2026-02-16"]
    slice_row["flagged"], slice_row["excludes_overall"] = True, True
    said = first_screen(content)
    assert "0 项明显变好，1 项明显变差" in said
    assert "变差最多：诈骗 召回率 −20.00 点（−30.00 到 −10.00）" in said
    assert "切片变差最多：周次：2026-02-09 每千帖代价 +70.0（+20.0 到 +120.0）" in said
    assert "周次：2026-02-16（1 个不像是偶然）" in said


def test_numbers_are_said_with_as_many_digits_as_a_limit_needs() -> None:
    assert words.with_interval(figure(0.0093, 10, bounds=(0.0071, 0.105))) == "0.93%（0.71% 到 10.5%）"
    assert words.shown(figure(None, 0, "no posts")) == "–"
    assert words.difference(figure(-0.012, 10, bounds=(-0.02, 0.0))) == "−1.20 点（−2.00 到 0.00）"
    assert words.difference(figure(1234.5, 10), words.COST) == "+1,234.5"
    assert words.direction(figure(-1, 5, bounds=(-2, -0.5)), higher=False) == 1
    assert words.direction(figure(-1, 5), higher=False) == 0


def test_an_empty_test_split_still_makes_a_page() -> None:
    empty = frame([], [])
    content = report.build_report(parts(empty, {"majority": empty}, empty), POLICY, context(champion_version="old"))
    assert "没有测试帖" in shown(content)


# what comes from posts


def test_text_of_a_post_is_escaped_shortened_and_shows_what_hides_in_it() -> None:
    html = shown(full(), (example(title=HOSTILE, body="字" * 1000, post_id=HOSTILE, label_source=HOSTILE),))
    assert html.count("<script") == 1 and "<img src=x" not in html and "<svg" not in html
    assert 'href="javascript' not in html
    posts = html[html.index('id="examples"') : html.index('id="origin"')]
    assert "{{ 7*7 }}" in posts and "⟦U+202E⟧exe.gpj⟦U+200B⟧" in posts
    assert "\u202e" not in html
    assert "字" * 300 not in posts and "……" in posts
    assert "👩\u200d🍳" in shown(full(), (example(title="👩\u200d🍳"),)), "what joins emoji is left alone"


def test_images_become_small_thumbnails_and_a_broken_one_leaves_a_gap() -> None:
    small = page.thumbnail(jpeg(4000))
    assert small is not None and len(small) < 4000
    assert max(Image.open(io.BytesIO(small)).size) == page.THUMBNAIL
    assert page.thumbnail(b"") is None
    assert page.thumbnail(b"\xff\xd8\xff broken") is None
    html = shown(full(), (example(images=[jpeg(), b"broken", jpeg(), jpeg(), jpeg()]),))
    assert html.count('alt="帖子图片') == 2
    assert "另有 3 张图片未显示" in html


def test_the_page_fetches_nothing_and_shows_at_most_twenty_posts_of_each_kind() -> None:
    regressed = {**example(), "added_cost": 48.0}
    html = shown(full(), (example(),) * 30, (regressed,) * 30)
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html and "unsafe" not in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert not re.findall(r"\son\w+=|\sstyle=", html)
    assert "http://" not in html and "https://" not in html
    assert html.count('<article class="example">') == 2 * report.MAX_EXAMPLES
    assert "比在用模型多 48" in html


def test_even_with_pictures_that_do_not_compress_the_page_stays_below_five_megabytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    noise = io.BytesIO()
    Image.fromarray(pixels).save(noise, format="JPEG", quality=95)
    worst = example(body="字" * 1000, images=[noise.getvalue()] * page.IMAGES_SHOWN, added_cost=50.0)
    html = shown(full(), (worst,) * report.MAX_EXAMPLES, (worst,) * report.MAX_EXAMPLES)
    assert 1_000_000 < len(html.encode()) < 5_000_000


def test_the_same_report_makes_the_same_bytes() -> None:
    page._template.cache_clear()
    assert shown(full()) == shown(full())


# in a browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a failed report with every section, hostile posts and pictures of all sizes."""
    content = changed(
        merge_agreement="fail", above_majority_floor="fail", invalid_share="fail", distinct_verdicts="insufficient"
    )
    content["context"]["base_note"] = "这是内置的极小模型，只用来验证流程；它的质量不代表真实模型。"
    content["figures"]["model"]["slices"]["label_source"][HOSTILE] = content["figures"]["model"]["slices"]["week"][
        "2026-02-16"
    ]
    content["comparison"]["slices"]["label_source"][HOSTILE] = content["comparison"]["slices"]["week"]["2026-02-16"]
    posts = [
        example(
            title=HOSTILE, body="https://example.org/" + "a" * 300, images=[jpeg(), jpeg(50)], label_source=HOSTILE
        ),
        example(),
    ]
    out = tmp_path_factory.mktemp("page") / "report.html"
    html = shown(content, tuple(posts), ({**posts[0], "added_cost": 1.0},))
    out.write_text(html, encoding="utf-8")
    return out


def opened(browser: Browser, file: Path, width: int, said: list[str]) -> Page:
    """The page in a window of this width; whatever the console, the page, a dialog or the network says is added to `said`."""
    tab = browser.new_page(viewport={"width": width, "height": SCREENS[width]})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    tab.goto(file.as_uri())
    return tab


@pytest.mark.parametrize("width", SCREENS)
def test_the_page_opens_without_a_word_in_the_console_and_fits_its_width(
    browser: Browser, file: Path, width: int
) -> None:
    said: list[str] = []
    tab = opened(browser, file, width, said)
    measured = tab.evaluate(
        """() => {
            const seen = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && e.tagName !== "SCRIPT");
            const inside = e => e.closest(".scroll, .box");
            return {
                wide: document.scrollingElement.scrollWidth, window: innerWidth,
                over: seen.filter(e => !inside(e) && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80)),
                boxes: [...document.querySelectorAll(".scroll, .box")].filter(e => e.getBoundingClientRect().right > innerWidth).length,
                tiny: seen.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                    && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 80)),
                broken: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
                headings: [...document.querySelectorAll("h1, h2, h3")].map(e => e.tagName).join(" "),
            };
        }"""
    )  # fmt: skip
    assert measured["wide"] <= measured["window"]
    assert measured["over"] == [] and measured["boxes"] == 0 and measured["tiny"] == []
    assert measured["broken"] == 0 and measured["images"] > 30
    assert measured["headings"].startswith("H1 H2") and measured["headings"].count("H1") == 1
    last = tab.locator(".card").last.bounding_box()
    assert last is not None and last["y"] + last["height"] <= SCREENS[width], "the answers stand on the first screen"
    assert said == []
    tab.close()


def test_on_a4_paper_no_table_or_picture_is_cut_off(browser: Browser, file: Path) -> None:
    tab = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 at 96 pixels an inch, less Chromium's margins
    tab.emulate_media(media="print")
    tab.goto(file.as_uri())
    cut = "() => [...document.querySelectorAll('table, img')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
    assert tab.evaluate(cut) == 0
    assert tab.locator("nav").is_hidden()
    tab.close()


def column(tab: Page, table: str, place: int) -> list[str]:
    return tab.locator(f"#{table} tbody tr").evaluate_all(
        "(rows, place) => rows.map(r => r.cells[place].dataset.k)", place
    )


def test_tables_sort_by_click_and_by_keyboard_and_keep_missing_values_last(browser: Browser, file: Path) -> None:
    said: list[str] = []
    tab = opened(browser, file, 1280, said)
    heads = tab.locator("#slices thead button")
    before = column(tab, "slices", 4)
    heads.nth(4).click()
    down = column(tab, "slices", 4)
    present = [float(v) for v in down if v is not None]
    assert present == sorted(present, reverse=True) and sorted(map(str, down)) == sorted(map(str, before))
    assert None in down and down[len(present) :] == [None] * (len(down) - len(present))
    assert tab.locator("#slices thead th").nth(4).get_attribute("aria-sort") == "descending"
    heads.nth(4).focus()
    tab.keyboard.press("Enter")
    up = column(tab, "slices", 4)
    assert [float(v) for v in up if v is not None] == sorted(present) and up[-1] is None
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Space")
    assert tab.locator("#slices thead th").nth(3).get_attribute("aria-sort") == "descending"
    assert tab.locator("#slices thead th").nth(4).get_attribute("aria-sort") == "none"
    tab.locator("#gates thead button").nth(1).click()
    assert column(tab, "gates", 1) == sorted(column(tab, "gates", 1)), "failed gates come first"
    assert said == []
    tab.close()


def test_hostile_text_is_only_text_and_a_script_that_got_in_would_not_run(browser: Browser, file: Path) -> None:
    said: list[str] = []
    tab = opened(browser, file, 1280, said)
    assert tab.evaluate("window.acted") is None
    assert tab.locator("script").count() == 1 and tab.locator("a[href^=javascript]").count() == 0
    assert "<script>window.acted=1</script>" in tab.locator("#examples .text").first.inner_text()
    assert said == []
    tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.acted = 5";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.acted = 6'><img src='file:///x.png'>");
        }"""
    )
    tab.wait_for_timeout(200)
    assert tab.evaluate("window.acted") is None
    assert len([line for line in said if "Content Security Policy" in line]) >= 2
    tab.close()


def test_a_gate_without_a_number_says_why_in_chinese() -> None:
    assert words.gate_reason("召回保持率的平均缺失：no transform has a retention") == (
        "召回保持率的平均缺失：改动到的违规帖太少，算不出保持的比例"
    )
    assert words.gate_reason("无效回答的比例 0.0000，上限 0.005") == "无效回答的比例 0.0000，上限 0.005"
