"""Whether one sample lies above another, and how far, whatever their distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.distributions import normal_cdf, normal_quantile, rank_sum_counts
from bench.errors import BenchError
from bench.statistics import LEVEL, Estimate

# Up to so many pairs the null distribution is counted out, beyond it the normal one is used.
_COUNTED_PAIRS = 1000


@dataclass(frozen=True)
class RankTest:
    """A Mann-Whitney test.

    Attributes:
        statistic: U of the first sample: pairs in which it is the larger one, ties counting half.
        p_value: two-sided.
        exact: whether the null distribution was counted out, not approximated.
    """

    statistic: float
    p_value: float
    exact: bool


def mann_whitney(first: ArrayLike, second: ArrayLike) -> RankTest:
    """Test whether two independent samples come from one distribution (Mann and Whitney 1947).

    The samples must be independent within themselves: medians of runs are, raw samples of one timed loop are not.
    Without ties and up to 1000 pairs the p-value is exact; else it is the normal approximation with the correction for
    ties and for continuity (Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", section 4.1).

    Args:
        first: (m,) at least one.
        second: (n,) at least one.

    Raises:
        BenchError: an empty sample or one with a value that is no finite number.
    """
    a, b = _checked(first), _checked(second)
    pairs = len(a) * len(b)
    statistic = float((a[:, None] > b).sum() + 0.5 * (a[:, None] == b).sum())
    more_extreme = max(statistic, pairs - statistic)
    sizes = np.unique(np.concatenate([a, b]), return_counts=True)[1].astype(np.float64)
    if sizes.max() == 1 and pairs <= _COUNTED_PAIRS:
        counts = rank_sum_counts(len(a), len(b))
        return RankTest(statistic, min(1.0, 2.0 * float(counts[round(more_extreme) :].sum() / counts.sum())), True)
    total = len(a) + len(b)
    tied = float((sizes**3 - sizes).sum()) / (total * (total - 1))
    variance = pairs / 12.0 * (total + 1 - tied)
    if variance <= 0.0:  # every value is the same
        return RankTest(statistic, 1.0, False)
    z = (more_extreme - pairs / 2.0 - 0.5) / math.sqrt(variance)
    return RankTest(statistic, min(1.0, 2.0 * normal_cdf(-z)), False)


def shift_interval(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Estimate:
    """By how much the second sample lies above the first: the Hodges-Lehmann estimate and Moses' interval.

    The estimate is the median of all differences between the two; the interval cuts off as many of the smallest and
    largest differences as the Mann-Whitney test rejects (Hollander, Wolfe and Chicken 2014, sections 4.2 and 4.3).

    Args:
        first: (m,) at least one, independent values.
        second: (n,) at least one, independent values.
        level: confidence, between 0 and 1; it is kept or exceeded where the null distribution is counted out.

    Returns:
        The shift; both ends None where even all differences do not reach the level (below four values a side).
    """
    a, b = _checked(first), _checked(second)
    differences = np.sort((b[:, None] - a).ravel())
    cut = _rejected(len(a), len(b), (1.0 - level) / 2.0)
    value = float(np.median(differences))
    if cut < 1:
        return Estimate(value, None, None, level)
    return Estimate(value, float(differences[cut - 1]), float(differences[-cut]), level)


def _rejected(m: int, n: int, tail: float) -> int:
    """The largest k with P(U <= k - 1) <= tail."""
    if m * n <= _COUNTED_PAIRS:
        counts = rank_sum_counts(m, n)
        return int(np.searchsorted(np.cumsum(counts) / counts.sum(), tail, side="right"))
    spread = math.sqrt(m * n * (m + n + 1) / 12.0)
    return max(0, math.floor(m * n / 2.0 + 0.5 + normal_quantile(tail) * spread))


def _checked(sample: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(sample, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise BenchError(f"a sample of shape {values.shape} was met, expected (n,) finite numbers, at least one")
    return values
