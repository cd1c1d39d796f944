"""What train does with suspected labels."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xhs_pipeline_tests.splits import failed, post, sample, write
from xhs_pipeline_tests.test_appeals_events import event

# --- suspected labels -----------------------------------------------------------------------------------------------------


EVERYONE = dict(test_share=0.0, validation_share=0.0, calibration_share=0.0)  # all posts are training posts


def folders(parent: Path, *names: str) -> list[Path]:
    made = [parent / name for name in names]
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.parametrize("setting", ["keep", "exclude", "down_weight"])
def test_suspected_labels_touch_nothing_but_train_and_only_as_the_setting_says(tmp_path: Path, setting: Any) -> None:
    plain, acted = folders(tmp_path, "plain", "acted")
    before = write(plain, sample())[2]
    suspected = [
        p for p in sample() if p["post_id"] in {row["post_id"] for rows in before.values() for row in rows[::3]}
    ]
    work, built, after = write(acted, sample(), issues=suspected, label_issues=setting, label_issue_weight=0.25)
    for name in ("validation", "calibration", "test"):
        assert before[name] == after[name] and before[name]
    named = {p["post_id"] for p in suspected if not p["images"] or p["category"] == "正常"}
    named &= {row["post_id"] for row in before["train"]}
    assert named and failed(built) == [] and built.counts["label_issues_in_train"] == len(named)
    left = pq.read_table(work / "quarantine.parquet").to_pylist()
    assert built.counts["left_out_as_label_issue"] == len(left)
    weights = {row["post_id"]: row["label_weight"] for row in after["train"]}
    if setting == "exclude":
        assert set(weights) == {row["post_id"] for row in before["train"]} - named
        assert {row["post_id"] for row in left} == named and {row["reason"] for row in left} == {"label_issue"}
        assert left[0]["detail"] == "given 诈骗 (5%), suspected 辱骂引战 (90%); left out of train"
    else:
        assert left == [] and set(weights) == {row["post_id"] for row in before["train"]}
    light = {post_id for post_id, weight in weights.items() if weight != 1}
    assert light == (named if setting == "down_weight" else set())
    assert {weights[post_id] for post_id in light} <= {0.25}
    own = {p["post_id"]: (p["verdict"], p["category"]) for p in sample()}
    assert all((row["verdict"], row["category"]) == own[row["post_id"]] for row in after["train"]), (
        "no label is changed"
    )


def test_a_label_decided_on_appeal_is_trained_on_in_full_whatever_is_suspected(tmp_path: Path) -> None:
    events = [
        event(1, post="p-1"), event(2, "overturned", post="p-1"),
        event(3, appeal="a-3", post="p-3"), event(4, "upheld", appeal="a-3", post="p-3"),
    ]  # fmt: skip
    posts = [post(n) for n in range(1, 6)]
    out, light = folders(tmp_path, "out", "light")
    _, built, splits = write(out, posts, *events, issues=posts, label_issues="exclude", **EVERYONE)
    assert {row["post_id"] for row in splits["train"]} == {"p-1", "p-3"} and built.counts[
        "left_out_as_label_issue"
    ] == 3
    _, _, splits = write(light, posts, *events, issues=posts, label_issues="down_weight", **EVERYONE)
    assert {row["post_id"] for row in splits["train"] if row["label_weight"] == 1} == {"p-1", "p-3"}


def test_a_violation_that_a_picture_may_show_is_not_outvoted_by_its_words(tmp_path: Path) -> None:
    posts = [post(1, images=1), post(2), post(5, images=1), post(10)]  # 5 and 10 are fine, 1 and 2 are fraud
    _, built, splits = write(tmp_path, posts, issues=posts, label_issues="down_weight", **EVERYONE)
    assert {row["post_id"] for row in splits["train"] if row["label_weight"] == 1} == {"p-1"}
    assert built.counts["label_issues_in_train"] == 3


def test_an_issue_with_a_label_that_is_another_by_now_falls(tmp_path: Path) -> None:
    posts = [post(1), post(2)]
    older = [post(1, verdict="needs_edit", category="虚假宣传"), post(2)]
    _, _, splits = write(tmp_path, posts, issues=older, label_issues="exclude", **EVERYONE)
    assert [row["post_id"] for row in splits["train"]] == ["p-1"]


def test_what_is_left_out_does_not_count_towards_a_quota(tmp_path: Path) -> None:
    posts = [post(n) for n in range(1, 5)]
    _, built, splits = write(
        tmp_path, posts, issues=posts[:2], label_issues="exclude", train_quotas={"诈骗": 2}, **EVERYONE
    )
    assert {row["post_id"] for row in splits["train"]} == {"p-3", "p-4"}
    assert (built.counts["left_out_by_quota"], built.counts["left_out_as_label_issue"]) == (0, 2) and failed(
        built
    ) == []
