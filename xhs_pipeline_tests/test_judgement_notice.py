"""Releases are told to a real HTTP server: signed, in order, and each once that the server took."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from xhs_pipeline.automation import release_sensor
from xhs_pipeline.judgement.champion import Candidate, read_history, release
from xhs_pipeline.judgement.gate import Gate, GateVerdict
from xhs_pipeline.judgement.notice import SECRET, URL, tell, webhook
from xhs_pipeline.resources import Workspace

KEY = "a secret of at least sixteen bytes"
PASSED = GateVerdict("pass", (Gate("invalid_share", "pass", 0.0, 0.005, 100, "好"),))
FAILED = GateVerdict("fail", (Gate("invalid_share", "fail", 0.1, 0.005, 100, "差"),))


class Receiver:
    """A server that verifies signatures; `answers` are its next status codes, 200 when there are none."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.asked = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                right = "sha256=" + hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
                status = receiver.answers.pop(0) if receiver.answers else 200
                if not hmac.compare_digest(self.headers["X-XHS-Signature"], right):
                    status = 401
                if status == 200:
                    receiver.taken.append(json.loads(body))  # before the answer: the sender goes on when it has it
                self.send_response(status)
                if status in (301, 302, 303):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.taken.append({"action": "redirected"})
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook?token=t0ken"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    server = Receiver()
    monkeypatch.setenv(URL, server.url)
    monkeypatch.setenv(SECRET, KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "released_model"


def judged(folder: Path, version: str, verdict: GateVerdict) -> None:
    folder.mkdir(exist_ok=True)
    (folder.parent / "merged_model" / version).mkdir(parents=True, exist_ok=True)
    release(folder, Candidate(version, f"merged_model/{version}", f"r-{version}", "p"), verdict, "v1" if version != "v1" else None)  # fmt: skip


def tick(folder: Path, cursor: str | None) -> tuple[str, str]:
    """The reason and the cursor of one tick of the sensor."""
    workspace = Workspace(data_dir=str(folder.parent), source="")
    with dg.build_sensor_context(cursor=cursor, resources={"workspace": workspace}) as context:
        reason = release_sensor(context)
        assert isinstance(reason, dg.SkipReason)
        return str(reason.skip_message), str(context.cursor)


def test_what_happens_after_the_first_tick_is_told_once_signed_and_in_order(receiver: Receiver, folder: Path) -> None:
    judged(folder, "v1", PASSED)
    reason, cursor = tick(folder, None)
    assert (reason, cursor, receiver.taken) == ("0 told", "1", [])  # the past is not told
    judged(folder, "v2", FAILED)
    judged(folder, "v3", PASSED)
    assert tick(folder, cursor) == ("2 told", "3")
    assert [(row["action"], row["version"]) for row in receiver.taken] == [("held", "v2"), ("released", "v3")]
    assert len({row["delivery"] for row in receiver.taken}) == 2 and receiver.taken[0]["reason"]
    assert tick(folder, "3") == ("0 told", "3") and len(receiver.taken) == 2


@pytest.mark.parametrize("answer", [500, 404, 302])
def test_what_was_not_taken_turns_the_tick_red_and_a_later_tick_tells_the_rest_alone(
    receiver: Receiver, folder: Path, answer: int
) -> None:
    for version, verdict in (("v1", PASSED), ("v2", FAILED), ("v3", FAILED)):
        judged(folder, version, verdict)
    receiver.answers = [200, answer, answer]
    assert tick(folder, "1") == (f"1 told; 1 wait: the receiver answered {answer}", "2")
    with pytest.raises(RuntimeError, match=f"1 of 3 lines .*{answer}"):
        tick(folder, "2")
    assert tick(folder, "2") == ("1 told", "3")
    assert [row["version"] for row in receiver.taken] == ["v2", "v3"] and receiver.asked == 4


def test_without_an_address_nobody_is_told_and_the_history_is_not_read(
    receiver: Receiver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(folder, "v1", PASSED)
    monkeypatch.delenv(URL)
    assert "not set" in tick(folder, "0")[0] and receiver.asked == 0


def test_a_wrong_secret_is_refused_by_the_receiver(receiver: Receiver, folder: Path) -> None:
    judged(folder, "v1", PASSED)
    hook = webhook({URL: receiver.url, SECRET: "another secret of enough bytes"})
    assert hook is not None
    told = tell(hook, read_history(folder), 0)
    assert (told.lines, told.problem, receiver.taken) == (0, "the receiver answered 401", [])


def test_a_receiver_that_is_not_there_is_named_without_its_address(folder: Path, receiver: Receiver) -> None:
    judged(folder, "v1", PASSED)
    hook = webhook({URL: receiver.url, SECRET: KEY})
    receiver.close()
    assert hook is not None
    told = tell(hook, read_history(folder), 0, timeout=2)
    assert told.lines == 0 and told.problem and "not reached" in told.problem and "t0ken" not in told.problem


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "http://", "host"])
def test_an_address_or_a_secret_that_will_not_do_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match=URL) as caught:
        webhook({URL: url, SECRET: KEY})
    assert url not in str(caught.value)
    with pytest.raises(ValueError, match=SECRET):
        webhook({URL: "https://host/x", SECRET: "short"})
