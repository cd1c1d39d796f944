"""The outside world, injected: where data lives, where posts and appeals come from, which profile trains.

XHS_DATA_DIR   folder of all artefacts (default: data, in the project's folder)
XHS_SOURCE     YAML file that describes the posts (default: the committed sample's)
XHS_PROFILE    settings of one machine size (default: tiny)
XHS_APPEALS_URL  database of appeals (default: a SQLite file in the data folder)
XHS_HMAC_KEY   key of the author hashes (default: a file made on first use)
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, create_model

from xhs_pipeline.artifacts import ArtifactStore, data_root
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.source_yaml import Source, load_source
from xhs_pipeline.privacy import load_hmac_key
from xhs_pipeline.profile import Profile, load_profile

if TYPE_CHECKING:
    from xhs_pipeline.appeals.store import AppealStore

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample" / "source.yaml"


class Workspace(dg.ConfigurableResource):
    """Where artefacts and posts are. Empty settings fall back to the environment, then to the embedded defaults."""

    data_dir: str = Field(
        "", description="folder of all artefacts; empty = XHS_DATA_DIR, else the project's data folder"
    )
    source: str = Field("", description="source YAML; empty = XHS_SOURCE, else the committed sample's")

    @property
    def root(self) -> Path:
        return data_root(self.data_dir)

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.root)

    def load_source(self) -> Source:
        """Read the source YAML. Raises SourceError when it is missing or wrong."""
        return load_source(Path(self.source or os.environ.get("XHS_SOURCE") or SAMPLE))

    def open_appeals(self, policy: Policy) -> "AppealStore":
        """The appeals store of this data folder; close it after use. Raises StoreError when it cannot be used."""
        from xhs_pipeline.appeals.store import AppealStore, store_url

        return AppealStore.open(store_url(self.root), policy, load_hmac_key(self.root))


class ProfileSettings(dg.ConfigurableResource):
    """The settings of a run: the chosen profile with what the run's config overrides."""

    def resolve(self) -> Profile:
        """The validated profile. Raises dg.Failure (no retries) naming the setting when an override does not fit."""
        try:
            return Profile(**{name: getattr(self, name) for name in Profile.model_fields})
        except ValueError as problem:
            raise dg.Failure(f"profile settings: {problem}", allow_retries=False) from problem


def profile_resource() -> Any:
    """The profile that `XHS_PROFILE` names, as a resource whose every value the Launchpad shows and `--config` can override."""
    chosen = load_profile(os.environ.get("XHS_PROFILE") or "tiny")
    fields: dict[str, Any] = {
        name: (_config_type(info.annotation), Field(getattr(chosen, name), description=info.description))
        for name, info in Profile.model_fields.items()
    }
    return create_model("ChosenProfile", __base__=ProfileSettings, **fields)()


def _config_type(annotation: Any) -> Any:
    """Dagster config has no literal types: a choice is a string here and is checked when the profile is resolved."""
    return str if str(annotation).startswith("typing.Literal") else annotation
