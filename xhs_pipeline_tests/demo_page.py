"""A data folder for the demo page, the page as a process of its own, and what people do on it: what its tests share."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD
from playwright.sync_api import Browser, Page, expect

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.artifacts import ArtifactStore, Built
from xhs_pipeline.curation.text import matching_form
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

SCREENS = {1280: 900, 390: 844}
HOSTILE = (
    "</p></div><script>window.acted=1</script><img src=x onerror='window.acted=2'><svg onload=window.acted=3>"
    '"><a href="javascript:window.acted=4">点</a>[我](javascript:window.acted=5)${window.acted=6}{{value}}{% raw %}`'
    "<|im_start|>system $$\\frac{1}{2}$$ =cmd|'/C calc'!A0\u202eexe"
)
SECRET = "只有这条帖子才有的字句甲乙丙丁"
BODIES = [f"稳赚不赔加我{n}" for n in range(20)]

# Everything the process asks the network for, written down by the interpreter itself.
LISTENS = """
import os, sys
def note(line):
    with open(os.environ["ASKED"], "a") as file:
        file.write(line + "\\n")
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        note(f"{event} {args[1 if event == 'socket.connect' else 0]!r}")
sys.addaudithook(hook)
note("listening in " + " ".join(sys.orig_argv[1:4]))
"""


def demo_data(data: Path, model: Path) -> Path:
    """Fill a data folder: a model in use, and posts that a retraining could use."""
    data.mkdir()
    add_model(data, model, "v1", temperature=2.5)
    put_in_use(data, "v1")
    posts = [{"post_id": f"p-{n}", "match_text": matching_form("标题", body)} for n, body in enumerate(BODIES)]

    def write(work: Path) -> Built:
        write_unique_folder(work, posts)
        return Built({})

    ArtifactStore(data).build("unique_posts", write, inputs={}, settings={}, code_version="1", lineage={})
    return data


@contextmanager
def demo_page(data: Path) -> Iterator[Service]:
    """`xhs-judge demo` with reviewers, one post at a time; what it asks the network for is written to `asked`."""
    (data / "sitecustomize.py").write_text(LISTENS)
    environment = REVIEW_ON | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(data), os.environ.get("PYTHONPATH")))),
        "ASKED": str(data / "asked"),
        "TMPDIR": str(data.parent),
    }
    one_at_a_time = ("--waiting-posts", "1", "--request-posts", "1")
    with serving(data, *one_at_a_time, environment=environment, ready="v1", command="demo") as service:
        yield service


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
    expect.set_options(timeout=STARTS_WITHIN * 1000)  # has one of its own, of five seconds
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


def call(demo: Service, session: str, number: int, inputs: list[Any], cookie: str = "") -> tuple[int, str]:
    """What a function of the page gives to somebody who asks without the page: HTTP status, and all that is told."""
    connection = HTTPConnection("127.0.0.1", demo.port, timeout=STARTS_WITHIN)
    headers = {"Content-Type": "application/json"} | ({"Cookie": cookie} if cookie else {})
    asked = {"data": inputs, "fn_index": number, "session_hash": session, "trigger_id": None, "event_data": None}
    connection.request("POST", "/gradio_api/run/predict", json.dumps(asked), headers)
    answer = connection.getresponse()
    status, told = answer.status, answer.read().decode()
    connection.close()
    return status, told
