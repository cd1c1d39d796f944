"""Posts in data order: raw_posts and clean_posts week by week, unique_posts over all weeks."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact
from xhs_pipeline.assets import shown
from xhs_pipeline.assets.publish import check, publish, refusals, upstream
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import settings_of
from xhs_pipeline.resources import ProfileSettings, Workspace

WEEKS = dg.WeeklyPartitionsDefinition(start_date="2024-01-01", day_offset=1, timezone="Asia/Shanghai")
GROUP, OWNERS = "posts", ["team:data-platform"]
SHOWN_WEEKS = 8


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
    from xhs_pipeline.privacy import key_fingerprint, load_hmac_key

    week, policy = context.partition_key, load_policy()
    with refusals():
        source = workspace.load_source()
        fingerprint = source_fingerprint(source, week)
        key = load_hmac_key(workspace.root)
    return publish(
        context,
        workspace.store,
        lambda work: write_raw(source, week, policy, key, work, context.log.info, mask=lambda text: mask(text)[0]),
        # another key gives other author hashes; this keeps the two apart
        inputs={**fingerprint, "hmac_key": key_fingerprint(key)},
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
    code_version="2",
    description="The week's posts as the model may see them: text normalised, identifiers of people replaced by typed placeholders, "
    "images decoded, stripped of metadata, resized and embedded as JPEG. What cannot be judged stands in quarantine.parquet.",
    check_specs=[
        check("clean_posts", "rows_accounted", "Raw posts = clean posts + quarantine, counted in the files"),
        check("clean_posts", "images_decode", "Every embedded image, read back, is byte for byte one that decoded"),
    ],
)
def clean_posts(
    context: dg.AssetExecutionContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.MaterializeResult:
    from xhs_pipeline.curation.clean import CleanSettings
    from xhs_pipeline.curation.stages import OCR_COUNTS, write_clean

    week, settings = context.partition_key, CleanSettings(**settings_of(profile.resolve(), "clean_posts"))
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
            **{name: artifact.manifest["counts"][name] for name in OCR_COUNTS if settings.ocr},
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
    code_version="2",
    description="The best post of every set of duplicates over ALL weeks; the rest stands in removed.parquet with the post it repeats. "
    "group_id names posts that must share a split. Duplicates with conflicting labels go to label_conflicts.parquet for review. "
    "A new week is compared with the index of the weeks before it; the result is that of all weeks at once.",
    check_specs=[
        check(
            "unique_posts", "rows_accounted", "Clean posts of all weeks = unique posts + removed, counted in the files"
        ),
        check(
            "unique_posts",
            "conflicts_set_aside",
            "Every post of label_conflicts is there in full, for an appeal to bring back",
        ),
    ],
)
def unique_posts(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
    from xhs_pipeline.curation.unique import write_unique

    store, trusted_sources = workspace.store, load_policy().trusted_sources
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
        removed, counts = artifact.file("removed.parquet"), artifact.manifest["counts"]
        return {
            # counted in the files when they were written; most are links, and there are thousands
            "dagster/row_count": counts["posts"],
            "removed": pq.read_metadata(removed).num_rows,
            "groups": counts["groups"],
            "weeks": len(weeks),
            "weeks_folded": counts["weeks_folded"],
            "weeks_of_other_sources": shown.table(["week", "source"], others.items()) if others else "none",
            "removed_by_reason": shown.counts(shown.count_column(removed, "reason"), "reason"),
            "categories": shown.counts(counts["categories"], "category"),
            **_duplicates(artifact, [week.file("posts.parquet") for week in weeks.values()]),
        }

    # Spares comparing the weeks that it has; the result is the same without. Another code version may have another index.
    previous = store.latest("unique_posts")
    code_version = context.assets_def.code_versions_by_key[context.asset_key]
    if previous and previous.manifest["code_version"] != code_version:
        previous = None
    return publish(
        context,
        store,
        lambda work: write_unique(weeks, work, trusted_sources, previous, context.log.info),
        inputs={f"clean_posts/{week}": artifact for week, artifact in weeks.items()},
        settings={"trusted_sources": list(trusted_sources)},
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


def _duplicates(artifact: Artifact, weeks: list[Path]) -> dict[str, Any]:
    """What was removed beside what it repeats, as text and as pictures, and the contradicting labels; the newest first."""
    removed = pq.read_table(artifact.file("removed.parquet")).to_pylist()[::-1]
    conflicts = pq.read_table(artifact.file("label_conflicts.parquet")).to_pylist()[::-1]
    conflicts.sort(key=lambda row: row["set_id"], reverse=True)
    seen: Counter[str] = Counter()
    pairs = []
    for row in removed:
        seen[row["reason"]] += 1
        if row["kept_post_id"] and seen[row["reason"]] <= shown.SHEET_GROUPS:
            pairs.append(row)
    ids = {i for row in pairs for i in (row["post_id"], row["kept_post_id"])} | {
        row["post_id"] for row in conflicts[:20]
    }
    # the newest weeks hold the newest duplicates; what an older one repeats may lie further back than is looked
    posts = shown.posts_of(weeks[-SHOWN_WEEKS:], ids, ["title", "body", "images"])
    nothing = {"title": "", "body": "", "images": []}

    def text(post_id: str | None) -> str:
        post = posts.get(post_id or "", nothing)
        return f"{post['title']} {post['body']}"

    rows = (
        {
            **row,
            "similarity": "" if row["similarity"] is None else f"{row['similarity']:.3f}",
            "text": text(row["post_id"]),
            "kept_text": text(row["kept_post_id"]),
        }
        for row in removed
    )
    pictured = [row for row in pairs if posts.get(row["kept_post_id"], nothing)["images"]][: shown.SHEET_GROUPS]
    sheet = [
        [image["bytes"] for i in (row["kept_post_id"], row["post_id"]) for image in posts.get(i, nothing)["images"]]
        for row in pictured
    ]
    return {
        "duplicate_examples": shown.examples(
            rows, "reason", ["post_id", "kept_post_id", "similarity", "text", "kept_text"]
        ),
        "duplicate_sheet": shown.sheet(sheet, "duplicate groups"),
        "duplicate_sheet_rows": shown.table(
            ["row", "kept first", "then its duplicate", "reason"],
            [[n + 1, row["kept_post_id"], row["post_id"], row["reason"]] for n, row in enumerate(pictured)],
        ),
        "label_conflicts": shown.table(
            ["set_id", "post_id", "verdict", "category", "label_source", "text"],
            [
                [
                    row["set_id"],
                    row["post_id"],
                    row["verdict"],
                    row["category"],
                    row["label_source"],
                    text(row["post_id"]),
                ]
                for row in conflicts[:20]
            ],
        ),
    }


def _masked(artifact: Artifact) -> dict[str, int]:
    import pyarrow.compute as pc

    types = pc.list_flatten(pq.read_table(artifact.file("posts.parquet"), columns=["identifiers"])["identifiers"])
    return {entry["values"].as_py(): entry["counts"].as_py() for entry in pc.value_counts(types)}


def _masked_examples(file: Path) -> Iterator[dict[str, str]]:
    """Where identifiers stood: their type, the post, and the placeholder within a few characters of its text."""
    for batch in pq.ParquetFile(file).iter_batches(columns=["post_id", "title", "body", "ocr_text", "identifiers"]):
        for post in batch.to_pylist():
            text = f"{post['title']} {post['body']} {post['ocr_text'] or ''}"
            for kind in post["identifiers"]:
                if (place := text.find(f"<{kind}>")) >= 0:  # it may have stood in the rationale
                    yield {"type": kind, "post_id": post["post_id"], "text": text[max(0, place - 20) : place + 30]}
