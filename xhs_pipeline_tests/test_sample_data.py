"""The committed sample is what its generator makes, holds what was planted, and has no duplicates by accident."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from xhs_pipeline.appeals.outcomes import derive_outcomes
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.sources import load_source, read_week

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"
TRUTH = json.loads((SAMPLE / "ground_truth.json").read_text(encoding="utf-8"))
WEEKS = ("2026-02-16", "2026-02-23")
POLICY = load_policy()


def generate(out: Path, *arguments: str, hash_seed: str = "1") -> Path:
    command = [sys.executable, str(SAMPLE / "generate.py"), "--out", str(out), *arguments]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"})
    return out


@pytest.fixture(scope="module")
def read() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    source = load_source(SAMPLE / "source.yaml")
    posts, bad = [], []
    for week in WEEKS:
        for good_batch, bad_batch in read_week(source, week, POLICY, b"0123456789abcdef"):
            posts += good_batch.to_pylist()
            bad += bad_batch.to_pylist()
    return posts, bad


def planted(kind: str) -> list[dict[str, Any]]:
    return [plant for plant in TRUTH["planted"] if plant["kind"] == kind]


def test_the_generator_makes_the_committed_sample_again(tmp_path: Path) -> None:
    out = generate(tmp_path / "again")
    for name in ("source.yaml", "README.md", "appeals.jsonl", *(f"posts-{week}.jsonl" for week in WEEKS)):
        assert (out / name).read_bytes() == (SAMPLE / name).read_bytes(), name
    truth = json.loads((out / "ground_truth.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in truth.items() if k != "pillow"} == {k: v for k, v in TRUTH.items() if k != "pillow"}
    names = sorted(path.name for path in (SAMPLE / "images").iterdir())
    assert sorted(path.name for path in (out / "images").iterdir()) == names
    if PIL.__version__ == TRUTH["pillow"]:  # another version may encode the same picture in other bytes
        for name in names:
            assert (out / "images" / name).read_bytes() == (SAMPLE / "images" / name).read_bytes(), name


def test_a_seed_decides_everything_and_any_size_can_be_made(tmp_path: Path) -> None:
    arguments = ("--week", "2026-03-02=150", "--appeals", "5", "--seed", "11")
    first = generate(tmp_path / "a", *arguments, hash_seed="1")
    second = generate(tmp_path / "b", *arguments, hash_seed="2")
    other = generate(tmp_path / "c", *arguments[:-1], "12", "--no-plants")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    lines = (other / "posts-2026-03-02.jsonl").read_bytes()
    assert len(lines.splitlines()) == 150 and lines != (first / "posts-2026-03-02.jsonl").read_bytes()
    assert len(list(read_week(load_source(other / "source.yaml"), "2026-03-02", POLICY, b"0123456789abcdef"))) == 1


def test_the_sample_is_small_and_says_that_it_is_synthetic() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 12 * 1024 * 1024
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert (
        readme.startswith("# Sample data: synthetic")
        and "Every post, person, picture and appeal here is invented" in readme
    )


def test_counts_follow_the_plan(read: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    posts, bad = read
    rows = {week: len((SAMPLE / f"posts-{week}.jsonl").read_bytes().splitlines()) for week in WEEKS}
    assert rows == {"2026-02-16": 1200, "2026-02-23": 250}
    assert len(posts) + len(bad) == 1450
    first = Counter(post["category"] for post in posts if post["week"] == WEEKS[0])
    plan = {"虚假宣传": 200, "私域引流": 200, "医疗违规": 150, "诱导互动": 100, "正常": 350}
    assert all(abs(first[category] - count) <= 20 for category, count in plan.items()), first
    assert set(first) == set(POLICY.category_names) and min(first.values()) >= 20
    verdicts = Counter(post["verdict"] for post in posts)
    assert set(verdicts) == set(POLICY.verdict_ids) and 0.05 < verdicts["escalate"] / len(posts) < 0.18
    with_images = sum(bool(post["images"]) for post in posts)
    assert 0.35 < with_images / len(posts) < 0.45
    assert 0.15 < len(TRUTH["image_decides"]) / with_images < 0.35
    assert max(len(post["images"]) for post in posts) == 3
    lengths = sorted(len(post["body"]) for post in posts)
    assert lengths[len(lengths) // 10] >= 30 and lengths[len(lengths) * 9 // 10] <= 200


def test_every_planted_row_ends_where_the_list_says(read: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    posts, bad = read
    ids = Counter(post["post_id"] for post in posts)
    by_place = {re.match(r"(\S+), line (\d+):", row["detail"]).group(1, 2): row["reason"] for row in bad}  # type: ignore[union-attr]
    expected = {}
    for plant in TRUTH["planted"]:
        if plant["expect"]["stage"] == "raw_posts":
            for row in plant["rows"][plant["expect"].get("kept", 0) :]:
                expected[(f"posts-{row['week']}.jsonl", str(row["line"]))] = plant["expect"]["reason"]
        else:
            assert all(ids[row["post_id"]] == 1 for row in plant["rows"]), plant
    reason_of_duplicate = by_place.pop(
        next(place for place, reason in by_place.items() if reason == "duplicate_post_id")
    )
    duplicate = next(place for place, reason in expected.items() if reason == "duplicate_post_id")
    assert expected.pop(duplicate) == reason_of_duplicate  # whichever of the two stands first in the file is kept
    assert by_place == expected


def test_every_kind_of_trouble_is_planted() -> None:
    kinds = Counter(plant["kind"] for plant in TRUTH["planted"])
    types = [
        "mobile",
        "landline",
        "wechat",
        "qq",
        "email",
        "id_card",
        "bank_card",
        "ip",
        "plate",
        "address",
        "at_name",
        "url",
        "order_number",
    ]
    needed = {f"identifier_{name}" for name in types} | {
        "evasive_identifier",
        "hostile_text",
        "empty_post",
        "whitespace_post",
    }
    needed |= {
        "exact_duplicate",
        "exact_duplicate_across_weeks",
        "near_duplicate",
        "label_conflict_exact",
        "label_conflict_near",
    }
    images = [
        "truncated",
        "text_named_jpg",
        "zero_bytes",
        "bomb",
        "tiny",
        "extreme_aspect",
        "animated_gif",
        "exif_gps",
        "cmyk",
        "16bit",
        "rgba",
    ]
    needed |= {
        f"image_{name}"
        for name in [*images, "path_escape", "path_absolute", "missing", "only_broken", "broken_beside_good"]
    }
    needed |= {
        "gbk_line",
        "cut_json_line",
        "lone_surrogate",
        "nested_too_deeply",
        "duplicate_post_id",
        "bad_time",
        "wrong_type",
    }
    needed |= {"unknown_verdict", "unknown_category", "verdict_category_mismatch", "missing_post_id", "wrong_week"}
    assert needed <= set(kinds), needed - set(kinds)
    assert kinds["evasive_identifier"] >= 8 and kinds["hostile_text"] >= 10


def test_listed_identifiers_stand_in_their_posts(read: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    text = {post["post_id"]: f"{post['title']}\n{post['body']}\n{post['rationale'] or ''}" for post in read[0]}
    assert len(TRUTH["identifiers"]) > 100
    for row in TRUTH["identifiers"]:
        assert row["raw"] in text[row["post_id"]], row
    marked = {row["post_id"] for row in TRUTH["identifiers"]}
    hostile = {row["post_id"] for plant in planted("hostile_text") for row in plant["rows"]}
    unlisted = [
        i for i, body in text.items() if i not in marked | hostile and re.search(r"1540000|_fake\d|99999\d", body)
    ]
    assert unlisted == []


def test_fake_cards_carry_valid_check_digits() -> None:
    for plant in planted("identifier_bank_card"):
        digits = [int(d) for d in plant["raw"][0]]
        assert sum(sum(divmod(d * (2 if i % 2 else 1), 10)) for i, d in enumerate(reversed(digits))) % 10 == 0
    for plant in planted("identifier_id_card"):
        weights = [2 ** (17 - i) % 11 for i in range(18)]
        assert sum(w * (10 if d == "X" else int(d)) for w, d in zip(weights, plant["raw"][0], strict=True)) % 11 == 1


@pytest.mark.parametrize("pattern", [r"\s", r"[\W_]"], ids=["as written", "letters and digits only"])
def test_no_two_posts_are_near_duplicates_except_the_planted_ones(
    read: tuple[list[dict[str, Any]], list[dict[str, Any]]], pattern: str
) -> None:
    """All pairs, exactly: Jaccard of the character 3-grams of title and body."""
    posts = [post for post in read[0] if len(re.sub(pattern, "", post["title"] + post["body"])) >= 3]
    texts = [re.sub(pattern, "", post["title"] + post["body"]) for post in posts]
    matrix = CountVectorizer(analyzer="char", ngram_range=(3, 3), binary=True, lowercase=False).fit_transform(texts)
    shared = (matrix @ matrix.T).toarray().astype(np.float64)
    sizes = np.asarray(matrix.sum(axis=1)).ravel()
    similarity = shared / (sizes[:, None] + sizes[None, :] - shared)
    pairs = {
        frozenset((posts[i]["post_id"], posts[j]["post_id"]))
        for i, j in zip(*np.where(np.triu(similarity, 1) >= 0.8), strict=True)
    }
    groups = [
        [row["post_id"] for row in plant["rows"]]
        for plant in TRUTH["planted"]
        if plant["expect"]["outcome"] in ("removed", "label_conflict")
    ]
    wanted = {frozenset((a, b)) for group in groups for i, a in enumerate(group) for b in group[i + 1 :]}
    assert pairs == wanted


def test_conflicting_pairs_differ_only_in_their_label(read: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    posts = {post["post_id"]: post for post in read[0]}
    conflicts = planted("label_conflict_exact") + planted("label_conflict_near")
    assert len(conflicts) >= 3
    for plant in conflicts:
        first, second = (posts[row["post_id"]] for row in plant["rows"])
        assert (first["verdict"], first["category"]) != (second["verdict"], second["category"])
        assert first["label_source"] == second["label_source"] and first["title"] == second["title"]


def test_rationales_quote_their_post_and_differ(read: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    by_category = defaultdict(list)
    for post in read[0]:
        if post["rationale"]:
            by_category[post["category"]].append(post["rationale"])
            quote = re.search("[“](.+?)[”]", post["rationale"])
            assert quote and quote[1] in post["title"] + post["body"], post["post_id"]
    for category, rationales in by_category.items():
        assert len(set(rationales)) / len(rationales) > 0.7, category
    violating = [post for post in read[0] if post["category"] != "正常"]
    assert 0.2 < sum(bool(post["rationale"]) for post in violating) / len(violating) < 0.35
    assert 0 < len(by_category["正常"]) < 80


def test_where_only_the_picture_decides_the_text_is_the_same_for_every_label(
    read: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    decided = [post for post in read[0] if post["post_id"] in set(TRUTH["image_decides"])]
    labels = Counter(post["category"] for post in decided)
    assert set(labels) == {"私域引流", "虚假宣传", "正常"} and min(labels.values()) >= 20
    telling = {"handle", "hint", "code", "half_code", "strong_poster", "mild_poster"}
    for post in decided:
        kinds = {TRUTH["pictures"][image["path"]] for image in post["images"]}
        assert bool(kinds & telling) == (post["category"] != "正常"), post["post_id"]
        assert not re.search("加薇|vx|全网第一|根治", post["title"] + post["body"])


def test_appeals_are_events_in_order_about_posts_of_the_sample(
    read: tuple[list[dict[str, Any]], list[dict[str, Any]]],
) -> None:
    events = [json.loads(line) for line in (SAMPLE / "appeals.jsonl").read_text(encoding="utf-8").splitlines()]
    posts = {post["post_id"]: post for post in read[0]}
    assert [event["event_id"] for event in events] == list(range(1, len(events) + 1))
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    histories = defaultdict(list)
    for event in events:
        histories[event["appeal_id"]].append(event)
        assert event["post_id"] in posts and POLICY.allows(event["verdict"], event["category"])
    assert len(histories) == 60 + 30
    for case, history in histories.items():
        opening, *rest = history
        post = posts[opening["post_id"]]
        assert opening["event"] == ("filed" if case.startswith("a") else "sampled")
        assert (opening["verdict"], opening["category"]) == (post["verdict"], post["category"])
        assert (opening["verdict"] == "pass") == case.startswith("s")
        assert all(event["event"] not in ("filed", "sampled") for event in rest)
    last = Counter(history[-1]["event"] for history in histories.values())
    assert set(last) == {"filed", "sampled", "upheld", "overturned", "modified", "withdrawn", "expired"}


def test_the_samples_cases_hold_enough_evidence_to_retrain_on_and_show_the_rules(tmp_path: Path) -> None:
    with AppealStore.open(f"sqlite:///{tmp_path / 'appeals.sqlite3'}", POLICY, b"0123456789abcdef") as store:
        counts = store.import_jsonl(SAMPLE / "appeals.jsonl")
        found = derive_outcomes(store.events(), POLICY)
    assert counts.known == counts.refused.num_rows == 0
    labels = Counter(found.outcomes["case_kind"].to_pylist())
    assert labels["appeal"] >= math.ceil(0.6 * 60) > POLICY.appeals["min_adjudicated"]
    assert labels["audit"] >= POLICY.appeals["min_audit"]
    assert Counter(found.quarantine["reason"].to_pylist()) == {"reviewers_disagree": 4}
    assert max(map(len, found.outcomes["reviewer_hashes"].to_pylist())) == 2
