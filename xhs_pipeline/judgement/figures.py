"""One number of a report: its value, the posts it rests on, its 95% interval, and why what is missing is missing."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from xhs_pipeline.judgement.intervals import effective_size, percentiles, wilson, without_bias


class Figure(TypedDict):
    """`value`: None when there is none, and then `reason` says why. `n`: the posts that the value rests on.

    `low`, `high`: the 95% interval; both None without a value, and where there is nothing to resample (fewer than two
    duplicate groups, no resamples asked for, more than half of them without a value).
    """

    value: float | None
    n: int
    reason: str | None
    low: float | None
    high: float | None


def figure(value: float | None, n: int, reason: str | None = None, bounds: tuple[float, float] | None = None) -> Figure:
    """A figure; a NaN or infinite value becomes None with a reason, whatever the caller believed."""
    if n == 0:
        return _missing(0, reason or "no posts")
    if value is None:
        return _missing(int(n), reason or "not defined")
    if not np.isfinite(value):
        return _missing(int(n), f"not a finite number ({value})")
    if bounds is None or not np.isfinite(bounds).all():
        return Figure(value=float(value), n=int(n), reason=None, low=None, high=None)
    return Figure(value=float(value), n=int(n), reason=None, low=float(bounds[0]), high=float(bounds[1]))


def _missing(n: int, reason: str) -> Figure:
    return Figure(value=None, n=n, reason=reason, low=None, high=None)


def share(hits: np.ndarray, groups: np.ndarray, reason: str | None = None) -> Figure:
    """The share of true `hits` (posts,) with Wilson's interval over the posts' effective number (see intervals).

    `groups` (posts,) are the posts' group codes; `reason` says why there is no value when there are no posts.
    """
    n = len(hits)
    if not n:
        return figure(None, 0, reason)
    p, size = float(np.mean(hits)), effective_size(hits, groups)
    return figure(p, n, bounds=wilson(p * size, size))


def resampled(
    value: float | None,
    n: int,
    samples: np.ndarray | None,
    reason: str | None = None,
    biased: bool = False,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Figure:
    """A figure with the percentile interval of its bootstrap `samples` (resamples,); None or empty gives no interval.

    `biased` corrects the interval of a figure that noise inflates (see intervals.without_bias); it is stretched to hold the
    value. `limits` are the smallest and largest value that the figure can take.
    """
    if value is None or samples is None or not samples.size:
        return figure(value, n, reason)
    bounds = without_bias(samples, value) if biased else percentiles(samples)
    if bounds is not None:
        bounds = (min(max(bounds[0], limits[0]), value), max(min(bounds[1], limits[1]), value))
    return figure(value, n, reason, bounds)
