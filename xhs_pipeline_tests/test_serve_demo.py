"""The demo page as its users meet it: a real process over a real data folder, in a real browser, up to the sensor that reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from playwright.sync_api import Browser, Page, expect

pytest.importorskip(
    "gradio", reason="gradio is not installed, so the demo page is not tested: pip install -e '.[demo]'"
)

from xhs_pipeline.automation import appeal_sensor
from xhs_pipeline.resources import Workspace
from xhs_pipeline_tests.demo_page import (
    BODIES,
    HOSTILE,
    SCREENS,
    SECRET,
    choose,
    demo_data,
    demo_page,
    judge,
    open_page,
    photo_with_gps,
    planted,
    review,
    state_of,
)
from xhs_pipeline_tests.serving import REVIEWERS, Service, open_store
from xhs_pipeline_tests.small import POLICY, jpeg

NEEDED, AUDITS = POLICY.appeals["min_adjudicated"], POLICY.appeals["min_audit"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path) -> Path:
    return demo_data(tmp_path_factory.mktemp("demo") / "data", untrained_model)


@pytest.fixture(scope="module")
def demo(data: Path) -> Iterator[Service]:
    with demo_page(data) as service:
        yield service


@pytest.fixture
def said() -> list[str]:
    """What the console, the page, a dialog or the network of every tab says that should not be there."""
    return []


@pytest.fixture
def tab(browser: Browser, demo: Service, said: list[str]) -> Iterator[Page]:
    opened = open_page(browser, demo, 1280, said)
    yield opened
    opened.close()


def skip_reason(data: Path) -> str:
    """What the real sensor says of this data folder."""
    folder = data.parent
    (folder / "source.yaml").write_text("format: jsonl\npath: posts.jsonl\nappeals: appeals.jsonl\n")
    (folder / "appeals.jsonl").touch()
    workspace = Workspace(data_dir=str(data), source=str(folder / "source.yaml"))
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance, resources={"workspace": workspace}) as context,
    ):
        result = appeal_sensor(context)
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def a_blocked_post(demo: Service) -> tuple[int, dict[str, Any]]:
    """The number of a post that the model does not let pass, and the answer."""
    for n, body in enumerate(BODIES):
        answer = demo.judge(title="标题", body=body).body
        if answer["verdict"] != POLICY.pass_verdict:
            return n, answer
    raise AssertionError("the model lets everything pass")


# --- from a post to the sensor ------------------------------------------------------------------------------------------


def test_from_a_pasted_post_to_an_appeal_its_adjudication_by_keyboard_and_the_sensors_skip_reason(
    demo: Service, data: Path, tab: Page, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XHS_HMAC_KEY", "XHS_APPEALS_URL"):
        monkeypatch.delenv(name, raising=False)
    n, answer = a_blocked_post(demo)
    verdict, category = answer["verdict"], answer["category"]
    judge(tab, BODIES[n], post_id=f"p-{n}")
    shown = tab.locator("#x-result")
    for part in (POLICY.label(verdict), category, "v1", POLICY.version, f"{100 * answer['confidence']:.1f}%"):
        expect(shown).to_contain_text(part)
    decision_id = shown.locator(".x-facts code").first.inner_text()
    tab.fill("#x-appeal-note textarea", f"请看我的电话13912345678 {SECRET}")
    tab.click("#x-appeal")
    expect(tab.locator("#x-appeal-told")).to_contain_text("申诉已提交，待审核员复核")
    case_id = tab.locator("#x-appeal-told code").inner_text()
    assert state_of(data, case_id).decision_id == decision_id
    expect(tab.locator("#x-appeal")).to_be_hidden()
    assert skip_reason(data).startswith(f"0 of {NEEDED} adjudicated, 0 of {AUDITS} audit: waiting for {NEEDED} more")

    review(tab, "han")
    choose(tab, case_id)
    expect(tab.locator("#x-case-post")).to_contain_text(BODIES[n])
    expect(tab.locator("#x-case-post")).to_contain_text(f"<手机号> {SECRET}")
    expect(tab.locator("#x-case-answer")).to_contain_text(POLICY.label(verdict))
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("还没有选择审核结论")
    tab.keyboard.press(str(POLICY.verdict_ids.index(verdict) + 1))
    tab.keyboard.press("c")
    for _ in range(len(POLICY.category_names)):
        if tab.locator(f"#x-category input[value='{category}']").is_checked():
            break
        tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("已投票。案件已裁定：维持原判")
    assert (state_of(data, case_id).state, state_of(data, case_id).label) == ("upheld", (verdict, category))
    assert skip_reason(data) == (
        f"1 of {NEEDED} adjudicated, 0 of {AUDITS} audit: "
        f"waiting for {NEEDED - 1} more decided appeals and {AUDITS} more decided audit cases"
    )
    assert said == [] and SECRET not in demo.log


def test_overturning_severity_three_takes_a_second_reviewer_who_does_not_see_the_first_ones_vote(
    data: Path, tab: Page, said: list[str]
) -> None:
    case_id = planted(data, "一条被判诈骗的帖子", "诈骗", appellant="one")
    later = planted(data, "排在后面的另一条帖子", appellant="two")
    review(tab, "han")
    choose(tab, case_id)
    expect(tab.locator("#x-case-post")).to_contain_text("一条被判诈骗的帖子")
    tab.keyboard.press("n")
    tab.keyboard.type("jk1234r 看过")
    tab.keyboard.press("Escape")
    assert not tab.locator("#x-verdict input:checked").count(), "keys that were typed into the note did nothing else"
    tab.keyboard.press("1")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("需要第二位审核员")
    expect(tab.locator("#x-case-post")).to_contain_text("排在后面的另一条帖子")
    expect(tab.locator(f"#x-queue input[value='{later}']")).to_be_checked()
    expect(tab.locator("#x-note textarea")).to_have_value("")
    expect(tab.locator(f"#x-queue input[value='{case_id}']")).to_have_count(0)
    tab.keyboard.press("2")
    tab.locator("#x-category").get_by_text("虚假宣传").click()
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("已裁定：改判为需要修改 / 虚假宣传")

    tab.fill("#x-token input", REVIEWERS["mei"])
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("mei")
    choose(tab, case_id)
    expect(tab.locator(f"#x-queue label:has(input[value='{case_id}'])")).to_contain_text("需要第二位审核员")
    expect(tab.locator("#x-case-post")).to_contain_text("一条被判诈骗的帖子")
    expect(tab.locator("#x-case-answer .x-message")).to_have_count(0)
    assert "看过" not in tab.locator("#x-work").inner_text()
    tab.keyboard.press("1")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("已裁定：撤销原判，改为通过")
    assert (state_of(data, case_id).state, len(state_of(data, case_id).votes)) == ("overturned", 2)
    assert said == []


def test_reviewers_who_disagree_see_each_others_answers_and_decide_once_they_agree(data: Path, tab: Page) -> None:
    case_id = planted(data, "两位审核员看法不同的帖子", "诈骗", appellant="disputed")
    with open_store(data) as store:
        store.vote(case_id, "mei", "remove", "赌博")
    assert state_of(data, case_id).state == "modified", "one is enough where severity 3 stays"
    case_id = planted(data, "两位审核员看法又不同的帖子", "诈骗", appellant="disputed again")
    with open_store(data) as store:
        store.vote(case_id, "mei", "pass", "正常")
    review(tab, "han")
    choose(tab, case_id)
    expect(tab.locator("#x-case-post")).to_contain_text("两位审核员看法又不同的帖子")
    tab.keyboard.press("2")
    tab.locator("#x-category").get_by_text("虚假宣传").click()
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("意见不一致")
    tab.locator(f"#x-queue input[value='{case_id}']").check()
    expect(tab.locator("#x-case-answer")).to_contain_text("通过 / 正常；需要修改 / 虚假宣传")
    expect(tab.locator(f"#x-queue label:has(input[value='{case_id}'])")).to_contain_text("您已投票")
    tab.keyboard.press("1")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("已裁定：撤销原判")
    assert state_of(data, case_id).state == "overturned"


def test_what_came_in_a_burst_is_triaged_before_it_is_voted_on(data: Path, tab: Page) -> None:
    burst = [planted(data, f"刷量的帖子之{n}", appellant="the same one", note=HOSTILE) for n in range(4)]
    assert state_of(data, burst[-1]).waits_for_triage
    review(tab, "han")
    choose(tab, burst[-1])
    expect(tab.locator("#x-case-answer")).to_contain_text("请先分诊")
    expect(tab.locator(f"#x-queue label:has(input[value='{burst[-1]}'])")).to_contain_text("⚑")
    tab.keyboard.press("1")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("需先分诊")
    assert not state_of(data, burst[-1]).votes
    tab.keyboard.press("t")
    expect(tab.locator("#x-notice")).to_contain_text("已分诊")
    expect(tab.locator("#x-triage")).to_be_hidden()
    tab.keyboard.press("1")
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text("已裁定")
    assert state_of(data, burst[-1]).state == "overturned"
    new = planted(data, "刚刚才来的申诉", appellant="late")
    tab.keyboard.press("r")
    tab.locator(f"#x-queue input[value='{new}']").wait_for(state="attached")


def test_every_action_of_a_reviewer_is_reached_by_tab_and_shows_where_the_focus_is(data: Path, tab: Page) -> None:
    planted(data, "用制表键走过的帖子", appellant="by tab")
    review(tab, "mei")
    expect(tab.locator("#x-case-answer .x-verdict")).to_be_visible()
    tab.locator("#x-token input").focus()
    wanted, reached = {"x-enter", "x-queue", "x-refresh", "x-verdict", "x-category", "x-note", "x-vote"}, set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached |= set(
            tab.evaluate(
                """() => {
                    const at = document.activeElement, ids = [];
                    const drawn = [at, at.closest("label")].some(e => e && getComputedStyle(e).outlineStyle === "solid");
                    for (let e = at; e; e = e.parentElement) if (e.id) ids.push(e.id);
                    return drawn ? ids : [];
                }"""
            )
        )
    assert wanted <= reached


# --- what comes from posts ----------------------------------------------------------------------------------------------


def test_a_post_is_shown_as_it_was_judged_and_what_is_hostile_in_it_is_only_text(
    data: Path, tab: Page, said: list[str]
) -> None:
    body = f"{HOSTILE}加V：abc12345，电话13812345678或13712345678 {SECRET}"
    judge(tab, body, title=HOSTILE, images=(photo_with_gps(), jpeg(20, 20), b"no picture"))
    shown = tab.locator("#x-result")
    expect(shown).to_contain_text("<script>window.acted=1</script>")
    expect(shown).to_contain_text("${window.acted=6}{{value}}{% raw %}`")
    expect(shown).to_contain_text("微信号 1 处，手机号 2 处")
    expect(shown).to_contain_text("1 张，边长不足 28 像素；1 张，不是 JPEG、PNG、WebP、GIF 或 AVIF 图片")
    assert shown.locator("mark").all_inner_texts()[-3:] == ["<微信号>", "<手机号>", "<手机号>"]
    assert "13812345678" not in shown.inner_text()
    [picture] = shown.locator("img").evaluate_all("images => images.map(i => i.src)")
    assert picture.startswith("data:image/jpeg;base64,")
    assert shown.locator("script, a, svg").count() == 0
    case_id = planted(data, HOSTILE, appellant="hostile", note=HOSTILE)
    review(tab, "han")
    choose(tab, case_id)
    expect(tab.locator("#x-case-post .x-note")).to_contain_text("<script>window.acted=1</script>")
    expect(tab.locator("#x-case-post .x-post")).to_contain_text("<|im_start|>system $$\\frac{1}{2}$$")
    assert tab.locator("#x-work").locator("script, a, svg.acted, img:not([src^='data:image/jpeg'])").count() == 0
    assert tab.evaluate("window.acted") is None
    assert said == []


def test_the_originals_of_images_touch_no_disk_and_are_judged_again_without_being_dropped_again(
    demo: Service, data: Path, tab: Page
) -> None:
    tab.evaluate(
        """() => {
            const bytes = Uint8Array.from(atob("R0lGODlhAQABAAAAACw="), c => c.charCodeAt(0)), moved = new DataTransfer();
            moved.items.add(new File([bytes], "dropped.gif", { type: "image/gif" }));
            moved.items.add(new File(["text"], "notes.txt", { type: "text/plain" }));
            document.querySelector(".x-drop").dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
        }"""
    )
    expect(tab.locator(".x-thumbs li")).to_have_count(1)
    expect(tab.locator(".x-drop-told")).to_have_text("不是图片的文件没有添加")
    tab.get_by_role("button", name="移除第 1 张图片").click()
    expect(tab.locator(".x-thumbs li")).to_have_count(0)
    judge(tab, "带图片的帖子", images=(photo_with_gps(),))
    expect(tab.locator("#x-result img")).to_have_count(1)
    tab.fill("#x-body textarea", "改了文字再判一次")
    tab.click("#x-judge")
    expect(tab.locator("#x-result .x-body")).to_have_text("改了文字再判一次")
    expect(tab.locator("#x-result img")).to_have_count(1)
    assert [file for file in (data / ".demo").rglob("*") if file.is_file()] == []
    original = photo_with_gps()
    assert all(original not in file.read_bytes() for file in data.parent.rglob("*") if file.is_file())


def test_what_cannot_be_judged_is_said_in_chinese_with_what_to_do(tab: Page) -> None:
    judge(tab, "", title="")
    expect(tab.locator("#x-result")).to_contain_text("没有文字，也没有可用的图片。请填写标题或正文，或换一张图片。")
    judge(tab, "好", post_id="x" * 300)
    expect(tab.locator("#x-result")).to_contain_text("帖子编号含有控制字符或太长。请改正，或留空。")
    judge(tab, "长" * 200_001)
    expect(tab.locator("#x-result")).to_contain_text("请删减后再试")
    expect(tab.locator("#x-appeal")).to_be_hidden()


# --- what is around it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", SCREENS)
def test_both_tabs_fit_the_width_and_are_readable(
    browser: Browser, demo: Service, data: Path, said: list[str], width: int
) -> None:
    planted(
        data, f"宽度{width}的帖子" + "https://example.org/" + "a" * 300, appellant=f"width {width}", note="字" * 400
    )
    tab = open_page(browser, demo, width, said)
    judge(tab, "字" * 500 + "a" * 300 + "电话13812345678", images=(jpeg(1200, 300),))
    expect(tab.locator("#x-result .x-post img")).to_have_count(1)
    measure(tab)
    review(tab, "han")
    expect(tab.locator("#x-case-answer .x-verdict")).to_be_visible()
    measure(tab)
    assert tab.evaluate("document.documentElement.lang") == "zh-CN"
    assert said == []
    tab.close()


def measure(tab: Page) -> None:
    found = tab.evaluate(
        """() => {
            const seen = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && e.tagName !== "SCRIPT");
            return {
                wide: document.scrollingElement.scrollWidth - innerWidth,
                over: seen.filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 && e.getBoundingClientRect().width > 1)
                    .map(e => e.outerHTML.slice(0, 80)),
                tiny: seen.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
                    && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 80)),
            };
        }"""
    )
    assert found == {"wide": 0, "over": [], "tiny": []}


def test_the_process_asks_no_other_machine_and_writes_no_text_of_posts_into_its_log(
    demo: Service, data: Path, tab: Page
) -> None:
    judge(tab, f"{SECRET}13812345678")
    asked = (data / "asked").read_text().splitlines()
    assert any(line.startswith("listening in -m xhs_pipeline.serve.cli") for line in asked)
    here = ("'127.0.0.1'", "'localhost'", "'::1'", "'/")
    assert [line for line in asked if line.startswith("socket") and not any(place in line for place in here)] == []
    assert SECRET not in demo.log and "13812345678" not in demo.log and "Traceback" not in demo.log
