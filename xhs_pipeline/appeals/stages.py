"""appeal_outcomes as a function over the store and folders, and what of it a model was trained on already."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.appeals.outcomes import derive_outcomes, effective_digest
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, digest
from xhs_pipeline.posts.schema import QUARANTINE
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.training.adapters import splits_trained_on


@dataclass(frozen=True)
class Read:
    """What the store holds: labels, refusals (of the source's file, too), and the largest event id that was read."""

    outcomes: pa.Table
    quarantine: pa.Table
    largest_event_id: int


def read_outcomes(source: Source, store: AppealStore) -> Read:
    """The labels decided so far. The appeals file that the source names, if any, is taken over into the store first.

    Raises FileNotFoundError when it names a file that is not there, and StoreError when the store cannot be read: a failed read
    is not an empty one.
    """
    refused = [QUARANTINE.empty_table()]
    if source.appeals is not None:
        refused.append(store.import_jsonl(source.appeals).refused)
    events = store.events()
    derived = derive_outcomes(events, store.policy)
    largest = events["event_id"][-1].as_py() if events.num_rows else 0
    return Read(derived.outcomes, pa.concat_tables([*refused, derived.quarantine]), largest)


def outcomes_digest(found: Read) -> str:
    """What the snapshot depends on: the effective label events, and what was refused."""
    return digest([effective_digest(found.outcomes), found.quarantine.to_pylist()])


def write_outcomes(found: Read, work: Path) -> Built:
    """Write outcomes.parquet and quarantine.parquet."""
    pq.write_table(found.outcomes, work / "outcomes.parquet", compression="zstd")
    pq.write_table(found.quarantine, work / "quarantine.parquet", compression="zstd")
    counts = {"outcomes": found.outcomes.num_rows, "quarantined": found.quarantine.num_rows}
    ids = found.outcomes["event_id"].to_pylist()
    return Built(counts | {"largest_event_id": max(ids, default=0)})


def trained_event_ids(store: ArtifactStore) -> set[int]:
    """Event ids of the outcomes that the newest adapter has taken account of: followed from artefact to artefact, not guessed.

    Where newer splits hold the same records to train on (the outcomes upheld the labels, or name posts that are not in
    train), there was nothing to train anew, and the adapter has taken account of theirs. An adapter from
    elsewhere was trained on none of them.
    """
    adapter = store.latest("adapter")
    splits = splits_trained_on(adapter, store) if adapter else None
    if splits is None:
        return set()
    newest = store.latest("sharegpt_splits")
    if newest is not None and _trained(newest) == _trained(splits):
        splits = newest
    outcomes = store.get("appeal_outcomes", splits.manifest["lineage"]["appeal_outcomes"])
    return set(pq.read_table(outcomes.file("outcomes.parquet"), columns=["event_id"])["event_id"].to_pylist())


def _trained(splits: Artifact) -> list[str]:
    return [splits.manifest["files"][f"{name}.parquet"]["sha256"] for name in ("train", "validation")]
