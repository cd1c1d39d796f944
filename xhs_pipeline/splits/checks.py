"""Reading the written splits back: what must hold of them whatever wrote them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from xhs_pipeline.artifacts import CheckOutcome
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import open_parquet
from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER
from xhs_pipeline.splits.grouping import SPLITS
from xhs_pipeline.splits.kept_out import Golden, check_never_trained

MAX_DUPLICATE_RATIONALES = 0.3  # near-identical reasons are known to collapse the quality of the analysis line


def check_splits(work: Path, counts: Mapping[str, Any], golden: Golden, policy: Policy) -> list[CheckOutcome]:
    """Read the splits back: groups, labels, placeholders, row counts, golden posts, and how alike the rationales are."""
    groups: dict[str, set[str]] = {}
    bad_labels = bad_placeholders = rows = 0
    rationales: dict[str, list[str]] = {}
    for name in SPLITS:
        for row in _read(work / f"{name}.parquet"):
            rows += 1
            groups.setdefault(row["group_id"], set()).add(name)
            bad_labels += not policy.allows(row["verdict"], row["category"])
            placeholders = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in row["messages"])
            bad_placeholders += placeholders != row["image_count"]
            if row["rationale"]:
                rationales.setdefault(row["category"], []).append(row["rationale"])
    crossing = sum(len(names) > 1 for names in groups.values())
    alike = {c: round(1 - len(set(texts)) / len(texts), 3) for c, texts in sorted(rationales.items())}
    too_alike = [c for c, share in alike.items() if share > MAX_DUPLICATE_RATIONALES]
    quota, issues, beyond = (counts[n] for n in ("left_out_by_quota", "left_out_as_label_issue", "golden_left_out"))
    return [
        CheckOutcome("no_group_across_splits", crossing == 0, f"{crossing} of {len(groups)} groups lie in more than one split", {"groups_across": crossing}),
        CheckOutcome("labels_in_policy", bad_labels == 0, f"{bad_labels} of {rows} rows have a label that the policy does not allow"),
        CheckOutcome("placeholders_match_images", bad_placeholders == 0, f"{bad_placeholders} of {rows} rows have another number of placeholders than images"),
        CheckOutcome(
            "rows_accounted", rows + quota + issues + beyond == counts["posts_in"],
            f"{counts['posts_in']} posts in = {rows} rows + {quota} left out by quota + {issues} as label issues + {beyond} golden "
            "with a label of an older policy",
        ),
        check_never_trained(work, golden, beyond),
        CheckOutcome(
            "rationales_differ", not too_alike,
            f"more than {MAX_DUPLICATE_RATIONALES:.0%} of the rationales repeat in: {', '.join(too_alike) or 'no category'}",
            {"duplicate_rationale_share": alike}, blocking=False,
        ),
    ]  # fmt: skip


def _read(file: Path) -> Iterable[dict[str, Any]]:
    columns = ["messages", "images", "group_id", "verdict", "category", "rationale"]
    for batch in open_parquet(file).iter_batches(columns=columns, batch_size=256):
        sizes = pc.list_value_length(batch["images"]).to_pylist()
        light = batch.select([c for c in columns if c != "images"]).to_pylist()
        yield from (row | {"image_count": size or 0} for row, size in zip(light, sizes, strict=True))
