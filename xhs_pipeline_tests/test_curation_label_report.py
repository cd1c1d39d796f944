"""What the labels are worth as a set: standard figures with known values, and none where the posts do not give one."""

import math

import pyarrow as pa
import pytest

from xhs_pipeline.curation.label_report import agreement, class_balance, labelled_items, rationale_diversity
from xhs_pipeline.posts.schema import REMOVED


def test_equal_classes_count_fully_and_a_class_that_dominates_leaves_little_more_than_one() -> None:
    even = class_balance(["a", "b", "c", "d"] * 5)
    assert even["imbalance_ratio"] == 1 and even["effective_classes"] == pytest.approx(4)
    skewed = class_balance(["a"] * 99 + ["b"])
    assert (skewed["counts"], skewed["imbalance_ratio"]) == ({"a": 99, "b": 1}, 99)
    assert skewed["effective_classes"] == pytest.approx(math.exp(-0.99 * math.log(0.99) - 0.01 * math.log(0.01)))
    assert class_balance([]) == {"counts": {}, "imbalance_ratio": None, "effective_classes": None}


def test_rationales_that_repeat_or_nearly_repeat_are_seen() -> None:
    texts = [
        "以高额返利为诱饵要求用户先行垫付货款再承诺返还本金", "以高额返利为诱饵，要求用户先行垫付货款，再承诺返还本金！",
        "以高额返利为诱饵要求用户先行垫付货款后承诺返还本金", "图片中有二维码并且引导用户离开站内平台添加联系方式",
    ]  # fmt: skip
    found = rationale_diversity([*texts, None, ""])
    assert (found["posts"], found["rationales"], found["share"]) == (6, 4, pytest.approx(4 / 6))
    assert found["distinct_share"] == 0.75, "punctuation makes no second reason"
    assert found["near_identical_share"] == 0.75
    assert rationale_diversity(texts[3:])["distinct_share"] == 1


def test_distances_and_character_pairs_of_rationales_are_those_of_the_definition() -> None:
    same = rationale_diversity(["涉嫌诈骗"] * 3)
    assert same["mean_distance"] == pytest.approx(0, abs=1e-6) and same["distinct_2"] == pytest.approx(3 / 9)
    apart = rationale_diversity(["甲乙丙甲乙丙", "丁戊己丁戊己"])
    assert apart["mean_distance"] == pytest.approx(1) and apart["near_identical_share"] == 0
    assert apart["distinct_2"] == pytest.approx(6 / 10)


def test_mean_distance_is_the_mean_over_all_pairs() -> None:
    from sklearn.metrics.pairwise import cosine_similarity

    from xhs_pipeline.curation.learner import character_features

    texts = ["要求先垫付再返利", "要求先转账再返利", "引导添加站外联系方式", "夸大功效保证见效"]
    features = character_features(texts, [])
    assert features is not None
    similar = cosine_similarity(features[0])
    pairs = [1 - similar[a, b] for a in range(4) for b in range(a)]
    assert rationale_diversity(texts)["mean_distance"] == pytest.approx(sum(pairs) / 6, abs=1e-6)


def test_what_too_few_rationales_do_not_tell_is_none() -> None:
    nothing = rationale_diversity([])
    assert nothing == {"posts": 0, "rationales": 0} | dict.fromkeys(
        ("share", "distinct_share", "near_identical_share", "distinct_2", "mean_distance")
    )
    one = rationale_diversity(["骗"])
    assert (one["distinct_share"], one["mean_distance"], one["distinct_2"]) == (1, None, None)


def test_alpha_of_krippendorffs_own_example_is_the_published_one() -> None:
    # Krippendorff 2011, section C: four observers, twelve units, nominal alpha 0.743
    table = ["123321412   ", "1233224125 3", " 3332342251 ", "12332441251 "]
    found = agreement([[row[unit] for row in table if row[unit] != " "] for unit in range(12)])
    assert found["alpha"] == pytest.approx(0.743, abs=5e-4)
    assert (found["items"], found["labels"]) == (11, 40), "a unit that one observer saw says nothing about agreement"
    assert found["alpha_95"][0] < 0.743 < found["alpha_95"][1]


def test_agreement_that_chance_explains_as_well_has_an_alpha_near_zero() -> None:
    items = [["a", "a"]] * 25 + [["a", "b"]] * 50 + [["b", "b"]] * 25
    found = agreement(items)
    assert found["agree_share"] == 0.5 and found["alpha"] == pytest.approx(0, abs=0.01)
    assert found["alpha_95"][0] == pytest.approx(-0.2, abs=0.05) and found["alpha_95"][1] == pytest.approx(
        0.2, abs=0.05
    )
    assert agreement(items) == found, "the interval is drawn from a seed"


def test_no_alpha_is_made_up_where_there_is_nothing_to_agree_on() -> None:
    assert agreement([["a"], []]) == {"items": 0, "labels": 0, "agree_share": None, "alpha": None, "alpha_95": None}
    one_label = agreement([["a", "a"], ["a", "a", "a"]])
    assert (one_label["agree_share"], one_label["alpha"], one_label["alpha_95"]) == (1, None, None)
    assert agreement([["a", "b"]])["alpha_95"] is None


def test_labels_of_duplicates_conflicts_and_repeated_ids_are_set_beside_each_other() -> None:
    unique = pa.table({"post_id": ["kept", "alone"], "category": ["正常", "诈骗"]})
    removed = pa.Table.from_pylist(
        [
            {"post_id": "copy", "kept_post_id": "kept", "reason": "near_duplicate", "category": "正常"},
            {"post_id": "c1", "kept_post_id": None, "reason": "label_conflict", "category": "赌博"},
            {"post_id": "c2", "kept_post_id": None, "reason": "label_conflict", "category": "诈骗"},
            {"post_id": "copy", "kept_post_id": "copy", "reason": "repeated_post_id", "category": "诈骗"},
            {"post_id": "copy", "kept_post_id": "copy", "reason": "repeated_post_id", "category": "正常"},
        ],
        REMOVED,
    )
    conflicts = pa.table({"post_id": ["c1", "c2"], "group_id": ["c1", "c1"]})
    found = labelled_items(unique, removed, conflicts, "category")
    assert sorted(map(sorted, found["duplicate"])) == [["正常", "正常"], ["诈骗", "赌博"]]
    assert [sorted(item) for item in found["repeated_post_id"]] == [["正常", "正常", "诈骗"]]
