"""label_issues as a function over the files of unique_posts: suspected labels, and a report on the labels as a set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Built, CheckOutcome, write_json
from xhs_pipeline.curation.label_report import agreement, class_balance, labelled_items, rationale_diversity
from xhs_pipeline.curation.labels import LABEL_ISSUES, READ, question_labels
from xhs_pipeline.posts.schema import write_table

REPORT = "report.json"


def write_label_issues(
    files: Sequence[Path],
    removed: Path,
    conflicts: Path,
    seed: int,
    trusted_sources: Sequence[str],
    work: Path,
    log: Callable[[str], None] = print,
) -> Built:
    """Write label_issues.parquet (LABEL_ISSUES) and report.json into `work`.

    files: the posts of unique_posts; removed, conflicts: its removed.parquet and label_conflicts.parquet. Images are not read.
    """
    posts = pa.concat_tables([pq.read_table(file, columns=[*READ, "rationale"]) for file in files])
    log(f"label_issues: {posts.num_rows} labels to question")
    found = question_labels(posts, seed, trusted_sources)
    write_table(work / "label_issues.parquet", LABEL_ISSUES, found.issues.to_batches())
    report = label_report(posts, pq.read_table(removed), pq.read_table(conflicts))
    write_json(work / REPORT, report)
    issues = pq.read_table(work / "label_issues.parquet", columns=["post_id"])["post_id"].to_pylist()
    strange = set(issues) - set(posts["post_id"].to_pylist())
    known = len(issues) == len(set(issues)) and not strange
    accounted = found.questioned + sum(found.not_questioned.values())
    counts: dict[str, Any] = {
        "posts_in": posts.num_rows,
        "questioned": found.questioned,
        "not_questioned": found.not_questioned,
        "issues": len(issues),
    }
    said = f"{posts.num_rows} posts in = {found.questioned} questioned + {accounted - found.questioned} not, by reason"
    return Built(
        counts,
        [
            CheckOutcome("posts_accounted", accounted == posts.num_rows, said),
            CheckOutcome(
                "issues_are_unique_posts", known, f"{len(issues)} issues, of which {len(strange)} name no unique post"
            ),
        ],
    )


def label_report(unique: pa.Table, removed: pa.Table, conflicts: pa.Table) -> dict[str, Any]:
    """balance of verdicts and categories, rationales in all and by category, agreement by kind and column. Plain JSON values."""
    categories, rationales = unique["category"].to_pylist(), unique["rationale"].to_pylist()
    by_category: dict[str, list[str | None]] = {name: [] for name in sorted(set(categories))}
    for category, rationale in zip(categories, rationales, strict=True):
        by_category[category].append(rationale)
    agreed: dict[str, dict[str, Any]] = {}
    for column in ("verdict", "category"):
        for kind, items in labelled_items(unique, removed, conflicts, column).items():
            agreed.setdefault(kind, {})[column] = agreement(items)
    return {
        "balance": {column: class_balance(unique[column].to_pylist()) for column in ("verdict", "category")},
        "rationales": {
            "all": rationale_diversity(rationales),
            "by_category": {name: rationale_diversity(texts) for name, texts in by_category.items()},
        },
        "agreement": agreed,
    }
