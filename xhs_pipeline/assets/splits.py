"""Labels and splits: what was decided on appeal, the golden set, and the conversations that train, tune and test the model."""

from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.labels import label_issues
from xhs_pipeline.assets.posts import unique_posts
from xhs_pipeline.assets.publish import RETRY, check, publish, refusals, upstream
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import settings_of
from xhs_pipeline.resources import ProfileSettings, Workspace

GROUP, OWNERS = "labels_and_splits", ["team:trust-and-safety"]


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run"},
    kinds={"python", "parquet"},
    code_version="3",
    description="Snapshot of what reviewers decided on appeal and in audits: one label a post, with the events that gave it. Open, "
    "disputed, withdrawn and expired cases are not among them.",
    retry_policy=RETRY,
)
def appeal_outcomes(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.appeals.stages import outcomes_digest, read_outcomes, write_outcomes
    from xhs_pipeline.privacy import key_fingerprint, load_hmac_key

    policy = load_policy()
    with refusals():
        key = load_hmac_key(workspace.root)
        with workspace.open_appeals(policy) as store:
            found = read_outcomes(workspace.load_source(), store)

    def describe(artifact: Artifact) -> dict[str, Any]:
        outcomes, quarantine = artifact.file("outcomes.parquet"), artifact.file("quarantine.parquet")
        return {
            "dagster/row_count": pq.read_metadata(outcomes).num_rows,
            "outcomes": shown.counts(shown.count_column(outcomes, "outcome"), "outcome"),
            "cases": shown.counts(shown.count_column(outcomes, "case_kind"), "kind"),
            "quarantined": pq.read_metadata(quarantine).num_rows,
            "quarantine_preview": shown.preview(quarantine, ["post_id", "reason", "detail"]),
            "largest_event_id": int(artifact.manifest["counts"]["largest_event_id"]),
            "preview": shown.preview(
                outcomes, ["case_id", "case_kind", "post_id", "outcome", "verdict", "category", "decided_at"]
            ),
        }

    return publish(
        context,
        workspace.store,
        lambda work: write_outcomes(found, work),
        inputs={"appeals": outcomes_digest(found), "hmac_key": key_fingerprint(key)},
        settings={"labels": policy.labels},
        describe=describe,
    )


@dg.asset(
    deps=[unique_posts, label_issues],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run"},
    kinds={"python", "parquet"},
    code_version="1",
    description="Posts that every later model is judged on and none is trained on: frozen once, with content and label, from groups "
    "that no model has learned from, and never taken away. A version holds the one before it, and adds posts where a category "
    "has too few.",
    check_specs=[
        check("golden_set", "nothing_changed", "Every post frozen before stands there unchanged, images too"),
        check("golden_set", "rows_accounted", "Posts = frozen before + enrolled, and no post twice"),
    ],
)
def golden_set(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.splits.golden import FILE, KEY, category_table, plan, require_sound

    store, policy, settings = workspace.store, load_policy(), profile.resolve()
    unique, issues = upstream(context, store, "unique_posts"), upstream(context, store, "label_issues")

    def describe(artifact: Artifact) -> dict[str, Any]:
        with refusals():  # one that was found there already
            require_sound(artifact)
        file, counts = artifact.file(FILE), artifact.manifest["counts"]
        return {
            "dagster/row_count": pq.read_metadata(file).num_rows,
            "enrolled": counts["enrolled"],
            "categories": shown.table(["category", "with images", "without", "of them new"], category_table(file)),
            "frozen_at": shown.counts(shown.count_column(file, "frozen_at"), "week"),
            "contact_sheet": shown.contact_sheet(file),
            "preview": shown.preview(file, ["frozen_at", "title", "verdict", "category"]),
        }

    with store.alone(
        KEY, context.log.info
    ):  # or of two runs that continue one version the later would lose the other's posts
        with refusals():
            planned = plan(store, unique, issues, policy, settings)
        return publish(
            context,
            store,
            planned.write,
            inputs={**planned.inputs},
            settings=planned.settings,
            describe=describe,
            lineage=[unique, issues, *([planned.previous] if planned.previous else [])],
        )


@dg.asset(
    deps=[unique_posts, label_issues, appeal_outcomes, golden_set],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run"},
    kinds={"python", "parquet"},
    code_version="5",
    description="train / validation / calibration / test as sharegpt conversations with embedded images, and dataset_info.json. "
    "A duplicate group never crosses a split, what touches a golden post is in test, appeals correct labels, and only train is "
    "balanced by quotas and acts on label issues.",
    check_specs=[
        check("sharegpt_splits", "no_group_across_splits", "No duplicate group lies in two splits"),
        check("sharegpt_splits", "labels_in_policy", "Every label is a pair that the policy allows"),
        check("sharegpt_splits", "placeholders_match_images", "As many <image> placeholders as images in every row"),
        check(
            "sharegpt_splits",
            "rows_accounted",
            "Unique posts = rows of all splits + left out by quota or as label issues",
        ),
        check(
            "sharegpt_splits",
            "golden_never_trained",
            "Every golden post is in test, and nothing of its duplicates and groups in another split",
        ),
        check("sharegpt_splits", "rationales_differ", "At most 30% of a category's rationales repeat", blocking=False),
    ],
)
def sharegpt_splits(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.splits.golden import FILE, require_sound
    from xhs_pipeline.splits.sharegpt import label_table, write_splits

    store, policy, settings = workspace.store, load_policy(), profile.resolve()
    unique, outcomes = upstream(context, store, "unique_posts"), upstream(context, store, "appeal_outcomes")
    issues, golden = upstream(context, store, "label_issues"), upstream(context, store, "golden_set")
    with refusals():
        require_sound(golden)

    def describe(artifact: Artifact) -> dict[str, Any]:
        labels = label_table(artifact.path)
        rows = {name: sum(counted.values()) for name, counted in labels.items()}
        counts = artifact.manifest["counts"]
        return {
            "dagster/row_count": sum(rows.values()),
            **{f"{name}_rows": count for name, count in rows.items()},
            "golden_posts": counts["golden_posts"],
            "left_out_by_quota": counts["left_out_by_quota"],
            "label_issues_in_train": counts["label_issues_in_train"],
            "left_out_as_label_issue": counts["left_out_as_label_issue"],
            "left_out_preview": shown.preview(artifact.file("quarantine.parquet"), ["post_id", "reason", "detail"]),
            "corrected_on_appeal": counts["corrected_on_appeal"],
            "brought_back_on_appeal": counts["brought_back_on_appeal"],
            "appeals_without_post": counts["appeals_without_post"],
            "appeals_on_edited_posts": counts["appeals_on_edited_posts"],
            "categories": shown.table(
                ["category", *labels], [[c, *(labels[name][c] for name in labels)] for c in policy.category_names]
            ),
            "quotas": dg.MetadataValue.json({"asked": counts["quota_asked"], "found": counts["quota_found"]}),
            "preview": shown.preview(
                artifact.file("train.parquet"), ["post_id", "group_id", "title", "verdict", "category"]
            ),
        }

    return publish(
        context,
        store,
        lambda work: write_splits(
            unique.path,
            outcomes.file("outcomes.parquet"),
            issues.file("label_issues.parquet"),
            policy,
            settings,
            work,
            golden.file(FILE),
        ),
        inputs={
            "unique_posts": unique,
            "label_issues": issues,
            "appeal_outcomes": outcomes,
            "golden_set": golden,
        },  # fmt: skip
        settings={"policy": policy.wording, **settings_of(settings, "sharegpt_splits")},
        describe=describe,
    )
