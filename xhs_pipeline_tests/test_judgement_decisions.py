"""What a decision costs decides it; what is not sure enough goes to a person; and how much can be decided alone."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from xhs_pipeline.judgement import metrics
from xhs_pipeline.judgement.decisions import decide, decide_judgement, decided, decided_in_own_terms, risk_coverage
from xhs_pipeline.judgement.intervals import Resamples
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement
from xhs_pipeline_tests.simulated import POLICY, simulated
from xhs_pipeline_tests.test_judgement_metrics import EDIT, FRAUD, HARMLESS, LURE, PASS, REMOVE, REVIEW, frame

NORMAL = POLICY.normal_category


def probabilities(names: tuple[str, ...], **given: float) -> np.ndarray:
    return np.array([[given.get(name, 0.0) for name in names]])


def decision(verdicts: dict[str, float], categories: dict[str, float], min_confidence: float = 0.0) -> tuple[str, str]:
    made = decide(
        probabilities(POLICY.verdict_ids, **verdicts),
        probabilities(POLICY.category_names, **categories),
        POLICY,
        min_confidence,
    )
    return POLICY.verdict_ids[made.verdict[0]], POLICY.category_names[made.category[0]]


def test_the_cost_matrix_is_the_policys_prices() -> None:
    matrix = metrics.cost_matrix(POLICY)
    by_name = dict(zip(POLICY.category_names, matrix.tolist(), strict=True))
    assert POLICY.verdict_ids == (PASS, EDIT, REMOVE, REVIEW)
    assert by_name[NORMAL] == [0, 1, 5, 0.5]
    assert by_name["虚假宣传"] == [2, 0, 0, 0.5]  # severity 1
    assert by_name["歧视"] == [10, 0, 0, 0.5]
    assert by_name["诈骗"] == [50, 0, 0, 0.5]


def test_the_costs_of_a_frame_are_the_matrix_at_its_answers() -> None:
    predictions = simulated(500)
    matrix = metrics.cost_matrix(POLICY)
    expected = [
        matrix[POLICY.category_names.index(true), POLICY.verdict_ids.index(given)]
        for true, given in zip(predictions[metrics.TRUE_CATEGORY], predictions[metrics.VERDICT], strict=True)
    ]
    assert metrics.costs(predictions, POLICY).tolist() == expected


@pytest.mark.parametrize(
    ("normal", "remove", "expected"),
    [
        (0.995, 0.005, HARMLESS),  # passing costs 0.005 x 50 = 0.25, review 0.5, removal 0.995 x 5
        (0.985, 0.015, (REVIEW, NORMAL)),  # passing costs 0.75; the likeliest category is kept
        (0.50, 0.50, (REVIEW, NORMAL)),  # removal costs 2.5
        (0.20, 0.80, (REVIEW, "诈骗")),  # removal costs 1.0
        (0.05, 0.95, FRAUD),  # removal costs 0.25
    ],
)
def test_the_cheapest_of_passing_acting_and_asking_a_person_is_chosen(
    normal: float, remove: float, expected: tuple[str, str]
) -> None:
    assert decision({PASS: normal, REMOVE: remove}, {NORMAL: normal, "诈骗": remove}) == expected


def test_edits_need_less_certainty_than_removal_since_they_harm_less() -> None:
    categories = {NORMAL: 0.2, "私域引流": 0.8}
    assert decision({PASS: 0.2, EDIT: 0.8}, categories) == LURE
    assert decision({PASS: 0.2, REMOVE: 0.8}, categories) == (REVIEW, "私域引流")


def test_what_should_be_removed_is_not_merely_edited_because_edits_are_the_cheaper_mistake() -> None:
    assert decision({PASS: 0.04, EDIT: 0.2, REMOVE: 0.76}, {NORMAL: 0.04, "诈骗": 0.96}) == FRAUD


def test_acting_names_the_likeliest_violation_even_where_no_single_one_beats_harmless() -> None:
    verdicts = {PASS: 0.4, EDIT: 0.6}
    assert decision(verdicts, {NORMAL: 0.4, "私域引流": 0.35, "虚假宣传": 0.25}) == LURE


def test_equal_costs_are_decided_by_the_policys_order() -> None:
    # edits cost 0.5, and so does a person
    assert decision({PASS: 0.5, EDIT: 0.5}, {NORMAL: 0.5, "私域引流": 0.5})[0] == EDIT
    # passing 0.5, a person 0.5
    assert decision({PASS: 0.75, EDIT: 0.25}, {NORMAL: 0.75, "私域引流": 0.25})[0] == PASS
    # equal categories: the policy's first
    tied = decision({EDIT: 1.0}, {"虚假宣传": 0.5, "私域引流": 0.5})
    assert tied == (EDIT, "虚假宣传")


def test_below_the_profiles_confidence_a_person_decides_and_the_category_stays() -> None:
    verdicts, categories = {PASS: 0.01, EDIT: 0.54, REMOVE: 0.45}, {NORMAL: 0.01, "私域引流": 0.99}
    assert decision(verdicts, categories) == LURE
    assert decision(verdicts, categories, min_confidence=0.54) == LURE
    assert decision(verdicts, categories, min_confidence=0.55) == (REVIEW, "私域引流")
    assert decision({PASS: 0.95, EDIT: 0.05}, {NORMAL: 0.95, "私域引流": 0.05}, 0.96) == (REVIEW, NORMAL)


def test_decisions_on_calibrated_probabilities_cost_less_than_the_likeliest_answers_and_what_they_expect() -> None:
    predictions = simulated(4000)
    made = decided(predictions, POLICY)
    assert metrics.usable(made, POLICY).all()
    before, after = (metrics.costs(f, POLICY).mean() for f in (predictions, made))
    assert after < 0.5 * before
    assert after == pytest.approx(made["expected_cost"].mean(), rel=0.05)
    figures = metrics.evaluate(made, POLICY, times=0)["decisions"]
    alone = (made[metrics.VERDICT] != REVIEW).mean()
    assert figures["automatic"]["value"] == pytest.approx(alone)
    assert figures["human_review"]["value"] == pytest.approx(1 - alone)
    everything = metrics.evaluate(decided(predictions, POLICY, 1.0), POLICY, times=0)["decisions"]
    assert everything["automatic"]["value"] < 0.01


def test_the_frames_own_answers_stay_as_they_were_and_unusable_rows_are_left_alone() -> None:
    predictions = frame([HARMLESS, FRAUD], [HARMLESS, None])
    copy = predictions.copy()
    made = decided(predictions, POLICY)
    assert predictions.equals(copy)
    assert pd.isna(made[metrics.VERDICT][1]) and pd.isna(made["confidence"][1])
    assert metrics.usable(made, POLICY).tolist() == [True, False]
    assert len(decided(predictions.head(0), POLICY)) == 0


def test_one_judgement_is_decided_as_a_row_of_the_frame() -> None:
    predictions = simulated(50)
    made = decided(predictions, POLICY, 0.4)
    for i, row in predictions.iterrows():
        verdict_probs = {v: row[metrics.VERDICT_PROBABILITY + v] for v in POLICY.verdict_ids}
        category_probs = {c: row[metrics.CATEGORY_PROBABILITY + c] for c in POLICY.category_names}
        judgement = Judgement("p", row[metrics.VERDICT], row[metrics.CATEGORY], verdict_probs, category_probs, True)
        expected = tuple(made[name][i] for name in (metrics.VERDICT, metrics.CATEGORY, "confidence", "expected_cost"))
        assert decide_judgement(judgement, POLICY, 0.4) == expected


def test_a_model_with_a_category_that_is_no_more_decides_as_it_does_in_use() -> None:
    renamed = [{**c, "name": "博彩" if c["name"] == "赌博" else c["name"]} for c in POLICY.wording["categories"]]
    own = POLICY.with_wording("old", {**POLICY.wording, "categories": renamed})
    table = pa.table(
        {
            "post_id": list("abcd"),
            "verdict": ["remove"] * 4,
            "category": ["赌博"] * 3 + ["诈骗"],
            "title": [""] * 4,
            "body": [""] * 4,
        }
    )

    def judgement(post: str, **categories: float) -> Judgement:
        verdicts = {"pass": categories.get(NORMAL, 0.0), "remove": 1 - categories.get(NORMAL, 0.0)}
        return Judgement(
            post, "remove", max(categories, key=lambda name: categories[name]), {v: verdicts.get(v, 0.0) for v in own.verdict_ids},
            {c: categories.get(c, 0.0) for c in own.category_names}, True,
        )  # fmt: skip

    judged: list[Judgement | Unfit] = [
        judgement("a", 正常=0.9, 博彩=0.1),  # without what is no more, nothing would speak against passing
        judgement("b", 博彩=0.9, 诈骗=0.07, 正常=0.03),
        Unfit("c", "too_long", "900 tokens"),
        judgement("d", 诈骗=1.0),
    ]
    made = decided_in_own_terms(metrics.judged_frame(table, judged, POLICY), judged, own, POLICY)
    for row, one in enumerate(judged):
        if isinstance(one, Judgement):
            served = decide_judgement(one, own)
            assert made["verdict"][row] == served.verdict and made["expected_cost"][row] == served.expected_cost
    assert made["verdict"].tolist()[:2] == ["escalate", "remove"] and made["category"].tolist()[1] == "诈骗"
    assert metrics.usable(made, POLICY).tolist() == [True, True, False, True]
    known = [j for j in judged if isinstance(j, Unfit) or j.post_id == "d"]
    frame_of = metrics.judged_frame(table.slice(2), known, POLICY)
    pd.testing.assert_frame_equal(
        decided_in_own_terms(frame_of, known, own, POLICY), decided(frame_of, POLICY), check_dtype=False
    )


def test_figures_of_decisions_by_hand() -> None:
    review = (REVIEW, "诈骗")
    truth = [HARMLESS, HARMLESS, HARMLESS, FRAUD, FRAUD, LURE, FRAUD, LURE]
    answers = [HARMLESS, FRAUD, (REVIEW, NORMAL), HARMLESS, FRAUD, review, None, LURE]
    figures = metrics.evaluate(frame(truth, answers), POLICY, times=0)
    shares = {name: (f["value"], f["n"]) for name, f in figures["decisions"].items()}
    assert shares["automatic"] == (5 / 8, 8) and shares["human_review"] == (2 / 8, 8)
    assert shares["passed_violations"] == (1 / 5, 5)
    assert shares["acted_on_harmless"] == (pytest.approx(1 / 3), 3)
    # harmless and looked at by a person is neither invalid nor called a violation
    assert figures["counts"]["invalid"] == 1
    assert figures["headline"]["false_positive_rate"]["value"] == pytest.approx(1 / 3)
    # an unusable answer catches nothing, but does not let the post pass either
    assert figures["by_severity"]["3"]["recall"]["value"] == pytest.approx(1 / 3)
    assert figures["by_severity"]["3"]["not_passed"]["value"] == pytest.approx(2 / 3)
    assert figures["by_severity"]["2"]["recall"] == metrics.figure(None, 0, "no posts of severity 2")


def test_risk_and_coverage_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    wrong = np.array([False, False, True, False, True])
    found = risk_coverage(confidence, wrong, np.ones(5, dtype=bool), Resamples(range(5), 0))
    # risks after each post: 0, 0, 1/3, 1/4, 2/5
    assert [round(p["risk"], 4) for p in found["curve"]] == [0, 0, 0.3333, 0.25, 0.4]
    assert [p["coverage"] for p in found["curve"]] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert {rate: f["value"] for rate, f in found["at"].items()} == {"0.01": 0.4, "0.02": 0.4, "0.05": 0.4, "0.1": 0.4}
    assert found["aurc"]["value"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert found["at"]["0.1"]["low"] <= 0.4 <= found["at"]["0.1"]["high"]


def test_posts_of_equal_confidence_are_decided_together_or_not_at_all() -> None:
    wrong = np.array([False, True, False, False])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        found = risk_coverage(
            np.array([0.9, 0.9, 0.9, 0.5]), wrong[order], np.ones(4, dtype=bool), Resamples(range(4), 0)
        )
        assert found["at"]["0.1"]["value"] == 0.0
        assert len(found["curve"]) == 2


def test_what_only_a_person_may_decide_is_never_covered() -> None:
    found = risk_coverage(
        np.array([0.9, 0.8, 0.7, 0.6]),
        np.zeros(4, dtype=bool),
        np.array([True, False, True, False]),
        Resamples(range(4), 0),
    )
    assert found["at"]["0.01"]["value"] == 0.5 and found["aurc"]["n"] == 2
    nothing = risk_coverage(np.ones(3), np.zeros(3, dtype=bool), np.zeros(3, dtype=bool), Resamples(range(3), 0))
    assert nothing["at"]["0.1"]["value"] == 0.0 and nothing["aurc"]["reason"] == "no post is decided alone"


def test_a_calibrated_model_decides_more_alone_where_more_mistakes_are_allowed() -> None:
    curve = metrics.evaluate(simulated(3000), POLICY, times=100)["risk_coverage"]
    for question in ("verdict", "category", "violation"):
        shares = [curve[question]["at"][rate]["value"] for rate in ("0.01", "0.02", "0.05", "0.1")]
        assert shares == sorted(shares) and shares[0] < shares[-1]
        assert len(curve[question]["curve"]) == 101
        assert all(f["low"] <= f["high"] for f in curve[question]["at"].values())
