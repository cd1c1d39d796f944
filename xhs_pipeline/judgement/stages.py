"""evaluation_report and released_model as functions over folders; judging loads models and runs in a process of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, Built, CheckOutcome, read_json, write_json
from xhs_pipeline.judgement import floors, metrics, page, paired, report
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.champion import Candidate, release
from xhs_pipeline.judgement.gate import GateVerdict
from xhs_pipeline.judgement.judge import Judge, Post
from xhs_pipeline.policy import Policy, load_policy


def evaluate_model(
    model: str,
    splits: str,
    champion: str | None,
    context: dict[str, Any],
    seed: int,
    out: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Judge the test split with the model, the floors and the model in use; write report.json, report.html, predictions.parquet.

    `context` is what `report.build_report` must be told. A champion that cannot judge any more is named in the report and not
    compared. Returns the key figures.
    """
    policy = load_policy()
    light = ["post_id", "title", "body", "verdict", "category", "severity", "label_source"]
    train = pq.read_table(Path(splits) / "train.parquet", columns=light)
    test = pq.read_table(Path(splits) / "test.parquet").drop_columns(["messages"])
    log(f"evaluation_report: judging {test.num_rows} test posts")
    predictions = predict(Judge(Path(model), policy), test, policy, log)
    floor_frames = {
        floors.MAJORITY: floors.majority_floor(train, test, policy),
        floors.TFIDF: floors.tfidf_floor(train, test, policy, seed),
    }
    champion_predictions, not_compared = None, ""
    if champion:
        log("evaluation_report: judging the same posts with the model in use")
        try:
            rival = Judge(Path(champion), policy)
        except ValueError as why:  # its folder is gone or was edited
            not_compared = str(why)
            log(f"evaluation_report: the model in use cannot judge: {why}")
        else:
            champion_predictions = predict(rival, test, policy, log)
    comparison, notes = None, {name: f.attrs["note"] for name, f in floor_frames.items() if f.attrs.get("note")}
    if champion_predictions is not None:
        comparison = paired.compare(predictions, champion_predictions, policy, seed)
    if not_compared:
        notes["champion"] = not_compared
    nothing = metrics.figure(None, 0, "not measured")
    unmoved = {"n": 0, "verdict_changed": nothing, "category_changed": nothing}
    parts = {
        "calibration": {"model": Calibration().as_dict(), "champion": Calibration().as_dict() if comparison else None},
        "figures": {
            "model": metrics.evaluate(predictions, policy, None, seed),
            "floors": {name: metrics.evaluate(frame, policy, None, seed) for name, frame in floor_frames.items()},
            "champion": None
            if champion_predictions is None
            else metrics.evaluate(champion_predictions, policy, None, seed),
        },
        "comparison": comparison,
        "golden": {"n": 0, "reason": "not measured", "model": None, "champion": None, "comparison": None},
        "newest_week": {
            "week": None, "reason": "not measured", "n": 0, "champion": None, "before": None, "model": None, "n_model": 0
        },
        "evasion": {
            "posts": {"violating": 0, "benign": 0},
            "seed": seed,
            "transforms": {},
            "macro_retention": nothing,
            "worst_retention": nothing,
            "worst": None,
            "benign_fpr_change": nothing,
            "metamorphic": {"unrelated_photo": unmoved, "image_order": unmoved},
        },
        "notes": notes,
    }  # fmt: skip
    content = report.build_report(parts, policy, {"seen_unknown": "", **context})
    write_json(Path(out) / "report.json", content)
    examples = report.worst_mistakes(predictions, test, policy)
    regressions = report.worst_regressions(comparison, predictions, test, policy)
    html = page.render_html(content, examples, policy, regressions)
    (Path(out) / "report.html").write_text(html, encoding="utf-8")
    pq.write_table(pa.Table.from_pandas(predictions, preserve_index=False), Path(out) / "predictions.parquet")
    return {"key_figures": report.key_figures(content), "gate": content["gate"]["status"]}


def predict(judge: Judge, test: pa.Table, policy: Policy, log: Callable[[str], None]) -> Any:
    """The predictions frame (`metrics.judged_frame`) of a model over SHAREGPT rows, in today's policy's terms."""
    posts = [
        Post(
            row["post_id"],
            row["title"],
            row["body"],
            tuple(image["bytes"] for image in row["images"]),
            row["ocr_text"],
            row["qr_codes"],
        )
        for row in test.select(["post_id", "title", "body", "images", "ocr_text", "qr_codes"]).to_pylist()
    ]
    return metrics.judged_frame(test, judge.judge(posts, log), policy)


def write_release(folder: Path, merged: Artifact, judged: Artifact, policy: Policy, work: Path) -> Built:
    """Move the champion pointer in `folder` to the merged model if its report's gate passed; write decision.json either way."""
    report_of = read_json(judged.file("report.json"))
    verdict = GateVerdict.from_dict(report_of["gate"])
    candidate = Candidate(merged.version, f"merged_model/{merged.version}", judged.version, policy.version)
    move = release(folder, candidate, verdict, report_of["context"]["champion_version"])
    champion = move.champion.version if move.champion else None
    write_json(
        work / "decision.json",
        {
            "action": move.action,
            "reason": move.reason,
            "champion": champion,
            "candidate": merged.version,
            "report": judged.version,
        },
    )
    in_use = champion == merged.version
    return Built(
        {"released": int(in_use)},
        [CheckOutcome("model_released", in_use, f"{move.action}: {move.reason}", blocking=False)],
    )
