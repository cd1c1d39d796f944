"""When do appeals retrain the model? A pure decision; reading files and launching runs are the sensor's."""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from xhs_pipeline.appeals.outcomes import effective_digest
from xhs_pipeline.policy import Policy


@dataclass(frozen=True)
class RetrainDecision:
    """Whether to run, the key that makes the same evidence run once only, the cursor to keep, and why in one line."""

    run: bool
    run_key: str | None
    cursor: int
    reason: str


def decide_retrain(
    outcomes: pa.Table, trained_event_ids: Collection[int], policy: Policy, running: bool, cursor: int = 0
) -> RetrainDecision:
    """Run when at least `policy.appeals.min_adjudicated` outcomes rest on events that no model was trained on yet.

    `outcomes` is the table of `derive_outcomes`; `trained_event_ids` are the event ids of the outcomes that went into
    the newest training; `cursor` is the largest event id seen so far. The run key is the digest of the effective label
    events, so replays and restarts ask for the same run. Skip reasons carry the numbers.
    """
    needed = int(policy.appeals["min_adjudicated"])
    ids = set(outcomes["event_id"].to_pylist())
    new = len(ids - set(trained_event_ids))
    cursor = max([cursor, *ids])
    counted = f"{new} of {needed} adjudicated"
    if new < needed:
        return RetrainDecision(False, None, cursor, f"{counted}: waiting for {needed - new} more")
    if running:
        return RetrainDecision(False, None, cursor, f"{counted}: enough, but a retraining run is under way")
    return RetrainDecision(True, f"appeals-{effective_digest(outcomes)}", cursor, f"{counted}: retraining")
