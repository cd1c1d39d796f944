"""Whether the newest release decision is still the one that would be made: what every artefact came from, against what is there now.

Reads manifests only, so that a schedule may ask it. Knows no Dagster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.artifacts import Artifact, ArtifactStore, digest
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.posts.sources import has_posts, source_fingerprint
from xhs_pipeline.profile import Profile

RAW, CLEAN, UNIQUE, OUTCOMES, GOLDEN = "raw_posts", "clean_posts", "unique_posts", "appeal_outcomes", "golden_set"
AFTER_WEEKS = (
    UNIQUE, "label_issues", OUTCOMES, GOLDEN, "sharegpt_splits", "base_model", "adapter", "merged_model", "evaluation_report",
    "released_model",
)  # fmt: skip
# Inputs that are files of the splits: what a model stage reads of them, see Artifact.tables_digest.
OF_SPLITS = {"train": ("train",), "splits": ("train", "validation"), "validation": ("validation",)}


@dataclass(frozen=True)
class Now:
    """What a run would start from: appeals and key as appeal_outcomes and raw_posts name them among their inputs.

    code_versions: asset -> the code version that its definition states.
    """

    source: Source
    policy: Policy
    profile: Profile
    key_fingerprint: str
    appeals_digest: str
    code_versions: Mapping[str, str | None]

    def settings(self) -> dict[str, Any]:
        """Every setting that a manifest may name, except those that are the code's own."""
        policy = self.policy
        return self.profile.model_dump() | {
            "policy": policy.wording, "labels": policy.labels, "trusted_sources": policy.trusted_sources, "gates": policy.gates,
            "costs": policy.costs, "deployment": policy.deployment, "per_category": policy.golden["per_category"],
            "source": str(self.source.file.resolve()),
        }  # fmt: skip


def changes(store: ArtifactStore, week: str, now: Now) -> list[str]:
    """What a run of `week` and everything after it would make anew, a phrase each; empty where nothing has changed.

    Not looked at: the model in use, since another rival is no reason to train; and the files of a local checkpoint or adapter
    that the profile names, which are too large to hash at every tick.
    Raises SourceMissing when the source has no file for the week, SourceError when it cannot be read.
    """
    return [*_of_week(store, week, now), *_after_weeks(store, now)]


def _of_week(store: ArtifactStore, week: str, now: Now) -> Iterator[str]:
    raw, clean = store.latest(RAW, week), store.latest(CLEAN, week)
    if raw is None:
        if has_posts(now.source, week):
            yield f"posts of week {week} are new"
        return
    yield from _made_otherwise(raw, now)
    expected = source_fingerprint(now.source, week) | {"hmac_key": now.key_fingerprint}
    if raw.manifest["inputs"] != expected:
        yield f"posts of week {week} have changed"
    if clean is None:
        yield f"week {week} is not cleaned yet"
    else:
        yield from _made_otherwise(clean, now)
        if clean.manifest["inputs"] != {RAW: raw.content}:
            yield f"week {week} was cleaned before it was read last"


def _after_weeks(store: ArtifactStore, now: Now) -> Iterator[str]:
    found = {key: store.latest(key) for key in AFTER_WEEKS}
    there = {key: artifact for key, artifact in found.items() if artifact is not None}
    if missing := [key for key in found if key not in there]:
        yield f"not there yet: {', '.join(missing)}"
        return
    for key, artifact in there.items():
        yield from _made_otherwise(artifact, now)
        if key == GOLDEN:  # made once of posts that were there then, and kept
            continue
        expected = _weeks_of(store, now) if key == UNIQUE else dict(_inputs(artifact, there, now))
        inputs = artifact.manifest["inputs"]
        wrong = [name for name, content in expected.items() if inputs.get(name) != content]
        gone = [name for name in inputs if name not in expected] if key == UNIQUE else []
        if wrong or gone:
            yield f"{key} was made of different {', '.join([*wrong, *gone])}"


def _inputs(artifact: Artifact, there: Mapping[str, Artifact], now: Now) -> Iterator[tuple[str, str]]:
    """What each input of the artefact would be today; inputs that stand for something else are left out."""
    for name in artifact.manifest["inputs"]:
        if name in there:
            yield name, there[name].content
        elif name in OF_SPLITS:
            yield name, there["sharegpt_splits"].tables_digest(*OF_SPLITS[name])
        elif name == "appeals":
            yield name, now.appeals_digest
        elif name == "hmac_key":
            yield name, now.key_fingerprint


def _weeks_of(store: ArtifactStore, now: Now) -> dict[str, str]:
    """The weeks of this source, as unique_posts names them among its inputs."""
    weeks, source = {}, str(now.source.file.resolve())
    for week in store.weeks(CLEAN):
        raw, clean = store.latest(RAW, week), store.latest(CLEAN, week)
        if raw and clean and raw.manifest["settings"]["source"] == source:
            weeks[f"{CLEAN}/{week}"] = clean.content
    return weeks


def _made_otherwise(artifact: Artifact, now: Now) -> Iterator[str]:
    manifest, settings = artifact.manifest, now.settings()
    if manifest["code_version"] != now.code_versions.get(artifact.key):
        yield f"the code of {artifact.key} has changed"
    made_with = manifest["settings"]
    if other := sorted(n for n in made_with if n in settings and digest(made_with[n]) != digest(settings[n])):
        yield f"{artifact.key} was made with different {', '.join(other)}"
