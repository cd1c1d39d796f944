"""The demo page as its users meet it: a real process over a real data folder, in a real browser, up to the sensor that reads it."""

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import dagster as dg
import pytest
from PIL import Image
from PIL.ExifTags import IFD
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytest.importorskip(
    "gradio", reason="gradio is not installed, so the demo page is not tested: pip install -e '.[demo]'"
)

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.artifacts import ArtifactStore, Built
from xhs_pipeline.automation import appeal_sensor
from xhs_pipeline.curation.text import matching_form
from xhs_pipeline.resources import Workspace
from xhs_pipeline_tests.serving import (
    REVIEW_ON,
    REVIEWERS,
    STARTS_WITHIN,
    Service,
    add_model,
    open_store,
    put_in_use,
    serving,
)
from xhs_pipeline_tests.small import POLICY, jpeg, write_unique_folder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENS = {1280: 900, 390: 844}
HOSTILE = (
    "</p></div><script>window.acted=1</script><img src=x onerror='window.acted=2'><svg onload=window.acted=3>"
    '"><a href="javascript:window.acted=4">点</a>[我](javascript:window.acted=5)${window.acted=6}{{value}}{% raw %}`'
    "<|im_start|>system $$\\frac{1}{2}$$ =cmd|'/C calc'!A0\u202eexe"
)
SECRET = "只有这条帖子才有的字句甲乙丙丁"
BODIES = [f"稳赚不赔加我{n}" for n in range(20)]
NEEDED, AUDITS = POLICY.appeals["min_adjudicated"], POLICY.appeals["min_audit"]

# Everything the process asks the network for, written down by the interpreter itself.
LISTENS = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked = args[1] if event == "socket.connect" else args[0]
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {asked!r}\\n")
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path) -> Path:
    """A data folder with a model in use and posts that a retraining could use."""
    data = tmp_path_factory.mktemp("demo") / "data"
    data.mkdir()
    add_model(data, untrained_model, "v1", temperature=2.5)
    put_in_use(data, "v1")
    posts = [{"post_id": f"p-{n}", "match_text": matching_form("标题", body)} for n, body in enumerate(BODIES)]

    def write(work: Path) -> Built:
        write_unique_folder(work, posts)
        return Built({})

    ArtifactStore(data).build("unique_posts", write, inputs={}, settings={}, code_version="1", lineage={})
    return data


@pytest.fixture(scope="module")
def demo(data: Path) -> Iterator[Service]:
    (data / "sitecustomize.py").write_text(LISTENS)
    environment = REVIEW_ON | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(data), os.environ.get("PYTHONPATH")))),
        "ASKED": str(data / "asked"),
        "TMPDIR": str(data.parent),
    }
    one_at_a_time = ("--waiting-posts", "1", "--request-posts", "1")
    with serving(data, *one_at_a_time, environment=environment, ready="v1", command="demo") as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; the page is not opened in a browser")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def said() -> list[str]:
    """What the console, the page, a dialog or the network of every tab says that should not be there."""
    return []


@pytest.fixture
def tab(browser: Browser, demo: Service, said: list[str]) -> Iterator[Page]:
    opened = open_page(browser, demo, 1280, said)
    yield opened
    opened.close()


def photo_with_gps() -> bytes:
    """A JPEG as a phone writes it, with the place where it was taken."""
    exif, out = Image.Exif(), io.BytesIO()
    exif.get_ifd(IFD.GPSInfo).update({1: "N", 2: (31.0, 13.0, 49.0), 3: "E", 4: (121.0, 28.0, 25.0)})
    Image.open(io.BytesIO(jpeg(300, 200))).save(out, "JPEG", exif=exif)
    return out.getvalue()


def open_page(browser: Browser, demo: Service, width: int, said: list[str]) -> Page:
    tab = browser.new_page(viewport={"width": width, "height": SCREENS[width]}, locale="zh-CN")
    home = f"http://127.0.0.1:{demo.port}/"
    tab.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda r: None if r.url.startswith((home, "data:", "blob:")) else said.append(r.url))
    tab.set_default_timeout(STARTS_WITHIN * 1000)
    tab.goto(home)
    tab.locator("#x-judge").wait_for()
    return tab


def judge(tab: Page, body: str, title: str = "标题", post_id: str = "", images: tuple[bytes, ...] = ()) -> None:
    """Paste a post and wait for what is said of it."""
    tab.fill("#x-title textarea, #x-title input", title)
    tab.fill("#x-body textarea", body)
    tab.fill("#x-post-id textarea, #x-post-id input", post_id)
    files = [{"name": f"{HOSTILE[:40]}{n}.jpg", "mimeType": "image/jpeg", "buffer": i} for n, i in enumerate(images)]
    tab.set_input_files("#x-pictures input[type=file]", files)  # type: ignore[arg-type]
    expect(tab.locator(".x-thumbs li")).to_have_count(len(images))
    before = tab.locator("#x-result").inner_html()
    tab.click("#x-judge")
    tab.wait_for_function("before => document.querySelector('#x-result').innerHTML !== before", arg=before)


def review(tab: Page, reviewer: str) -> None:
    """Enter the reviewer's tab with their token."""
    tab.get_by_role("tab", name="复核").click()
    tab.fill("#x-token input", REVIEWERS[reviewer])
    tab.keyboard.press("Enter")
    expect(tab.locator("#x-notice")).to_contain_text(reviewer)
    expect(tab.locator("#x-work")).to_be_visible()


def planted(data: Path, body: str, category: str = "私域引流", appellant: str = "somebody", note: str = "") -> str:
    """The case id of an appeal against a decision that is put into the log by hand."""
    with open_store(data) as store:
        decision = Decision("v1", POLICY.version, "remove", category, {"remove": 0.9, "pass": 0.1}, {category: 1.0})
        logged = store.log_decision(Snapshot(f"planted {body[:9]}", "标题", body, (jpeg(300, 200),)), decision)
        return store.file_appeal(logged, appellant, note).case_id


def state_of(data: Path, case_id: str) -> Any:
    with open_store(data) as store:
        return store.case(case_id).state


def choose(tab: Page, case_id: str) -> None:
    """Go down the queue by keys to a case, and wait until it is open."""
    place = f"#x-queue input[value='{case_id}']"
    tab.locator(place).wait_for(state="attached")
    for _ in range(tab.locator("#x-queue input").count()):
        tab.keyboard.press("k")
    for _ in range(tab.locator("#x-queue input").count()):
        if tab.locator(place).is_checked():
            break
        tab.keyboard.press("j")
    expect(tab.locator(place)).to_be_checked()


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
    assert [line for line in said if "broken" not in line] == []


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
    folder = next(data.parent.glob("xhs-demo-*"))
    assert [file for file in folder.rglob("*") if file.is_file()] == []
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


def test_what_is_too_much_at_once_is_said_in_chinese_and_the_others_are_judged(demo: Service) -> None:
    config = demo.ask("GET", "/config").body
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    judges = next(d["id"] for d in config["dependencies"] if ids["x-body"] in d["inputs"])
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(call, demo, f"busy{n}", judges, ["", "好" * 500, "", []]) for n in range(8)]
    told = [answer.result()[1] for answer in asked]
    refused = [text for text in told if "排队的帖子已到上限" in text]
    assert 0 < len(refused) < 8 and all("x-verdict" in text for text in told if text not in refused)


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


def call(demo: Service, session: str, number: int, inputs: list[Any], cookie: str = "") -> tuple[int, str]:
    """What a function of the page gives to somebody who asks without the page: HTTP status of the asking, and all that is told."""
    connection = HTTPConnection("127.0.0.1", demo.port, timeout=STARTS_WITHIN)
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    asked = {"data": inputs, "fn_index": number, "session_hash": session, "trigger_id": None, "event_data": None}
    connection.request("POST", "/gradio_api/queue/join", json.dumps(asked), headers)
    answer = connection.getresponse()
    status, _ = answer.status, answer.read()
    told = ""
    if status == 200:
        connection.request("GET", f"/gradio_api/queue/data?{urlencode({'session_hash': session})}", headers=headers)
        stream = connection.getresponse()
        while (line := stream.readline().decode()) and "process_completed" not in line:
            told += line
        told += line
    connection.close()
    return status, told


def test_no_function_behind_the_reviewers_tab_tells_or_does_anything_without_a_reviewers_token(
    demo: Service, data: Path
) -> None:
    case_id = planted(data, f"谁也不能偷看 {SECRET}", appellant="private")
    config = demo.ask("GET", "/config").body
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    behind = [d for d in config["dependencies"] if ids["x-token"] in d["inputs"]]
    assert len(behind) == 6
    assert not any(d["api_visibility"] == "public" for d in config["dependencies"])
    given = {ids["x-queue"]: None, ids["x-verdict"]: "pass", ids["x-category"]: None, ids["x-note"]: ""}
    before = state_of(data, case_id)
    for token in ("", "wrong-token-of-more-than-16-characters", REVIEWERS["han"][:-1], None):
        for function in behind:
            inputs = [token if i == ids["x-token"] else given.get(i) for i in function["inputs"]]
            status, told = call(demo, f"s{function['id']}", function["id"], inputs)
            assert status == 200 and "process_completed" in told
            assert SECRET not in told and case_id not in told
    assert state_of(data, case_id) == before
    opening = next(d for d in behind if len(d["inputs"]) == 1)
    assert case_id in call(demo, "s", opening["id"], [REVIEWERS["han"]])[1], "with a token it tells"


def test_nothing_of_gradio_answers_but_what_the_page_needs(demo: Service, data: Path) -> None:
    secret = data / "appeals.sqlite3"
    for path in (
        "/gradio_api/file=/etc/passwd", f"/gradio_api/file={secret}", "/gradio_api/file=pyproject.toml", "/file=/etc/passwd",
        "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/monitoring", "/gradio_api/proxy=http://127.0.0.1/",
        "/assets/../gradio_api/file=/etc/passwd", "/static/../../../../../../etc/passwd", "/gradio_api/vibe-code",
        "/assets/%2e%2e/%2e%2e/routes.py",
    ):  # fmt: skip
        assert demo.ask("GET", path).status in (403, 404), path
    for path in (
        "upload",
        "run/judge",
        "call/judge",
        "vibe-edit",
        "process_recording",
        "run-history/connect",
        "component_server",
    ):
        assert demo.ask("POST", f"/gradio_api/{path}", {}).status == 404, path
    policy = demo.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


def test_the_process_asks_no_other_machine_and_writes_no_text_of_posts_into_its_log(
    demo: Service, data: Path, tab: Page
) -> None:
    judge(tab, f"{SECRET}13812345678")
    asked = (data / "asked").read_text().splitlines() if (data / "asked").exists() else []
    here = ("'127.0.0.1'", "'localhost'", "'::1'", "'/")
    assert [line for line in asked if not any(place in line for place in here)] == []
    assert SECRET not in demo.log and "13812345678" not in demo.log and "Traceback" not in demo.log


def test_without_reviewers_or_a_model_the_page_says_how_to_mend_it_and_clients_with_tokens_log_in(
    browser: Browser, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    token = "client-token-of-more-than-16-characters"
    with serving(data, environment={"XHS_CLIENT_TOKENS": f"app={token}"}, command="demo") as demo:
        config = demo.ask("GET", "/config")
        assert config.status == 401 and "app" not in str(config.body.get("components"))
        assert call(demo, "s", 0, ["", "好", "", []])[0] == 401
        tab = browser.new_page(locale="zh-CN")
        tab.set_default_timeout(STARTS_WITHIN * 1000)
        tab.goto(f"http://127.0.0.1:{demo.port}/")
        for given in ("wrong-token-of-more-than-16-characters", token):
            tab.locator("input").first.fill("app")
            tab.locator("input[type=password]").fill(given)
            tab.locator("button.primary, button.lg").first.click()
            if given != token:
                tab.wait_for_timeout(500)
                assert not tab.locator("#x-judge").count()
        tab.locator("#x-judge").wait_for()
        judge(tab, "好")
        expect(tab.locator("#x-result")).to_contain_text("没有在用的模型")
        expect(tab.locator("#x-result")).to_contain_text("champion.json")
        tab.get_by_role("tab", name="复核").click()
        expect(tab.locator("#x-notice")).to_contain_text("XHS_REVIEWER_TOKENS=姓名=令牌")
        expect(tab.locator("#x-token")).to_be_hidden()
        began = time.monotonic()
        assert demo.stop() in (0, -signal.SIGTERM) and time.monotonic() - began < 30, "an open page keeps nothing alive"
        tab.close()


def test_an_appellant_appeals_once_and_reads_why_not_twice(data: Path) -> None:
    from xhs_pipeline.serve.demo import desk

    with open_store(data) as store:
        assert isinstance(store, AppealStore)
        snapshot, removed = Snapshot("twice", "标题", "只能申诉一次"), Decision("v1", "p", "remove", "私域引流")
        decision_id = store.log_decision(snapshot, removed)
        assert desk.appeal(store, decision_id, "me", "")[1]
        told, taken = desk.appeal(store, decision_id, "me", "")
        assert not taken and "申诉没有受理：您已对这条决定提出过申诉" in told
        assert "找不到这条审核决定" in desk.appeal(store, None, "me", "")[0]
