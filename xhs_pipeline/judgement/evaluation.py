"""Everything that a report says, measured: the posts put before every model, and the figures of what they answered.

Models are loaded one after the other, so that a card that holds one of them holds the evaluation. Nothing is written here.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.judgement import floors, metrics
from xhs_pipeline.judgement.calibration import CALIBRATION, Calibration, fit_temperature
from xhs_pipeline.judgement.decisions import decided, decided_in_own_terms
from xhs_pipeline.judgement.evasion import robustness
from xhs_pipeline.judgement.gate import CHAMPION_CATEGORIES
from xhs_pipeline.judgement.in_use import calibration_in
from xhs_pipeline.judgement.judge import Judge
from xhs_pipeline.judgement.newest_week import newest_week_figures
from xhs_pipeline.judgement.paired import compare
from xhs_pipeline.judgement.predict import light_table, predict
from xhs_pipeline.policy import Policy
from xhs_pipeline.vlm.base import open_base
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.card import read_card
from xhs_pipeline.vlm.scoring import Judgement, at_temperature

if TYPE_CHECKING:
    import pandas as pd

Log = Callable[[str], None]
# Of a comparison on the golden set, what is shown: few posts, so no more than the headlines.
GOLDEN_DIFFERENCES = ("category_macro_f1", "verdict_macro_f1", "cost_per_1000")


@dataclass(frozen=True)
class Settings:
    """The profile's settings that judging depends on."""

    seed: int
    min_confidence: float
    evasion_posts: int
    newest_week_posts: int


@dataclass(frozen=True)
class Rival:
    """The model in use: its folder, its report's folder, and the splits that it was trained on (None: nobody knows).

    Where none is in use, the newest earlier candidate, not `in_use`: it is asked about the newest week and not compared.
    """

    model: Path
    report: Path
    trained_on: Path | None
    in_use: bool = True


@dataclass(frozen=True)
class Answered:
    """What one model decided about the test and the calibration split, with its temperature."""

    calibration: Calibration
    test: "pd.DataFrame"
    calibration_split: "pd.DataFrame"


@dataclass(frozen=True)
class Evaluation:
    """`parts` of the report as `report.build_report` takes them, the model's predictions and its calibration."""

    parts: dict[str, Any]
    predictions: "pd.DataFrame"
    calibration: Calibration


def evaluate(
    model: Path, base: Path, splits: Path, rival: Rival | None, policy: Policy, settings: Settings, log: Log
) -> Evaluation:
    """Judge the splits with the model, the model in use and the floors, and measure what they answered.

    A model in use that cannot judge any more, and a base that is out of reach, are named in `notes` and not compared.
    Raises ValueError when `model` cannot be used.
    """
    test, notes = light_table(splits / "test.parquet"), {}
    log(f"judging {test.num_rows} test posts")
    judge = Judge(model, policy)
    own = _answered(judge, splits, test, policy, None, settings, log)
    evasion = robustness.measure(
        splits / "test.parquet",
        own.test,
        lambda posts, rows: _decided(
            rows, list(judge.judge(posts, log, len(posts))), judge.policy, own.calibration, policy
        ),
        policy,
        judge.profile,
        settings.seed,
        settings.evasion_posts,
        log,
    )
    del judge
    _free_memory()
    champion, newest = None, None
    if rival is not None:
        who = "the model in use" if rival.in_use else "the earlier candidate, for the newest week"
        log(f"judging the same posts with {who}")
        try:
            judge = Judge(rival.model, policy)
        except ValueError as why:  # its folder is gone or was edited
            if rival.in_use:
                notes["champion"] = str(why)
            log(f"{who} cannot judge: {why}")
        else:
            gone = [name for name in judge.policy.category_names if name not in policy.category_names]
            if gone and rival.in_use:
                notes[CHAMPION_CATEGORIES] = (
                    f"在用模型还会回答今天的规则没有的类别（{'、'.join(gone)}），这些回答按它认为最可能的现有类别计"
                )
            before = _answered(judge, splits, test, policy, stored_calibration(rival.report), settings, log)
            newest = _newest_week(splits, own, settings, policy, rival, before, judge, log)
            champion = before if rival.in_use else None
            del judge
            _free_memory()
    return Evaluation(
        {
            "calibration": {
                "model": own.calibration.as_dict(),
                "champion": champion.calibration.as_dict() if champion else None,
            },
            "figures": {
                "model": metrics.evaluate(own.test, policy, own.calibration_split, settings.seed),
                "floors": {
                    name: metrics.evaluate(frame, policy, seed=settings.seed)
                    for name, frame in _floors(model, base, splits, test, policy, settings, notes, log).items()
                },
                "champion": metrics.evaluate(champion.test, policy, champion.calibration_split, settings.seed)
                if champion
                else None,
            },
            "comparison": compare(own.test, champion.test, policy, settings.seed) if champion else None,
            "golden": golden_figures(test, own, champion, policy, settings),
            "newest_week": newest or _newest_week(splits, own, settings, policy),
            "evasion": evasion,
            "notes": notes,
        },
        own.test,
        own.calibration,
    )


def stored_calibration(report: Path) -> Calibration:
    """The calibration that stands in a report's folder; temperature 1 with a reason where there is none."""
    return calibration_in(report) or Calibration(reason=f"{report.name} holds no {CALIBRATION}")


def _answered(
    judge: Judge,
    splits: Path,
    test: pa.Table,
    policy: Policy,
    calibration: Calibration | None,
    settings: Settings,
    log: Log,
) -> Answered:
    """The splits judged, `test` being the light table of one; without a stored `calibration` the temperature is fitted on the calibration split."""
    held_out, file = light_table(splits / "calibration.parquet"), splits / "calibration.parquet"
    scored = predict(judge, file, log)
    if calibration is None:
        truth = zip(held_out["verdict"].to_pylist(), held_out["category"].to_pylist(), strict=True)
        nothing = (float("nan"),) * len(judge.policy.answers())
        scores = np.array([j.scores if isinstance(j, Judgement) else nothing for j in scored])
        calibration = fit_temperature(scores, list(truth), judge.policy.answers(), settings.min_confidence)
        log(f"temperature {calibration.temperature:.3f} from {calibration.n} posts")
    return Answered(
        calibration,
        _decided(test, predict(judge, splits / "test.parquet", log), judge.policy, calibration, policy),
        _decided(held_out, scored, judge.policy, calibration, policy),
    )


def _decided(
    rows: pa.Table, judged: Sequence[Judgement | Unfit], asked_with: Policy, calibration: Calibration, policy: Policy
) -> "pd.DataFrame":
    at = [at_temperature(j, asked_with, calibration.temperature) if isinstance(j, Judgement) else j for j in judged]
    frame = metrics.judged_frame(rows, at, policy)
    if asked_with.categories == policy.categories:
        return decided(frame, policy, calibration.min_confidence)
    return decided_in_own_terms(frame, at, asked_with, policy, calibration.min_confidence)


def _floors(
    model: Path,
    base: Path,
    splits: Path,
    test: pa.Table,
    policy: Policy,
    settings: Settings,
    notes: dict[str, str],
    log: Log,
) -> dict[str, "pd.DataFrame"]:
    """Frames that decide by the policy's prices as the model does, so that costs compare."""
    train = light_table(splits / "train.parquet")
    frames = {
        floors.MAJORITY: floors.majority_floor(train, test, policy),
        floors.TFIDF: floors.tfidf_floor(train, test, policy, settings.seed),
    }
    log("judging the same posts with the untuned base")
    card = read_card(model, policy)
    try:
        folder, _ = open_base(base, card.profile)
        judge = Judge(folder, policy, card)
    except (ValueError, OSError) as why:  # a cache that was emptied, with no network to fill it
        notes[floors.UNTUNED] = f"not judged: {why}"
    else:
        frames[floors.UNTUNED] = floors.untuned_floor(test, predict(judge, splits / "test.parquet", log), policy)
        del judge
        _free_memory()
    notes |= {name: frame.attrs["note"] for name, frame in frames.items() if frame.attrs.get("note")}
    return {name: decided(frame, policy, settings.min_confidence) for name, frame in frames.items()}


def golden_figures(
    test: pa.Table, own: Answered, champion: Answered | None, policy: Policy, settings: Settings
) -> dict[str, Any]:
    """The same figures on the posts that stay the same from model to model."""
    frozen = test["golden"].to_numpy(zero_copy_only=False)
    n = int(frozen.sum())
    nothing = {"n": n, "reason": "the golden set is empty", "model": None, "champion": None, "comparison": None}
    if not n:
        return nothing
    ours = own.test[frozen].reset_index(drop=True)
    theirs = champion.test[frozen].reset_index(drop=True) if champion else None
    compared = compare(ours, theirs, policy, settings.seed) if theirs is not None else None
    return {
        "n": n,
        "reason": None,
        "model": _headline(ours, policy, settings),
        "champion": _headline(theirs, policy, settings) if theirs is not None else None,
        "comparison": {name: compared[name] for name in GOLDEN_DIFFERENCES} if compared else None,
    }


def _newest_week(
    splits: Path,
    own: Answered,
    settings: Settings,
    policy: Policy,
    rival: Rival | None = None,
    champion: Answered | None = None,
    judge: Judge | None = None,
    log: Log = print,
) -> dict[str, Any]:
    def ask(file: Path, chosen: set[str]) -> "pd.DataFrame":
        assert judge is not None and champion is not None
        rows = light_table(file)
        rows = rows.filter(pc.is_in(rows["post_id"], value_set=pa.array(sorted(chosen))))
        return _decided(rows, predict(judge, file, log, chosen), judge.policy, champion.calibration, policy)

    return newest_week_figures(
        splits,
        rival.trained_on if rival else None,
        own.test,
        champion.test if champion else None,
        ask if judge else None,
        lambda frame: _headline(frame, policy, settings),
        settings.seed,
        settings.newest_week_posts,
        rival is None or rival.in_use,
    )


def _headline(frame: "pd.DataFrame", policy: Policy, settings: Settings) -> dict[str, Any]:
    return dict(metrics.evaluate(frame, policy, seed=settings.seed)["headline"])


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
