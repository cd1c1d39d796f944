"""The newest week tells how the model in use does on posts that it could not have known."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.judgement.frame import predictions_frame
from xhs_pipeline.judgement.newest_week import newest_week_figures
from xhs_pipeline.posts.schema import write_table
from xhs_pipeline.splits.grouping import SPLITS
from xhs_pipeline.splits.sharegpt import SHAREGPT
from xhs_pipeline_tests.test_judgement_metrics import HARMLESS, POLICY, frame

OLD, NEW = "2026-02-16", "2026-02-23"


def splits(folder: Path, rows: dict[str, list[tuple[str, str, list[str]]]]) -> Path:
    """Splits of (post_id, week, founders)."""
    folder.mkdir()
    for name in SPLITS:
        filled = [
            dict.fromkeys(SHAREGPT.names)
            | {
                "post_id": post,
                "week": week,
                "founders": founders,
                "group_id": founders[0],
                "images": [],
                "messages": [],
            }
            | {"verdict": HARMLESS[0], "category": HARMLESS[1], "title": "标题", "body": "正文"}
            for post, week, founders in rows.get(name, [])
        ]
        write_table(folder / f"{name}.parquet", SHAREGPT, [pa.RecordBatch.from_pylist(filled, schema=SHAREGPT)])
    return folder


def answered(file: Path, chosen: set[str]) -> Any:
    """A frame that says harmless to every one of the posts."""
    posts = [post for post in pq.read_table(file, columns=["post_id"])["post_id"].to_pylist() if post in chosen]
    return frame([HARMLESS] * len(posts), [HARMLESS] * len(posts), post_id=posts, week=[NEW] * len(posts))


def figures(folder: Path, today: Path, trained_on: Path | None, at_most: int = 100) -> tuple[dict[str, Any], list[str]]:
    asked: list[str] = []

    def ask(file: Path, chosen: set[str]) -> Any:
        asked.extend(chosen)
        return answered(file, chosen)

    table = pq.read_table(today / "test.parquet", columns=["post_id", "week"])
    posts, weeks = table["post_id"].to_pylist(), table["week"].to_pylist()
    test = frame([HARMLESS] * len(posts), [HARMLESS] * len(posts), post_id=posts, week=weeks)
    part = newest_week_figures(today, trained_on, test, test, ask, lambda f: {"n": len(f)}, 0, at_most)
    return part, sorted(asked)


BEFORE = {"train": [("a", OLD, ["a"])], "validation": [("b", OLD, ["b"])], "test": [("t", OLD, ["t"])]}
TODAY = BEFORE | {
    "train": [("a", OLD, ["a"]), ("n1", NEW, ["n1"]), ("n2", NEW, ["a", "n2"]), ("n3", NEW, ["b", "n3"])],
    "calibration": [("n4", NEW, ["n4"])],
    "test": [("t", OLD, ["t"]), ("n5", NEW, ["n5"])],
}


def test_the_model_in_use_is_judged_on_all_posts_of_the_week_but_those_it_knows(tmp_path: Path) -> None:
    part, asked = figures(tmp_path, splits(tmp_path / "today", TODAY), splits(tmp_path / "before", BEFORE))
    assert (part["week"], part["reason"], part["n"]) == (NEW, None, 3)
    assert asked == ["n1", "n4"], (
        "n2 repeats a trained post, n3 one that chose the checkpoint; n5 was judged with the test split"
    )
    assert part["champion"] == {"n": 3} and part["before"] == {"n": 1}
    assert part["model"] == {"n": 1} and part["n_model"] == 1, "the judged model was trained on the rest of the week"


def test_a_large_week_is_sampled_and_the_sample_stays_the_same(tmp_path: Path) -> None:
    today, before = splits(tmp_path / "today", TODAY), splits(tmp_path / "before", BEFORE)
    first, again = (figures(tmp_path, today, before, at_most=2) for _ in range(2))
    assert first[0]["n"] == 2 and first == again


def test_a_week_that_the_model_in_use_was_trained_on_tells_nothing(tmp_path: Path) -> None:
    today = splits(tmp_path / "today", TODAY)
    part, asked = figures(tmp_path, today, today)
    assert part["reason"] == "the model in use was trained on this week already"
    assert (part["n"], part["champion"], asked) == (0, None, [])


def test_without_a_model_in_use_or_its_splits_the_reason_is_given(tmp_path: Path) -> None:
    today = splits(tmp_path / "today", TODAY)
    unknown, _ = figures(tmp_path, today, None)
    assert unknown["reason"] == "it is not known which posts the model in use was trained on"
    test = frame([HARMLESS], [HARMLESS], post_id=["n5"], week=[NEW])
    first = newest_week_figures(today, None, test, None, None, lambda f: {"n": len(f)}, 0, 10)
    assert (first["reason"], first["model"], first["n"]) == ("no model in use to judge it", {"n": 1}, 0)


def test_no_posts_at_all_have_no_newest_week(tmp_path: Path) -> None:
    empty = predictions_frame(SHAREGPT.empty_table(), [], [], *_nothing(), [], POLICY)
    part = newest_week_figures(splits(tmp_path / "none", {}), None, empty, None, None, lambda f: {}, 0, 10)
    assert (part["week"], part["n"], part["n_model"]) == (None, 0, 0)


def _nothing() -> tuple[Any, Any]:
    import numpy as np

    return np.empty((0, len(POLICY.verdict_ids))), np.empty((0, len(POLICY.category_names)))
