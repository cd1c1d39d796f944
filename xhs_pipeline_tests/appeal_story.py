"""The story of test_appeals_live.py: people who judge, appeal and decide, a sensor that asks for a retraining, and what goes wrong."""

import base64
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import yaml
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from xhs_pipeline.artifacts import Artifact, ArtifactStore
from xhs_pipeline.judgement.champion import read_champion
from xhs_pipeline.policy import POLICY_FILE
from xhs_pipeline_tests.databases import Postgres
from xhs_pipeline_tests.live import MODULE, SENSOR, Instance
from xhs_pipeline_tests.serving import REVIEW_ON, REVIEWERS, Reply, Service, free_port
from xhs_pipeline_tests.small import PROFILE, synthetic_posts

WEEK, POSTS = "2026-02-16", 360
CLIENT = "the-client-has-a-token-too"
TOKENS = {"XHS_CLIENT_TOKENS": f"web={CLIENT}"} | REVIEW_ON
NEEDED, AUDITS = 4, 2
PASSING = {"verdict": "pass", "category": "正常"}
RESUMED = "adapter: resumed from step"
MISSED = {"verdict": "needs_edit", "category": "私域引流"}


@dataclass
class Story:
    """Where it happens, and what was seen of it."""

    folder: Path
    main: Instance
    other: Instance
    port: int = field(default_factory=free_port)
    first_model: str = ""
    appealed: dict[str, str] = field(default_factory=dict)  # post_id -> case_id
    audited: dict[str, str] = field(default_factory=dict)
    ticks: dict[str, InstigatorTick] = field(default_factory=dict)
    replies: dict[str, Reply] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def latest(self, key: str) -> Artifact:
        found = ArtifactStore(self.data).latest(key)
        assert found is not None, key
        return found

    def in_use(self) -> str:
        champion = read_champion(self.data / "released_model")
        return champion.version if champion else ""


def write_world(folder: Path) -> dict[str, str]:
    """Posts as a source of the user's, a profile that learns them in seconds, a policy with small minimums; and the settings."""
    (folder / "images").mkdir()
    rows = []
    for post in synthetic_posts(POSTS):
        for image in post["images"]:
            (folder / "images" / image["path"]).write_bytes(image["bytes"])
        row = {name: post[name] for name in ("post_id", "title", "body", "verdict", "category")}
        rows.append(row | {"images": [i["path"] for i in post["images"]], "created_at": "2026-02-17T10:00:00+08:00"})
    (folder / "posts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name in ("source.yaml", "other_source.yaml"):
        (folder / name).write_text("format: jsonl\npath: posts.jsonl\nimages_dir: images\n")
    profile = PROFILE.model_dump() | {
        "epochs": 10, "learning_rate": 0.005, "evaluations": 2, "evasion_posts": 50, "test_share": 0.45,
    }  # fmt: skip
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile, allow_unicode=True), encoding="utf-8")
    policy = yaml.safe_load(POLICY_FILE.read_text(encoding="utf-8"))
    # so few posts prove nothing: the gate judges, but asks for little
    policy["gates"] = {name: 0.0 if name.startswith("min_") else 1e6 for name in policy["gates"]}
    policy["golden"]["per_category"] = 1
    policy["appeals"] |= {"min_adjudicated": NEEDED, "min_audit": AUDITS, "audits_per_appeal": 0, "cooldown_hours": 0}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy, allow_unicode=True), encoding="utf-8")
    files = {
        "XHS_SOURCE": "source.yaml",
        "XHS_PROFILE": "profile.yaml",
        "XHS_POLICY": "policy.yaml",
        "XHS_DATA_DIR": "data",
    }
    return {name: str(folder / file) for name, file in files.items()} | {"OMP_NUM_THREADS": "1"}


def tell(story: Story, service: Service, postgres: Postgres) -> None:
    """Few cases, then enough; a kill in the training, then one of everything; two daemons more; a database that goes away."""
    main, other = story.main, story.other
    file_and_decide(story, service, appeals=1)
    main.switch_on(story.port)
    story.ticks["too few"] = main.next_tick(after=0)

    file_and_decide(story, service, appeals=NEEDED - 1)
    audit(story, service)
    main.hurry()
    asking = partial(first_that_asked, main)
    story.ticks["enough"] = main.until(asking, 150, "a tick that asks for a run")
    kill_the_run(main, in_training(story, resumed=False))

    in_training(story, resumed=True)
    main.power_cut()
    before = len(main.ticks())
    main.start_dev(story.port)
    main.start("dagster-daemon", "run", "-m", MODULE)
    other.start("dagster-daemon", "run", "-m", MODULE)
    other.start("dagster", "sensor", "start", SENSOR, "-m", MODULE)
    story.ticks["restarted"] = main.next_tick(before)
    story.ticks["other"] = other.next_tick(0)
    for instance in (main, other):
        instance.until(partial(succeeded, instance), 240, "a retraining that succeeds")
    service.until_ready(story.in_use())
    story.replies["released"] = service.ask("POST", "/judge", {"body": "周末公园散步"}, token=CLIENT)
    story.ticks["trained"] = main.next_tick(len(main.ticks()), begun_after=time.time())

    postgres.kill()
    try:
        story.ticks["no database"] = other.next_tick(len(other.ticks()), begun_after=time.time())
        story.replies["no database"] = service.ask("POST", "/judge", {"body": "周末公园散步"}, token=CLIENT)
    finally:
        postgres.start()
    story.ticks["database"] = other.next_tick(len(other.ticks()), begun_after=time.time())
    story.replies["database"] = service.ask("POST", "/judge", {"body": "周末公园散步"}, token=CLIENT)
    restart_in_the_middle(story, postgres)
    story.ticks["in the end"] = main.next_tick(len(main.ticks()), begun_after=time.time())


def first_that_asked(instance: Instance) -> InstigatorTick | None:
    return next((tick for tick in instance.ticks() if tick.status == TickStatus.SUCCESS), None)


def succeeded(instance: Instance) -> bool:
    runs = instance.requested()
    return bool(runs) and runs[-1].status == dg.DagsterRunStatus.SUCCESS


# what people do


def judge(story: Story, service: Service, wanted: Callable[[dict[str, Any]], bool], count: int) -> list[dict[str, Any]]:
    """That many decisions, over HTTP, on posts of the train split that nobody has named yet."""
    splits = story.latest("sharegpt_splits")
    train = set(pq.read_table(splits.file("train.parquet"), columns=["post_id"])["post_id"].to_pylist())
    named = {*story.appealed, *story.audited}
    decided: list[dict[str, Any]] = []
    for line in (story.folder / "posts.jsonl").read_text(encoding="utf-8").splitlines():
        post = json.loads(line)
        if post["post_id"] in train - named and wanted(post) and len(decided) < count:
            images = [
                base64.b64encode((story.folder / "images" / name).read_bytes()).decode() for name in post["images"]
            ]
            asked = {"post_id": post["post_id"], "title": post["title"], "body": post["body"], "images": images}
            reply = service.ask("POST", "/judge", asked, token=CLIENT)
            assert reply.status == 200, reply
            if (reply.body["verdict"] == "pass") == (post["verdict"] == "pass"):  # the model agrees with the label
                decided.append(reply.body)
    assert len(decided) == count, "the model has learned too little for this story"
    return decided


def file_and_decide(story: Story, service: Service, appeals: int) -> None:
    """Appeals against decisions on fraud, each by another person, and both reviewers say that the post passes."""
    for decision in judge(story, service, lambda post: post["category"] == "诈骗", appeals):
        appeal = {
            "decision_id": decision["decision_id"],
            "appellant": f"author of {decision['post_id']}",
            "note": "这是反诈宣传",
        }
        filed = service.ask("POST", "/appeals", appeal, token=CLIENT)
        assert (filed.status, filed.body["flag"]) == (201, None), filed
        story.appealed[decision["post_id"]] = filed.body["case_id"]
        states = [vote(service, filed.body["case_id"], reviewer, PASSING) for reviewer in REVIEWERS]
        assert states == ["voted", "overturned"], "severity 3 takes two who agree"


def audit(story: Story, service: Service) -> None:
    """Posts that pass are judged, some are drawn, and reviewers decide those; one of them should not have passed."""
    judge(story, service, lambda post: post["category"] == "正常", AUDITS + 2)
    said = story.main.call(sys.executable, "-m", "xhs_pipeline.appeals", "audit", "--size", str(AUDITS))
    assert f"{AUDITS} audit cases opened" in said
    queue = service.ask("GET", "/appeals?state=sampled", token=REVIEWERS["han"]).body["cases"]
    for case, label in zip(queue, (PASSING, {"verdict": "needs_edit", "category": "私域引流"}), strict=True):
        story.audited[case["post_id"]] = case["case_id"]
        assert vote(service, case["case_id"], "mei", label) == ("upheld" if label == PASSING else "modified")


def vote(service: Service, case_id: str, reviewer: str, label: dict[str, str]) -> str:
    reply = service.ask("POST", f"/appeals/{case_id}/vote", label, token=REVIEWERS[reviewer])
    assert reply.status == 200, reply
    return str(reply.body["state"])


# what goes wrong


def in_training(story: Story, resumed: bool) -> dg.DagsterRun:
    """The newest run of the job, once it trains: with something kept of it or, where it was killed before, from there on."""
    main = story.main

    def found() -> dg.DagsterRun | None:
        run = next(reversed(main.requested()), None)
        if run is None or run.status != dg.DagsterRunStatus.STARTED:
            return None
        kept = list((story.data / "adapter" / ".work").rglob("trainer_state.json"))
        return run if (RESUMED in main.said_in(run) if resumed else kept) else None

    return main.until(found, 150, "the run goes on training" if resumed else "the run trains")


def kill_the_run(instance: Instance, run: dg.DagsterRun) -> None:
    """SIGKILL to the process that Dagster says runs the steps."""
    found = re.search(r"Executing steps in process \(pid: (\d+)\)", instance.said_in(run))
    assert found and int(found[1]) in instance.processes(), run
    os.kill(int(found[1]), signal.SIGKILL)


def restart_in_the_middle(story: Story, postgres: Postgres) -> None:
    """A tick of the other instance stands still over an appeals file, which is a pipe, until the database has been restarted."""
    other, pipe = story.other, story.folder / "appeals.jsonl"
    source = Path(other.environment["XHS_SOURCE"])
    before, restarted = source.read_text(), 0.0
    os.mkfifo(pipe)
    source.write_text(f"{before}appeals: {pipe.name}\n")

    def restart() -> None:
        nonlocal restarted
        with pipe.open("wb"):  # opens when the tick does, which goes on when it closes
            postgres.restart()
            source.write_text(before)
            restarted = time.time()

    def over() -> InstigatorTick | None:
        around = (
            tick for tick in other.ticks() if restarted and tick.timestamp < restarted < (tick.end_timestamp or 0)
        )
        return next(around, None)

    threading.Thread(target=restart, daemon=True).start()
    other.hurry()
    story.ticks["restart in the middle"] = other.until(over, 150, "the tick in which the database restarted")
