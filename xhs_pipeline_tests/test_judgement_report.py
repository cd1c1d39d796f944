"""What report.json holds, that it keeps to its published schema, and which posts it is illustrated with."""

import json

import pytest
from jsonschema import Draft202012Validator

from xhs_pipeline.judgement import report
from xhs_pipeline.judgement.paired import compare
from xhs_pipeline_tests.reports import SCHEMA, build, context, faults, full, jpeg, parts
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, POLICY, frame, posts_table

TRUTH = [HARMLESS] * 6 + [FRAUD] * 4 + [LURE] * 4
BETTER = TRUTH
MIDDLING = [HARMLESS] * 5 + [FRAUD] + [FRAUD] * 2 + [HARMLESS] * 2 + [LURE] * 4


def test_a_model_below_the_linear_floor_is_named_with_the_figures_that_it_loses_on() -> None:
    content = build(TRUTH, MIDDLING, tfidf=BETTER)
    assert "category_macro_f1" in content["below"]["tfidf"]
    assert content["below"]["majority"] == []
    assert build(TRUTH, BETTER, tfidf=MIDDLING)["below"]["tfidf"] == []


def test_every_kind_of_report_keeps_to_the_published_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"].endswith(f":{report.SCHEMA_VERSION}")
    invalid = [None, *MIDDLING[1:]]
    empty = frame([], [])
    kinds = {
        "with a champion, evasion, a golden set and a newest week": full(),
        "without a champion and without a golden set": build(TRUTH, MIDDLING, tfidf=BETTER),
        "champion that was not compared": build(TRUTH, MIDDLING, tfidf=BETTER, notes={"champion": "folder is gone"}),
        "invalid answers": build(TRUTH, invalid, tfidf=[None] * 14, champion=invalid),
        "an empty test split": report.build_report(parts(empty, {"majority": empty}, empty), POLICY, context()),
    }
    assert {name: faults(content) for name, content in kinds.items()} == dict.fromkeys(kinds, [])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 1),
        (("surprise",), 1),
        (("context", "surprise"), "x"),
        (("figures", "model", "surprise"), 1),
        (("figures", "model", "headline", "recall", "n"), -1),
        (("figures", "model", "headline", "recall"), {"value": None, "n": 3, "reason": None, "low": None, "high": None}),
        (("figures", "model", "per_category", "诈骗", "recall"), 0.5),
        (("gate", "status"), "passed"),
        (("evasion", "worst_retention"), None),
        (("golden", "n"), "3"),
    ],
)  # fmt: skip
def test_the_schema_notices_drift(path: tuple[str, ...], value: object) -> None:
    content = json.loads(json.dumps(build(TRUTH, MIDDLING, tfidf=BETTER)))
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert faults(content)


def test_the_json_holds_no_nan_and_survives_a_round_trip() -> None:
    content = full()
    assert json.loads(json.dumps(content, allow_nan=False, ensure_ascii=False)) == content


def test_missing_parts_and_figures_over_other_posts_are_refused() -> None:
    model = frame(TRUTH, BETTER)
    good = parts(model, {})
    with pytest.raises(ValueError, match="merge_agreement"):
        report.build_report(good, POLICY, {k: v for k, v in context().items() if k != "merge_agreement"})
    with pytest.raises(ValueError, match="report parts lack evasion, notes"):
        report.build_report({k: v for k, v in good.items() if k not in ("evasion", "notes")}, POLICY, context())
    with pytest.raises(ValueError, match=r"tfidf \(3\) measured on other posts than the model \(14\)"):
        report.build_report(parts(model, {"tfidf": frame(TRUTH[:3], BETTER[:3])}), POLICY, context())


def test_the_key_figures_keep_their_names_and_leave_out_what_has_no_value() -> None:
    figures = report.key_figures(full())
    assert figures["test_posts"] == 600.0
    assert set(figures) == {
        "test_posts", "binary_accuracy", "binary_macro_f1", "recall", "false_positive_rate", "category_macro_f1",
        "verdict_macro_f1", "cost_per_1000", "ece", "automatic", "invalid_share", "severity3_recall",
        "majority_category_macro_f1", "majority_binary_accuracy", "tfidf_category_macro_f1", "tfidf_binary_accuracy",
        "untuned_category_macro_f1", "untuned_binary_accuracy", "evasion_macro_retention", "evasion_worst_retention",
        "evasion_benign_fpr_change", "champion_cost_per_1000_difference", "champion_category_macro_f1_difference",
        "golden_category_macro_f1", "golden_cost_per_1000", "newest_week_category_macro_f1", "newest_week_cost_per_1000",
    }  # fmt: skip
    assert all(isinstance(value, float) for value in figures.values())
    empty = frame([], [])
    assert report.key_figures(report.build_report(parts(empty, {}), POLICY, context())) == {"test_posts": 0.0}


def test_the_worst_mistakes_are_the_dearest_and_then_the_surest() -> None:
    truth = [HARMLESS, FRAUD, LURE, FRAUD, HARMLESS]
    predictions = frame(truth, [FRAUD, HARMLESS, HARMLESS, None, HARMLESS])
    posts = posts_table(truth, images=[[{"bytes": jpeg(), "path": "a"}], [], [], [], []])
    found = report.worst_mistakes(predictions, lambda ids: posts, POLICY)
    assert [e["post_id"] for e in found] == ["p1", "p0", "p2", "p3"]
    assert [e["cost"] for e in found] == [50.0, 5.0, 2.0, 0.5]
    assert [e["probability"] for e in found] == [pytest.approx(0.9)] * 3 + [None]
    assert found[1]["images"] == [jpeg()]
    assert found[3]["verdict"] is None
    assert len(report.worst_mistakes(predictions, lambda ids: posts, POLICY, limit=2)) == 2
    assert report.worst_mistakes(frame([], []), lambda ids: posts_table([]), POLICY) == []


def test_regressions_come_with_their_posts_in_the_order_of_the_comparison() -> None:
    truth = [HARMLESS, FRAUD, LURE, FRAUD]
    model, champion = (
        frame(truth, [FRAUD, HARMLESS, LURE, HARMLESS]),
        frame(truth, [HARMLESS, FRAUD, HARMLESS, HARMLESS]),
    )
    posts = posts_table(truth, body=["零", "一", "二", "三"])
    found = report.worst_regressions(compare(model, champion, POLICY, times=0), model, lambda ids: posts, POLICY)
    assert [(e["post_id"], e["body"], e["added_cost"]) for e in found] == [("p1", "一", 50.0), ("p0", "零", 5.0)]
    assert report.worst_regressions(None, model, lambda ids: posts, POLICY) == []
