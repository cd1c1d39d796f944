"""Which suspected labels the train split acts on. Finds none itself (curation.labels does), and changes no label."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from xhs_pipeline.appeals.outcomes import DECIDED_SOURCES
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE


def suspects(issues: pa.Table, posts: Iterable[Mapping[str, Any]], policy: Policy) -> dict[str, dict[str, Any]]:
    """The rows of label_issues, by post_id, that hold against `posts` (post_id, verdict, category, label_source).

    An issue is with one label, so it falls when reviewers decided the post or the label is another by now. The learner that
    suspects reads no images: it may not outvote a violation that a picture may show, so of a post with images only the
    harmless label is acted on. All others are for people to look at.
    """
    by_post = {row["post_id"]: row for row in issues.to_pylist()}
    found = {}
    for post in posts:
        issue = by_post.get(post["post_id"])
        if issue is None or post["label_source"] in DECIDED_SOURCES:
            continue
        same = (issue["verdict"], issue["category"]) == (post["verdict"], post["category"])
        if same and (issue["image_count"] == 0 or post["category"] == policy.normal_category):
            found[post["post_id"]] = issue
    return found


def left_out(issues: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    """QUARANTINE rows of the posts that were left out of train because of their label."""
    rows = [
        {
            "post_id": issue["post_id"],
            "stage": "sharegpt_splits",
            "reason": "label_issue",
            "detail": f"given {issue['category']} ({issue['self_confidence']:.0%}), suspected {issue['suspected_category']} "
            f"({issue['confidence']:.0%}); left out of train",
        }
        for issue in issues
    ]
    return pa.RecordBatch.from_pylist(rows, schema=QUARANTINE)
