"""What the demo page gives to those who ask without the page, without a token, too often, or before there is a model."""

import asyncio
import gc
import hashlib
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import expect

pytest.importorskip(
    "gradio", reason="gradio is not installed, so the demo page is not tested: pip install -e '.[demo]'"
)

from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.appeals.tables import DECISIONS, EVENTS
from xhs_pipeline.serve.auth import CLIENT, REVIEWER, Tokens
from xhs_pipeline.serve.demo import desk, render
from xhs_pipeline.serve.demo.mounted import create_demo
from xhs_pipeline.serve.demo.review import Review
from xhs_pipeline.serve.limits import Limits
from xhs_pipeline_tests.browsers import chromium
from xhs_pipeline_tests.demo_page import SECRET, call, demo_data, demo_page, judge, planted, state_of
from xhs_pipeline_tests.serving import REVIEWERS, STARTS_WITHIN, Service, open_store, serving


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path) -> Path:
    return demo_data(tmp_path_factory.mktemp("demo") / "data", untrained_model)


@pytest.fixture(scope="module")
def demo(data: Path) -> Iterator[Service]:
    with demo_page(data) as service:
        yield service


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
            assert status == 200 and "data" in told
            assert SECRET not in told and case_id not in told
    assert state_of(data, case_id) == before
    opening = next(d for d in behind if len(d["inputs"]) == 1)
    assert case_id in call(demo, "s", opening["id"], [REVIEWERS["han"]])[1], "with a token it tells"


def test_a_note_on_the_page_is_as_long_as_one_over_http_may_be(demo: Service) -> None:
    most = {
        c["props"].get("elem_id"): c["props"].get("max_length") for c in demo.ask("GET", "/config").body["components"]
    }
    assert most["x-appeal-note"] == most["x-note"] == 5000
    schemas = demo.ask("GET", "/openapi.json").body["components"]["schemas"]
    assert schemas["AppealIn"]["properties"]["note"]["maxLength"] == 5000


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
        "queue/join",
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


def test_a_post_is_answered_within_its_request_so_that_its_bytes_count_until_it_is_judged(demo: Service) -> None:
    config = demo.ask("GET", "/config").body
    assert not any(d["queue"] for d in config["dependencies"])
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    judges = next(d["id"] for d in config["dependencies"] if ids["x-body"] in d["inputs"])
    assert "x-verdict" in call(demo, "within", judges, ["", "好", "", []])[1]
    assert demo.ask("GET", "/gradio_api/queue/data?session_hash=within").status == 404


def test_of_what_was_sent_nothing_is_left_in_memory_once_it_is_answered(tmp_path: Path) -> None:
    raw, token = secrets.token_hex(16), secrets.token_hex(16)
    tokens = Tokens({REVIEWER: {hashlib.sha256(token.encode()).digest(): "han"}})
    with open_store(tmp_path) as store, TestClient(create_demo(tmp_path, store, tokens, Limits())) as client:
        config = client.get("/config").json()
        ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        sent = {ids["x-body"]: raw, ids["x-title"]: raw, ids["x-pictures"]: [raw], ids["x-token"]: token}
        sent |= {ids["x-note"]: raw, ids["x-appeal-note"]: raw}
        answers = [
            client.post(
                "/gradio_api/run/predict",
                json={"data": [sent.get(i) for i in d["inputs"]], "fn_index": d["id"], "session_hash": "s"},
            ).status_code
            for d in config["dependencies"]
        ]
        assert set(answers) == {200}
        sent.clear()
        assert [type(kept) for kept in holders(raw) + holders(token)] == []


def holders(text: str) -> list[Any]:
    """Every dictionary, list and tuple of this process that holds this text, but those of the callers."""
    gc.collect()
    found = []
    for thing in gc.get_objects():
        if type(thing) in (dict, list, tuple):  # other kinds may forbid to be looked into
            held = list(thing.values()) if type(thing) is dict else thing
            if any(type(value) is str and text in value for value in held):
                found.append(thing)
    return found


def test_pages_that_stay_open_hold_no_request_that_others_need(demo: Service) -> None:
    assert demo.ask("GET", "/config").body["connect_heartbeat"] is False
    assert demo.ask("GET", "/gradio_api/heartbeat/x").status == 404
    assert demo.ask("GET", "/gradio_api/queue/data?session_hash=x").status == 404


def test_what_is_too_much_at_once_is_said_in_chinese_and_the_others_are_judged(demo: Service) -> None:
    config = demo.ask("GET", "/config").body
    ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
    judges = next(d["id"] for d in config["dependencies"] if ids["x-body"] in d["inputs"])
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(call, demo, f"busy{n}", judges, ["", "好" * 500, "", []]) for n in range(8)]
    told = [answer.result()[1] for answer in asked]
    refused = [text for text in told if "排队的帖子已到上限" in text]
    assert 0 < len(refused) < 8 and all("x-verdict" in text for text in told if text not in refused)


def test_without_reviewers_or_a_model_the_page_says_how_to_mend_it_and_clients_with_tokens_log_in(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    token = "client-token-of-more-than-16-characters"
    with (
        serving(data, environment={"XHS_CLIENT_TOKENS": f"app={token}"}, command="demo") as demo,
        chromium() as browser,
    ):
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
    with open_store(data) as store:
        snapshot, removed = Snapshot("twice", "标题", "只能申诉一次"), Decision("v1", "p", "remove", "私域引流")
        decision_id = store.log_decision(snapshot, removed)
        assert desk.appeal(store, decision_id, "me", "")[1]
        told, taken = desk.appeal(store, decision_id, "me", "")
        assert not taken and "申诉没有受理：您已对这条决定提出过申诉" in told
        assert "找不到这条审核决定" in desk.appeal(store, None, "me", "")[0]


class LosesItsTables(AppealStore):
    """A store whose table of events cannot be read from right after a vote on."""

    def vote(self, *vote: Any) -> Any:
        state = super().vote(*vote)
        rename(self, EVENTS.name, "gone")
        return state


def rename(store: AppealStore, table: str, to: str) -> None:
    with sqlite3.connect(str(store.database.url.database)) as db:
        db.execute(f"ALTER TABLE {table} RENAME TO {to}")
    db.close()


def test_an_action_that_took_effect_is_not_called_off_when_only_the_reading_afterwards_fails(data: Path) -> None:
    case_id = planted(data, "投票之后读不出来的帖子", appellant="unread")
    tokens = Tokens({REVIEWER: {hashlib.sha256(b"han").digest(): "han"}})
    with open_store(data) as opened:
        store = LosesItsTables(opened.database, opened.policy, opened._key, opened.clock)
        made = Review(store, tokens).vote("han", case_id, "pass", None, "")
        rename(store, "gone", EVENTS.name)
    assert made.allowed and "已投票" in made.notice and "已经生效" in made.notice and "没有生效" not in made.notice
    assert state_of(data, case_id).state == "overturned"


def test_a_decision_is_shown_with_its_number_when_only_its_post_cannot_be_read(data: Path) -> None:
    removed = Decision("v1", "p", "remove", "私域引流", {"remove": 1.0}, {"私域引流": 1.0})
    with open_store(data) as store:
        decision_id = store.log_decision(Snapshot("unread", "标题", "记录之后读不出来"), removed)
        answer = vars(removed) | {
            "decision_id": decision_id, "confidence": 1.0, "calibrated": True, "expected_cost": 0.0,
            "identifiers": ["手机号"], "images_left_out": {},
        }  # fmt: skip

        class Logged:
            async def judge(self, posts: Any) -> list[dict[str, Any]]:
                return [answer]

        rename(store, DECISIONS.name, "gone")
        made = asyncio.run(desk.judge(cast(Any, Logged()), store, Limits(), "", "好", "", []))
        rename(store, "gone", DECISIONS.name)
    assert made.decision_id == decision_id and decision_id in made.html
    assert "决定已经记录" in made.html and "没有生效" not in made.html


def test_a_case_whose_author_had_it_erased_says_so(data: Path) -> None:
    with open_store(data) as store:
        removed = Decision("v1", "p", "remove", "私域引流")
        decision_id = store.log_decision(Snapshot("erased", "标题", "作者要求删除的帖子", author="gone"), removed)
        case_id = store.file_appeal(decision_id, "gone", "").case_id
        store.erase("gone")
        view = store.case(case_id)
    assert view.snapshot is None and "帖子已应作者要求删除" in render.case_post(view)
    assert "来自导入的文件" in render.case_post(replace(view, decision=None))


def test_reviewers_log_in_with_their_own_token_and_can_review_but_not_judge_or_appeal(tmp_path: Path) -> None:
    given = {"app": (CLIENT, secrets.token_hex(16)), "han": (REVIEWER, secrets.token_hex(16))}
    tokens = Tokens({role: {hashlib.sha256(t.encode()).digest(): name} for name, (role, t) in given.items()})
    told = {}
    with open_store(tmp_path) as store:
        for name, (_, token) in given.items():
            with TestClient(create_demo(tmp_path, store, tokens, Limits()), base_url="https://testserver") as client:
                assert (
                    client.post("/login", data={"username": name, "password": given["app"][1][:-1]}).status_code == 400
                )
                assert client.post("/login", data={"username": name, "password": token}).status_code == 200
                config = client.get("/config").json()
                ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
                for field in ("x-title", "x-appeal-note", "x-token"):
                    called = next(d for d in config["dependencies"] if ids[field] in d["inputs"])
                    sent = [given["han"][1] if i == ids["x-token"] else "" for i in called["inputs"]]
                    asked = {"data": sent, "fn_index": called["id"], "session_hash": "s"}
                    told[name, field] = client.post("/gradio_api/run/predict", json=asked).json()["data"][0]
    assert "han：没有等您复核的案件" in told["han", "x-token"]
    for field in ("x-title", "x-appeal-note"):
        assert "只能复核" in told["han", field] and "只能复核" not in told["app", field]
