"""appeal_outcomes as a function over folders, and what of it a model was trained on already."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.appeals.events import APPEAL_EVENTS, read_events
from xhs_pipeline.appeals.outcomes import Derived, derive_outcomes, effective_digest
from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, digest
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE
from xhs_pipeline.posts.source_yaml import Source


def read_outcomes(source: Source, policy: Policy, key: bytes) -> Derived:
    """The labels decided so far, and every refused line. Empty when the source names no appeals.

    Raises FileNotFoundError when it names a file that is not there: a failed read is not an empty one.
    """
    if source.appeals is None:
        return derive_outcomes(APPEAL_EVENTS.empty_table(), policy)
    log = read_events(source.appeals, policy, key)
    derived = derive_outcomes(log.events, policy)
    return Derived(
        derived.outcomes, pa.concat_tables([log.quarantine.cast(QUARANTINE), derived.quarantine.cast(QUARANTINE)])
    )


def outcomes_digest(found: Derived) -> str:
    """What the snapshot depends on: the effective label events, and what was refused."""
    return digest([effective_digest(found.outcomes), found.quarantine.to_pylist()])


def write_outcomes(found: Derived, work: Path) -> Built:
    """Write outcomes.parquet and quarantine.parquet."""
    pq.write_table(found.outcomes, work / "outcomes.parquet", compression="zstd")
    pq.write_table(found.quarantine, work / "quarantine.parquet", compression="zstd")
    ids = found.outcomes["event_id"].to_pylist()
    counts = {"outcomes": len(ids), "quarantined": found.quarantine.num_rows, "largest_event_id": max(ids, default=0)}
    return Built(counts)


def trained_event_ids(store: ArtifactStore) -> set[int]:
    """Event ids of the outcomes that the newest adapter has taken account of: followed from artefact to artefact, not guessed.

    Where newer splits hold the same records to train on (the outcomes upheld the labels, or name posts that are not in
    train), there was nothing to train anew, and the adapter has taken account of theirs.
    """
    adapter = store.latest("adapter")
    if adapter is None:
        return set()
    splits = store.get("sharegpt_splits", adapter.manifest["lineage"]["sharegpt_splits"])
    newest = store.latest("sharegpt_splits")
    if newest is not None and _trained(newest) == _trained(splits):
        splits = newest
    outcomes = store.get("appeal_outcomes", splits.manifest["lineage"]["appeal_outcomes"])
    return set(pq.read_table(outcomes.file("outcomes.parquet"), columns=["event_id"])["event_id"].to_pylist())


def _trained(splits: Artifact) -> list[str]:
    return [splits.manifest["files"][f"{name}.parquet"]["sha256"] for name in ("train", "validation")]
