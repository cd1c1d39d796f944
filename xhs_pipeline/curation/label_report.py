"""How good the labels are as a set: class balance, diversity of the rationales, agreement of several labels of one post.

Pure over lists and Arrow; reads no files. Figures that the posts do not give are None, never a number.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from xhs_pipeline.curation.text import matching_form

RESAMPLES = 2000


def class_balance(labels: Sequence[str]) -> dict[str, Any]:
    """counts, imbalance_ratio (largest class over smallest one that occurs), effective_classes.

    effective_classes is exp(entropy), the number of equally large classes with the same entropy (Hill 1973, order 1;
    https://doi.org/10.2307/1934352). Both are None without labels.
    """
    counts = dict(Counter(labels))
    if not counts:
        return {"counts": {}, "imbalance_ratio": None, "effective_classes": None}
    shares = np.array(list(counts.values())) / len(labels)
    return {
        "counts": counts,
        "imbalance_ratio": max(counts.values()) / min(counts.values()),
        "effective_classes": float(np.exp(-(shares * np.log(shares)).sum())),
    }


def rationale_diversity(rationales: Sequence[str | None]) -> dict[str, Any]:
    """How much the rationales of some posts differ; None and empty ones count as posts without a rationale.

    posts, rationales; share: of the posts that have one. Of the rationales, in the form posts are compared in:
    distinct_share: different ones over all; near_identical_share: those equal or near (as near-duplicate posts are) to another
    one; distinct_2: different character pairs over all pairs (distinct-n, Li et al. 2016, https://aclanthology.org/N16-1014;
    falls with the amount of text, so compare it at like sizes); mean_distance: mean over all pairs of 1 - cosine of their
    TF-IDF rows. What two rationales or one pair of characters are needed for is None without them.
    """
    texts = [form for text in rationales if (form := matching_form(text, None))]
    pairs: Counter[str] = Counter(text[i : i + 2] for text in texts for i in range(len(text) - 1))
    return {
        "posts": len(rationales),
        "rationales": len(texts),
        "share": len(texts) / len(rationales) if rationales else None,
        "distinct_share": len(set(texts)) / len(texts) if texts else None,
        "near_identical_share": _near_identical(texts) if len(texts) > 1 else None,
        "distinct_2": len(pairs) / pairs.total() if pairs else None,
        "mean_distance": _mean_distance(texts) if len(texts) > 1 else None,
    }


def _near_identical(texts: list[str]) -> float:
    from xhs_pipeline.curation.grams import Texts
    from xhs_pipeline.curation.minhash import near_duplicate_pairs
    from xhs_pipeline.curation.short_texts import short_text_pairs

    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    codes = encoded.indices.to_numpy()
    alike = np.bincount(codes) > 1
    distinct = Texts(encoded.dictionary)
    for pairs in (near_duplicate_pairs(distinct, 0.8), short_text_pairs(distinct)):
        alike[pairs.left] = alike[pairs.right] = True
    return float(alike[codes].mean())


def _mean_distance(texts: list[str]) -> float:
    """1 - mean cosine, without looking at pairs: with rows of length 1 the cosines of all pairs sum to |sum of rows|^2 - n."""
    from xhs_pipeline.curation.learner import character_features

    features = character_features(texts, [])
    if features is None:
        raise ValueError(f"{len(texts)} rationales without a character; expected matching forms, which have some")
    # a row without any n-gram of the vocabulary is 0 and at distance 1 from all others
    rows = features[0]
    n, own = rows.shape[0], float(rows.multiply(rows).sum())
    total = np.asarray(rows.sum(axis=0), dtype=np.float64)
    return float(1 - ((total**2).sum() - own) / (n * (n - 1)))


def agreement(items: Iterable[Sequence[str]], seed: int = 0) -> dict[str, Any]:
    """How far several labels of one item agree. Items with fewer than two labels do not count.

    items, labels; agree_share: items whose labels are all equal; alpha: Krippendorff's alpha for nominal data
    (Krippendorff 2011, https://repository.upenn.edu/asc_papers/43), None without items or where all labels are one and the
    same, so that chance cannot be told from agreement; alpha_95: its percentile interval over RESAMPLES bootstrap samples of
    the items, None under two items.
    """
    several = [tuple(sorted(item)) for item in items if len(item) > 1]
    if not several:
        return {"items": 0, "labels": 0, "agree_share": None, "alpha": None, "alpha_95": None}
    # Items with the same labels are one pattern: the bootstrap then draws how often each pattern comes.
    patterns = Counter(several)
    names = sorted({label for pattern in patterns for label in pattern})
    table = np.array([[pattern.count(name) for name in names] for pattern in patterns], dtype=np.float64)
    times = np.array(list(patterns.values()), dtype=np.float64)
    alpha = _alpha(table, times[None, :])[0]
    drawn = np.random.default_rng(seed).multinomial(len(several), times / times.sum(), RESAMPLES).astype(np.float64)
    resampled = _alpha(table, drawn)
    resampled = resampled[np.isfinite(resampled)]  # a sample of one label only has no alpha
    known = bool(np.isfinite(alpha))
    return {
        "items": len(several),
        "labels": sum(map(len, several)),
        "agree_share": sum(len(set(item)) == 1 for item in several) / len(several),
        "alpha": float(alpha) if known else None,
        "alpha_95": [float(q) for q in np.quantile(resampled, [0.025, 0.975])] if known and len(several) > 1 else None,
    }


def _alpha(table: Any, times: Any) -> Any:
    """1 - D_o / D_e for each row of `times` (samples, patterns), how often a pattern of `table` (patterns, names) comes."""
    size = table.sum(axis=1)
    observed = times @ ((size**2 - (table**2).sum(axis=1)) / (size - 1))
    totals = times @ table
    n = totals.sum(axis=1)
    expected = (n**2 - (totals**2).sum(axis=1)) / (n - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def labelled_items(unique: pa.Table, removed: pa.Table, conflicts: pa.Table, column: str) -> dict[str, list[list[str]]]:
    """The labels of what several labels were given to, by how they came to be: `duplicate` and `repeated_post_id`.

    unique, removed and conflicts are the tables of unique_posts. duplicate: a kept post and what was removed for it, or the
    contradicting posts of a group (were there two such sets in one group, they count as one item). repeated_post_id: one post
    id in several weeks, which is a second review only where the label was given anew.
    """
    own = dict(zip(unique["post_id"].to_pylist(), unique[column].to_pylist(), strict=True))
    group = dict(zip(conflicts["post_id"].to_pylist(), conflicts["group_id"].to_pylist(), strict=True))
    items: dict[str, dict[str, list[str]]] = {"duplicate": defaultdict(list), "repeated_post_id": defaultdict(list)}
    again = []
    for row in removed.select(["post_id", "kept_post_id", "reason", column]).to_pylist():
        if row["reason"] == "repeated_post_id":
            again.append(row)
            continue
        own[row["post_id"]] = row[column]
        key = row["kept_post_id"] or f"conflict {group[row['post_id']]}"
        items["duplicate"][key].append(row[column])
    for key, labels in items["duplicate"].items():
        labels += [own[key]] if key in own else []
    for row in again:
        labels = items["repeated_post_id"][row["post_id"]]
        labels += [row[column]] if labels else [own[row["post_id"]], row[column]]
    return {kind: list(found.values()) for kind, found in items.items()}
