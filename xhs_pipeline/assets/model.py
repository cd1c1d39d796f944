"""The model: base_model, adapter, merged_model. Each loads weights in a process of its own, one at a time on the GPU pool."""

from pathlib import Path
from typing import Any

import dagster as dg

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, CheckOutcome, digest, read_json
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.publish import RETRY, check, publish, refusals, upstream
from xhs_pipeline.assets.splits import sharegpt_splits
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import Profile, settings_of
from xhs_pipeline.resources import ProfileSettings, Workspace
from xhs_pipeline.training.adapters import folder_digest
from xhs_pipeline.training.proof import merge_checks
from xhs_pipeline.vlm.base import file_hashes, local_folder
from xhs_pipeline.worker import run

GROUP, OWNERS, GPU_POOL = "model", ["team:machine-learning"], "gpu"


@dg.asset(
    deps=[sharegpt_splits],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run", "compute": "gpu_if_present"},
    kinds={"pytorch", "huggingface"},
    pool=GPU_POOL,
    retry_policy=RETRY,
    code_version="1",
    description="The base checkpoint that the profile names: a hub id with a pinned revision, a local folder, or the tiny model that is "
    "built here from the train split. One loading code for all three; file hashes in checkpoint.json.",
)
def base_model(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    store, settings = workspace.store, profile.resolve()
    splits = upstream(context, store, "sharegpt_splits")
    arguments: dict[str, Any] = {"splits": str(splits.path), "profile": settings.model_dump()}
    built_here = settings.base_model == "tiny"
    inputs: dict[str, Artifact | str] = {"train": splits.tables_digest("train")} if built_here else {}
    with refusals():
        folder = local_folder(settings)
        if folder is not None:  # its path says nothing about what lies there; a hub id's commit does
            context.log.info(f"base_model: hashing {folder}")
            arguments["files"] = file_hashes(folder)
            inputs["folder"] = digest(arguments["files"])

    def describe(artifact: Artifact) -> dict[str, Any]:
        checkpoint = read_json(artifact.file("checkpoint.json"))
        return {
            "checkpoint": checkpoint["name"],
            "revision": checkpoint["revision"] or "none",
            "pixels": f"{checkpoint['min_pixels']} to {checkpoint['max_pixels']}",
            "note": checkpoint["note"] or "none",
            **_figures(artifact),
            "files": shown.table(["file", "sha256"], checkpoint["files"].items()),
        }

    return publish(
        context,
        store,
        lambda work: Built(
            run("xhs_pipeline.training.stages:build_base", {**arguments, "out": str(work)}, context.log.info)
        ),
        inputs=inputs,
        lineage=[splits] if built_here else [],
        settings={"policy": load_policy().wording, **settings_of(settings, "base_model")},
        describe=describe,
    )


@dg.asset(
    deps=[sharegpt_splits, base_model],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run", "compute": "gpu_if_present"},
    kinds={"pytorch", "huggingface"},
    pool=GPU_POOL,
    retry_policy=RETRY,
    code_version="3",
    description="QLoRA adapter: NF4 base, LoRA on the layers that the profile names, loss on the answer only. The checkpoint with "
    "the best macro-F1 of the verdict on validation is kept (of equals, the better one in categories). A killed run goes on from its last checkpoint. "
    "How each record was shown to the model is in budget.parquet, TensorBoard events are in runs.",
    check_specs=[
        check(
            "adapter",
            "records_accounted",
            "Records of the train split = trained + set aside + not reached within max_steps",
        )
    ],
)
def adapter(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.judgement.plots import loss_curve

    store, settings = workspace.store, profile.resolve()
    splits, base = upstream(context, store, "sharegpt_splits"), upstream(context, store, "base_model")
    if settings.adapter:
        return _adapter_from_elsewhere(context, store, settings, splits, base)
    arguments = {"base": str(base.path), "splits": str(splits.path), "profile": settings.model_dump()}

    def write(work: Any) -> Built:
        counts = run("xhs_pipeline.training.stages:train_adapter", {**arguments, "work": str(work)}, context.log.info)
        rows = splits.manifest["counts"]["train"]
        parts = [counts[name] for name in ("train_records", "set_aside", "not_reached")]
        said = "{} records = {} trained + {} set aside + {} not reached within max_steps".format(rows, *parts)
        named = shown.count_column(work / "budget.parquet", "split")["train"]
        return Built(counts, [CheckOutcome("records_accounted", rows == sum(parts) == named, said)])

    def describe(artifact: Artifact) -> dict[str, Any]:
        history = read_json(artifact.file("history.json"))
        return {
            "loss_curve": shown.picture(
                loss_curve(history["history"]), "loss and macro-F1 of the verdict on validation, by step"
            ),
            **_figures(artifact),
            "resolved_settings": shown.table(["setting", "value"], artifact.manifest["counts"]["settings"].items()),
            "set_aside_preview": shown.preview(artifact.file("quarantine.parquet"), ["post_id", "reason", "detail"]),
            "adapted_modules": shown.table(
                ["module"],
                [[n.removeprefix("base_model.model.model.")] for n in artifact.manifest["counts"]["adapted_modules"]],
            ),
        }

    return publish(
        context,
        store,
        write,
        inputs={"base_model": base, "splits": splits.tables_digest("train", "validation")},
        lineage=[splits],
        settings={"policy": load_policy().wording, **settings_of(settings, "adapter")},
        resumable=True,
        describe=describe,
    )


def _adapter_from_elsewhere(
    context: dg.AssetExecutionContext, store: ArtifactStore, settings: Profile, splits: Artifact, base: Artifact
) -> dg.MaterializeResult:
    """The adapter that the profile names, checked against the base and stored as if it had been trained here."""
    with refusals():
        files = folder_digest(Path(settings.adapter).expanduser())
    arguments = {"adapter": settings.adapter, "base": str(base.path), "profile": settings.model_dump()}
    said = f"not trained here: {settings.adapter}; which posts it has seen is not known"

    def write(work: Any) -> Built:
        counts = run(
            "xhs_pipeline.training.adapters:import_adapter", {**arguments, "work": str(work)}, context.log.info
        )
        return Built(counts, [CheckOutcome(spec.name, True, said) for spec in context.assets_def.check_specs])

    return publish(
        context,
        store,
        write,
        inputs={"base_model": base, "adapter_folder": digest(files)},
        lineage=[splits],
        settings={name: getattr(settings, name) for name in ("adapter", "min_pixels", "max_pixels")},
        describe=_figures,
    )


@dg.asset(
    deps=[sharegpt_splits, base_model, adapter],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run", "compute": "gpu_if_present"},
    kinds={"pytorch", "huggingface"},
    pool=GPU_POOL,
    retry_policy=RETRY,
    code_version="1",
    description="The adapter merged into the full-precision base on the CPU, shard by shard, as safetensors that plain transformers "
    "load; every tensor matched, and its verdicts compared with the adapter's on probe posts.",
    check_specs=[
        check("merged_model", "adapter_applied", "Every tensor of the adapter changed its weight of the base"),
        check(
            "merged_model", "merged_equals_adapter", "The merged model gives the adapter's verdicts and probabilities"
        ),
        check(
            "merged_model", "agrees_with_training_base", "The merged model decides as the base it was trained on does"
        ),
    ],
)
def merged_model(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    store, settings, policy = workspace.store, profile.resolve(), load_policy()
    splits, tuned = upstream(context, store, "sharegpt_splits"), upstream(context, store, "adapter")
    limits = {name: policy.gates[name] for name in ("min_merge_agreement", "min_training_base_agreement")}
    # The base that this adapter was trained on, not the latest: another one of the same shape would merge without a word.
    base = store.get("base_model", tuned.manifest["lineage"]["base_model"])
    arguments = {
        "base": str(base.path), "adapter": str(tuned.path), "splits": str(splits.path), "profile": settings.model_dump(),
    }  # fmt: skip

    def write(work: Any) -> Built:
        counts = run("xhs_pipeline.training.stages:merge_adapter", {**arguments, "out": str(work)}, context.log.info)
        return Built(counts, merge_checks(counts, settings.precision, limits))

    return publish(
        context,
        store,
        write,
        inputs={"base_model": base, "adapter": tuned, "validation": splits.tables_digest("validation")},
        lineage=[splits],
        settings={"policy": policy.wording, "limits": limits, **settings_of(settings, "merged_model")},
        describe=_figures,
    )


def _figures(artifact: Artifact) -> dict[str, Any]:
    """The stage's numbers, as they stand in the manifest."""
    return {name: value for name, value in artifact.manifest["counts"].items() if isinstance(value, int | float | str)}
