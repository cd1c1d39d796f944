"""How well a model holds out against disguise: what it still finds in disguised posts, and what it makes of harmless ones.

Counts only; how posts are rewritten stands in `variants` and `evasion`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xhs_pipeline.judgement.evasion.transforms import CHINESE_NAMES, IN_IMAGE, FontMissing, chinese_font
from xhs_pipeline.judgement.evasion.variants import (
    IMAGE_ORDER,
    UNRELATED_PHOTO,
    Sampled,
    Variants,
    choose,
    harmless_photos,
    read_rows,
)
from xhs_pipeline.judgement.figures import Figure, figure, resampled, share
from xhs_pipeline.judgement.frame import POST_ID, answers
from xhs_pipeline.judgement.intervals import RESAMPLES, Resamples
from xhs_pipeline.judgement.judge import Post, as_post
from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

# The posts, and as many rows about them (LABELS), both in one order with ids of their own; back comes the frame that
# `decisions.decided` makes of the answers, in that order.
Ask = Callable[[list[Post], pa.Table], "pd.DataFrame"]

LABELS = pa.schema(
    [(name, pa.string()) for name in ("post_id", "group_id", "week", "title", "body", "verdict", "category", "label_source")]
)  # fmt: skip
MIN_CHANGED = 30  # posts that a transform must change before a ratio or a change of rates says anything
WINDOW = 64  # test posts rewritten and judged together: about ten times as many, whose batches are then of like length
METAMORPHIC = (UNRELATED_PHOTO, IMAGE_ORDER)
_VIOLATION, _VERDICT, _CATEGORY = 0, 1, 2  # columns of what was said


def measure(
    test: Path | pa.Table,
    predictions: pd.DataFrame,
    ask: Ask,
    policy: Policy,
    profile: Profile,
    seed: int,
    posts_at_most: int = 300,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The figures of `evasion` in report.json: a model's answers before and after its test posts were rewritten.

    `test`: the test split (SHAREGPT rows), `predictions`: the model's decided frame on it, `ask`: the same model, decided alike,
    about at most WINDOW test posts in all their variants a call. `posts_at_most` violating and as many harmless posts are
    rewritten (`variants.choose`). The model reads what it would read in use: see `variants.Variants` for the way a rewritten post
    takes, and for what placeholders keep from being measured. A post that cleaning brings back to what it was is not asked again.

    {posts: {violating, benign}, seed,
     transforms: {name: {chinese, changed_violating, changed_benign, recall_before, recall_after, retention, fpr_before,
                         fpr_after, fpr_change}}, for every name of evasion.CHINESE_NAMES,
     macro_retention, worst_retention: Figures, worst: name or None, benign_fpr_change: Figure, the largest,
     unmade: {name: why} of transforms that this machine cannot make,
     metamorphic: {unrelated_photo, image_order: {n, verdict_changed, category_changed}}}

    Only posts that a transform changes count for it. recall: share of the violating ones that are said to be a violation, of
    whatever kind; fpr: of the harmless ones; both with Wilson's interval. retention = recall_after / recall_before, which may
    exceed 1; fpr_change = fpr_after - fpr_before; both with a bootstrap by duplicate group that resamples before and after
    alike, and without a value below MIN_CHANGED changed posts. macro_retention: the plain mean of the retentions that have a
    value. metamorphic: the share of posts whose verdict or category changes when a harmless post's photo of another group
    (a plain gradient where there is none, which the log tells) is added behind their images, or these are reversed.
    An unusable answer is taken to be wrong. The same seed, posts and answers give the same figures.

    Raises ValueError when `predictions` lack a sampled post, or `ask` answers about other posts than it was asked about.
    """
    sample = choose(test, policy, seed, posts_at_most)
    before = _said(_of(predictions, sample), policy)
    unavailable = _unavailable(log)
    names = [name for name in (*CHINESE_NAMES, *METAMORPHIC) if name not in unavailable]
    photos = harmless_photos(test, policy, seed) if sample else []
    if sample and not photos:
        log(f"evasion: no harmless test post has an image; {UNRELATED_PHOTO} adds a plain gradient")
    asked = _Asked(Variants(profile, seed, photos), ask, policy, sample, before, names)
    asked.run(read_rows(test, {post.post_id for post in sample}), log)
    resamples = Resamples([post.group_id for post in sample], seed, RESAMPLES)
    return _figures(sample, before, asked.after, unavailable, resamples, seed)


def _unavailable(log: Callable[[str], None]) -> dict[str, str]:
    """Transforms that this machine cannot make, and why."""
    try:
        chinese_font()
    except FontMissing as missing:
        log(f"evasion: {IN_IMAGE} is not measured: {missing}")
        return {IN_IMAGE: str(missing)}
    return {}


def _of(predictions: pd.DataFrame, sample: Sequence[Sampled]) -> pd.DataFrame:
    """The rows of the sampled posts, in their order."""
    row_of = {post: i for i, post in enumerate(predictions[POST_ID])}
    missing = [post.post_id for post in sample if post.post_id not in row_of]
    if missing:
        raise ValueError(
            f"the predictions lack {len(missing)} of {len(sample)} sampled test posts, such as {missing[0]}; "
            "judge the same test split that is rewritten"
        )
    return predictions.iloc[[row_of[post.post_id] for post in sample]].reset_index(drop=True)


def _said(frame: pd.DataFrame, policy: Policy) -> np.ndarray:
    """int (posts, 3): whether it is said to be a violation, verdict and category as indices of the policy (-1: unusable)."""
    judged = answers(frame, policy)
    return np.column_stack([judged.binary.answer, judged.verdict.answer, judged.category.answer])


@dataclass
class _Asked:
    """`after[name]` (posts, 3): what was said of the sample under a name, -2 where there was nothing to rewrite."""

    variants: Variants
    ask: Ask
    policy: Policy
    sample: Sequence[Sampled]
    before: np.ndarray
    names: Sequence[str]

    def run(self, rows: Iterator[dict[str, Any]], log: Callable[[str], None]) -> None:
        """Rewrite and judge window after window; memory holds one with its images."""
        self.after = {name: np.full((len(self.sample), 3), -2) for name in self.names}
        place_of = {post.post_id: place for place, post in enumerate(self.sample)}
        done, judged, making, judging, started = 0, 0, 0.0, 0.0, time.monotonic()
        while window := list(islice(rows, WINDOW)):
            clock = time.process_time()
            posts, labels, where = self._rewritten(window, place_of)
            making += time.process_time() - clock
            clock = time.process_time()
            self._judge(posts, labels, where)
            judging += time.process_time() - clock
            done, judged = done + len(window), judged + len(posts)
            rate = done / (time.monotonic() - started)
            left = (len(self.sample) - done) / rate
            log(f"evasion: {done}/{len(self.sample)} test posts, {judged} variants judged, {left:.0f} s left")
        if judged:
            log(
                f"evasion: CPU ms a variant: {1000 * making / judged:.1f} to make, {1000 * judging / judged:.1f} to judge"
            )

    def _rewritten(
        self, window: Sequence[dict[str, Any]], place_of: dict[str, int]
    ) -> tuple[list[Post], list[dict[str, Any]], list[tuple[str, int]]]:
        posts: list[Post] = []
        labels: list[dict[str, Any]] = []
        where: list[tuple[str, int]] = []
        for row in window:
            stored, place = as_post(row), place_of[row["post_id"]]
            for name in self.names:
                variant = self.variants.of(name, row, stored)
                if variant is None:
                    continue
                if variant == stored:
                    self.after[name][place] = self.before[place]
                    continue
                own_id = f"{stored.post_id}#{name}"
                posts.append(replace(variant, post_id=own_id))
                labels.append({**row, "post_id": own_id, "title": variant.title, "body": variant.body})
                where.append((name, place))
        return posts, labels, where

    def _judge(self, posts: list[Post], labels: list[dict[str, Any]], where: Sequence[tuple[str, int]]) -> None:
        if not posts:
            return
        table = pa.Table.from_pylist([{name: row[name] for name in LABELS.names} for row in labels], schema=LABELS)
        frame = self.ask(posts, table)
        if list(frame[POST_ID]) != [post.post_id for post in posts]:
            raise ValueError(
                f"asked about {len(posts)} posts, the answer has {len(frame)} rows about others or in another order; "
                "expected one row a post, with its post_id, in the order asked"
            )
        for (name, place), said in zip(where, _said(frame, self.policy), strict=True):
            self.after[name][place] = said


def _figures(
    sample: Sequence[Sampled],
    before: np.ndarray,
    after: dict[str, np.ndarray],
    unavailable: dict[str, str],
    resamples: Resamples,
    seed: int,
) -> dict[str, Any]:
    violating = np.array([post.violating for post in sample], dtype=bool)
    nothing = np.full((len(sample), 3), -2)
    hits_before = before[:, _VIOLATION] == 1
    hits = {name: after.get(name, nothing)[:, _VIOLATION] == 1 for name in CHINESE_NAMES}
    changed = {name: after.get(name, nothing)[:, _VIOLATION] >= 0 for name in CHINESE_NAMES}
    on_violating = {name: rows & violating for name, rows in changed.items()}
    on_benign = {name: rows & ~violating for name, rows in changed.items()}
    retention, macro = _retentions(hits_before, hits, on_violating, unavailable, resamples)
    change = {
        name: _change(hits_before, hits[name], rows, unavailable.get(name), resamples)
        for name, rows in on_benign.items()
    }
    transforms = {}
    for name, chinese in CHINESE_NAMES.items():
        rates = {}
        for rate, rows in (("recall", on_violating[name]), ("fpr", on_benign[name])):
            why = unavailable.get(name, "the transform changes no post")
            for when, said in (("before", hits_before), ("after", hits[name])):
                rates[f"{rate}_{when}"] = share(said[rows], resamples.codes[rows], why)
        transforms[name] = {
            "chinese": chinese,
            "changed_violating": int(on_violating[name].sum()),
            "changed_benign": int(on_benign[name].sum()),
            **rates,
            "retention": retention[name],
            "fpr_change": change[name],
        }
    worst = _extreme(retention, -1)
    most_harm = _extreme(change, 1)
    none = f"no transform changes {MIN_CHANGED} posts"
    return {
        "posts": {"violating": int(violating.sum()), "benign": int((~violating).sum())},
        "seed": seed,
        "transforms": transforms,
        "macro_retention": macro,
        "worst_retention": retention[worst] if worst else figure(None, 0, "no transform has a retention"),
        "worst": worst,
        "benign_fpr_change": change[most_harm] if most_harm else figure(None, 0, none),
        "unmade": unavailable,
        "metamorphic": {name: _metamorphic(before, after[name], resamples) for name in METAMORPHIC},
    }


def _extreme(figures: dict[str, Figure], sign: int) -> str | None:
    """The name whose value is largest (sign 1) or smallest (-1), the first of equals; None when none has a value."""
    values = {name: sign * f["value"] for name, f in figures.items() if f["value"] is not None}
    return max(values, key=lambda name: values[name]) if values else None


def _retentions(
    before: np.ndarray,
    after: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    unavailable: dict[str, str],
    resamples: Resamples,
) -> tuple[dict[str, Figure], Figure]:
    """Recall after / recall before of each transform, and their mean; `before`, `after`, `rows` (posts,) bool.

    All transforms are resampled together, since they were applied to the same posts.
    """
    why = {}
    for name, changed in rows.items():
        if name in unavailable:
            why[name] = unavailable[name]
        elif changed.sum() < MIN_CHANGED:
            why[name] = f"{int(changed.sum())} violating posts changed, at least {MIN_CHANGED} are needed"
        elif not before[changed].any():
            why[name] = "the model finds none of these violations undisguised, there is nothing to keep"
    known = [name for name in rows if name not in why]
    kept = {name: float(after[name][rows[name]].sum() / before[rows[name]].sum()) for name in known}
    blocks = [resamples.total((hits & rows[name]).astype(float)) for name in known for hits in (before, after[name])]

    def ratios(*sums: np.ndarray) -> np.ndarray:
        each = np.concatenate([then / first for first, then in zip(sums[::2], sums[1::2], strict=True)])
        return np.vstack([each, each.mean(axis=0)])

    samples = resamples.spread(blocks, ratios) if known else np.empty((0, 0))
    figures = {name: figure(None, int(rows[name].sum()), reason) for name, reason in why.items()}
    for i, name in enumerate(known):
        drawn = samples[i] if len(samples) else None
        figures[name] = resampled(kept[name], int(rows[name].sum()), drawn, limits=(0, np.inf))
    if not known:
        return figures, figure(None, 0, "no transform has a retention")
    mean, n = float(np.mean(list(kept.values()))), int(np.any([rows[name] for name in known], axis=0).sum())
    return figures, resampled(mean, n, samples[-1] if len(samples) else None, limits=(0, np.inf))


def _change(
    before: np.ndarray, after: np.ndarray, rows: np.ndarray, unavailable: str | None, resamples: Resamples
) -> Figure:
    """Share of hits after minus before, among `rows` (posts,)."""
    n = int(rows.sum())
    if unavailable or n < MIN_CHANGED:
        return figure(None, n, unavailable or f"{n} harmless posts changed, at least {MIN_CHANGED} are needed")
    difference = (after.astype(float) - before) * rows
    samples = resamples.spread(
        [resamples.total(difference), resamples.total(rows.astype(float))], lambda total, of: total / of
    )
    return resampled(float(difference.sum() / n), n, samples[0] if len(samples) else None, limits=(-1, 1))


def _metamorphic(before: np.ndarray, after: np.ndarray, resamples: Resamples) -> dict[str, Any]:
    rows = after[:, _VIOLATION] >= 0
    codes, why = resamples.codes[rows], "no sampled post can be changed so"
    return {
        "n": int(rows.sum()),
        "verdict_changed": share((before != after)[rows, _VERDICT], codes, why),
        "category_changed": share((before != after)[rows, _CATEGORY], codes, why),
    }
