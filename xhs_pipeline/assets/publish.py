"""How every asset publishes: build or reuse the artefact, then tell Dagster its version, its checks and what to show.

Within a run an asset reads what this run materialised, and otherwise the latest; so two runs at once never mix.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, CheckOutcome, RejectedArtifact
from xhs_pipeline.worker import StageFailed

# For stages in a process of their own: one that died (killed for memory, a lost GPU) is tried again. Refusals are not.
RETRY = dg.RetryPolicy(max_retries=2, delay=10)

Describe = Callable[[Artifact], dict[str, Any]]


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Bad data and bad settings fail the step with their own words and without retries, since trying again cannot mend them."""
    try:
        yield
    except (ValueError, FileNotFoundError) as problem:
        raise dg.Failure(str(problem), allow_retries=False) from problem


def upstream(context: dg.AssetExecutionContext, store: ArtifactStore, key: str, week: str | None = None) -> Artifact:
    """The version of `key` that this run materialised (or the run that it retries), else the latest one.

    Raises dg.Failure when there is none.
    """
    run: dg.DagsterRun | None = context.run
    # A retry runs the failed steps only: what came before them stands in the log of the run it retries.
    while run is not None:
        for entry in context.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            event = entry.dagster_event
            found = event.step_materialization_data.materialization if event else None
            if found and found.asset_key == dg.AssetKey(key) and found.partition in (week, None):
                return store.get(key, (found.tags or {})["dagster/data_version"], week)
        run = context.instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    artifact = store.latest(key, week)
    if artifact is None:
        where = f" for week {week}" if week else ""
        raise dg.Failure(
            f"{key}{where} is not there yet under {store.root}; materialise {key} first", allow_retries=False
        )
    return artifact


def publish(
    context: dg.AssetExecutionContext,
    store: ArtifactStore,
    write: Callable[[Path], Built],
    *,
    inputs: dict[str, Artifact | str],
    settings: dict[str, Any],
    describe: Describe,
    lineage: Iterable[Artifact] = (),
    week: str | None = None,
    resumable: bool = False,
) -> dg.MaterializeResult:
    """Build the asset's artefact (or find it built) and return it to Dagster with metadata read back from its files.

    An input is an artefact, or the hash of something outside or of some files of an artefact named in `lineage`. Bad data and bad settings (ValueError) fail the step without
    retries, since trying again cannot mend them; a stage that died is retried if the run allows retries.
    """
    key = context.asset_key.to_user_string()
    try:
        with refusals():
            artifact = store.build(
                key,
                write,
                inputs={name: i.content if isinstance(i, Artifact) else i for name, i in inputs.items()},
                lineage={name: i.version for name, i in inputs.items() if isinstance(i, Artifact)}
                | {a.key: a.version for a in lineage},
                settings=settings,
                code_version=str(context.assets_def.code_versions_by_key[context.asset_key]),
                week=week,
                resumable=resumable,
                log=context.log.info,
            )
    except RejectedArtifact as rejected:
        context.log.error(str(rejected))
        artifact = rejected.artifact
    except OSError as problem:
        said = f"{key}: cannot write under {store.root}: {problem.strerror or problem}; free space, or set XHS_DATA_DIR elsewhere"
        raise dg.Failure(said) from problem
    except StageFailed as failed:
        raise dg.Failure(str(failed)) from failed
    return dg.MaterializeResult(
        metadata={
            **describe(artifact),
            "version": artifact.version,
            "reused": artifact.reused,
            "folder": dg.MetadataValue.path(artifact.path),
            "lineage": dg.MetadataValue.json(artifact.manifest["lineage"]),
            "settings": dg.MetadataValue.json(artifact.manifest["settings"]),
            "build_seconds": float(artifact.manifest["seconds"]),
        },
        data_version=dg.DataVersion(artifact.version),
        check_results=[_check_result(CheckOutcome(**stored)) for stored in artifact.manifest["checks"]],
    )


def check(asset: str, name: str, description: str, blocking: bool = True) -> dg.AssetCheckSpec:
    """Declare a check that the asset's own stage runs when it reads its files back."""
    return dg.AssetCheckSpec(name, asset=asset, description=description, blocking=blocking)


def _check_result(outcome: CheckOutcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=outcome.name,
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if outcome.blocking else dg.AssetCheckSeverity.WARN,
        description=outcome.description,
        metadata=outcome.metadata,
    )
