"""Reports over made-up predictions: the parts that report.build_report puts together, measured by the same functions as in a run."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jsonschema import Draft202012Validator
from PIL import Image

from xhs_pipeline.judgement import metrics, paired, report
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.figures import Figure, figure
from xhs_pipeline.policy import load_policy
from xhs_pipeline_tests.simulated import simulated
from xhs_pipeline_tests.test_judgement_metrics import HARMLESS, frame

POLICY = load_policy()
SCHEMA = json.loads((files("xhs_pipeline.judgement") / "report.schema.json").read_text(encoding="utf-8"))
NOT_MEASURED = figure(None, 0, "not measured")
TRANSFORMS = {
    "homophones": "谐音",
    "pinyin": "拼音",
    "split_characters": "拆字",
    "zero_width": "零宽字符",
    "in_image": "文字写进图片",
}


def context(**changes: Any) -> dict[str, Any]:
    return {
        "profile": "tiny",
        "model_version": "a3f9c1d27b60",
        "base_note": "",
        "data_versions": {"sharegpt_splits": "77aa88bb99cc"},
        "champion_version": None,
        "groups_across_splits": 0,
        "merge_agreement": figure(1.0, 14),
        "seen_unknown": "",
        **changes,
    }


def parts(
    model: pd.DataFrame,
    floors: Mapping[str, pd.DataFrame],
    champion: pd.DataFrame | None = None,
    calibration: pd.DataFrame | None = None,
    times: int = 200,
    **changes: Any,
) -> dict[str, Any]:
    """The parts of a report over these frames, with nothing measured of evasion, the golden set and the newest week."""

    def figures(frame: pd.DataFrame) -> dict[str, Any]:
        return metrics.evaluate(frame, POLICY, calibration, 0, times)

    return {
        "calibration": {"model": Calibration().as_dict(), "champion": None if champion is None else Calibration().as_dict()},
        "figures": {
            "model": figures(model),
            "floors": {name: figures(frame) for name, frame in floors.items()},
            "champion": None if champion is None else figures(champion),
        },
        "comparison": None if champion is None else paired.compare(model, champion, POLICY, 0, times),
        "golden": {"n": 0, "reason": "没有固定测试集", "model": None, "champion": None, "comparison": None},
        "newest_week": {
            "week": None, "reason": "帖子没有周次", "n": 0, "champion": None, "before": None, "judged_by": None, "model": None, "n_model": 0
        },
        "evasion": no_evasion(),
        "notes": {},
        **changes,
    }  # fmt: skip


def no_evasion() -> dict[str, Any]:
    unmoved = {"n": 0, "verdict_changed": NOT_MEASURED, "category_changed": NOT_MEASURED}
    return {
        "posts": {"violating": 0, "benign": 0},
        "seed": 0,
        "transforms": {},
        "macro_retention": NOT_MEASURED,
        "worst_retention": NOT_MEASURED,
        "worst": None,
        "benign_fpr_change": NOT_MEASURED,
        "metamorphic": {"unrelated_photo": unmoved, "image_order": unmoved},
    }


def evasion(before: Figure, n: int = 400) -> dict[str, Any]:
    """A made-up measurement: every further transform costs 8% of the recall."""

    def rate(value: float) -> Figure:
        return figure(value, n, bounds=(max(0.0, value - 0.04), min(1.0, value + 0.04)))

    recall = before["value"] or 0.0
    kept = {name: 1 - 0.08 * i for i, name in enumerate(TRANSFORMS)}
    transforms = {
        name: {
            "chinese": TRANSFORMS[name],
            "changed_violating": n,
            "changed_benign": n,
            "recall_before": before,
            "recall_after": rate(recall * share),
            "retention": rate(share),
            "fpr_before": rate(0.05),
            "fpr_after": rate(0.05 + (1 - share) / 8),
            "fpr_change": figure((1 - share) / 8, n, bounds=((1 - share) / 8 - 0.01, (1 - share) / 8 + 0.01)),
        }
        for name, share in kept.items()
    }
    worst = min(kept, key=lambda name: kept[name])
    return {
        "posts": {"violating": n, "benign": n},
        "seed": 0,
        "transforms": transforms,
        "macro_retention": rate(sum(kept.values()) / len(kept)),
        "worst_retention": transforms[worst]["retention"],
        "worst": worst,
        "benign_fpr_change": transforms[worst]["fpr_change"],
        "metamorphic": {
            "unrelated_photo": {"n": n, "verdict_changed": rate(0.03), "category_changed": rate(0.05)},
            "image_order": {"n": n, "verdict_changed": rate(0.0), "category_changed": rate(0.01)},
        },
    }


def build(
    truth: Sequence[Any],
    model: Sequence[Any],
    tfidf: Sequence[Any],
    champion: Sequence[Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The report of a few posts; `changes` are of parts, or of the context."""
    floors = {"majority": frame(list(truth), [HARMLESS] * len(truth)), "tfidf": frame(list(truth), list(tfidf))}
    in_use = frame(list(truth), list(champion)) if champion else None
    of_parts = {name: changes.pop(name) for name in report.PARTS if name in changes}
    return report.build_report(
        parts(frame(list(truth), list(model)), floors, in_use, **of_parts), POLICY, context(**changes)
    )


@cache
def full(posts: int = 600) -> dict[str, Any]:
    """A report with everything in it. The champion lets three posts in ten pass and is too unsure; never change it."""
    model, champion = simulated(posts), simulated(posts, sharpness=0.4)
    champion = answered(champion, np.random.default_rng(0).random(posts) < 0.3)
    tfidf, majority = answered(model, np.arange(posts) % 2 == 0), answered(model, np.ones(posts, dtype=bool))
    floors = {"majority": majority, "tfidf": tfidf, "untuned": champion}
    made = parts(model, floors, champion, simulated(posts, 1))
    mine, theirs = (made["figures"][who]["headline"] for who in ("model", "champion"))
    made["evasion"] = evasion(mine["recall"])
    names = ("category_macro_f1", "verdict_macro_f1", "cost_per_1000")
    change = {name: made["comparison"][name] for name in names}
    made["golden"] = {"n": posts, "reason": None, "model": mine, "champion": theirs, "comparison": change}
    made["newest_week"] = {
        "week": "2026-02-16", "reason": None, "n": 90, "judged_by": "champion", "champion": theirs, "before": theirs, "model": mine, "n_model": 30
    }  # fmt: skip
    return report.build_report(made, POLICY, context(champion_version="0d1e2f3a4b5c"))


def answered(predictions: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """The frame with the harmless answer given to these rows."""
    out = predictions.copy()
    out.loc[rows, [metrics.VERDICT, metrics.CATEGORY]] = HARMLESS
    return out


def jpeg(side: int = 400) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side // 2), "teal").save(out, format="JPEG")
    return out.getvalue()


def example(**changes: Any) -> dict[str, Any]:
    """One row as report.worst_mistakes gives it."""
    return {
        "post_id": "p1", "title": "标题", "body": "正文", "images": [], "true_verdict": "remove", "true_category": "诈骗",
        "verdict": "pass", "category": "正常", "probability": 0.8, "cost": 50.0, "label_source": "source", **changes,
    }  # fmt: skip


def faults(content: dict[str, Any]) -> list[str]:
    """Where a report departs from the published schema."""
    return [f"{e.json_path}: {e.message[:120]}" for e in Draft202012Validator(SCHEMA).iter_errors(content)]
