"""What other processes do to an appeals database in tests. Kept apart so that starting them imports little."""

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

from xhs_pipeline.appeals.cases import append
from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.policy import load_policy

POLICY = load_policy()
KEY = b"a key of at least sixteen bytes"
FREE = POLICY.appeals | {
    "max_per_author_per_week": 10**9, "max_per_group_per_week": 10**9, "burst": {"minutes": 0, "per_author": 10**9, "per_group": 10**9}
}  # fmt: skip
UNLIMITED = dataclasses.replace(POLICY, appeals=FREE)


def service(url: str, name: str, cases: int) -> None:
    """One process that logs decisions, files appeals against them and has them reviewed, one transaction each."""
    with AppealStore.open(url, UNLIMITED, KEY) as store:
        pairs = [
            (Snapshot(f"{name}-{n}", "标题", f"正文{name}{n}"), Decision("m", "v", "remove", "私域引流"))
            for n in range(cases)
        ]
        for n, decision_id in enumerate(store.log_decisions(pairs)):
            appeal = store.file_appeal(decision_id, f"author {n} of {name}")
            store.vote(appeal.case_id, "judge", "pass", "正常")


def opens(url: str, barrier: Any) -> None:
    barrier.wait()
    AppealStore.open(url, POLICY, KEY).close()


def writes_half(url: str, ready: Any) -> None:
    """Begins to write an event, and never ends."""
    with AppealStore.open(url, POLICY, KEY) as store, store.database.write() as db:
        append(db, half_an_event())
        ready.set()
        time.sleep(600)


def half_an_event() -> dict[str, Any]:
    opening = {"case_id": "half", "case_kind": "appeal", "kind": "filed", "post_id": "p", "actor_role": "author"}
    return opening | {"at": datetime(2026, 3, 2, 12, tzinfo=UTC)}
