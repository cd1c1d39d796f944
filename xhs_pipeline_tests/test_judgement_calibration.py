"""One temperature makes probabilities mean what they say; where there is nothing to fit it to, it stays 1 and says why."""

import json

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from xhs_pipeline.judgement import metrics, reliability
from xhs_pipeline.judgement.calibration import MIN_POSTS, Calibration, fit_temperature
from xhs_pipeline.judgement.intervals import Resamples
from xhs_pipeline.vlm.scoring import Judgement, at_temperature
from xhs_pipeline_tests.simulated import POLICY, frame_of_scores, simulated, simulated_scores

ANSWERS = POLICY.answers()


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_much_or_too_little_confidence(sharpness: float) -> None:
    scores, truth = simulated_scores(4000, seed=1, sharpness=sharpness)
    found = fit_temperature(scores, truth, ANSWERS)
    assert found.temperature == pytest.approx(sharpness, rel=0.1)
    assert found.reason is None and (found.n, found.left_out) == (4000, 0)
    assert found.nll_after is not None and found.nll_before is not None
    assert found.nll_after <= found.nll_before + 1e-9


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    scores, truth = simulated_scores(300, seed=2, sharpness=2.0)
    found = fit_temperature(scores, truth, ANSWERS)
    index = [ANSWERS.index(answer) for answer in truth]

    def loss(temperature: float) -> float:
        p = np.exp(scores / temperature)
        return float(-np.log(p[np.arange(300), index] / p.sum(axis=1)).mean())

    best = min(np.linspace(1, 4, 301), key=loss)
    assert found.temperature == pytest.approx(best, abs=0.01)
    assert found.nll_after == pytest.approx(loss(found.temperature)) and found.nll_before == pytest.approx(loss(1))


def test_calibrated_probabilities_of_unseen_posts_are_right_as_often_as_they_say() -> None:
    scores, truth = simulated_scores(8000, seed=3, sharpness=2.5)
    temperature = fit_temperature(scores[:2000], truth[:2000], ANSWERS).temperature
    raw, calibrated = (
        metrics.evaluate(frame_of_scores(scores[2000:] / t, truth[2000:]), POLICY, times=0)
        for t in (1.0, temperature)
    )  # fmt: skip
    assert raw["headline"]["ece"]["value"] > 0.15
    assert calibrated["headline"]["ece"]["value"] < 0.03
    assert calibrated["headline"]["brier"]["value"] < raw["headline"]["brier"]["value"]
    # a temperature never changes which answer is the likeliest
    assert calibrated["confusion"] == raw["confusion"]


def test_too_few_posts_leave_the_temperature_at_one_and_say_so() -> None:
    scores, truth = simulated_scores(MIN_POSTS - 1, seed=4, sharpness=3.0)
    found = fit_temperature(scores, truth, ANSWERS)
    assert found.temperature == 1.0 and f"{MIN_POSTS - 1} posts" in str(found.reason)
    assert found.nll_before == found.nll_after
    assert fit_temperature(np.empty((0, len(ANSWERS))), [], ANSWERS).nll_before is None


def test_a_split_without_a_mistake_does_not_make_the_model_sure_of_everything() -> None:
    scores, _ = simulated_scores(200, seed=5)
    found = fit_temperature(scores, [ANSWERS[i] for i in scores.argmax(axis=1)], ANSWERS)
    assert found.temperature == 1.0 and "nothing to fit" in str(found.reason)


def test_posts_without_a_score_or_with_a_label_the_model_does_not_know_are_left_out_and_counted() -> None:
    scores, truth = simulated_scores(300, seed=6, sharpness=2.0)
    expected = fit_temperature(scores[2:], truth[2:], ANSWERS)
    scores[0, 3] = np.nan
    truth[1] = (truth[1][0], "新类别")
    found = fit_temperature(scores, truth, ANSWERS)
    assert (found.n, found.left_out) == (298, 2)
    assert found.temperature == pytest.approx(expected.temperature)


def test_a_judgement_at_another_temperature_is_the_softmax_of_its_scores() -> None:
    scores = tuple(float(s) for s in np.linspace(-9, -1, len(ANSWERS)))
    one = at_temperature(Judgement("p", "", "", {}, {}, True, scores), POLICY, 1.0)
    two = at_temperature(one, POLICY, 2.0)
    p = np.exp(np.array(scores) / 2)
    p /= p.sum()
    for name in POLICY.category_names:
        summed = sum(x for x, (_, c) in zip(p, ANSWERS, strict=True) if c == name)
        assert two.category_probs[name] == pytest.approx(summed)
    assert (two.verdict, two.category) == (one.verdict, one.category) == ANSWERS[-1]
    assert (two.temperature, two.scores) == (2.0, scores) and max(two.verdict_probs.values()) < max(
        one.verdict_probs.values()
    )
    assert at_temperature(two, POLICY, 1.0) == one
    with pytest.raises(ValueError, match=f"post p: 3 scores, policy .* has {len(ANSWERS)} answers"):
        at_temperature(Judgement("p", "", "", {}, {}, True, scores[:3]), POLICY, 1.0)


def test_a_calibration_survives_its_file_and_a_spoilt_one_is_refused_with_all_its_faults() -> None:
    scores, truth = simulated_scores(100, seed=7)
    found = fit_temperature(scores, truth, ANSWERS, min_confidence=0.6)
    assert Calibration.from_dict(json.loads(json.dumps(found.as_dict())), "calibration.json") == found
    spoilt = {**found.as_dict(), "temperature": "warm", "min_confidence": 7}
    del spoilt["n"]
    with pytest.raises(ValueError, match=r"x/calibration\.json: .*: n; temperature is 'warm'.*; min_confidence is 7"):
        Calibration.from_dict(spoilt, "x/calibration.json")
    with pytest.raises(ValueError, match="temperature is nan"):
        Calibration.from_dict({**found.as_dict(), "temperature": float("nan")}, "f")


def test_bins_hold_equally_many_posts_and_equal_confidences_stay_together() -> None:
    p = np.random.default_rng(0).permutation(np.linspace(0, 1, 32))
    bins = reliability.equal_mass_bins(p, 15)
    sizes = np.bincount(bins)
    assert len(sizes) == 15 and set(sizes) <= {2, 3}
    assert all(p[bins == b].max() < p[bins == b + 1].min() for b in range(14))
    assert reliability.equal_mass_bins(np.array([0.5, 0.9, 0.5, 0.5, 0.9]), 5).tolist() == [0, 1, 0, 0, 1]
    assert reliability.equal_mass_bins(np.full(7, 0.3)).tolist() == [0] * 7
    assert reliability.equal_mass_bins(np.empty(0)).tolist() == []


def test_ece_by_hand() -> None:
    p, hit = np.array([0.6, 0.7, 0.8, 0.9]), np.array([False, True, True, True])
    bins, ok = np.array([0, 0, 1, 1]), np.ones(4, dtype=bool)
    found = reliability.ece(p, hit, bins, ok, Resamples(range(4), 0))
    # bins: |0.65 - 0.5| and |0.85 - 1.0|, half of the posts each
    assert found["value"] == pytest.approx(0.15) and found["n"] == 4
    assert found["low"] is not None and found["low"] <= 0.15 <= found["high"]
    assert reliability.ece(p[:0], hit[:0], bins[:0], ok[:0], Resamples([], 0))["reason"] == "no usable answers"


def test_the_ece_of_a_calibrated_model_is_what_chance_gives_it() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        p = rng.uniform(0.5, 1, 1500)
        bins = reliability.equal_mass_bins(p)
        gap = np.abs(np.bincount(bins, weights=p - (rng.random(1500) < p))).sum() / 1500
        found.append((gap, reliability.ece_if_calibrated(p, bins)))
    by_chance, expected = np.array(found).mean(axis=0)
    assert by_chance == pytest.approx(expected, rel=0.05)


def test_brier_scores_are_sklearns() -> None:
    frame = simulated(400)
    figures = metrics.evaluate(frame, POLICY, times=0)["calibration"]
    p = frame[metrics.category_columns(POLICY)].to_numpy()
    index = [POLICY.category_names.index(c) for c in frame[metrics.TRUE_CATEGORY]]
    theirs = brier_score_loss(index, p / p.sum(axis=1, keepdims=True), labels=list(range(p.shape[1])))
    assert figures["category"]["brier"]["value"] == pytest.approx(theirs)
    violation = frame[metrics.TRUE_CATEGORY] != POLICY.normal_category
    harmless = frame[metrics.CATEGORY_PROBABILITY + POLICY.normal_category].to_numpy()
    theirs = brier_score_loss(violation, (1 - harmless).clip(0, 1))
    assert figures["violation"]["brier"]["value"] == pytest.approx(theirs)


def test_the_reliability_table_tells_every_usable_post_once() -> None:
    frame = simulated(330)
    frame.loc[0, metrics.VALID] = False
    for rows in (part["reliability"] for part in metrics.evaluate(frame, POLICY, times=0)["calibration"].values()):
        assert sum(row["n"] for row in rows) == 329 and len(rows) == 15
        means = [row["confidence"] for row in rows]
        assert means == sorted(means)
        for row in rows:
            assert row["share"]["low"] <= row["share"]["value"] <= row["share"]["high"]
