"""A data folder with a champion, the service as a process of its own, and a client: what the tests of the service share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.artifacts import write_json
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.champion import Candidate, Move, read_champion, release
from xhs_pipeline.judgement.gate import Gate, GateVerdict
from xhs_pipeline.policy import load_policy
from xhs_pipeline.privacy import load_hmac_key

PASSED = GateVerdict("pass", (Gate("invalid_share", "pass", 0.0, 0.005, 100, "好"),))
REVIEWERS = {"han": "han-has-a-token-of-32-characters", "mei": "mei-has-another-of-32-characters"}
REVIEW_ON = {"XHS_REVIEWER_TOKENS": ",".join(f"{name}={token}" for name, token in REVIEWERS.items())}
STARTS_WITHIN = 120.0  # seconds, on a machine that does much else


def add_model(data: Path, model: Path, version: str, temperature: float = 1.0, min_confidence: float = 0.0) -> None:
    """A copy of `model` as a merged_model of the data folder, with a report that calibrates it."""
    folder = data / "merged_model" / version
    shutil.copytree(model, folder)
    write_json(folder / "manifest.json", {"version": version})
    report = data / "evaluation_report" / f"r-{version}"
    report.mkdir(parents=True)
    fitted = Calibration(temperature, min_confidence, 100, 0, 1.0, 0.9, None)
    write_json(report / "calibration.json", fitted.as_dict())


def put_in_use(data: Path, version: str) -> Move:
    """Release a model as the gate does."""
    releases = data / "released_model"
    before = read_champion(releases)
    candidate = Candidate(version, f"merged_model/{version}", f"r-{version}", load_policy().version)
    move = release(releases, candidate, PASSED, before.version if before else None)
    assert move.action == "released", move
    return move


def open_store(data: Path) -> AppealStore:
    return AppealStore.open(store_url(data), load_policy(), load_hmac_key(data))


@dataclass(frozen=True)
class Reply:
    """An answer: HTTP status, headers in small letters, and the body as JSON, or as bytes where it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Service:
    """`xhs-judge serve` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path):
        self.process, self.port, self._log = process, port, log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def connect(self, timeout: float = 120.0) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None, over: HTTPConnection | None = None
    ) -> Reply:
        """One request; `body` is bytes as they are, or anything else as JSON."""
        connection = over or self.connect()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        content = answer.read()
        if over is None:
            connection.close()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return Reply(
            answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(content) if is_json else content
        )

    def judge(self, over: HTTPConnection | None = None, **post: Any) -> Reply:
        return self.ask("POST", "/judge", post, over=over)

    def until_ready(self, version: str | None = None) -> None:
        """Wait until /health answers at all or, with a version, until that one judges."""
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the service ended:\n{self.log}"
            try:
                health = self.ask("GET", "/health").body
                if version is None or (health["status"] == "ok" and health["model_version"] == version):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready within {STARTS_WITHIN:g} s:\n{self.log}")

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of /metrics by name and labels."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.ask("GET", "/metrics").body.decode()
        families = text_string_to_metric_families(text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=STARTS_WITHIN)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    data: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    ready: str | None = None,
    threads: int | None = 1,
    command: str = "serve",
) -> Iterator[Service]:
    """The service over `data` until the block ends; `ready`: wait until this model version judges.

    threads: of torch; None as many as there are cores. command: of xhs-judge, "demo" for the service with its page.
    """
    port, log = free_port(), data / "service.log"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XHS_") and k != "OMP_NUM_THREADS"}
    if threads is not None:
        kept["OMP_NUM_THREADS"] = str(threads)
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "xhs_pipeline.serve.cli", command, "--port", str(port), *options],
            env=kept | {"XHS_DATA_DIR": str(data)} | dict(environment or {}),
            stdout=file, stderr=file,
        )  # fmt: skip
    service = Service(process, port, log)
    try:
        service.until_ready(ready)
        yield service
    finally:
        if process.poll() is None:
            service.kill()
