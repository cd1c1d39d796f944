"""evaluation_report and released_model as functions over folders; judging loads models and runs in a process of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, Built, CheckOutcome, read_json, write_json
from xhs_pipeline.judgement import floors, metrics, report
from xhs_pipeline.judgement.champion import Candidate, release
from xhs_pipeline.judgement.gate import GateVerdict
from xhs_pipeline.judgement.judge import Judge
from xhs_pipeline.judgement.predict import light_table, predict, rows_with_images
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
    test_file = Path(splits) / "test.parquet"
    test = light_table(test_file)
    log(f"evaluation_report: judging {test.num_rows} test posts")
    predictions = metrics.judged_frame(test, predict(Judge(Path(model), policy), test_file, log), policy)
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
            champion_predictions = metrics.judged_frame(test, predict(rival, test_file, log), policy)
    content = report.build_report(predictions, floor_frames, policy, context, champion_predictions, not_compared)
    write_json(Path(out) / "report.json", content)
    shown = predictions.iloc[report.dearest_mistakes(predictions, policy)]
    examples = report.worst_mistakes(shown, rows_with_images(test_file, list(shown[metrics.POST_ID])), policy)
    (Path(out) / "report.html").write_text(report.render_html(content, examples, policy), encoding="utf-8")
    pq.write_table(pa.Table.from_pandas(predictions, preserve_index=False), Path(out) / "predictions.parquet")
    return {"key_figures": report.key_figures(content), "gate": content["gate"]["status"]}


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
