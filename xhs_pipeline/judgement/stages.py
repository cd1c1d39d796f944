"""evaluation_report and released_model as functions over folders; judging loads models and runs in a process of its own."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Artifact, Built, CheckOutcome, write_json
from xhs_pipeline.judgement import page, report
from xhs_pipeline.judgement.calibration import CALIBRATION
from xhs_pipeline.judgement.champion import Candidate, release, verdict_of
from xhs_pipeline.judgement.evaluation import Rival, Settings, evaluate
from xhs_pipeline.judgement.predict import rows_with_images
from xhs_pipeline.policy import Policy, load_policy

DECISION_BYTES = 2**16  # more than decision.json, the manifest and latest.json ever take together


def evaluate_model(
    model: str,
    base: str,
    splits: str,
    champion: dict[str, Any] | None,
    settings: dict[str, Any],
    context: dict[str, Any],
    out: str,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Judge a merged model; write report.json, report.html, calibration.json and predictions.parquet into `out`.

    `model`, `base` and `splits` are folders of artefacts; `champion` holds the fields of `evaluation.Rival`, `settings` those of
    `evaluation.Settings`, `context` is what `report.build_report` must be told. Returns the key figures and the gate's verdict,
    which thereby stands in the manifest.
    """
    policy, folder, test = load_policy(), Path(out), Path(splits) / "test.parquet"
    rival = None
    if champion:
        path, its_report, trained_on = (champion[name] for name in ("model", "report", "trained_on"))
        rival = Rival(
            Path(path), Path(its_report), Path(trained_on) if trained_on else None, champion.get("in_use", True)
        )
    found = evaluate(
        Path(model), Path(base), Path(splits), rival, policy, Settings(**settings), lambda line: log(f"evaluation_report: {line}")
    )  # fmt: skip
    content = report.build_report(found.parts, policy, context)
    write_json(folder / "report.json", content)
    write_json(folder / CALIBRATION, found.calibration.as_dict())
    read = functools.partial(rows_with_images, test)
    examples = report.worst_mistakes(found.predictions, read, policy)
    regressions = report.worst_regressions(content["comparison"], found.predictions, read, policy)
    html = page.render_html(content, examples, policy, regressions)
    (folder / "report.html").write_text(html, encoding="utf-8")
    pq.write_table(pa.Table.from_pandas(found.predictions, preserve_index=False), folder / "predictions.parquet")
    return {"key_figures": report.key_figures(content), "gate": content["gate"]}


def write_release(folder: Path, merged: Artifact, judged: Artifact, policy: Policy, work: Path) -> Built:
    """Move the champion pointer in `folder` to the merged model if its report's gate passed; write decision.json either way.

    The place that the decision and its manifest take is held while the pointer moves: a disk that fills up stops the move, never
    what is written down of it. Raises ValueError as `verdict_of` does, and OSError when the disk refuses.
    """
    verdict, told = verdict_of(judged, policy)
    candidate = Candidate(merged.version, f"merged_model/{merged.version}", judged.version, policy.version)
    held = work / "held"
    try:
        held.write_bytes(os.urandom(DECISION_BYTES))  # zeros would take no place where the file system compresses
        move = release(folder, candidate, verdict, told["context"]["champion_version"])
    finally:
        held.unlink(missing_ok=True)
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
