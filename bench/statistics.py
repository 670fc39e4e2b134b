"""What can be said of latency samples: percentiles and throughput with intervals, although samples are not independent.

Samples of one timed loop are not independent: neighbours share the machine's state, and the loop goes through the same
few images again and again. Intervals that take them for independent are too narrow. Two remedies are used here, both in
blocks of whole passes over the images: an effective sample size, and a block bootstrap. Neither knows of what changes
from one run to the next; `bench.compare` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.distributions import binomial_cdf
from bench.errors import BenchError

PERCENTS = (50.0, 90.0, 99.0)
LEVEL = 0.95

# Resampled values held at a time, so that memory stays near 100 MB however many samples.
_RESAMPLE_BLOCK = 4_000_000

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (r, n) resamples to (r,) values


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: the figure itself.
        low: lower end; None where so few samples give none.
        high: upper end; None where so few samples give none.
        level: the confidence asked for, e.g. 0.95.
    """

    value: float
    low: float | None
    high: float | None
    level: float = LEVEL


def percentile_interval(
    samples: ArrayLike, percent: float, level: float = LEVEL, effective_size: float | None = None
) -> Estimate:
    """A percentile with its distribution-free interval, made of two of the sorted samples.

    The number of samples below the true percentile is binomial whatever the distribution, so the l-th and u-th smallest
    sample enclose it with a probability that is known exactly (Conover 1999, "Practical Nonparametric Statistics",
    section 3.2). Each end is the closest that leaves it at most (1 - level) / 2. With few samples none may: 367
    independent samples can not bound p99 from above, and `high` is then None.

    Args:
        samples: (n,) at least one, in any unit.
        percent: 0..100, both excluded.
        level: confidence, between 0 and 1.
        effective_size: how many independent samples these are worth (see `percentile_size`), at most n; the interval
            is then that of so many samples, read off at the same fractions of these. None takes them for independent.

    Returns:
        The percentile by linear interpolation, as everywhere in this project, and its interval.

    Raises:
        BenchError: no samples, a sample that is no finite number, or an argument out of range.
    """
    values = np.sort(_checked(samples))
    if not 0.0 < percent < 100.0 or not 0.0 < level < 1.0:
        raise BenchError(f"percentile {percent} at level {level}: expected 0..100 and 0..1, both without their ends")
    count = len(values)
    size = count if effective_size is None else max(1, min(count, math.floor(effective_size)))
    cdf = binomial_cdf(size, percent / 100.0)
    tail = (1.0 - level) / 2.0
    # 1-based ranks l and u: P(sample l > percentile) = P(B <= l - 1), P(sample u < percentile) = P(B >= u).
    lower = int(np.searchsorted(cdf, tail, side="right"))
    upper = int(np.searchsorted(cdf, 1.0 - tail, side="left")) + 1
    # With fewer effective samples than samples, the ends move outwards to the next sample.
    low = None if lower < 1 else float(values[(lower - 1) * count // size])
    high = None if upper > size else float(values[-(-upper * count // size) - 1])
    return Estimate(float(np.percentile(values, percent)), low, high, level)


def percentile_size(samples: ArrayLike, percent: float, cycle: int = 1) -> float:
    """How many independent samples these are worth for a percentile, 1..n.

    What varies in an estimated percentile is the number of samples below it, so this is the effective size of the
    series of ones (below) and zeros (above), not that of the samples themselves.

    Args:
        samples: (n,) in the order they were taken.
        percent: 0..100.
        cycle: after how many samples the loop returns to the same image.
    """
    values = _checked(samples)
    return effective_size((values <= np.percentile(values, percent)).astype(np.float64), cycle)


def effective_size(samples: ArrayLike, cycle: int = 1) -> float:
    """How many independent samples would give as good a mean as these, 1..n.

    By overlapping batch means (Meketon and Schmeiser 1984, "Overlapping batch means: something for nothing?"): the
    variance of the means of all runs of `block_length` neighbours, against what independence would make of it. A batch
    is a whole number of passes over the images, so that what differs between images, which every batch holds alike,
    does not count as dependence.

    Args:
        samples: (n,) in the order they were taken.
        cycle: after how many samples the loop returns to the same image.

    Returns:
        n for samples that are all the same, or that alternate more than chance would.
    """
    values = _checked(samples)
    count, length = len(values), block_length(len(values), cycle)
    variance = float(values.var())
    if variance == 0.0 or length >= count:
        return float(count) if variance == 0.0 else 1.0
    sums = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    means = (sums[length:] - sums[:-length]) / length
    # The factor makes it unbiased for independent samples: their batch means vary by variance / length, less what
    # taking away the common mean removes.
    of_mean = float(np.mean(means**2)) * length / count / (1.0 - length / count)
    return float(np.clip(variance / of_mean, 1.0, count)) if of_mean > 0.0 else float(count)


def block_length(count: int, cycle: int = 1) -> int:
    """How many neighbouring samples are kept together: about the square root of `count`, in whole passes.

    It grows with the number of samples, as a block bootstrap needs to be right for long series (Lahiri 2003,
    "Resampling Methods for Dependent Data", chapter 2), and faster than the cube root that is best for short memory:
    a machine's load changes slowly, and too wide an interval does less harm than one too narrow.

    Args:
        count: samples.
        cycle: samples of one pass over the timed images.
    """
    passes = max(1, round(math.sqrt(count) / cycle))
    return max(1, min(count, passes * cycle))


def block_bootstrap(
    samples: ArrayLike, statistic: Statistic, cycle: int = 1, resamples: int = 1000, seed: int = 0
) -> Floats:
    """The values of a statistic over resamples that keep neighbours together.

    The circular block bootstrap (Politis and Romano 1992, "A circular block-resampling procedure for stationary
    data"): blocks of `block_length` neighbours are drawn from the series closed to a ring, and joined to a series of
    its length.

    Args:
        samples: (n,) in the order they were taken.
        statistic: maps (r, n) resamples to (r,) values, e.g. `percentile_of(50)`.
        cycle: samples of one pass over the timed images; blocks hold whole passes.
        resamples: how many, at least 1.
        seed: of the draws; the same seed gives the same values.

    Returns:
        (resamples,)

    Raises:
        BenchError: no samples, a sample that is no finite number, or no resamples.
    """
    values = _checked(samples)
    if resamples < 1:
        raise BenchError(f"a bootstrap of {resamples} resamples was asked for, expected at least 1 (1000 is usual)")
    count, length = len(values), block_length(len(values), cycle)
    random, at_a_time = np.random.default_rng(seed), max(1, _RESAMPLE_BLOCK // count)
    within = np.arange(length)
    drawn: list[Floats] = []
    for first in range(0, resamples, at_a_time):
        starts = random.integers(0, count, (min(at_a_time, resamples - first), math.ceil(count / length), 1))
        rows = ((starts + within) % count).reshape(len(starts), -1)[:, :count]
        drawn.append(np.asarray(statistic(values[rows]), np.float64))
    return np.concatenate(drawn)


def percentile_of(percent: float) -> Statistic:
    """The statistic that is a percentile, for `block_bootstrap`."""

    def statistic(resamples: Floats) -> Floats:
        return np.asarray(np.percentile(resamples, percent, axis=1))

    return statistic


def mean_of(resamples: Floats) -> Floats:
    """The statistic that is the mean, for `block_bootstrap`."""
    return np.asarray(resamples.mean(axis=1))


def throughput_interval(
    samples_s: ArrayLike, cycle: int = 1, level: float = LEVEL, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Images per second of a loop, count over total time, with its block bootstrap percentile interval.

    Args:
        samples_s: (n,) seconds per image, in the order they were taken.
        cycle: samples of one pass over the timed images.
        level: confidence, between 0 and 1.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        BenchError: no samples, or one that is not above zero.
    """
    values = _checked(samples_s)
    if values.min() <= 0.0:
        raise BenchError(
            f"a latency sample of {values.min()} s was met, expected times above zero: run the bench again"
        )
    rates = 1.0 / block_bootstrap(values, mean_of, cycle, resamples, seed)
    low, high = np.quantile(rates, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(float(len(values) / values.sum()), float(low), float(high), level)


def latency_intervals(samples_s: ArrayLike, cycle: int = 1, level: float = LEVEL) -> dict[str, Estimate]:
    """p50, p90 and p99 of a timed loop, each with the interval that its own effective sample size allows.

    Args:
        samples_s: (n,) seconds per image, in the order they were taken.
        cycle: samples of one pass over the timed images (`protocol.timed_images` of a result).
        level: confidence, between 0 and 1.
    """
    values = _checked(samples_s)
    return {
        f"p{percent:g}": percentile_interval(values, percent, level, percentile_size(values, percent, cycle))
        for percent in PERCENTS
    }


def _checked(samples: Any) -> Floats:
    values = np.asarray(samples, np.float64)
    if values.ndim != 1 or not len(values):
        raise BenchError(f"samples of shape {values.shape} were met, expected (n,) with at least one")
    if not np.isfinite(values).all():
        raise BenchError("a sample is no finite number: run the bench again")
    return values
