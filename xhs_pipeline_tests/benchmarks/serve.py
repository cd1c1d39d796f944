"""The service under load: dynamic batching against one post at a time, and a soak in which the champion is exchanged.

    python -m xhs_pipeline_tests.benchmarks.serve [--seconds 20] [--rounds 3] [--clients 16]
    python -m xhs_pipeline_tests.benchmarks.serve --soak 600

Real service, real HTTP, an untrained model of the embedded size (profile tiny) whose tokenizer is built of data/sample, as the
pipeline's own is of its posts: the answers mean nothing, the work is the same. Every client sends its next post when it has the
answer to the last one; posts are texts of 20 to 400 characters, every tenth with a picture of 640 x 480. Both settings run in
turns on the same machine, `--rounds` times, each in a service of its own; `--batch-posts 1` is one post at a time, with everything
else alike. Clients are threads of one other process with raw sockets and requests made beforehand: they share the machine with
the service, and take little of it.

--soak: full load while the champion is exchanged ten times, between two models whose probabilities for the same post differ.
A response is mixed when its probabilities are not those that its model_version gives for that post (asked of each model before),
or when a batch names two models. Memory is the resident set of the service and of its workers, over time; flat means that it
is at most FLAT times as much in the last third as in the first. Exit status 1 when a claim does not hold.
"""

import argparse
import base64
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from xhs_pipeline.profile import load_profile
from xhs_pipeline_tests.benchmarks.judge_batch import body
from xhs_pipeline_tests.serving import Service, add_model, put_in_use, serving
from xhs_pipeline_tests.small import jpeg, model_folder

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
MODELS = {"cold": 1.0, "warm": 2.5}  # temperatures, which make the same scores other probabilities
SWITCHES = 10
CLOSE = 2e-3  # of a probability: in another batch the padding differs, and sums are rounded otherwise
FLAT = 1.05
Known = dict[str, dict[str, dict[str, float]]]  # probabilities of categories by model version and post


@dataclass
class Load:
    """What clients saw: seconds of every answer, statuses, and responses that were mixed. wall: seconds altogether."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0


def posts(count: int, seed: int, pictured: float = 0.1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    picture = base64.b64encode(jpeg(640, 480)).decode()
    return [
        {"post_id": f"p{n}", "title": "标题", "body": body(rng)[:400], "images": [picture] * (rng.random() < pictured)}
        for n in range(count)
    ]


def requests(sent: Sequence[dict[str, Any]], batches: bool) -> list[bytes]:
    """HTTP requests, one a post; with `batches` every eighth asks for four posts, whose answers must all be one model's."""
    made = []
    for n, post in enumerate(sent):
        batch = batches and n % 8 == 0
        path = "/judge/batch" if batch else "/judge"
        asked = {"posts": [sent[(n + i) % len(sent)] for i in range(4)]} if batch else post
        content = json.dumps(asked, ensure_ascii=False).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        made.append(head.encode() + content)
    return made


def answered(connection: socket.socket) -> tuple[str, bytes]:
    """Status and content of the next answer. Raises OSError when the connection ends before it."""
    got = bytearray()
    while (end := got.find(b"\r\n\r\n")) < 0 or len(got) < end + 4 + (length := _length(got[:end])):
        part = connection.recv(65536)
        if not part:
            raise ConnectionResetError("the service closed the connection")
        got += part
    return got[9:12].decode(), bytes(got[end + 4 : end + 4 + length])


def _length(head: bytearray) -> int:
    return int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])


def client(service: Service, asked: Sequence[bytes], stop: threading.Event, load: Load, known: Known) -> None:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=120)
    n = 0
    while not stop.is_set():
        began = time.monotonic()
        try:
            connection.sendall(asked[n % len(asked)])
            status, content = answered(connection)
        except OSError as error:
            status, content = type(error).__name__, b""
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=120)
        n += 1
        load.seconds.append(time.monotonic() - began)
        load.statuses[status] += 1
        if status == "200" and known:
            reply = json.loads(content)
            answers = reply.get("results", [reply])
            load.versions.update(answer["model_version"] for answer in answers)
            load.mixed += _mixed(answers, known)


def _mixed(answers: Sequence[dict[str, Any]], known: Known) -> bool:
    if len({answer["model_version"] for answer in answers}) > 1:
        return True
    for answer in answers:
        expected = known[answer["model_version"]][answer["post_id"]]
        if max(abs(answer["category_probs"][name] - p) for name, p in expected.items()) > CLOSE:
            return True
    return False


def run_load(
    service: Service, clients: int, seconds: float, seed: int, known: Known, between: Callable[[], None] | None = None
) -> Load:
    """What the clients saw in `seconds`, or while `between` ran."""
    stop, load = threading.Event(), Load()
    shared = requests(posts(200, seed), batches=True) if known else None
    threads = [
        threading.Thread(
            target=client, args=(service, shared or requests(posts(200, seed + n), batches=False), stop, load, known)
        )
        for n in range(clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    between() if between else time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    load.wall = time.monotonic() - began
    return load


def quantile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(int(len(seconds) * share), len(seconds) - 1)]


def folder_with_models(work: Path) -> Path:
    (work / "model").mkdir()
    texts = [line for file in SAMPLE.glob("posts-*.jsonl") for line in file.read_text(errors="replace").splitlines()]
    profile = load_profile("tiny", {"tiny_pretrain_epochs": 0})
    model, data = model_folder(work / "model", profile, [text[:500] for text in texts]), work / "data"
    for version, temperature in MODELS.items():
        add_model(data, model, version, temperature)
    put_in_use(data, "cold")
    return data


def cpu_seconds(service: Service) -> float:
    one = psutil.Process(service.process.pid)
    return sum(sum(p.cpu_times()[:2]) for p in [one, *one.children()])


def compare(options: argparse.Namespace, data: Path) -> bool:
    print(
        "| posts at once | round | posts/s | p50 ms | p99 ms | CPU ms a post | mean batch | failed |\n|---|---|---|---|---|---|---|---|"
    )
    rates: dict[int, list[float]] = {1: [], options.batch_posts: []}
    costs: dict[int, list[float]] = {1: [], options.batch_posts: []}
    slowest: list[float] = []
    for number in range(options.rounds):
        for at_once in list(rates)[:: -1 if number % 2 else 1]:
            with serving(data, "--batch-posts", str(at_once), ready="cold", threads=options.threads) as service:
                run_load(service, options.clients, min(2.0, options.seconds), 1000, {})  # warm
                cpu, before = cpu_seconds(service), service.metrics()
                load = run_load(service, options.clients, options.seconds, 1, {})
                cpu, after = cpu_seconds(service) - cpu, service.metrics()
            done = load.statuses["200"]
            rates[at_once].append(done / load.wall)
            costs[at_once].append(1000 * cpu / done)
            batches = after["xhs_batch_posts_count", ()] - before["xhs_batch_posts_count", ()]
            size = (after["xhs_batch_posts_sum", ()] - before["xhs_batch_posts_sum", ()]) / batches
            p50, p99 = (1000 * quantile(load.seconds, q) for q in (0.5, 0.99))
            slowest += [p99] * (at_once > 1)
            failed = load.statuses.total() - done
            print(
                f"| {at_once} | {number + 1} | {done / load.wall:.1f} | {p50:.0f} | {p99:.0f} | {1000 * cpu / done:.1f} | {size:.1f} | {failed} |",
                flush=True,
            )
    ratios = [many / one for one, many in zip(*rates.values(), strict=True)]
    saved = [one / many for one, many in zip(*costs.values(), strict=True)]
    print(
        f"\n{options.clients} clients: batching gives {_times(ratios)} the posts/s of one at a time, round by round, "
        f"and takes {_times(saved)} less CPU a post; p99 {min(slowest):.0f} to {max(slowest):.0f} ms.\n"
        f"{_holds(min(ratios) >= 2)}: at least 2x in every round"
    )
    return min(ratios) >= 2


def _times(ratios: Sequence[float]) -> str:
    return " / ".join(f"{ratio:.2f}x" for ratio in ratios)


def _holds(claim: bool) -> str:
    return "holds" if claim else "DOES NOT HOLD"


def ask_each_model(service: Service, data: Path) -> Known:
    """What each model says of each post, the one that was in use first last."""
    known: Known = {}
    for version in ("warm", "cold"):
        put_in_use(data, version)
        service.until_ready(version)
        asked = posts(200, 1)
        replies = [service.ask("POST", "/judge/batch", {"posts": asked[i : i + 20]}) for i in range(0, 200, 20)]
        known[version] = {a["post_id"]: a["category_probs"] for r in replies for a in r.body["results"]}
    return known


def soak(options: argparse.Namespace, data: Path) -> bool:
    seconds, memory = options.soak, []
    with serving(data, "--batch-posts", str(options.batch_posts), ready="cold", threads=options.threads) as service:
        known = ask_each_model(service, data)
        process, before = psutil.Process(service.process.pid), service.metrics()["xhs_model_switches_total", ()]
        print("| s | service MB | workers MB | switches |\n|---|---|---|---|", flush=True)

        def switching() -> None:
            began, steps = time.monotonic(), 2 * SWITCHES + 1
            for number in range(steps):
                time.sleep(max(0.0, began + seconds * (number + 1) / steps - time.monotonic()))
                own, workers = (
                    sum(p.memory_info().rss for p in group) / 2**20 for group in ([process], process.children())
                )
                memory.append(own + workers)
                print(
                    f"| {time.monotonic() - began:.0f} | {own:.0f} | {workers:.0f} | {number // 2 + number % 2} |",
                    flush=True,
                )
                if number % 2 == 0 and number < 2 * SWITCHES:
                    put_in_use(data, "warm" if number % 4 == 0 else "cold")

        cpu = cpu_seconds(service)
        load = run_load(service, options.clients, seconds, 1, known, switching)
        cpu = cpu_seconds(service) - cpu
        switched = service.metrics()["xhs_model_switches_total", ()] - before
    p50, p99 = (1000 * quantile(load.seconds, q) for q in (0.5, 0.99))
    waited = sum(load.seconds) / (load.wall * options.clients)
    failed = load.statuses.total() - load.statuses["200"]
    third = len(memory) // 3
    grown = mean(memory[-third:]) / mean(memory[:third])
    print(
        f"\n{load.wall:.0f} s, {load.statuses.total()} requests ({load.statuses.total() / load.wall:.1f}/s), "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, {cpu / load.wall:.2f} of {psutil.cpu_count()} cores.\n"
    )
    claims = {
        f"full load: {options.clients} clients waited for an answer {100 * waited:.1f}% of the time": waited > 0.95,
        f"the champion was exchanged {switched:.0f} times, posts judged by each: {dict(load.versions)}": switched == SWITCHES
        and set(load.versions) == set(MODELS),
        f"failed responses: {failed} {dict(load.statuses)}": failed == 0,
        f"responses of mixed versions: {load.mixed}": load.mixed == 0,
        f"memory in the last third is {grown:.3f} of that in the first, peak {max(memory):.0f} MB": grown <= FLAT,
    }  # fmt: skip
    for claim, true in claims.items():
        print(f"{_holds(true)}: {claim}")
    return all(claims.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-posts", type=int, default=32)
    parser.add_argument("--threads", type=int, help="of torch; as many as cores without it")
    parser.add_argument("--soak", type=float, help="seconds; instead of the comparison")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = folder_with_models(Path(folder))
        sys.exit(0 if (soak if options.soak else compare)(options, data) else 1)


if __name__ == "__main__":
    main()
