"""Whether the newest release decision is still the one that would be made: what every artefact came from, against what is there now.

Reads manifests, and the source only where those say nothing new, so that a schedule may ask it. Knows no Dagster.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.artifacts import Artifact, ArtifactStore, digest
from xhs_pipeline.judgement.champion import interventions, rival_of
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.posts.sources import has_posts, source_fingerprint
from xhs_pipeline.profile import STAGE_SETTINGS, Profile, settings_of

RAW, CLEAN, UNIQUE, OUTCOMES, GOLDEN = "raw_posts", "clean_posts", "unique_posts", "appeal_outcomes", "golden_set"
SPLITS, ADAPTER, MERGED, RELEASED = "sharegpt_splits", "adapter", "merged_model", "released_model"
AFTER_WEEKS = (
    UNIQUE, "label_issues", OUTCOMES, GOLDEN, SPLITS, "base_model", ADAPTER, MERGED, "evaluation_report", RELEASED,
)  # fmt: skip
# Inputs that are files of the splits: what a model stage reads of them, see Artifact.tables_digest.
OF_SPLITS = {"train": ("train",), "splits": ("train", "validation"), "validation": ("validation",)}


@dataclass(frozen=True)
class Now:
    """What a run would start from. key_fingerprint: of the author hashes' key, as raw_posts names it among its inputs.

    code_versions: asset -> the code version that its definition states.
    """

    source: Source
    policy: Policy
    profile: Profile
    key_fingerprint: str
    code_versions: Mapping[str, str | None]

    def settings(self) -> dict[str, Any]:
        """Every setting that a manifest may name, except those that are the code's own."""
        policy = self.policy
        return self.profile.model_dump() | {
            "policy": policy.wording, "labels": policy.labels, "trusted_sources": policy.trusted_sources, "gates": policy.gates,
            "costs": policy.costs, "deployment": policy.deployment, "source": str(self.source.file.resolve()),
        }  # fmt: skip


def changes(store: ArtifactStore, week: str, now: Now) -> list[str]:
    """What a run of `week` and everything after it would make anew, a phrase each; empty where nothing has changed.

    Not looked at: appeals, whose own sensor decides when there are enough of them, and of both kinds; how many posts a larger
    `golden.per_category` would freeze; and the files of a local checkpoint or adapter that the profile names, which are too
    large to hash at every tick.
    Raises SourceMissing when the source has no file for the week, SourceError when it cannot be read.
    """
    raw = store.whole(RAW, week)
    if raw is None:
        found = [f"posts of week {week} are new"] if has_posts(now.source, week) else []
    else:
        found = list(_of_week(store, raw, week, now))
    found += _after_weeks(store, now)
    if raw is not None and not found:  # the only question that reads all of the week's posts
        expected = source_fingerprint(now.source, week) | {"hmac_key": now.key_fingerprint}
        found = [] if raw.manifest["inputs"] == expected else [f"posts of week {week} have changed"]
    return found


def _of_week(store: ArtifactStore, raw: Artifact, week: str, now: Now) -> Iterator[str]:
    yield from _made_otherwise(raw, now)
    clean = store.whole(CLEAN, week)
    if clean is None:
        yield f"week {week} is not cleaned yet"
        return
    yield from _made_otherwise(clean, now)
    if clean.manifest["inputs"] != {RAW: raw.content}:
        yield f"week {week} was cleaned before it was read last"


def _after_weeks(store: ArtifactStore, now: Now) -> Iterator[str]:
    found = {key: store.whole(key) for key in AFTER_WEEKS}
    there = {key: artifact for key, artifact in found.items() if artifact is not None}
    if missing := [key for key in found if key not in there]:
        yield f"not there yet: {', '.join(missing)}"
        return
    for key, artifact in there.items():
        yield from _made_otherwise(artifact, now)
        expected = _weeks_of(store, now) if key == UNIQUE else dict(_inputs(store, artifact, there, now))
        inputs = artifact.manifest["inputs"]
        wrong = [name for name, content in expected.items() if inputs.get(name) != content]
        gone = [name for name in inputs if name not in expected] if key == UNIQUE else []
        if wrong or gone:
            yield f"{key} was made of different {', '.join([*wrong, *gone])}"
    decided_after = there[RELEASED].manifest["settings"]["interventions"]
    if decided_after != interventions(store.folder(RELEASED), there[MERGED].version):
        yield "a person has signed off or rolled back since the newest decision"


def _inputs(
    store: ArtifactStore, artifact: Artifact, there: Mapping[str, Artifact], now: Now
) -> Iterator[tuple[str, str]]:
    """What each input of the artefact would be today; inputs that stand for something else are left out."""
    if artifact.key == GOLDEN:  # made once of posts that were there then, and kept
        return
    for name in artifact.manifest["inputs"]:
        if name in there:
            yield name, there[name].content
        elif name in OF_SPLITS:
            yield name, there[SPLITS].tables_digest(*OF_SPLITS[name])
        elif name == "hmac_key":
            yield name, now.key_fingerprint
        elif name == "champion":
            rival = rival_of(store.folder(RELEASED), there[MERGED].version)
            yield name, rival.version if rival else "none"


def _weeks_of(store: ArtifactStore, now: Now) -> dict[str, str]:
    """The weeks of this source, as unique_posts names them among its inputs."""
    weeks, source = {}, str(now.source.file.resolve())
    for week in store.weeks(CLEAN):
        raw, clean = store.whole(RAW, week), store.whole(CLEAN, week)
        if raw and clean and raw.manifest["settings"]["source"] == source:
            weeks[f"{CLEAN}/{week}"] = clean.content
    return weeks


def _made_otherwise(artifact: Artifact, now: Now) -> Iterator[str]:
    key, made_with, settings = artifact.key, artifact.manifest["settings"], now.settings()
    if artifact.manifest["code_version"] != now.code_versions.get(key):
        yield f"the code of {key} has changed"
    other = {name for name in made_with if name in settings and digest(made_with[name]) != digest(settings[name])}
    if key in STAGE_SETTINGS and not (key == ADAPTER and now.profile.adapter):  # one from elsewhere depends on few
        other |= settings_of(now.profile, key).keys() - made_with.keys()
    if other:
        yield f"{key} was made with different {', '.join(sorted(other))}"
