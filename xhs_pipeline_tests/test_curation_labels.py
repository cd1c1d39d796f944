"""Suspected labels: flipped ones are found, right ones and trusted ones are left alone, and nothing odd in the data is fatal."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.artifacts import read_json
from xhs_pipeline.curation.label_stages import write_label_issues
from xhs_pipeline.curation.labels import LABEL_ISSUES, MIN_GROUPS, NEIGHBOURS, READ, question_labels
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import REMOVED
from xhs_pipeline.posts.sources import load_source, read_week
from xhs_pipeline_tests.benchmarks.label_issues import REAL_POSTS, WEIGHT, Learner, flip, found_of, real_posts, unique

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
WORDS = {
    "正常": "周末 公园 散步 咖啡 面包 晴天 书店 阳台 早餐 电影",
    "诈骗": "稳赚 本金 导师 内幕 返利 垫付 客服 冻结 转账 暴富",
    "私域引流": "私聊 主页 拉群 资料 暗号 领取 进群 备注 小窗 站外",
}
VERDICT = {"正常": "pass", "诈骗": "remove", "私域引流": "needs_edit"}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [(name, pa.list_(pa.string()) if name == "image_hashes" else pa.string()) for name in [*READ, "rationale"]]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def post(number: int, category: str, text: str, **changes: Any) -> dict[str, Any]:
    return {
        "post_id": f"p{number:04}", "group_id": f"g{number:04}", "week": "2026-02-16", "verdict": VERDICT.get(category, "remove"),
        "category": category, "label_source": "source", "match_text": text, "image_hashes": [], "rationale": None,
    } | changes  # fmt: skip


def posts(count: int = 120, seed: int = 0) -> list[dict[str, Any]]:
    """Posts of three categories, each of four words that say which."""
    rng = random.Random(seed)
    kinds = [(category, words.split()) for category, words in WORDS.items()]
    return [post(n, kinds[n % 3][0], "".join(rng.choices(kinds[n % 3][1], k=4))) for n in range(count)]


def relabel(row: dict[str, Any], category: str) -> dict[str, Any]:
    return row | {"category": category, "verdict": VERDICT[category]}


# what is suspected


def test_flipped_labels_are_suspected_and_the_label_they_had_is_suggested() -> None:
    rows = posts()
    flipped = {10: "正常", 50: "正常", 90: "私域引流"}
    for place, category in flipped.items():
        rows[place] = relabel(rows[place], category)
    found = question_labels(table(rows), seed=0, trusted_sources=["appeal"])
    got = {row["post_id"]: row["suspected_category"] for row in found.issues.to_pylist()}
    assert got == {f"p{place:04}": list(WORDS)[place % 3] for place in flipped}
    assert (found.questioned, found.not_questioned) == (120, {})


def test_labels_that_fit_their_words_are_not_suspected() -> None:
    assert question_labels(table(posts()), seed=0, trusted_sources=["appeal"]).issues.num_rows == 0


def test_an_issue_shows_the_given_label_both_confidences_and_the_nearest_posts_of_other_groups() -> None:
    rows = posts()
    rows[10] = relabel(rows[10], "正常") | {"image_hashes": ["0" * 16, "1" * 16]}
    rows[13] = rows[13] | {"match_text": rows[10]["match_text"], "group_id": rows[10]["group_id"]}
    issues = question_labels(table(rows), seed=0, trusted_sources=["appeal"]).issues
    assert issues.schema == LABEL_ISSUES and issues.num_rows == 1
    (issue,) = issues.to_pylist()
    assert (issue["verdict"], issue["category"], issue["image_count"], issue["week"]) == (
        "pass",
        "正常",
        2,
        "2026-02-16",
    )
    assert 0 <= issue["self_confidence"] < 0.5 < issue["confidence"] <= 1
    near = issue["neighbours"]
    assert len(near) == NEIGHBOURS and rows[13]["post_id"] not in {n["post_id"] for n in near}
    assert [n["similarity"] for n in near] == sorted((n["similarity"] for n in near), reverse=True)
    categories = {row["post_id"]: row["category"] for row in rows}
    assert all(n["category"] == categories[n["post_id"]] and 0 < n["similarity"] <= 1 for n in near)
    assert Counter(n["category"] for n in near).most_common(1)[0][0] == issue["suspected_category"]


def test_the_worst_label_comes_first() -> None:
    rows = posts()
    for place in (10, 50, 90):
        rows[place] = relabel(rows[place], "正常" if place % 3 else "诈骗")
    scores = question_labels(table(rows), seed=0, trusted_sources=["appeal"]).issues["self_confidence"].to_pylist()
    assert len(scores) == 3 and scores == sorted(scores)


def test_a_label_decided_on_appeal_is_learned_from_and_never_suspected() -> None:
    rows = posts()
    rows[10] = relabel(rows[10], "正常") | {"label_source": "appeal"}
    found = question_labels(table(rows), seed=0, trusted_sources=["appeal"])
    assert found.issues.num_rows == 0
    assert (found.questioned, found.not_questioned) == (119, {"trusted_source": 1})


def test_a_copy_with_the_same_wrong_label_cannot_vouch_for_it() -> None:
    rows = posts()
    for place in (10, 13, 16, 19):  # one near-duplicate group, all wrong alike
        rows[place] = relabel(rows[place], "正常") | {"match_text": rows[10]["match_text"], "group_id": "g0010"}
    found = {
        row["post_id"] for row in question_labels(table(rows), seed=0, trusted_sources=["appeal"]).issues.to_pylist()
    }
    assert found == {"p0010", "p0013", "p0016", "p0019"}


def test_the_same_posts_and_seed_give_the_same_issues_in_any_order() -> None:
    rows = posts()
    for place in range(0, 120, 13):
        rows[place] = relabel(rows[place], "正常" if place % 3 else "诈骗")
    first = question_labels(table(rows), seed=3, trusted_sources=["appeal"]).issues
    assert first.num_rows > 3
    shuffled = random.Random(1).sample(rows, len(rows))
    assert question_labels(table(shuffled), seed=3, trusted_sources=["appeal"]).issues.equals(first)


# that it pays


def test_most_flips_of_the_samples_labels_are_found_and_most_of_what_is_found_is_a_flip() -> None:
    rows: list[dict[str, Any]] = []
    for good, _ in read_week(load_source(SAMPLE / "source.yaml"), "2026-02-16", load_policy(), b"0123456789abcdef"):
        rows += good.select(["post_id", "title", "body", "category"]).to_pylist()
    columns = (
        [row["post_id"] for row in rows],
        [f"{r['title']}\n{r['body']}" for r in rows],
        [r["category"] for r in rows],
    )
    noisy, flipped = flip(unique(*columns), 0.08, seed=0)
    suspected = set(question_labels(noisy, seed=0, trusted_sources=["appeal"]).issues["post_id"].to_pylist())
    recall, precision = found_of(suspected, flipped)
    assert len(flipped) > 80 and recall >= 0.5 and precision >= 0.5


def test_flips_among_real_posts_are_found_and_weighing_them_down_makes_the_learner_better() -> None:
    if not REAL_POSTS.exists():
        pytest.skip(f"{REAL_POSTS} is not here; flips among real posts are not looked for")
    posts = real_posts()
    train, test = posts.slice(0, 2600), posts.slice(2600)
    noisy, flipped = flip(train, 0.08, seed=0)
    suspected = set(question_labels(noisy, seed=0, trusted_sources=["appeal"]).issues["post_id"].to_pylist())
    recall, precision = found_of(suspected, flipped)
    assert recall >= 0.5 and precision >= 0.5
    learner = Learner(train, test)
    assert learner.macro_f1(noisy, WEIGHT, sorted(suspected)) > learner.macro_f1(noisy)


# what cannot be questioned


def test_posts_without_text_and_of_rare_categories_are_counted_and_never_suspected() -> None:
    rows = posts()
    rows[0] = rows[0] | {"match_text": ""}
    rows[1] = rows[1] | {"match_text": None}
    rows += [post(200 + n, "赌博", f"下注开盘{n}") for n in range(MIN_GROUPS - 1)]
    found = question_labels(table(rows), seed=0, trusted_sources=["appeal"])
    assert found.not_questioned == {"no_text": 2, "rare_category": MIN_GROUPS - 1}
    assert found.questioned == 118 and "赌博" not in found.issues["suspected_category"].to_pylist()


def test_many_posts_of_one_group_are_one_voice_and_leave_their_category_rare() -> None:
    rows = posts() + [post(200 + n, "赌博", "下注开盘", group_id="g0200") for n in range(20)]
    assert question_labels(table(rows), seed=0, trusted_sources=["appeal"]).not_questioned == {"rare_category": 20}


def test_a_post_that_shares_nothing_with_the_others_is_not_judged_by_them() -> None:
    rows = [*posts(), post(200, "正常", "ＱＷＥ龘靐齉")]
    found = question_labels(table(rows), seed=0, trusted_sources=["appeal"])
    assert found.not_questioned == {"unlike_the_others": 1} and found.issues.num_rows == 0


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        ([], {}),
        (posts(1), {"rare_category": 1}),
        (posts(9), {"rare_category": 9}),
        ([post(n, "正常", f"晴天{n}") for n in range(20)], {"one_category": 20}),
        ([post(n, "正常", "") for n in range(20)], {"no_text": 20}),
        ([post(n, ("正常", "诈骗")[n % 2], chr(0x4E00 + n)) for n in range(20)], {"unlike_the_others": 20}),
    ],
    ids=["none", "one", "nine", "one category", "no text", "nothing shared"],
)
def test_posts_that_cannot_be_questioned_are_counted_by_reason_and_nothing_is_made_up(
    rows: list[dict[str, Any]], reasons: dict[str, int]
) -> None:
    found = question_labels(table(rows), seed=0, trusted_sources=["appeal"])
    assert found.issues.num_rows == 0 and found.issues.schema == LABEL_ISSUES
    assert (found.questioned, found.not_questioned) == (0, reasons)


# files


def test_the_stage_reads_several_files_writes_what_it_found_and_counts_it(tmp_path: Path) -> None:
    rows = posts()
    rows[10] = relabel(rows[10], "正常")
    rows[1] = rows[1] | {"rationale": "要求先垫付再返利"}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(table(rows[:50]), files[0])
    pq.write_table(table(rows[50:]), files[1])
    gone = [
        {"post_id": "old", "kept_post_id": "p0001", "reason": "near_duplicate", "verdict": "pass", "category": "正常"}
    ]
    pq.write_table(pa.Table.from_pylist(gone, REMOVED), tmp_path / "removed.parquet")
    conflicts = pa.table({name: pa.array([], pa.string()) for name in ("post_id", "group_id")})
    pq.write_table(conflicts, tmp_path / "label_conflicts.parquet")
    work = tmp_path / "work"
    work.mkdir()
    said: list[str] = []
    built = write_label_issues(
        files, tmp_path / "removed.parquet", tmp_path / "label_conflicts.parquet", 0, ["appeal"], work, said.append
    )
    assert all(check.passed for check in built.checks) and said == ["label_issues: 120 labels to question"]
    assert built.counts == {"posts_in": 120, "questioned": 120, "not_questioned": {}, "issues": 1}
    assert pq.read_table(work / "label_issues.parquet")["post_id"].to_pylist() == ["p0010"]
    report = read_json(work / "report.json")
    assert report["balance"]["category"]["counts"] == {"正常": 41, "诈骗": 39, "私域引流": 40}
    assert report["rationales"]["by_category"]["诈骗"]["rationales"] == report["rationales"]["all"]["rationales"] == 1
    assert report["agreement"]["duplicate"]["category"]["items"] == 1
    assert report["agreement"]["duplicate"]["category"]["agree_share"] == 0
