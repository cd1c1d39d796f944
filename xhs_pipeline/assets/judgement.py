"""Judgement and release: what the model gets right and wrong, and whether it replaces the one in use."""

from pathlib import Path
from typing import Any

import dagster as dg

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, CheckOutcome, read_json
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.model import GPU_POOL, merged_model
from xhs_pipeline.assets.publish import RETRY, check, publish, refusals, upstream
from xhs_pipeline.assets.splits import sharegpt_splits
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import settings_of
from xhs_pipeline.resources import ProfileSettings, Workspace
from xhs_pipeline.training.adapters import splits_trained_on
from xhs_pipeline.worker import run

SHOWN_FIGURES = (
    "binary_accuracy", "binary_macro_f1", "category_macro_f1", "verdict_macro_f1", "false_positive_rate", "cost_per_1000",
)  # fmt: skip
GROUP, OWNERS = "judgement", ["team:trust-and-safety"]


@dg.asset(
    deps=[sharegpt_splits, merged_model],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run", "compute": "gpu_if_present"},
    kinds={"scikitlearn", "html"},
    pool=GPU_POOL,
    retry_policy=RETRY,
    code_version="3",
    description="report.html and report.json: the model on the test split beside the model in use, the untuned base, TF-IDF + logistic "
    "regression and the majority class; calibrated, with costs, slices, disguised posts, the golden set, the newest week, worst mistakes, "
    "and the gate's verdict.",
    check_specs=[check("evaluation_report", "release_gate", "The gate lets this model be released", blocking=False)],
)
def evaluation_report(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.judgement.champion import earlier_candidate, rival_of
    from xhs_pipeline.judgement.gate import GateVerdict
    from xhs_pipeline.judgement.metrics import figure
    from xhs_pipeline.splits.sharegpt import groups_trained_and_tested

    store, settings, policy = workspace.store, profile.resolve(), load_policy()
    splits, merged = upstream(context, store, "sharegpt_splits"), upstream(context, store, "merged_model")
    base = store.get("base_model", merged.manifest["lineage"]["base_model"])
    checkpoint = read_json(base.file("checkpoint.json"))
    champion_folder = store.folder("released_model")
    rival = rival_of(champion_folder, merged.version)
    before = rival or earlier_candidate(champion_folder, merged.version)
    proof = merged.manifest["counts"]
    trained_on, seen_unknown = _trained_on(store, merged.version)
    arguments = {
        "model": str(merged.path),
        "base": str(base.path),
        "splits": str(splits.path),
        "champion": {
            "model": str(store.root / before.model_path),
            "report": str(store.folder("evaluation_report") / before.report_version),
            "trained_on": _trained_on(store, before.version)[0],
            "in_use": before is rival,
        }
        if before
        else None,
        "settings": settings_of(settings, "evaluation_report"),
        "context": {
            "profile": checkpoint["name"],
            "model_version": merged.version,
            "base_note": checkpoint["note"],
            "data_versions": {"sharegpt_splits": splits.version, **splits.manifest["lineage"]},
            "champion_version": rival.version if rival else None,
            "groups_across_splits": groups_trained_and_tested(Path(trained_on), splits.path) if trained_on else None,
            "seen_unknown": seen_unknown,
            "merge_agreement": figure(proof["agreement_with_adapter"], proof["probe_posts"]),
        },
    }

    def write(work: Path) -> Built:
        counts = run("xhs_pipeline.judgement.stages:evaluate_model", {**arguments, "out": str(work)}, context.log.info)
        verdict = GateVerdict.from_dict(counts["gate"])
        return Built(counts, [CheckOutcome("release_gate", verdict.passed, verdict.summary, blocking=False)])

    return publish(
        context,
        store,
        write,
        inputs={
            "merged_model": merged,
            "sharegpt_splits": splits,
            "champion": rival.version if rival else "none",
            **({"earlier_candidate": before.version} if before and not rival else {}),
        },
        settings={
            "policy": policy.wording,
            **{name: getattr(policy, name) for name in ("gates", "costs", "deployment")},
            **settings_of(settings, "evaluation_report"),
        },
        describe=_figures_and_pictures,
    )


def _figures_and_pictures(artifact: Artifact) -> dict[str, Any]:
    """What the UI shows of a report, read from its file."""
    from xhs_pipeline.judgement.page import pictures
    from xhs_pipeline.judgement.plots import confusion_matrix

    report = read_json(artifact.file("report.json"))
    figures = report["figures"]
    in_use = {"champion": figures["champion"]} if figures["champion"] else {}
    columns = {"model": figures["model"], **in_use, **figures["floors"]}
    return {
        "gate": report["gate"]["status"],
        **{name: round(value, 4) for name, value in artifact.manifest["counts"]["key_figures"].items()},
        "report": dg.MetadataValue.path(artifact.file("report.html")),
        "model_beside_others": shown.table(
            ["figure", *columns],
            [[name, *(_rounded(f["headline"][name]["value"]) for f in columns.values())] for name in SHOWN_FIGURES],
        ),
        **{
            name: dg.MetadataValue.md("\n\n".join(f"![{p.title}]({p.uri})" for p in drawn))
            for name in ("beside", "compared", "reliability", "risk_coverage", "evasion")
            if (drawn := getattr(pictures, name)(report))
        },
        **{
            f"{kind}_confusion": shown.picture(
                confusion_matrix(matrix["matrix"], matrix["labels"]), f"{kind} confusion matrix"
            )
            for kind, matrix in figures["model"]["confusion"].items()
        },
        "gates": shown.table(
            ["gate", "status", "observed", "limit", "n"],
            [[g["name"], g["status"], _rounded(g["observed"]), g["limit"], g["n"]] for g in report["gate"]["gates"]],
        ),
    }


def _trained_on(store: ArtifactStore, model_version: str) -> tuple[str | None, str]:
    """The folder of the splits that a merged model's adapter was trained on, or None and why nobody can know (in Chinese: the report says it)."""
    try:
        tuned = store.get("adapter", store.get("merged_model", model_version).manifest["lineage"]["adapter"])
        splits = splits_trained_on(tuned, store)
        return (str(splits.path), "") if splits else (None, "适配器在别处训练")
    except FileNotFoundError:
        return None, "训练用的数据集已不在数据文件夹中"


def _rounded(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}"


@dg.asset(
    deps=[merged_model, evaluation_report],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run"},
    kinds={"python"},
    code_version="1",
    description="The champion pointer: moved to the judged model only when the gate in its report passed; otherwise the model in use stays. "
    "The gate's verdict is read from the report again, so materialising this asset alone cannot get round it.",
    check_specs=[check("released_model", "model_released", "The judged model is the one in use", blocking=False)],
)
def released_model(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.judgement.champion import interventions, rival_of
    from xhs_pipeline.judgement.stages import write_release

    store, policy = workspace.store, load_policy()
    folder = store.folder("released_model")
    judged = upstream(context, store, "evaluation_report")
    merged = store.get("merged_model", judged.manifest["lineage"]["merged_model"])
    rival = rival_of(folder, merged.version)

    def describe(artifact: Artifact) -> dict[str, Any]:
        decision = read_json(artifact.file("decision.json"))
        return {"action": decision["action"], "reason": decision["reason"], "champion": decision["champion"] or "none"}

    def write(work: Path) -> Built:
        with refusals():
            return write_release(folder, merged, judged, policy, work)

    return publish(
        context,
        store,
        write,
        # a decision holds for the model in use that it was made against; after a sign-off or a rollback it is made anew
        inputs={"evaluation_report": judged, "merged_model": merged, "champion": rival.version if rival else "none"},
        settings={"interventions": interventions(folder, merged.version)},
        describe=describe,
    )
