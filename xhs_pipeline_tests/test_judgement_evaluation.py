"""The evaluation of a real model: what it writes, and how it stands beside the model in use and the floors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.artifacts import read_json, write_json
from xhs_pipeline.judgement.calibration import CALIBRATION, Calibration
from xhs_pipeline.judgement.evaluation import Answered, Settings, golden_figures, stored_calibration
from xhs_pipeline.judgement.figures import figure
from xhs_pipeline.judgement.gate import GateVerdict
from xhs_pipeline.judgement.stages import evaluate_model
from xhs_pipeline.splits.conversation import prompt_digest
from xhs_pipeline.vlm.card import ModelCard, read_card, write_card
from xhs_pipeline.vlm.processor import load_processor
from xhs_pipeline_tests.reports import faults
from xhs_pipeline_tests.small import PROFILE
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, POLICY, frame

CONTEXT = {
    "profile": "tiny", "model_version": "candidate", "base_note": "", "data_versions": {"sharegpt_splits": "s"},
    "champion_version": None, "groups_across_splits": 0, "merge_agreement": figure(1.0, 20), "seen_unknown": "",
}  # fmt: skip
SETTINGS = {"seed": PROFILE.seed, "min_confidence": 0.0, "evasion_posts": 2, "newest_week_posts": 50}


class Evaluated:
    """What the stage wrote into its folder, and the lines that it logged."""

    def __init__(self, folder: Path, log: list[str]):
        self.folder, self.log = folder, log
        self.report = read_json(folder / "report.json")
        assert faults(self.report) == [], "every report that the stage writes keeps to the published schema"
        self.predictions = pd.read_parquet(folder / "predictions.parquet")


@pytest.fixture(scope="module")
def run(
    small_merged: tuple[Path, dict[str, Any]],
    small_base: Path,
    small_splits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    def evaluated(champion: dict[str, Any] | None = None, **settings: Any) -> Evaluated:
        out, log = tmp_path_factory.mktemp("evaluation"), []
        context = CONTEXT | {"champion_version": "old" if champion and champion.get("in_use", True) else None}
        evaluate_model(
            str(small_merged[0]), str(small_base), str(small_splits), champion, SETTINGS | settings, context, str(out), log.append
        )  # fmt: skip
        return Evaluated(out, log)

    return evaluated


@pytest.fixture(scope="module")
def first(run: Any) -> Evaluated:
    return run()


def in_use(model: Path, report: Path, splits: Path | None) -> dict[str, Any]:
    trained_on = str(splits) if splits else None
    return {"model": str(model), "report": str(report), "trained_on": trained_on}


def test_the_report_is_whole_and_of_numbers_only(first: Evaluated) -> None:
    report = first.report
    json.dumps(report, allow_nan=False)
    assert (first.folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert set(report["figures"]["floors"]) == {"majority", "tfidf", "untuned"}
    assert {f["n"] for f in report["figures"]["floors"].values()} == {report["figures"]["model"]["n"]}
    assert report["comparison"] is None and report["newest_week"]["reason"] == "no model in use to judge it"
    assert GateVerdict.from_dict(report["gate"]).status in ("fail", "insufficient"), "so few posts prove nothing"
    assert any("untuned base" in line for line in first.log)


def test_the_stored_calibration_is_the_one_that_decided(first: Evaluated) -> None:
    stored = stored_calibration(first.folder)
    assert stored.as_dict() == first.report["calibration"]["model"]
    assert stored.temperature == 1 and "at least 50" in str(stored.reason), "the small split calibrates nothing"
    assert first.predictions["confidence"].notna().all() and first.predictions["expected_cost"].notna().all()


def test_below_the_profiles_confidence_a_person_decides(first: Evaluated, run: Any) -> None:
    sure = run(min_confidence=1.0, evasion_posts=0).predictions
    assert set(sure["verdict"]) == {"escalate"}
    assert (first.predictions["verdict"] != "escalate").any()


def test_the_model_in_use_is_judged_on_the_same_posts_with_its_own_temperature(
    first: Evaluated, run: Any, small_merged: tuple[Path, dict[str, Any]], small_splits: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / CALIBRATION, Calibration(temperature=3.0, n=60, reason=None).as_dict())
    compared = run(in_use(small_merged[0], tmp_path, small_splits), evasion_posts=0).report
    champion = compared["figures"]["champion"]
    assert champion["n"] == compared["figures"]["model"]["n"]
    assert compared["calibration"]["champion"]["temperature"] == 3.0
    assert compared["comparison"]["n"] == champion["n"]
    assert champion["headline"]["category_log_loss"]["value"] != pytest.approx(
        compared["figures"]["model"]["headline"]["category_log_loss"]["value"]
    ), "the same model at another temperature is less sure"
    assert compared["newest_week"]["reason"] == "the model in use was trained on this week already"
    gates = {g["name"]: g["status"] for g in compared["gate"]["gates"]}
    assert gates["champion_cost"] in ("pass", "fail", "insufficient") and "没有在用模型" not in str(compared["gate"])


def test_a_model_against_itself_differs_in_nothing(
    first: Evaluated, run: Any, small_merged: tuple[Path, dict[str, Any]], small_splits: Path
) -> None:
    report = run(in_use(small_merged[0], first.folder, small_splits), evasion_posts=0).report
    assert report["comparison"]["cost_per_1000"]["value"] == 0
    assert report["comparison"]["changed"]["right_to_wrong"] == 0 and report["comparison"]["regressions"] == []
    gates = {g["name"]: g for g in report["gate"]["gates"]}
    assert gates["champion_cost"]["status"] == "pass"
    for name in ("champion_category_recall", "champion_category_fpr"):
        assert gates[name]["status"] == "insufficient" and "帖，至少要 30 帖" in gates[name]["reason"], "so few posts"


def test_a_model_in_use_that_knows_another_category_is_compared_by_what_it_decides_and_the_report_says_so(
    run: Any, small_merged: tuple[Path, dict[str, Any]], small_splits: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(small_merged[0], older)
    card = read_card(older, POLICY)
    renamed = [{**c, "name": "博彩" if c["name"] == "赌博" else c["name"]} for c in POLICY.wording["categories"]]
    then = POLICY.with_wording("older", {**POLICY.wording, "categories": renamed})
    template = load_processor(older, card.profile.min_pixels, card.profile.max_pixels).chat_template
    write_card(older, ModelCard(card.profile, then, prompt_digest(then, card.profile.prompt, template)))
    report = run(in_use(older, tmp_path, small_splits), evasion_posts=0).report
    assert "博彩" in report["notes"]["champion_categories"]
    assert report["figures"]["champion"]["headline"]["invalid_share"]["value"] == 0
    gates = {g["name"]: g for g in report["gate"]["gates"]}
    for name in ("champion_category_recall", "champion_category_fpr"):
        assert gates[name]["status"] in ("fail", "insufficient")


def test_before_a_first_release_the_earlier_candidate_judges_the_newest_week_and_nothing_else(
    run: Any, small_merged: tuple[Path, dict[str, Any]], small_splits: Path, tmp_path: Path
) -> None:
    def asked(trained_on: Path) -> dict[str, Any]:
        earlier = in_use(small_merged[0], tmp_path, trained_on) | {"in_use": False}
        report: dict[str, Any] = run(earlier, evasion_posts=0).report
        assert report["figures"]["champion"] is None and report["comparison"] is None
        assert {g["status"] for g in report["gate"]["gates"] if g["name"].startswith("champion")} == {"pass"}
        assert report["newest_week"]["judged_by"] == "candidate"
        return dict(report["newest_week"])

    assert asked(small_splits)["reason"] == "the earlier candidate was trained on this week already"
    older = tmp_path / "older"
    older.mkdir()
    for name in ("train", "validation"):
        nothing = pq.read_table(small_splits / f"{name}.parquet").slice(0, 0)
        pq.write_table(nothing, older / f"{name}.parquet")
    found = asked(older)
    assert found["reason"] is None and found["n"] == SETTINGS["newest_week_posts"]
    assert found["champion"]["category_macro_f1"]["n"] == found["n"]


def test_a_model_in_use_that_cannot_judge_is_named_and_holds_the_release(
    run: Any, small_merged: tuple[Path, dict[str, Any]], small_splits: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small_merged[0], broken)
    (broken / "moderation.json").unlink()
    report = run(in_use(broken, tmp_path, small_splits), evasion_posts=0).report
    assert "moderation.json: missing" in report["notes"]["champion"] and report["figures"]["champion"] is None
    gates = {g["name"]: g["status"] for g in report["gate"]["gates"]}
    assert {gates[name] for name in ("champion_cost", "champion_category_recall", "champion_category_fpr")} == {
        "insufficient"
    }


def test_an_edited_calibration_is_refused_by_its_name(tmp_path: Path) -> None:
    write_json(tmp_path / CALIBRATION, Calibration(temperature=3.0).as_dict() | {"temperature": -1})
    with pytest.raises(ValueError, match=r"calibration.json: temperature is -1, expected a number from 0.05"):
        stored_calibration(tmp_path)


def test_on_the_golden_set_the_same_posts_are_compared() -> None:
    truth = [FRAUD] * 4 + [HARMLESS] * 4
    ours = Answered(Calibration(), frame(truth, truth), frame(truth, truth))
    theirs = Answered(Calibration(), frame(truth, [HARMLESS] * 8), frame(truth, truth))
    golden = pa.table({"golden": [True, False] * 4})
    part = golden_figures(golden, ours, theirs, POLICY, Settings(0, 0.0, 0, 0))
    assert (part["n"], part["reason"]) == (4, None)
    assert part["model"]["recall"]["value"] == 1 and part["champion"]["recall"]["value"] == 0
    assert part["model"]["recall"]["n"] == 2, "only golden posts are counted"
    assert part["comparison"]["cost_per_1000"]["value"] == -25_000, "two of four posts cost 50 less"
    alone = golden_figures(golden, ours, None, POLICY, Settings(0, 0.0, 0, 0))
    assert alone["champion"] is None and alone["comparison"] is None and alone["model"] == part["model"]
    none = golden_figures(pa.table({"golden": [False] * 8}), ours, theirs, POLICY, Settings(0, 0.0, 0, 0))
    assert (none["n"], none["reason"], none["model"]) == (0, "the golden set is empty", None)
