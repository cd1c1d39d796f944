"""Posts, outcomes and label issues in a folder, and the splits made of them: what the tests of splits share."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xhs_pipeline.appeals.events import parse_events
from xhs_pipeline.appeals.outcomes import OUTCOMES, derive_outcomes
from xhs_pipeline.artifacts import Built
from xhs_pipeline.curation.labels import LABEL_ISSUES
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import SPLITS
from xhs_pipeline.splits.sharegpt import write_splits
from xhs_pipeline_tests.small import write_unique_folder
from xhs_pipeline_tests.test_appeals_events import KEY, lines

POLICY = load_policy()
PROFILE = Profile(base_model="tiny", base_revision="")
SHARED = Path(__file__).resolve().parents[2] / "shared"
LLAMAFACTORY = SHARED / "llamafactory_format"
needs_shared = pytest.mark.skipif(
    not LLAMAFACTORY.is_dir(), reason=f"{LLAMAFACTORY} with LLaMA-Factory's own examples is not on this machine"
)
# Columns that other trainers give a meaning of their own.
TAKEN = {"label", "channel", "objects", "tools", "solution", "margin"}


def jpeg(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (number % 256, 90, 120)).save(out, "JPEG")
    return out.getvalue()


def post(number: int, *, images: int = 0, **changes: Any) -> dict[str, Any]:
    """A unique post; every fifth is fine, the others are fraud."""
    fine = number % 5 == 0
    row = {
        "post_id": f"p-{number}",
        "title": f"标题{number}",
        "body": f"正文{number}",
        "images": [{"bytes": jpeg(number + i), "path": f"p-{number}_{i}.jpg"} for i in range(images)],
        "week": "2026-02-16",
        "verdict": "pass" if fine else "remove",
        "category": "正常" if fine else "诈骗",
        "severity": 0 if fine else 3,
        "rationale": f"理由{number}" if number % 2 else None,
        "label_source": "source",
        "author_hash": "0" * 32,
        "group_id": f"g-{number // 2}",
        "founders": [f"g-{number // 2}"],
        "schema_version": 1,
        "match_text": f"标题{number}正文{number}",
        "image_hashes": ["0" * 16] * images,
        "identifiers": [],
    }
    return row | changes


def posts_folder(folder: Path, posts: list[dict[str, Any]], removed: dict[str, str | None] | None = None) -> Path:
    """A unique_posts folder; `removed` maps the post_id of a removed duplicate to the post that was kept for it."""
    gone = [{"post_id": old, "kept_post_id": new, "reason": "near_duplicate"} for old, new in (removed or {}).items()]
    write_unique_folder(folder / "unique", posts, gone)
    return folder / "unique"


def outcomes_file(folder: Path, *events: dict[str, Any]) -> Path:
    """The outcomes that these appeal events come to."""
    file = folder / "outcomes.parquet"
    outcomes = derive_outcomes(parse_events(lines(*events), POLICY, KEY).events, POLICY).outcomes
    pq.write_table(outcomes.cast(OUTCOMES), file)
    return file


def issues_file(folder: Path, posts: list[dict[str, Any]]) -> Path:
    """A label_issues table that suspects these posts to be something else than their label."""
    rows = [
        {name: post[name] for name in LABEL_ISSUES.names if name in post}
        | {
            "image_count": len(post["images"]), "suspected_category": "辱骂引战", "confidence": 0.9,
            "self_confidence": 0.05, "neighbours": [],
        }
        for post in posts
    ]  # fmt: skip
    file = folder / "label_issues.parquet"
    pq.write_table(pa.Table.from_pylist(rows, LABEL_ISSUES), file)
    return file


def write(
    folder: Path,
    posts: list[dict[str, Any]],
    *events: dict[str, Any],
    issues: list[dict[str, Any]] | None = None,
    **settings: Any,
) -> tuple[Path, Built, dict[str, list[dict[str, Any]]]]:
    """The folder written, what was reported, and the rows of every split."""
    profile = PROFILE.model_copy(update=settings)
    work = folder / "work"
    work.mkdir()
    suspected, decided = issues_file(folder, issues or []), outcomes_file(folder, *events)
    built = write_splits(posts_folder(folder, posts), decided, suspected, POLICY, profile, work)
    return work, built, {name: pq.read_table(work / f"{name}.parquet").to_pylist() for name in SPLITS}


def rows_of(splits: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return {row["post_id"]: row for rows in splits.values() for row in rows}


def failed(built: Built) -> list[str]:
    return [check.name for check in built.checks if not check.passed]


def sample(count: int = 120) -> list[dict[str, Any]]:
    return [post(n, images=n % 3 if n % 10 < 4 else 0) for n in range(count)]
