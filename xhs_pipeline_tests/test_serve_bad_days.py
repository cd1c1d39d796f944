"""What the service does when it is overloaded, killed, or cannot have its model or its store: nothing is lost, and it says so."""

import asyncio
import base64
import json
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from xhs_pipeline.judgement.champion import read_champion
from xhs_pipeline.judgement.in_use import RELEASES
from xhs_pipeline.serve.judging import Incoming, Judging
from xhs_pipeline.serve.limits import MB, Limits
from xhs_pipeline.serve.metrics import Metrics
from xhs_pipeline.serve.model import ModelInUse, load
from xhs_pipeline_tests.serving import REVIEWERS, Reply, Service, add_model, open_store, put_in_use, serving
from xhs_pipeline_tests.small import jpeg

CLIENT = "the-client-has-a-token-too"
PICTURE = base64.b64encode(jpeg(640, 480)).decode()
CLOSE = 1e-3  # of a probability: in another batch the padding differs, and sums are rounded otherwise


@pytest.fixture
def data(tmp_path: Path, untrained_model: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    add_model(data, untrained_model, "v1")
    return data


@pytest.fixture
def in_use(data: Path) -> Path:
    put_in_use(data, "v1")
    return data


def test_requests_that_give_up_before_cleaning_leave_neither_a_count_nor_their_images_behind(in_use: Path) -> None:
    model, metrics = ModelInUse(in_use, lambda moved: None), Metrics()
    champion = read_champion(in_use / RELEASES)
    assert champion is not None
    model.current = load(in_use, champion)
    posts = [Incoming(f"p-{n}", "标题", "正文", (base64.b64decode(PICTURE),)) for n in range(20)]

    def in_cleaning() -> float | None:
        return metrics.registry.get_sample_value("xhs_posts_in_cleaning")

    async def scenario(judging: Judging) -> None:
        asked = [judging.judge([post]) for post in posts]  # faster than the one worker starts
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ended} == {TimeoutError}
        assert in_cleaning() == 1, "only what has begun is still held"
        while in_cleaning():
            await asyncio.sleep(0.01)

    with open_store(in_use) as store:
        judging = Judging(model, store, Limits(clean_processes=1, request_seconds=0.1), metrics)
        try:
            asyncio.run(asyncio.wait_for(scenario(judging), 60))
        finally:
            judging.close()


class Clients:
    """Clients that judge one post after another until the block ends; `replies` are theirs, `lost` those without an answer."""

    def __init__(self, service: Service, count: int, posts: list[dict[str, Any]]):
        self.service, self._posts = service, posts
        self.replies: list[Reply] = []
        self.lost: list[OSError] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]

    def _run(self, n: int) -> None:
        connection = self.service.connect()
        while not self._stop.is_set():
            n += 1
            post = self._posts[n % len(self._posts)]
            try:
                if n % 3:
                    self.replies.append(self.service.judge(over=connection, **post))
                else:
                    several = {"posts": [post, self._posts[(n + 1) % len(self._posts)]]}
                    self.replies.append(self.service.ask("POST", "/judge/batch", several, over=connection))
            except OSError as error:
                self.lost.append(error)
                return

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, replies: int) -> None:
        end = time.monotonic() + 120
        while len(self.replies) < replies:
            assert time.monotonic() < end, Counter(reply.status for reply in self.replies)
            time.sleep(0.02)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        found = []
        for reply in self.replies:
            found += reply.body.get("results", [reply.body])
        return [one for one in found if "decision_id" in one]


# models that come and go


def test_the_service_starts_without_a_model_and_serves_the_first_that_is_released(data: Path) -> None:
    with serving(data) as service:
        while "being loaded" in (health := service.ask("GET", "/health")).body["model_problem"]:
            time.sleep(0.1)
        assert (health.status, health.body["status"], health.body["store"]) == (503, "not_ready", "ok")
        assert (
            "champion.json: missing, so no model is in use; materialise released_model" in health.body["model_problem"]
        )
        refused = service.judge(body="好")
        assert (refused.status, refused.body["error"]) == (503, "no_model")
        assert "materialise released_model" in refused.body["message"]
        told = health.body["model_problem"] + refused.body["message"]
        assert str(data) not in told and f"{data}/released_model/champion.json: missing" in service.log
        put_in_use(data, "v1")
        service.until_ready("v1")
        assert service.judge(body="好").status == 200


def test_a_champion_that_cannot_be_loaded_leaves_the_one_before_it_in_use_and_health_says_why(
    in_use: Path, untrained_model: Path
) -> None:
    add_model(in_use, untrained_model, "broken")
    (in_use / "merged_model" / "broken" / "moderation.json").unlink()
    with serving(in_use, ready="v1") as service:
        put_in_use(in_use, "broken")
        end = time.monotonic() + 60
        while (health := service.ask("GET", "/health").body)["model_problem"] is None:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "merged_model/broken/moderation.json: missing" in health["model_problem"] and health["status"] == "ok"
        assert str(in_use) not in json.dumps(health) and f"{in_use}/merged_model/broken/moderation" in service.log
        assert service.judge(body="好").body["model_version"] == "v1"


def test_a_champion_exchanged_under_load_costs_no_request_and_mixes_no_answer(
    in_use: Path, untrained_model: Path
) -> None:
    add_model(in_use, untrained_model, "v2", temperature=2.5)
    posts = [{"post_id": f"p{n}", "body": "周末公园散步" * (n % 9 + 1), "images": [PICTURE] * (n % 4 == 0)} for n in range(24)]  # fmt: skip
    with serving(in_use, ready="v1") as service:
        known: dict[str, dict[str, Any]] = {}
        for version in ("v1", "v2"):
            if version == "v2":
                put_in_use(in_use, "v2")
                service.until_ready("v2")
            results = service.ask("POST", "/judge/batch", {"posts": posts}).body["results"]
            known[version] = {result["post_id"]: result["category_probs"] for result in results}
        with Clients(service, 8, posts) as clients:
            for turn in range(4):
                clients.wait_for(60 * (turn + 1))
                version = ("v1", "v2")[turn % 2]
                put_in_use(in_use, version)
                service.until_ready(version)
            clients.wait_for(300)
    assert clients.lost == [] and {reply.status for reply in clients.replies} == {200}
    for reply in clients.replies:
        assert len({result["model_version"] for result in reply.body.get("results", [])}) <= 1
    assert {decision["model_version"] for decision in clients.decisions} == {"v1", "v2"}
    for decision in clients.decisions:
        expected = known[decision["model_version"]][decision["post_id"]]
        assert decision["category_probs"] == pytest.approx(expected, abs=CLOSE)


# too much


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path) -> Iterator[Service]:
    """A service with small limits whose clients need a token."""
    data = tmp_path_factory.mktemp("narrow")
    add_model(data, untrained_model, "v1")
    put_in_use(data, "v1")
    limits = [
        "--body-mb",
        "1",
        "--body-seconds",
        "1",
        "--request-posts",
        "4",
        "--waiting-posts",
        "4",
        "--requests",
        "8",
    ]
    tokens = {"XHS_CLIENT_TOKENS": f"web={CLIENT}", "XHS_REVIEWER_TOKENS": f"han={REVIEWERS['han']}"}
    with serving(data, *limits, environment=tokens, ready="v1") as service:
        yield service


def test_overload_is_answered_429_with_a_time_to_try_again_and_nothing_else_fails(narrow: Service) -> None:
    replies: list[Reply] = []

    def ask() -> None:
        connection = narrow.connect()
        for _ in range(4):
            posts = [{"body": "散步" * 30, "images": [PICTURE]}] * 4
            replies.append(narrow.ask("POST", "/judge/batch", {"posts": posts}, token=CLIENT, over=connection))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = Counter(reply.status for reply in replies)
    assert set(statuses) == {200, 429} and statuses.total() == 48
    assert all(1 <= int(r.headers["retry-after"]) <= 60 for r in replies if r.status == 429)
    assert narrow.ask("POST", "/judge", {"body": "好"}, token=CLIENT).status == 200


def test_a_flood_of_appeals_is_turned_away_too_and_health_still_answers(narrow: Service) -> None:
    statuses: Counter[int] = Counter()
    appeal = {"decision_id": "0" * 32, "appellant": "u1"}

    def ask() -> None:
        connection = narrow.connect()
        for _ in range(5):
            statuses[narrow.ask("POST", "/appeals", appeal, token=CLIENT, over=connection).status] += 1
            assert narrow.ask("GET", "/health", over=connection).status == 200

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {404, 429} and statuses.total() == 120


def test_a_request_that_is_too_large_is_turned_away_without_being_kept(narrow: Service) -> None:
    large = b'{"body": "' + b"x" * 20 * 2**20 + b'"}'
    refused = narrow.ask("POST", "/judge", large, token=CLIENT)
    assert (refused.status, refused.body["error"]) == (413, "body_too_large")
    connection = narrow.connect()
    connection.request(
        "POST", "/judge", iter([large[:600_000], large[600_000:]]), {"Authorization": f"Bearer {CLIENT}"}
    )
    assert connection.getresponse().status == 413, "sent in chunks, without saying how much comes"
    many = narrow.ask("POST", "/judge/batch", {"posts": [{"body": "好"}] * 5}, token=CLIENT)
    assert (many.status, many.body["error"]) == (413, "too_many_posts")


def test_a_body_that_does_not_come_is_not_waited_for(narrow: Service) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=60) as slow:
        slow.sendall(b"POST /judge HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in slow.recv(4096).split(b"\r\n")[0]


def test_headers_that_do_not_end_are_cut_off_before_they_fill_the_memory(narrow: Service) -> None:
    process = psutil.Process(narrow.process.pid)
    before, sent = process.memory_info().rss, 0
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=60) as endless, suppress(ConnectionError):
        endless.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        while sent < 128 * MB:
            endless.sendall(b"x" * MB)
            sent += MB
    grown = process.memory_info().rss - before
    assert sent < 32 * MB and grown < 16 * MB, f"{sent / MB:.0f} MB were taken, memory grew by {grown / MB:.0f} MB"
    assert narrow.ask("POST", "/judge", {"body": "好"}, token=CLIENT).status == 200


def closed(connection: socket.socket, more: bytes) -> bool:
    """Whether the other side has closed the connection, asked by sending `more`."""
    try:
        connection.sendall(more)
        return connection.recv(65536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("answered", "first", "more"), [(0, b"", b""), (0, b"GET /", b"x"), (1, b"GET / HTTP/1.1\r\nX: ", b"x")]
)
def test_headers_that_trickle_or_never_come_are_not_waited_for_and_others_are_answered(
    narrow: Service, answered: int, first: bytes, more: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=60) as slow:
        for _ in range(answered):
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        slow.settimeout(0.2)
        slow.sendall(first)
        end = time.monotonic() + 20  # --body-seconds is 1
        while not closed(slow, more):
            assert time.monotonic() < end
            assert narrow.ask("GET", "/health").status == 200


def test_with_client_tokens_set_nothing_is_judged_or_filed_without_one(narrow: Service) -> None:
    post = {"body": "好"}
    assert narrow.ask("POST", "/judge", post).status == 401
    assert narrow.ask("POST", "/judge", post, token="x" * 30).status == 401
    other_role = narrow.ask("POST", "/judge", post, token=REVIEWERS["han"])
    assert (other_role.status, other_role.body["error"]) == (403, "wrong_role")
    assert narrow.ask("POST", "/appeals", {"decision_id": "0" * 32, "appellant": "u"}).status == 401
    assert narrow.ask("GET", "/appeals", token=CLIENT).status == 403
    assert narrow.ask("GET", "/health").status == 200


# endings


def half_written(data: Path) -> list[str]:
    """What is wrong with the store's file: pages, decisions without a snapshot, snapshots without their images."""
    with sqlite3.connect(data / "appeals.sqlite3") as db:
        wrong = [str(row[0]) for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        wrong += [str(row) for row in db.execute("PRAGMA foreign_key_check")]
        wrong += [
            f"{post_id}: {images} images"
            for post_id, images in db.execute(
                "SELECT s.post_id, count(i.position) FROM snapshots s LEFT JOIN snapshot_images i USING (snapshot_id) "
                "GROUP BY s.snapshot_id"
            )
            if images != (1 if post_id.startswith("pictured") else 0)
        ]
    return wrong


def stored(data: Path) -> set[str]:
    with sqlite3.connect(data / "appeals.sqlite3") as db:
        return {row[0] for row in db.execute("SELECT decision_id FROM decisions")}


def test_a_service_that_is_killed_leaves_no_half_decision_and_the_next_one_goes_on(in_use: Path) -> None:
    posts = [{"post_id": f"pictured-{n}", "body": f"散步{n}", "images": [PICTURE]} for n in range(40)]
    posts += [{"post_id": f"text-{n}", "body": f"公园{n}"} for n in range(40)]
    with serving(in_use, ready="v1") as service:
        with Clients(service, 8, posts) as clients:
            clients.wait_for(40)
            service.kill()
        assert clients.lost, "requests were under way"
        answered = {decision["decision_id"] for decision in clients.decisions}
        assert half_written(in_use) == [] and answered <= stored(in_use)
    with serving(in_use, ready="v1") as service:
        again = service.judge(**posts[0])
        assert again.status == 200 and answered < stored(in_use)
        # and a gentle end: what has begun is answered
        with Clients(service, 8, posts) as clients:
            clients.wait_for(20)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(timeout=90) in (0, -signal.SIGTERM)
        assert {reply.status for reply in clients.replies} == {200}
        answered = {decision["decision_id"] for decision in clients.decisions}
        assert half_written(in_use) == [] and answered <= stored(in_use)
        assert "Application shutdown complete" in service.log and "Traceback" not in service.log


def test_a_request_that_had_begun_when_the_signal_came_gets_its_answer(in_use: Path) -> None:
    with serving(in_use, ready="v1") as service:
        replies: list[Reply] = []
        posts = [{"body": "散步" * 40, "images": [PICTURE] * 3}] * 60
        asked = threading.Thread(target=lambda: replies.append(service.ask("POST", "/judge/batch", {"posts": posts})))
        asked.start()
        while service.metrics()["xhs_posts_waiting", ()] == 0:
            time.sleep(0.005)
        service.process.send_signal(signal.SIGTERM)
        asked.join()
        assert replies[0].status == 200 and len(replies[0].body["results"]) == 60
        service.process.wait(timeout=90)


def test_without_a_trace_there_is_no_decision(in_use: Path) -> None:
    with serving(in_use, ready="v1") as service:
        assert service.judge(body="好").status == 200
        before = stored(in_use)
        with sqlite3.connect(in_use / "appeals.sqlite3") as db:
            db.execute("ALTER TABLE decisions RENAME TO gone")
        refused = service.judge(body="好")
        assert (refused.status, refused.body["error"]) == (503, "store_unavailable")
        assert "verdict" not in refused.body and "nothing was written" in service.log
        assert service.metrics()["xhs_store_failures_total", ()] == 1
        with sqlite3.connect(in_use / "appeals.sqlite3") as db:
            db.execute("ALTER TABLE gone RENAME TO decisions")
        assert service.judge(body="好").status == 200
        assert len(stored(in_use)) == len(before) + 1


def test_an_answer_that_takes_too_long_is_no_decision_and_review_is_off_without_tokens(in_use: Path) -> None:
    with serving(in_use, "--request-seconds", "0.001", ready="v1") as service:
        late = service.judge(body="好")
        assert (late.status, late.body["error"]) == (504, "too_slow")
        assert stored(in_use) == set()
        for method, path in (("GET", "/appeals"), ("GET", "/appeals/x"), ("POST", "/appeals/x/vote")):
            off = service.ask(method, path, {"verdict": "pass", "category": "正常"}, token="x" * 30)
            assert (off.status, off.body["error"]) == (403, "review_off") and "XHS_REVIEWER_TOKENS" in off.body[
                "message"
            ]
