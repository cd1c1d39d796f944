"""Which labels look wrong: out-of-fold probabilities of a cheap learner on text, through cleanlab. Changes no label.

Confident learning (Northcutt, Jiang and Chuang 2021, https://arxiv.org/abs/1911.00068). What becomes of a suspected label is
decided by the splits' setting and by people, not here. The verdict is not questioned apart from the category: passing goes with
the harmless category, and which of the other verdicts a violation gets depends on more than its words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.curation.learner import character_features, class_probabilities
from xhs_pipeline.posts.schema import UNIQUE_POSTS

FOLDS = 5
# A post of a class is asked about by a learner that has seen the class, and one rare label wrong must not be a whole class.
MIN_GROUPS = FOLDS
NEIGHBOURS = 5
# cleanlab estimates how many labels are wrong and takes as many posts of the lowest self-confidence. The estimate counts the
# learner's own mistakes too; what its neighbours vouch for is therefore not suspected. benchmarks/label_issues.md shows what
# each of cleanlab's filters finds, and what the neighbours change.
FILTER = "low_self_confidence"
# Posts that one fold learns from, and among which neighbours are sought, at most: it bounds what costs most.
LEARN_FROM_MOST = 50_000

NEIGHBOUR = pa.struct([("post_id", pa.string()), ("category", pa.string()), ("similarity", pa.float32())])
# One row per suspected label, the worst first. confidence: out-of-fold probability of the suspected category;
# self_confidence: of the given one. image_count: what the learner did not see. neighbours: the most similar posts of other
# groups (cosine of the TF-IDF rows), the nearest first.
LABEL_ISSUES = pa.schema(
    [
        *(UNIQUE_POSTS.field(name) for name in ("post_id", "group_id", "week", "verdict", "category", "label_source")),
        pa.field("image_count", pa.int32()),
        pa.field("suspected_category", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("self_confidence", pa.float32()),
        pa.field("neighbours", pa.list_(NEIGHBOUR)),
    ]
)
# What question_labels reads of UNIQUE_POSTS; hashes stand for the images, which stay in the file.
READ = ["post_id", "group_id", "week", "verdict", "category", "label_source", "match_text", "image_hashes"]


@dataclass(frozen=True)
class Questioned:
    """`issues` (LABEL_ISSUES), how many labels were questioned, and how many were not by reason.

    Questioned + not questioned = posts. Reasons: no_text; rare_category (in fewer than MIN_GROUPS groups); one_category
    (nothing to tell it from); unlike_the_others (no n-gram of it, or no post of its category, outside its fold); trusted_source.
    """

    issues: pa.Table
    questioned: int
    not_questioned: dict[str, int]


def question_labels(posts: pa.Table, seed: int, trusted_sources: Sequence[str]) -> Questioned:
    """Suspect labels of a table with the columns READ. The same posts and seed give the same answer, in any order of rows.

    A label is suspected when a learner that saw no post of its group doubts it, as cleanlab measures doubt, and more of its
    NEIGHBOURS have the category that the learner prefers than have the given one. Labels from `trusted_sources` are learned
    from and never suspected. Raises nothing on few, empty or one-sided posts: they are counted under why they were not
    questioned.
    """
    posts = posts.select(READ).sort_by([("group_id", "ascending"), ("post_id", "ascending")])
    categories, groups = _array(posts["category"]), _array(posts["group_id"])
    texts = _array(posts["match_text"].fill_null(""))
    reason = np.where(texts == "", "no_text", "").astype(object)
    pairs = {(category, group) for category, group, why in zip(categories, groups, reason, strict=True) if not why}
    spread = Counter(category for category, _ in pairs)
    rare = np.array([spread[category] < MIN_GROUPS for category in categories], dtype=bool)
    reason[(reason == "") & rare] = "rare_category"
    learnable = np.flatnonzero(reason == "")
    names = sorted(set(categories[learnable]))
    if len(names) < 2:
        reason[learnable] = "one_category"
        return _questioned(posts, reason, [])
    probabilities, known = out_of_fold(texts[learnable], categories[learnable], groups[learnable], names, seed)
    reason[learnable[~known]] = "unlike_the_others"
    asked, probabilities = learnable[known], probabilities[known]
    doubted = _doubted(categories[asked], probabilities, names)
    trusted = np.isin(_array(posts["label_source"].fill_null("")).astype(str), list(trusted_sources))
    reason[trusted & (reason == "")] = "trusted_source"
    rows: list[dict[str, Any]] = [
        {
            "place": int(asked[i]),
            "suspected_category": names[probabilities[i].argmax()],
            "confidence": probabilities[i].max(),
            "self_confidence": probabilities[i, names.index(categories[asked[i]])],
        }
        for i in np.flatnonzero(doubted & ~trusted[asked])
    ]
    rows.sort(key=lambda row: (row["self_confidence"], row["place"]))
    found = _neighbours(posts, texts, groups, [row["place"] for row in rows], learnable, seed)
    issues = []
    for row, near in zip(rows, found, strict=True):
        votes = Counter(neighbour["category"] for neighbour in near)
        if votes[row["suspected_category"]] > votes[categories[row["place"]]]:
            issues.append(row | {"neighbours": near})
    return _questioned(posts, reason, issues)


def _questioned(posts: pa.Table, reason: npt.NDArray[Any], rows: list[dict[str, Any]]) -> Questioned:
    places = [row.pop("place") for row in rows]
    counts = Counter(reason[reason != ""].tolist())
    given = posts.take(pa.array(places, pa.int64()))
    image_count = pc.list_value_length(given["image_hashes"]).fill_null(0)
    table = pa.table(
        {
            **{name: given[name] for name in LABEL_ISSUES.names if name in given.column_names},
            "image_count": image_count,
            **{
                name: pa.array([row[name] for row in rows], LABEL_ISSUES.field(name).type)
                for name in ("suspected_category", "confidence", "self_confidence", "neighbours")
            },
        }
    )
    return Questioned(table.cast(LABEL_ISSUES), posts.num_rows - counts.total(), dict(sorted(counts.items())))


def _array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return np.array(column.to_pylist(), dtype=object)


def _folds(categories: npt.NDArray[Any], groups: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """The fold of each post: groups stay whole, and those of one category are dealt out evenly in a seeded order."""
    _, first, inverse = np.unique(groups.astype(str), return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(categories[first][order].astype(str), kind="stable")]
    fold = np.empty(len(first), np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[inverse]


def out_of_fold(
    texts: npt.NDArray[Any], categories: npt.NDArray[Any], groups: npt.NDArray[Any], names: Sequence[str], seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Probabilities (posts, names) by learners that saw no post of the same group, and where these mean anything."""
    fold = _folds(categories, groups, seed)
    probabilities = np.zeros((len(texts), len(names)))
    known = np.zeros(len(texts), dtype=bool)
    for number in range(FOLDS):
        held = np.flatnonzero(fold == number)
        learned = _at_most(np.flatnonzero(fold != number), seed)
        features = character_features(texts[learned].tolist(), texts[held].tolist())
        if features is None or not len(held):
            continue
        labels = categories[learned].tolist()
        probabilities[held] = class_probabilities(features[0], features[1], labels, names, seed)
        known[held] = (np.diff(features[1].indptr) > 0) & np.isin(categories[held].astype(str), list(set(labels)))
    return probabilities, known


def _at_most(places: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    if len(places) <= LEARN_FROM_MOST:
        return places
    return np.sort(np.random.default_rng(seed).choice(places, LEARN_FROM_MOST, replace=False))


def _doubted(
    categories: npt.NDArray[Any], probabilities: npt.NDArray[np.float64], names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Which labels cleanlab doubts, where another category is also the likeliest."""
    from cleanlab.filter import find_label_issues

    labels = np.array([names.index(category) for category in categories], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        return np.zeros(len(labels), dtype=bool)
    issues = find_label_issues(labels, probabilities, filter_by=FILTER, n_jobs=1)
    return np.asarray(issues, dtype=bool) & (probabilities.argmax(axis=1) != labels)


def _neighbours(
    posts: pa.Table,
    texts: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    places: list[int],
    among: npt.NDArray[np.int64],
    seed: int,
) -> list[list[dict[str, Any]]]:
    """For each place the most similar posts of other groups; at most NEIGHBOURS, fewer where fewer share any n-gram."""
    among = _at_most(among, seed)
    features = character_features(texts[among].tolist(), texts[places].tolist()) if places else None
    if features is None:
        return [[] for _ in places]
    every, asked, _ = features
    ids, categories = _array(posts["post_id"]), _array(posts["category"])
    group = np.unique(groups.astype(str), return_inverse=True)[1]
    found = []
    for start in range(0, len(places), 64):
        similarities = (asked[start : start + 64] @ every.T).toarray()
        for place, row in zip(places[start : start + 64], similarities, strict=True):
            row[group[among] == group[place]] = 0
            last = min(NEIGHBOURS, len(row))
            best = np.flatnonzero((row >= np.partition(row, -last)[-last]) & (row > 0))
            best = best[np.argsort(-row[best], kind="stable")][:NEIGHBOURS]
            found.append(
                [
                    {"post_id": ids[among[b]], "category": categories[among[b]], "similarity": min(float(row[b]), 1.0)}
                    for b in best
                ]
            )
    return found
