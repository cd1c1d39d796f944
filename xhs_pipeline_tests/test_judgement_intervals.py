"""Intervals hold the truth as often as they promise, also where duplicates make a test set smaller than it looks."""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from xhs_pipeline.judgement import classes, metrics, paired, ranking, reliability
from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import Question, answers
from xhs_pipeline.judgement.intervals import Resamples, effective_size, percentiles, wilson
from xhs_pipeline_tests.simulated import POLICY, simulated

NOMINAL = (0.92, 0.98)  # 95% intervals, with the noise of a few hundred simulations


def question(truth: np.ndarray, answer: np.ndarray, classes_: int = 3, p: np.ndarray | None = None) -> Question:
    names = tuple("abcdefgh"[:classes_])
    return Question(names, truth.astype(int), answer.astype(int), np.zeros((len(truth), classes_)) if p is None else p)


def coverage(of: Callable[[np.random.Generator, int], Figure], truth: float, times: int) -> float:
    rng = np.random.default_rng(7)
    found = [of(rng, i) for i in range(times)]
    return sum(f["low"] <= truth <= f["high"] for f in found if f["low"] is not None) / times


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (1, 12), (5, 10), (198, 200), (200, 200), (3, 3000)])
def test_wilsons_interval_is_scipys(hits: int, n: int) -> None:
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_a_share_whose_posts_are_all_different_counts_every_post() -> None:
    hits = np.array([True, False, True, True])
    assert effective_size(hits, np.arange(4)) == pytest.approx(4)
    assert share(hits, np.arange(4))["low"] == pytest.approx(wilson(3, 4)[0])


def test_copies_of_posts_add_nothing_to_what_is_known() -> None:
    hits = np.array([True, False, True, True, False])
    copies, groups = np.repeat(hits, 4), np.repeat(np.arange(5), 4)
    assert effective_size(copies, groups) == pytest.approx(5)
    once, four_times = share(hits, np.arange(5)), share(copies, groups)
    assert (four_times["n"], once["n"]) == (20, 5)
    assert (four_times["low"], four_times["high"]) == pytest.approx((once["low"], once["high"]))
    # a share of 1 shows no variance: groups are counted
    assert share(np.ones(20, dtype=bool), groups)["low"] == pytest.approx(wilson(5, 5)[0])


@pytest.mark.parametrize(("groups", "p", "copies"), [(100, 0.9, 1), (300, 0.02, 1), (100, 0.9, 3), (300, 0.05, 2)])
def test_intervals_of_shares_hold_the_truth_in_95_of_100(groups: int, p: float, copies: int) -> None:
    codes = np.repeat(np.arange(groups), copies)
    low, high = NOMINAL
    assert low <= coverage(lambda rng, _: share((rng.random(groups) < p)[codes], codes), p, 1500) <= high


def test_intervals_of_shares_hold_the_truth_where_duplicates_are_only_alike() -> None:
    def draw(rng: np.random.Generator, _: int) -> Figure:
        codes = np.repeat(np.arange(200), rng.integers(1, 5, 200))
        return share(rng.random(len(codes)) < rng.beta(2, 1, 200)[codes], codes)

    assert NOMINAL[0] <= coverage(draw, 2 / 3, 1500) <= NOMINAL[1]


JOINT = np.array([[0.5, 0.05, 0.05], [0.04, 0.16, 0.0], [0.06, 0.02, 0.12]])  # shares of (true, answered)


@pytest.mark.parametrize("copies", [1, 3])
def test_bootstrap_intervals_of_macro_f1_hold_the_truth(copies: int) -> None:
    truth = float(np.mean(2 * np.diag(JOINT) / (JOINT.sum(axis=0) + JOINT.sum(axis=1))))

    def draw(rng: np.random.Generator, i: int) -> Figure:
        cell = np.repeat(rng.choice(9, size=200, p=JOINT.ravel()), copies)
        resamples = Resamples(np.repeat(np.arange(200), copies), seed=i, times=200)
        return classes.averaged_f1(question(cell // 3, cell % 3), resamples, classes.MACRO)

    assert NOMINAL[0] <= coverage(draw, truth, 400) <= NOMINAL[1]


def test_bootstrap_intervals_of_paired_differences_hold_the_truth() -> None:
    def draw(rng: np.random.Generator, i: int) -> Figure:
        ours = rng.random(300) < 0.8
        theirs = np.where(rng.random(300) < 0.8, ours, rng.random(300) < 0.7)
        true = np.ones(300)
        return paired.rate_difference(
            question(true, ours, 2), question(true, theirs, 2), 1, True, Resamples(np.arange(300), i, 200)
        )

    assert NOMINAL[0] <= coverage(draw, 0.8 - (0.8 * 0.8 + 0.2 * 0.7), 400) <= NOMINAL[1]


def test_bootstrap_intervals_of_average_precision_hold_the_truth() -> None:
    def posts(rng: np.random.Generator, n: int) -> Question:
        true = rng.random(n) < 0.3
        p = 1 / (1 + np.exp(-rng.normal(1.5 * true - 1, 1, n)))
        return question(true, true, 2, np.column_stack([1 - p, p]))

    truth = ranking.average_precision(posts(np.random.default_rng(1), 300_000), 1, Resamples(np.arange(300_000), 0, 0))[
        "value"
    ]
    assert truth is not None

    def draw(rng: np.random.Generator, i: int) -> Figure:
        return ranking.average_precision(posts(rng, 500), 1, Resamples(np.arange(500), i, 400))

    assert NOMINAL[0] <= coverage(draw, truth, 800) <= NOMINAL[1]


def test_intervals_of_ece_are_corrected_for_the_noise_that_it_gathers() -> None:
    def draw(rng: np.random.Generator, i: int) -> Figure:
        p = rng.uniform(0.5, 1, 1500)
        hit, ok = rng.random(1500) < p - 0.05, np.ones(1500, dtype=bool)
        return reliability.ece(p, hit, reliability.equal_mass_bins(p), ok, Resamples(np.arange(1500), i, 200))

    assert 0.90 <= coverage(draw, 0.05, 200) <= 0.99


def test_a_resample_is_what_copying_the_drawn_groups_would_give() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 20, 60)
    asked = question(rng.integers(0, 3, 60), rng.integers(-1, 3, 60))
    resamples = Resamples(groups, seed=5, times=40)
    found = resamples.spread(
        [classes.counts_block(asked, resamples)], lambda c: np.concatenate([classes.mean_f1(c, "macro"), c[:1]])
    )
    for i in range(40):
        times = resamples._drawn[resamples.codes, i]
        truth, answer = np.repeat(asked.truth, times), np.repeat(asked.answer, times)
        expected = f1_score(truth, answer, labels=sorted(set(truth)), average="macro", zero_division=0)
        assert found[0, i] == pytest.approx(expected)
        assert found[1, i] == ((truth == 0) & (answer == 0)).sum()
    assert (resamples._drawn.sum(axis=0) == resamples.size).all()


def test_average_precision_of_a_resample_is_sklearns_of_the_copied_posts() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(4)
    true, p = rng.random(80) < 0.3, rng.integers(0, 12, 80) / 12  # many equal scores
    asked = question(true, true, 2, np.column_stack([1 - p, p]))
    resamples = Resamples(rng.integers(0, 30, 80), seed=1, times=25)
    seen: list[np.ndarray] = []
    spread = resamples.spread
    resamples.spread = lambda *given: seen.append(spread(*given)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    ranking.average_precision(asked, 1, resamples)
    for i in range(25):
        times = resamples._drawn[resamples.codes, i]
        assert seen[0][0, i] == pytest.approx(average_precision_score(np.repeat(true, times), np.repeat(p, times)))


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    frame = simulated(300)
    first, again, other = (metrics.evaluate(frame, POLICY, seed=s, times=200)["headline"] for s in (1, 1, 2))
    assert first == again
    assert first["category_macro_f1"]["low"] != other["category_macro_f1"]["low"]


def test_posts_without_a_group_are_groups_of_their_own() -> None:
    assert Resamples([None, None, "", float("nan"), "a", "a"], 0).size == 5


@pytest.mark.parametrize(("groups", "times"), [(["a", "a", "a"], 100), (["a", "b"], 0), ([], 100)])
def test_nothing_to_resample_gives_no_interval_rather_than_a_point(groups: list[str], times: int) -> None:
    resamples = Resamples(groups, 0, times)
    found = paired.mean_difference(np.ones(len(groups)), resamples)
    assert resamples.reason and found["low"] is None and found["high"] is None


def test_resamples_without_a_value_are_left_out_and_too_many_of_them_leave_no_interval() -> None:
    some, most = np.array([np.nan, 1.0, 2.0, 3.0]), np.array([np.nan, np.nan, np.nan, 2.0])
    assert percentiles(some) == pytest.approx((1.05, 2.95))
    assert percentiles(most) is None
    assert resampled(2.0, 4, most) == figure(2.0, 4)


def test_ten_thousand_posts_and_two_thousand_resamples_take_seconds_and_little_memory() -> None:
    frame, rival = simulated(10_000), simulated(10_000, sharpness=0.5)
    metrics.evaluate(frame.head(200), POLICY, times=10)  # imports
    begin = time.process_time()
    report = metrics.evaluate(frame, POLICY)
    paired.compare(frame, rival, POLICY)
    assert time.process_time() - begin < 30
    assert report["headline"]["category_macro_f1"]["high"] > report["headline"]["category_macro_f1"]["low"]
    asked, groups = answers(frame, POLICY).category, list(frame[metrics.GROUP_ID])
    tracemalloc.start()
    # the commonest class has the most thresholds; more resamples would add a byte a group each
    ranking.average_precision(asked, POLICY.category_names.index(POLICY.normal_category), Resamples(groups, 0, 200))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20
