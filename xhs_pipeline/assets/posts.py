"""Posts in data order: raw_posts and clean_posts week by week, unique_posts over all weeks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.publish import check, publish, refusals, upstream
from xhs_pipeline.policy import load_policy
from xhs_pipeline.resources import Workspace

WEEKS = dg.WeeklyPartitionsDefinition(start_date="2024-01-01", day_offset=1, timezone="Asia/Shanghai")
GROUP, OWNERS = "posts", ["team:data-platform"]


@dg.asset(
    partitions_def=WEEKS,
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "weekly"},
    kinds={"python", "parquet"},
    code_version="1",
    description="One week of posts as read from the source: validated, text and images untouched, authors only as keyed hashes. "
    "Rows that cannot be read stand in quarantine.parquet with the reason and the line.",
    check_specs=[check("raw_posts", "rows_accounted", "Rows in the source = posts + quarantine, counted in the files")],
)
def raw_posts(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.curation.identifiers import mask
    from xhs_pipeline.posts.sources import source_fingerprint
    from xhs_pipeline.posts.stages import write_raw
    from xhs_pipeline.privacy import keyed_hash, load_hmac_key

    week, policy = context.partition_key, load_policy()
    with refusals():
        source = workspace.load_source()
        fingerprint = source_fingerprint(source, week)
        key = load_hmac_key(workspace.root)
    return publish(
        context,
        workspace.store,
        lambda work: write_raw(source, week, policy, key, work, context.log.info, mask=lambda text: mask(text)[0]),
        # another key gives other author hashes; this names the key without giving it away
        inputs={**fingerprint, "hmac_key": keyed_hash(key, "fingerprint")},
        settings={"labels": policy.labels, "source": str(source.file.resolve())},
        week=week,
        describe=lambda artifact: _weekly(artifact, ["post_id", "created_at", "verdict", "category", "label_source"]),
    )


@dg.asset(
    partitions_def=WEEKS,
    deps=[raw_posts],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "weekly"},
    kinds={"python", "parquet"},
    code_version="1",
    description="The week's posts as the model may see them: text normalised, identifiers of people replaced by typed placeholders, "
    "images decoded, stripped of metadata, resized and embedded as JPEG. What cannot be judged stands in quarantine.parquet.",
    check_specs=[
        check("clean_posts", "rows_accounted", "Raw posts = clean posts + quarantine, counted in the files"),
        check("clean_posts", "images_decode", "Every embedded image decodes when read back"),
    ],
)
def clean_posts(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.curation.clean import CleanSettings
    from xhs_pipeline.curation.stages import write_clean

    week, settings = context.partition_key, CleanSettings()
    raw = upstream(context, workspace.store, "raw_posts", week)

    def describe(artifact: Artifact) -> dict[str, Any]:
        file = artifact.file("posts.parquet")
        dropped = artifact.file("dropped_images.parquet")
        return _weekly(artifact, ["post_id", "title", "body", "verdict", "category"]) | {
            "contact_sheet": shown.contact_sheet(file),
            "dropped_images": pq.read_metadata(dropped).num_rows,
            "dropped_image_reasons": shown.counts(shown.count_column(dropped, "reason"), "reason"),
            "dropped_image_examples": shown.examples(
                pq.read_table(dropped).to_pylist(), "reason", ["post_id", "path", "detail"]
            ),
            "identifiers_masked": shown.counts(_masked(artifact), "type"),
            "identifier_examples": shown.examples(_masked_examples(file), "type", ["post_id", "text"]),
        }

    return publish(
        context,
        workspace.store,
        lambda work: write_clean(raw.file("posts.parquet"), work, settings, context.log.info),
        inputs={"raw_posts": raw},
        settings=settings.as_dict(),
        week=week,
        describe=describe,
    )


@dg.asset(
    deps=[clean_posts],
    group_name=GROUP,
    owners=OWNERS,
    tags={"cadence": "every_run"},
    kinds={"python", "parquet", "numba"},
    code_version="1",
    description="The best post of every set of duplicates over ALL weeks; the rest stands in removed.parquet with the post it repeats. "
    "group_id names posts that must share a split. Duplicates with conflicting labels go to label_conflicts.parquet for review.",
    check_specs=[
        check(
            "unique_posts", "rows_accounted", "Clean posts of all weeks = unique posts + removed, counted in the files"
        )
    ],
)
def unique_posts(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.curation.stages import write_unique

    store = workspace.store
    with refusals():
        source = str(workspace.load_source().file.resolve())
    weeks, others = {}, {}
    for week in store.weeks("clean_posts"):
        read_from = upstream(context, store, "raw_posts", week).manifest["settings"]["source"]
        if read_from == source:
            weeks[week] = upstream(context, store, "clean_posts", week)
        else:  # posts of another community do not train this one's model
            others[week] = read_from
            context.log.warning(f"week {week} was read from {read_from}, not from {source}: left out")
    if not weeks:
        raise dg.Failure(
            f"no week of clean_posts under {store.root} was read from {source}; materialise clean_posts first, or set "
            "XHS_SOURCE to the source that was",
            allow_retries=False,
        )

    def describe(artifact: Artifact) -> dict[str, Any]:
        posts, removed = artifact.file("posts.parquet"), artifact.file("removed.parquet")
        return {
            "dagster/row_count": pq.read_metadata(posts).num_rows,
            "removed": pq.read_metadata(removed).num_rows,
            "groups": artifact.manifest["counts"]["groups"],
            "weeks": len(weeks),
            "weeks_of_other_sources": shown.table(["week", "source"], others.items()) if others else "none",
            "removed_by_reason": shown.counts(shown.count_column(removed, "reason"), "reason"),
            "categories": shown.counts(shown.count_column(posts, "category"), "category"),
            "removed_preview": shown.preview(removed, ["post_id", "kept_post_id", "reason", "similarity"]),
            "label_conflicts": shown.preview(
                artifact.file("label_conflicts.parquet"), ["post_id", "group_id", "verdict", "category"]
            ),
        }

    return publish(
        context,
        store,
        lambda work: write_unique([artifact.file("posts.parquet") for artifact in weeks.values()], work),
        inputs={f"clean_posts/{week}": artifact for week, artifact in weeks.items()},
        settings={},
        describe=describe,
    )


def _weekly(artifact: Artifact, columns: list[str]) -> dict[str, Any]:
    posts, quarantine = artifact.file("posts.parquet"), artifact.file("quarantine.parquet")
    return {
        "dagster/row_count": pq.read_metadata(posts).num_rows,
        "quarantined": pq.read_metadata(quarantine).num_rows,
        "quarantine_reasons": shown.counts(shown.count_column(quarantine, "reason"), "reason"),
        "quarantine_examples": shown.examples(
            pq.read_table(quarantine).to_pylist(), "reason", ["post_id", "stage", "detail"]
        ),
        "verdicts": shown.counts(shown.count_column(posts, "verdict"), "verdict"),
        "preview": shown.preview(posts, columns),
    }


def _masked(artifact: Artifact) -> dict[str, int]:
    import pyarrow.compute as pc

    types = pc.list_flatten(pq.read_table(artifact.file("posts.parquet"), columns=["identifiers"])["identifiers"])
    return {entry["values"].as_py(): entry["counts"].as_py() for entry in pc.value_counts(types)}


def _masked_examples(file: Path) -> Iterator[dict[str, str]]:
    """Where identifiers stood: their type, the post, and the placeholder within a few characters of its text."""
    for batch in pq.ParquetFile(file).iter_batches(columns=["post_id", "title", "body", "identifiers"]):
        for post in batch.to_pylist():
            text = f"{post['title']} {post['body']}"
            for kind in post["identifiers"]:
                if (place := text.find(f"<{kind}>")) >= 0:  # it may have stood in the rationale
                    yield {"type": kind, "post_id": post["post_id"], "text": text[max(0, place - 20) : place + 30]}
