"""When do appeals retrain the model? A pure decision; reading the store and launching runs are the sensor's."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from xhs_pipeline.appeals.evidence import Evidence
from xhs_pipeline.appeals.outcomes import effective_digest
from xhs_pipeline.appeals.states import AUDIT
from xhs_pipeline.policy import Policy

REMEDY = "they are kept, and count once a week that holds their posts is in unique_posts"


@dataclass(frozen=True)
class RetrainDecision:
    """Whether to run, the key that makes the same evidence run once only, the cursor to keep, and why in one line."""

    run: bool
    run_key: str | None
    cursor: int
    reason: str


def decide_retrain(
    evidence: Evidence,
    trained_event_ids: Collection[int],
    policy: Policy,
    *,
    running: bool,
    largest_event_id: int,
    cursor: int = 0,
    last_asked: datetime | None = None,
    now: datetime,
) -> RetrainDecision:
    """Run when enough outcomes of appeals, and of audits, rest on events that no model was trained on yet, the cool-down since
    `last_asked` (the last retraining that appeals asked for) is over, and nothing is running. Enough audits are the policy's
    min_audit, and audits_per_appeal for each of the appeals.

    `trained_event_ids` are the deciding events of what went into the newest training. The run key is the digest of the effective
    label events, so replays and restarts ask for the same run; the cursor is the largest event id that was read. The reason
    carries the numbers.
    """
    settings = policy.appeals
    kinds = dict(
        zip(evidence.outcomes["event_id"].to_pylist(), evidence.outcomes["case_kind"].to_pylist(), strict=True)
    )
    new = [kind for event_id, kind in kinds.items() if event_id not in set(trained_event_ids)]
    audits, appeals = new.count(AUDIT), len(new) - new.count(AUDIT)
    needed = int(settings["min_adjudicated"])
    # what appeals teach grows with their number, and so must what stands against it
    quota = max(int(settings["min_audit"]), math.ceil(appeals * float(settings["audits_per_appeal"])))
    counted = f"{appeals} of {needed} adjudicated, {audits} of {quota} audit"
    cursor = max(cursor, largest_event_id)
    lacking = [
        f"{count} more decided {what}{'' if count == 1 else 's'}"
        for count, what in ((needed - appeals, "appeal"), (quota - audits, "audit case"))
        if count > 0
    ]
    if lacking:
        return RetrainDecision(False, None, cursor, f"{counted}: waiting for {' and '.join(lacking)}{_apart(evidence)}")
    if running:
        return RetrainDecision(False, None, cursor, f"{counted}: enough, but a retraining run is under way")
    wait = timedelta(hours=float(settings["cooldown_hours"]))
    # counted in both directions, so that a clock that was set back delays by at most twice the cool-down
    if last_asked is not None and abs(now - last_asked) < wait:
        return RetrainDecision(
            False, None, cursor, f"{counted}: enough, cooling down until {last_asked + wait:%Y-%m-%d %H:%M} UTC"
        )
    return RetrainDecision(
        True, f"appeals-{effective_digest(evidence.outcomes)}", cursor, f"{counted}: retraining{_apart(evidence)}"
    )


def _apart(evidence: Evidence) -> str:
    parts = [
        f"{count} {what}"
        for count, what in (
            (evidence.missing, "about posts that are not there"),
            (evidence.edited, "about posts that were edited since"),
        )
        if count
    ]
    return f" ({' and '.join(parts)} not counted: {REMEDY})" if parts else ""
