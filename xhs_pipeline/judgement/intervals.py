"""How sure a figure is: Wilson intervals for shares, and a bootstrap over duplicate groups for everything else.

Near-duplicates are judged alike, so a group of them says little more than one post does: both intervals count groups. Nothing
here knows what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal distribution's quantile at 0.975
WEIGHTS_AT_ONCE = 2**19  # groups x resamples held as float64 at one time: 4 MiB, which processor caches hold


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95% score interval of a share, `hits` of `n` > 0; neither need be whole.

    (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z2 = 1.96 squared (Wilson 1927; Brown, Cai & DasGupta 2001
    recommend it for small n). scipy.stats.binomtest(...).proportion_ci(method="wilson") gives the same for whole numbers.
    """
    p, z2 = hits / n, Z * Z
    centre, spread = p + z2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    # the share itself is inside, whatever rounding says
    return float(min(max(low, 0.0), p)), float(max(min(high, 1.0), p))


def effective_size(hits: np.ndarray, groups: np.ndarray) -> float:
    """How many independent posts the n posts of a share are worth, at most n: n / max(1, design effect).

    `hits` (posts,) bool, `groups` (posts,) group codes. The design effect is the variance of the share by groups,
    sum over groups of (hits - p size) squared / n squared, over p (1 - p) / n (Kish 1965; with Wilson's interval: Dean &
    Pagano 2015). It is 1 where every post is its own group. A share of 0 or 1 shows no variance: then groups are counted.
    """
    n, p = len(hits), float(np.mean(hits))
    _, codes = np.unique(groups, return_inverse=True)
    if p in (0.0, 1.0):
        return float(codes.max() + 1)
    residual = np.bincount(codes, weights=hits - p)
    effect = float(residual @ residual) / n / (p * (1 - p))
    return n / max(1.0, effect)


class Resamples:
    """The same bootstrap resamples of duplicate groups for every figure over the same posts.

    A resample draws as many groups as there are, with replacement, and takes each drawn group whole (cluster bootstrap,
    Davison & Hinkley 1997, 3.8). It is kept as how often each group was drawn, one byte a group and resample: 20 MB for 10,000
    groups and 2,000 resamples. A figure is computed from sums over posts, so a resample costs a matrix product and no copy of
    the posts. With fewer than two groups, or `times` = 0, there is nothing to resample and every interval is missing.
    """

    def __init__(self, groups: Sequence[Any] | np.ndarray, seed: int, times: int = RESAMPLES):
        """`groups` (posts,): what a post's group is called; None or "" makes the post a group of its own."""
        named = [
            f"g{g}" if isinstance(g, (str, int, np.integer)) and g != "" else f"p{i}" for i, g in enumerate(groups)
        ]
        names, codes = np.unique(np.array(named, dtype=str), return_inverse=True)
        self.codes, self.size = codes.astype(np.int64), len(names) if named else 0
        self.seed, self.times = seed, times

    @property
    def reason(self) -> str | None:
        """Why there are no intervals, or None when there are."""
        if not self.times:
            return "no resamples were asked for"
        return None if self.size >= 2 else "fewer than two duplicate groups, nothing to resample"

    @cached_property
    def _drawn(self) -> np.ndarray:
        """How often each group was drawn: uint8 (groups, resamples). A count above 255 has probability 0 in practice."""
        rng = np.random.default_rng(self.seed)
        drawn = np.empty((self.size, self.times), dtype=np.uint8)
        for i in range(self.times):
            drawn[:, i] = np.bincount(rng.integers(self.size, size=self.size), minlength=self.size)
        return drawn

    def block(self, codes: np.ndarray, size: int, values: np.ndarray | None = None) -> Any:
        """Sums by group as a sparse matrix (size, groups): post i adds values[i] (1 when None) to row codes[i].

        `codes` (posts,) integers; a negative code adds to no row.
        """
        from scipy.sparse import csr_matrix

        taken = codes >= 0
        weights = np.ones(int(taken.sum())) if values is None else values[taken].astype(float)
        return csr_matrix((weights, (codes[taken], self.codes[taken])), shape=(size, self.size))

    def total(self, values: np.ndarray) -> Any:
        """The block of one row that sums `values` (posts,)."""
        return self.block(np.zeros(len(values), dtype=np.int64), 1, values)

    def spread(self, blocks: Sequence[Any], figures: Callable[..., np.ndarray]) -> np.ndarray:
        """`figures` of every resample, shape (figures, resamples); no columns when `reason` says why.

        `figures` gets the sums of each block, arrays (rows, some resamples), and returns (figures, those resamples); NaN where
        a resample defines no value.
        """
        from scipy.sparse import vstack

        if self.reason:
            return np.empty((0, 0))
        stacked = vstack(list(blocks), format="csr")
        ends = np.cumsum([b.shape[0] for b in blocks])[:-1]
        step = max(1, WEIGHTS_AT_ONCE // self.size)
        parts = []
        for begin in range(0, self.times, step):
            sums = stacked @ self._drawn[:, begin : begin + step].astype(float)
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(np.atleast_2d(figures(*np.split(sums, ends))))
        return np.concatenate(parts, axis=1)


def percentiles(samples: np.ndarray) -> tuple[float, float] | None:
    """The 2.5% and 97.5% percentiles of one figure's resamples (Efron & Tibshirani 1993, 13.3); None without any.

    Resamples that define no value are left out; when they are more than half, there is no interval.
    """
    kept = samples[np.isfinite(samples)]
    if not len(kept) or 2 * len(kept) < len(samples):
        return None
    low, high = np.quantile(kept, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def without_bias(samples: np.ndarray, value: float) -> tuple[float, float] | None:
    """`percentiles` of a figure that noise inflates, such as ECE: low moved down by 2 b, high by b, the mean excess over `value`.

    Noise lifts every resample above the value by b, and has lifted the value itself: by b where the error is large, by nothing
    that counts where noise averages out (Davison & Hinkley 1997, 5.2.1 corrects both). Neither is right throughout, so each end
    takes the correction that makes the interval wider.
    """
    bounds = percentiles(samples)
    if bounds is None:
        return None
    excess = max(0.0, float(samples[np.isfinite(samples)].mean()) - value)
    return bounds[0] - 2 * excess, bounds[1] - excess
