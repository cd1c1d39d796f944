"""Duplicate groups stay together, and quotas balance train."""

import random
from collections import Counter

import pytest

from xhs_pipeline.splits.balance import balance
from xhs_pipeline.splits.grouping import SPLITS, split_of
from xhs_pipeline_tests.splits import POLICY, PROFILE

# --- groups -------------------------------------------------------------------------------------------------------------


def test_a_group_has_one_split_that_nothing_but_its_name_and_the_seed_decides() -> None:
    names = [f"g-{n}" for n in range(200)]
    placed = {name: split_of([name], PROFILE) for name in names}
    assert placed == {name: split_of([name], PROFILE) for name in reversed(names)}
    other = PROFILE.model_copy(update={"seed": 1})
    assert placed != {name: split_of([name], other) for name in names}
    # for ever: another answer here would move posts of published weeks between train and test
    assert [n for n in range(60) if placed[f"g-{n}"] == "test"] == [10, 17, 22, 39, 42, 49, 50, 51]


def test_the_splits_take_about_their_shares() -> None:
    counted = Counter(split_of([f"group {n}"], PROFILE) for n in range(20_000))
    shares = {name: counted[name] / 20_000 for name in SPLITS}
    expected = {"train": 0.65, "validation": 0.1, "calibration": 0.05, "test": 0.2}
    assert shares == {name: pytest.approx(share, abs=0.01) for name, share in expected.items()}


def test_the_founder_with_the_strongest_split_takes_the_group_with_it() -> None:
    of = {split: next(n for n in range(500) if split_of([f"g-{n}"], PROFILE) == split) for split in SPLITS}
    names = {split: f"g-{number}" for split, number in of.items()}
    for weaker, stronger in [("train", "validation"), ("validation", "calibration"), ("calibration", "test")]:
        assert split_of([names[weaker], names[stronger]], PROFILE) == stronger
        assert split_of([names[stronger], names[weaker], names["train"]], PROFILE) == stronger


# --- balance ------------------------------------------------------------------------------------------------------------

NAMES = POLICY.category_names


def posts_of(**counts: int) -> list[tuple[str, str]]:
    return [(f"{label}-{n}", label) for label, count in counts.items() for n in range(count)]


def kept(posts: list[tuple[str, str]], quotas: dict[str, float], seed: int = 7) -> Counter[str]:
    chosen = balance(posts, quotas, NAMES, seed).kept
    return Counter(label for post_id, label in posts if post_id in chosen)


def test_counts_are_upper_limits_and_labels_without_a_quota_stay_whole() -> None:
    posts = posts_of(正常=50, 诈骗=20, 赌博=7)
    assert kept(posts, {"正常": 30, "诈骗": 40}) == {"正常": 30, "诈骗": 20, "赌博": 7}
    found = balance(posts, {"正常": 30, "诈骗": 40}, NAMES, 7)
    assert (found.asked, found.found) == ({"正常": 30, "诈骗": 40}, {"正常": 50, "诈骗": 20})
    assert kept(posts, {"正常": 0}) == {"诈骗": 20, "赌博": 7}
    assert kept(posts, {}) == {"正常": 50, "诈骗": 20, "赌博": 7}


def test_shares_give_the_largest_set_that_has_them() -> None:
    posts = posts_of(正常=60, 诈骗=10, 赌博=7)
    assert kept(posts, {"正常": 0.75, "诈骗": 0.25}) == {"正常": 30, "诈骗": 10, "赌博": 7}
    assert kept(posts, {"正常": 0.9, "诈骗": 0.1}) == {"正常": 60, "诈骗": 6, "赌博": 7}


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ({"欺诈": 5}, "unknown labels 欺诈; allowed: 正常, 虚假宣传"),
        ({"正常": -1}, "may not be negative"),
        ({"正常": 0.5, "诈骗": 0.4}, "shares sum to 0.9, expected 1"),
        ({"正常": 0.5, "诈骗": 100}, "counts for all labels or shares for all labels, not both"),
    ],
)
def test_quotas_that_make_no_sense_are_errors(quotas: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"train_quotas.*{message}"):
        balance(posts_of(正常=5), quotas, NAMES, 7)


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    posts = posts_of(正常=100)
    chosen = balance(posts, {"正常": 20}, NAMES, 7).kept
    shuffled = random.Random(1).sample(posts, len(posts))
    assert balance(shuffled, {"正常": 20}, NAMES, 7).kept == chosen
    assert balance(posts, {"正常": 20}, NAMES, 8).kept != chosen


def test_posts_that_arrive_later_push_out_only_as_many_as_they_are() -> None:
    posts = posts_of(正常=100)
    before = balance(posts, {"正常": 50}, NAMES, 7).kept
    after = balance([*posts, *((f"new-{n}", "正常") for n in range(10))], {"正常": 50}, NAMES, 7).kept
    assert len(after) == 50 and {p for p in after if not p.startswith("new")} <= before
    # posts of another label change nothing at all
    assert (
        balance([*posts, *posts_of(诈骗=30)], {"正常": 50}, NAMES, 7).kept - {f"诈骗-{n}" for n in range(30)} == before
    )
