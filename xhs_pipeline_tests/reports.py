"""Reports over made-up predictions: the parts that report.build_report puts together, measured by the same functions as in a run."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from xhs_pipeline.judgement import metrics, paired
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.figures import Figure, figure
from xhs_pipeline.policy import load_policy

POLICY = load_policy()
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
            "week": None, "reason": "帖子没有周次", "n": 0, "champion": None, "before": None, "model": None, "n_model": 0
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
