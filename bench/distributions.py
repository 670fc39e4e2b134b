"""Distribution functions that the statistics need, in numpy and the standard library: a device has no scipy.

Checked against scipy in `tests/bench/test_statistics.py`.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()
_FRACTION_TERMS = 10_000
_TINY = 1e-300


def normal_cdf(value: float) -> float:
    """P(Z <= value) of the standard normal distribution, to full relative precision in the lower tail as well."""
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def normal_quantile(probability: float) -> float:
    """The inverse of `normal_cdf`; `probability` lies strictly between 0 and 1."""
    return _NORMAL.inv_cdf(probability)


def binomial_cdf(trials: int, chance: float) -> NDArray[np.float64]:
    """P(B <= k) for k = 0..trials of the binomial distribution.

    The probabilities are built as ratios to that of the likeliest count, so that nothing overflows however many trials.

    Args:
        trials: at least 1.
        chance: of one success, strictly between 0 and 1.

    Returns:
        (trials + 1,) rising to 1.
    """
    counts = np.arange(trials, dtype=np.float64)
    steps = np.log((trials - counts) / (counts + 1.0)) + math.log(chance) - math.log1p(-chance)
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    mass = np.exp(logs - logs.max())
    return np.asarray(np.cumsum(mass) / mass.sum())


def student_cdf(value: float, freedom: float) -> float:
    """P(T <= value) of Student's t distribution with `freedom` > 0 degrees of freedom, whole or not."""
    tail = 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + value * value))
    return tail if value < 0 else 1.0 - tail


def student_quantile(probability: float, freedom: float) -> float:
    """The inverse of `student_cdf`, by bisection to the last bit.

    Args:
        probability: strictly between 0 and 1.
        freedom: degrees of freedom, above 0.
    """
    if probability < 0.5:
        return -student_quantile(1.0 - probability, freedom)
    upper_tail = 1.0 - probability
    low, high = 0.0, 1.0
    while student_cdf(-high, freedom) > upper_tail:
        low, high = high, 2.0 * high
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if student_cdf(-middle, freedom) > upper_tail else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1.

    By its continued fraction (Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 26.5.8), evaluated with
    Lentz's method; the symmetry I_x(a, b) = 1 - I_{1-x}(b, a) keeps to the side where it converges fast.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + …)) with the coefficients of 26.5.8."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, _FRACTION_TERMS):
        half = term // 2
        if term % 2:
            coefficient = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            coefficient = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1.0 / (1.0 + coefficient * denominator or _TINY)
        numerator = 1.0 + coefficient / numerator or _TINY
        change = numerator * denominator
        value *= change
        if abs(change - 1.0) < 1e-16:
            break
    return value


def rank_sum_counts(first: int, second: int) -> NDArray[np.float64]:
    """In how many of all orderings of two samples without ties the Mann-Whitney U has each value.

    The generating function of U is the Gaussian binomial coefficient, the product over i = 1..first of
    (1 - q^(second + i)) / (1 - q^i) (Mann and Whitney 1947, "On a test of whether one of two random variables is
    stochastically larger than the other").

    Args:
        first: size of one sample, at least 1.
        second: size of the other, at least 1.

    Returns:
        (first * second + 1,) counts, exact while they are below 2**53.
    """
    size = first * second + 1
    counts = [1] + [0] * (size - 1)
    for factor in range(1, first + 1):
        for value in range(size - 1, second + factor - 1, -1):
            counts[value] -= counts[value - second - factor]
        for value in range(factor, size):
            counts[value] += counts[value - factor]
    return np.array(counts, np.float64)
