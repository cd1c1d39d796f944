"""The report: one dict of everything that was measured (report.json), its key figures, and the posts that show what went wrong.

Figures come from metrics, paired and robustness, the release decision from gate; this module puts them together. What may stand
in the dict is published in report.schema.json beside this file. It reads and writes no files; page draws the dict for people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xhs_pipeline.judgement import gate, metrics
from xhs_pipeline.policy import Policy

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
# What build_report must be told; None is an answer where the schema allows it, leaving a key out is not.
CONTEXT = (
    "profile",
    "model_version",
    "base_note",
    "data_versions",
    "champion_version",
    "groups_across_splits",
    "merge_agreement",
    "seen_unknown",
)
PARTS = ("calibration", "figures", "comparison", "golden", "newest_week", "evasion", "notes")
# A model is "below a floor" when it loses on one of these.
COMPARED = ("category_macro_f1", "binary_accuracy", "binary_macro_f1")
KEY_HEADLINE = (
    "binary_accuracy",
    "binary_macro_f1",
    "recall",
    "false_positive_rate",
    "category_macro_f1",
    "verdict_macro_f1",
    "cost_per_1000",
    "ece",
    "automatic",
    "invalid_share",
)
MAX_EXAMPLES = 20


# The posts of these ids as a table of post_id, title, body and images: de-identified, images as JPEG.
ReadPosts = Callable[[Sequence[str]], pa.Table]


def build_report(parts: Mapping[str, Any], policy: Policy, context: Mapping[str, Any]) -> dict[str, Any]:
    """report.json: what was measured (`parts`), where it comes from (`context`), and what the gate makes of it.

    `parts` holds the keys in PARTS and `context` those in CONTEXT, both of JSON values as report.schema.json says them; every
    number in it is finite. Added here: schema_version, policy_version, `below` (per floor, the compared figures that the model
    loses on) and `gate`. Raises ValueError that names missing keys, and floors or a champion that were measured on another number
    of posts than the model.
    """
    for what, given, wanted in (("report parts", parts, PARTS), ("report context", context, CONTEXT)):
        missing = [key for key in wanted if key not in given]
        if missing:
            raise ValueError(f"{what} lack {', '.join(missing)}; give None where there is nothing to say")
    figures = parts["figures"]
    n = figures["model"]["n"]
    rivals = {**figures["floors"], **({"champion": figures["champion"]} if figures["champion"] else {})}
    others = [f"{name} ({rival['n']})" for name, rival in rivals.items() if rival["n"] != n]
    if others:
        raise ValueError(f"{', '.join(others)} measured on other posts than the model ({n}); judge all on one table")
    report = {
        "schema_version": SCHEMA_VERSION,
        "policy_version": policy.version,
        "context": {key: context[key] for key in CONTEXT},
        **{key: parts[key] for key in PARTS},
        "below": {name: below(figures["model"], floor) for name, floor in figures["floors"].items()},
    }
    return {**report, "gate": gate.decide(report, policy).as_dict()}


def below(model: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the compared figures that the other has and the model misses or is lower on."""
    out = []
    for name in COMPARED:
        mine, theirs = model["headline"][name]["value"], other["headline"][name]["value"]
        if theirs is not None and (mine is None or mine < theirs):
            out.append(name)
    return out


def key_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers worth drawing over time, under names that stay; a figure without a value is left out."""
    figures, evasion, comparison = report["figures"], report["evasion"], report["comparison"]
    model = figures["model"]
    out: dict[str, Any] = {name: model["headline"][name] for name in KEY_HEADLINE}
    out["severity3_recall"] = model["by_severity"]["3"]["recall"]
    for floor, row in figures["floors"].items():
        out[f"{floor}_category_macro_f1"] = row["headline"]["category_macro_f1"]
        out[f"{floor}_binary_accuracy"] = row["headline"]["binary_accuracy"]
    out["evasion_macro_retention"] = evasion["macro_retention"]
    out["evasion_worst_retention"] = evasion["worst_retention"]
    out["evasion_benign_fpr_change"] = evasion["benign_fpr_change"]
    if comparison:
        out["champion_cost_per_1000_difference"] = comparison["cost_per_1000"]
        out["champion_category_macro_f1_difference"] = comparison["category_macro_f1"]
    for part in ("golden", "newest_week"):
        if report[part]["model"]:
            out[f"{part}_category_macro_f1"] = report[part]["model"]["category_macro_f1"]
            out[f"{part}_cost_per_1000"] = report[part]["model"]["cost_per_1000"]
    found = {name: figure["value"] for name, figure in out.items() if figure["value"] is not None}
    return {"test_posts": float(model["n"]), **found}


def worst_mistakes(
    predictions: pd.DataFrame, posts: ReadPosts, policy: Policy, limit: int = MAX_EXAMPLES
) -> list[dict[str, Any]]:
    """The dearest wrong answers, then the surest: cost of the policy first, then the probability of the category given.

    A wrong verdict with the right category counts as a mistake too. Returns at most `limit` rows for `page.render_html`; `posts`
    is asked for those posts only.
    """
    ok = metrics.usable(predictions, policy)
    wrong_verdict = predictions[metrics.VERDICT].to_numpy() != predictions[metrics.TRUE_VERDICT].to_numpy()
    wrong_category = predictions[metrics.CATEGORY].to_numpy() != predictions[metrics.TRUE_CATEGORY].to_numpy()
    cost, sure, ids = (
        metrics.costs(predictions, policy),
        _sureness(predictions, ok, policy),
        list(predictions[metrics.POST_ID]),
    )
    wrong = np.flatnonzero(~ok | wrong_verdict | wrong_category)
    order = sorted(wrong.tolist(), key=lambda i: (-cost[i], -np.nan_to_num(sure[i], nan=-1.0), str(ids[i])))[:limit]
    return _examples(order, predictions, posts, policy)


def worst_regressions(
    comparison: Mapping[str, Any] | None,
    predictions: pd.DataFrame,
    posts: ReadPosts,
    policy: Policy,
    limit: int = MAX_EXAMPLES,
) -> list[dict[str, Any]]:
    """The biggest of `comparison["regressions"]` (`paired.compare`) as rows for `page.render_html`, at most `limit`.

    `predictions` are the model's. As `worst_mistakes`, with `added_cost`: what the model's answer costs more than the champion's.
    """
    listed = comparison["regressions"][:limit] if comparison else []
    row_of = {post_id: i for i, post_id in enumerate(predictions[metrics.POST_ID])}
    found = _examples([row_of[row["post_id"]] for row in listed], predictions, posts, policy)
    return [{**example, "added_cost": row["cost"]} for example, row in zip(found, listed, strict=True)]


def _sureness(predictions: pd.DataFrame, ok: np.ndarray, policy: Policy) -> np.ndarray:
    """The probability of the category given, (posts,); NaN for an unusable answer."""
    names, given = policy.category_names, predictions[metrics.CATEGORY]
    column = np.array([names.index(name) if good else 0 for name, good in zip(given, ok, strict=True)], dtype=int)
    p = predictions[metrics.category_columns(policy)].to_numpy(dtype=float)
    return np.where(ok, p[np.arange(len(p)), column], np.nan)


def _examples(rows: Iterable[int], predictions: pd.DataFrame, posts: ReadPosts, policy: Policy) -> list[dict[str, Any]]:
    """What the page shows of these rows of `predictions`, in their order."""
    chosen = predictions.iloc[list(rows)]
    ok, cost = metrics.usable(chosen, policy), metrics.costs(chosen, policy)
    sure = _sureness(chosen, ok, policy)
    post_of = {row["post_id"]: row for row in posts(chosen[metrics.POST_ID].tolist()).to_pylist()}
    examples = []
    for i, answer in enumerate(chosen.to_dict("records")):
        post = post_of[answer[metrics.POST_ID]]
        examples.append(
            {
                "post_id": answer[metrics.POST_ID],
                "title": post.get("title") or "",
                "body": post.get("body") or "",
                "images": [image["bytes"] for image in post.get("images") or [] if image and image["bytes"]],
                "true_verdict": answer[metrics.TRUE_VERDICT],
                "true_category": answer[metrics.TRUE_CATEGORY],
                "verdict": answer[metrics.VERDICT] if ok[i] else None,
                "category": answer[metrics.CATEGORY] if ok[i] else None,
                "probability": float(sure[i]) if ok[i] else None,
                "cost": float(cost[i]),
                "label_source": answer[metrics.LABEL_SOURCE],
            }
        )
    return examples
