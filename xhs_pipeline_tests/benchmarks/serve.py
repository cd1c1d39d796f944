"""The service under load: dynamic batching against one post at a time, and a soak in which the champion is exchanged.

    python -m xhs_pipeline_tests.benchmarks.serve [--seconds 20] [--rounds 3] [--clients 16]
    python -m xhs_pipeline_tests.benchmarks.serve --soak 600

Real service, real HTTP, an untrained model of the embedded size (profile tiny): the answers mean nothing, the work is the same.
Every client sends its next post when it has the answer to the last one; posts are texts of 20 to 400 characters, every
tenth with a picture of 640 x 480. Both settings run in turns on the same machine, `--rounds` times, each in a service of its own;
`--batch-posts 1` is one post at a time, with everything else alike. Clients run in one process of their own (threads), so they
share the machine with the service.

--soak: full load while the champion is exchanged ten times, between two models whose probabilities for the same post differ.
A response is mixed when its probabilities are not those that its model_version gives for that post (asked of each model before),
or when a batch names two models. Memory is the resident set of the service and of its workers, over time.
"""

import argparse
import base64
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from xhs_pipeline.profile import load_profile
from xhs_pipeline_tests.benchmarks.judge_batch import body
from xhs_pipeline_tests.serving import Service, add_model, put_in_use, serving
from xhs_pipeline_tests.small import jpeg, model_folder

MODELS = {"cold": 1.0, "warm": 2.5}  # temperatures, which make the same scores other probabilities
SWITCHES = 10
CLOSE = 2e-3  # of a probability: in another batch the padding differs, and sums are rounded otherwise


@dataclass
class Load:
    """What clients saw: seconds of every answer, statuses, and responses that were mixed."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    versions: Counter[str] = field(default_factory=Counter)


def posts(count: int, seed: int, pictured: float = 0.1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    picture = base64.b64encode(jpeg(640, 480)).decode()
    return [
        {"post_id": f"p{n}", "title": "标题", "body": body(rng)[:400], "images": [picture] * (rng.random() < pictured)}
        for n in range(count)
    ]


def client(
    service: Service, sent: Sequence[dict[str, Any]], stop: threading.Event, load: Load, known: dict[str, Any]
) -> None:
    connection = service.connect()
    n = 0
    while not stop.is_set():
        post = sent[n % len(sent)]
        n += 1
        began = time.monotonic()
        try:
            if known and n % 8 == 0:  # a batch, whose answers must all be one model's
                chosen = [sent[(n + i) % len(sent)] for i in range(4)]
                reply = service.ask("POST", "/judge/batch", {"posts": chosen}, over=connection)
                answers = reply.body.get("results", [])
            else:
                reply = service.judge(over=connection, **post)
                answers = [reply.body]
            status = str(reply.status)
        except OSError as error:
            status, answers = type(error).__name__, []
            connection = service.connect()
        load.seconds.append(time.monotonic() - began)
        load.statuses[status] += 1
        if status == "200" and known:
            load.versions.update(answer["model_version"] for answer in answers)
            load.mixed += _mixed(answers, known)


def _mixed(answers: Sequence[dict[str, Any]], known: dict[str, Any]) -> bool:
    if len({answer["model_version"] for answer in answers}) > 1:
        return True
    for answer in answers:
        expected = known[answer["model_version"]][answer["post_id"]]
        if max(abs(answer["category_probs"][name] - p) for name, p in expected.items()) > CLOSE:
            return True
    return False


def run_load(
    service: Service, clients: int, seconds: float, seed: int, known: dict[str, Any], between: Any = None
) -> tuple[Load, float]:
    """(what the clients saw, wall seconds)."""
    stop, load = threading.Event(), Load()
    shared = posts(200, seed) if known else None
    threads = [
        threading.Thread(target=client, args=(service, shared or posts(200, seed + n), stop, load, known))
        for n in range(clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    if between:
        between()
    else:
        time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return load, time.monotonic() - began


def quantile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(int(len(seconds) * share), len(seconds) - 1)]


def folder_with_models(work: Path) -> Path:
    (work / "model").mkdir()
    model, data = model_folder(work / "model", load_profile("tiny")), work / "data"
    for version, temperature in MODELS.items():
        add_model(data, model, version, temperature)
    put_in_use(data, "cold")
    return data


def cpu_seconds(service: Service) -> float:
    one = psutil.Process(service.process.pid)
    return sum(sum(p.cpu_times()[:2]) for p in [one, *one.children()])


def compare(options: argparse.Namespace, data: Path) -> None:
    print(
        "| posts at once | round | posts/s | p50 ms | p99 ms | CPU ms a post | mean batch | failed |\n|---|---|---|---|---|---|---|---|"
    )
    rates: dict[int, list[float]] = {1: [], options.batch_posts: []}
    for number in range(options.rounds):
        for at_once in rates:
            with serving(data, "--batch-posts", str(at_once), ready="cold", threads=options.threads) as service:
                run_load(service, options.clients, min(2.0, options.seconds), 1000, {})  # warm
                cpu, before = cpu_seconds(service), service.metrics()
                load, wall = run_load(service, options.clients, options.seconds, 1, {})
                cpu, after = cpu_seconds(service) - cpu, service.metrics()
            done = load.statuses["200"]
            rates[at_once].append(done / wall)
            batches = after["xhs_batch_posts_count", ()] - before["xhs_batch_posts_count", ()]
            size = (after["xhs_batch_posts_sum", ()] - before["xhs_batch_posts_sum", ()]) / batches
            p50, p99 = (1000 * quantile(load.seconds, q) for q in (0.5, 0.99))
            failed = load.statuses.total() - done
            print(
                f"| {at_once} | {number + 1} | {done / wall:.1f} | {p50:.0f} | {p99:.0f} | {1000 * cpu / done:.1f} | {size:.1f} | {failed} |",
                flush=True,
            )
    ratios = [many / one for one, many in zip(*rates.values(), strict=True)]
    print(f"\nBatching is {' / '.join(f'{r:.2f}x' for r in ratios)} one at a time, round by round.")


def soak(options: argparse.Namespace, data: Path) -> None:
    seconds = options.soak
    with serving(data, "--batch-posts", str(options.batch_posts), ready="cold", threads=options.threads) as service:
        known: dict[str, Any] = {}
        for version in ("warm", "cold"):
            put_in_use(data, version)
            service.until_ready(version)
            asked = posts(200, 1)
            replies = [service.ask("POST", "/judge/batch", {"posts": asked[i : i + 20]}) for i in range(0, 200, 20)]
            known[version] = {a["post_id"]: a["category_probs"] for r in replies for a in r.body["results"]}
        process = psutil.Process(service.process.pid)
        print("| s | service MB | workers MB | switches |\n|---|---|---|---|", flush=True)

        def switching() -> None:
            began = time.monotonic()
            for number in range(2 * SWITCHES + 1):
                time.sleep(max(0.0, began + seconds * (number + 1) / (2 * SWITCHES + 1) - time.monotonic()))
                workers = sum(c.memory_info().rss for c in process.children()) / 2**20
                print(
                    f"| {time.monotonic() - began:.0f} | {process.memory_info().rss / 2**20:.0f} | {workers:.0f} | {number // 2 + number % 2} |",
                    flush=True,
                )
                if number % 2 == 0 and number < 2 * SWITCHES:
                    put_in_use(data, "warm" if number % 4 == 0 else "cold")

        load, wall = run_load(service, options.clients, seconds, 1, known, switching)
        switched = service.metrics()["xhs_model_switches_total", ()] - 3
    failed = load.statuses.total() - load.statuses["200"]
    p50, p99 = (1000 * quantile(load.seconds, q) for q in (0.5, 0.99))
    print(f"\n{wall:.0f} s, {load.statuses.total()} requests ({load.statuses.total() / wall:.1f}/s), p50 {p50:.0f} ms, p99 {p99:.0f} ms; "
          f"{switched:.0f} switches; failed {failed}, mixed {load.mixed}; posts by model {dict(load.versions)}")  # fmt: skip


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
        (soak if options.soak else compare)(options, data)


if __name__ == "__main__":
    main()
