"""label_issues: the labels that look wrong, and what the labels are worth as a set."""

from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, read_json
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.posts import unique_posts
from xhs_pipeline.assets.publish import check, publish, upstream
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import settings_of
from xhs_pipeline.resources import ProfileSettings, Workspace

SHOWN_ISSUES = 20
_ISSUE = ["post", "text", "given", "suspected", "confidence", "of the given", "nearest", "its category"]
_DIVERSITY = ["posts", "rationales", "distinct_share", "near_identical_share", "distinct_2", "mean_distance"]


@dg.asset(
    deps=[unique_posts],
    group_name="posts",
    owners=["team:data-platform"],
    tags={"cadence": "every_run"},
    kinds={"python", "parquet", "scikitlearn"},
    code_version="1",
    description="Labels that look wrong: out-of-fold probabilities of a cheap text learner through cleanlab, with the suspected "
    "category, its confidence and the nearest posts. No label is changed; the profile's label_issues says what train does with "
    "them. report.json: class balance, diversity of the rationales, agreement of reviewers.",
    check_specs=[
        check("label_issues", "posts_accounted", "Unique posts = labels questioned + not questioned, by reason"),
        check("label_issues", "issues_are_unique_posts", "Every issue names a unique post, and no post twice"),
    ],
)
def label_issues(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.curation.label_stages import write_label_issues

    store, settings, policy = workspace.store, profile.resolve(), load_policy()
    unique = upstream(context, store, "unique_posts")
    files = sorted(unique.file("posts").glob("*.parquet"))

    def describe(artifact: Artifact) -> dict[str, Any]:
        issues, report = artifact.file("label_issues.parquet"), read_json(artifact.file("report.json"))
        counts = artifact.manifest["counts"]
        return {
            "dagster/row_count": pq.read_metadata(issues).num_rows,
            "questioned": counts["questioned"],
            "not_questioned": shown.counts(counts["not_questioned"], "reason"),
            "in_train": f"{settings.label_issues}, weight {settings.label_issue_weight:g}"
            if settings.label_issues == "down_weight"
            else settings.label_issues,
            "issues_to_review": _to_review(artifact, files),
            "issues_by_category": shown.counts(shown.count_column(issues, "category"), "given category"),
            "issues_by_suspected_category": shown.counts(
                shown.count_column(issues, "suspected_category"), "suspected category"
            ),
            **{f"{name}_balance": _balance(found) for name, found in report["balance"].items()},
            "rationale_diversity": shown.table(
                ["category", *_DIVERSITY],
                [
                    [name, *(_figure(found[column]) for column in _DIVERSITY)]
                    for name, found in [
                        ("all", report["rationales"]["all"]),
                        *report["rationales"]["by_category"].items(),
                    ]
                ],
            ),
            "reviewer_agreement": _agreement(report["agreement"]),
        }

    return publish(
        context,
        store,
        lambda work: write_label_issues(
            files,
            unique.file("removed.parquet"),
            unique.file("label_conflicts.parquet"),
            settings.seed,
            policy.trusted_sources,
            work,
            context.log.info,
        ),
        inputs={"unique_posts": unique},
        settings={"trusted_sources": list(policy.trusted_sources), **settings_of(settings, "label_issues")},
        describe=describe,
    )


def _to_review(artifact: Artifact, files: list[Any]) -> dg.MarkdownMetadataValue:
    """The worst issues, each with the start of its text and its nearest neighbour."""
    worst = pq.read_table(artifact.file("label_issues.parquet")).slice(0, SHOWN_ISSUES).to_pylist()
    posts = shown.posts_of(files, {issue["post_id"] for issue in worst}, ["title", "body"])
    texts = {post_id: f"{post['title'] or ''} {post['body'] or ''}" for post_id, post in posts.items()}
    rows = []
    for issue in worst:
        nearest = (issue["neighbours"] or [{"post_id": "", "category": ""}])[0]
        rows.append(
            [
                issue["post_id"], texts[issue["post_id"]], issue["category"], issue["suspected_category"],
                _figure(issue["confidence"]), _figure(issue["self_confidence"]), nearest["post_id"], nearest["category"],
            ]
        )  # fmt: skip
    return shown.table(_ISSUE, rows)


def _balance(found: dict[str, Any]) -> dg.MarkdownMetadataValue:
    rows: list[list[Any]] = [
        [name, count] for name, count in sorted(found["counts"].items(), key=lambda item: -item[1])
    ]
    rows += [["largest / smallest", _figure(found["imbalance_ratio"])]]
    rows += [["effective classes (exp of the entropy)", _figure(found["effective_classes"])]]
    return shown.table(["class", "posts"], rows)


def _agreement(report: dict[str, Any]) -> dg.MarkdownMetadataValue:
    rows = []
    for kind, columns in report.items():
        for column, found in columns.items():
            interval = found["alpha_95"]
            said = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "none"
            rows.append([kind, column, found["items"], _figure(found["agree_share"]), _figure(found["alpha"]), said])
    return shown.table(["several labels by", "of", "items", "all agree", "Krippendorff's alpha", "95%"], rows)


def _figure(value: float | int | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
