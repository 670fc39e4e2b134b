"""Percentiles, intervals and tests: against scipy where it defines the same, by simulation where nothing else does."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.distributions import (
    binomial_cdf,
    incomplete_beta,
    normal_cdf,
    normal_quantile,
    rank_sum_counts,
    student_cdf,
    student_quantile,
)
from bench.errors import BenchError
from bench.rank_tests import mann_whitney, shift_interval
from bench.statistics import (
    block_bootstrap,
    block_length,
    effective_size,
    latency_intervals,
    mean_of,
    percentile_interval,
    percentile_of,
    percentile_size,
    throughput_interval,
)

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
special = pytest.importorskip("scipy.special", reason="scipy is the reference")


def _autoregressive(random: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """Stationary, of unit variance; neighbours correlate by `memory`."""
    values = np.empty(count)
    values[0] = random.normal()
    for index, shock in enumerate(random.normal(0, math.sqrt(1 - memory**2), count - 1)):
        values[index + 1] = memory * values[index] + shock
    return values


def _latencies(random: np.random.Generator, count: int, memory: float = 0.0, cycle: int = 1) -> np.ndarray:
    """Positive and skewed, as times are; some images take longer than others."""
    image = np.linspace(0, 0.3, cycle)[np.arange(count) % cycle]
    return 0.01 * np.exp(0.1 * _autoregressive(random, count, memory) + image)


@pytest.mark.parametrize("freedom", [0.7, 1.0, 2.0, 3.5, 4.0, 12.0, 22.0, 100.0, 1e5])
def test_students_distribution_is_scipys(freedom: float) -> None:
    for value in (-30.0, -2.5, -0.1, 0.0, 0.3, 1.96, 12.0):
        assert student_cdf(value, freedom) == pytest.approx(stats.t.cdf(value, freedom), rel=1e-9, abs=1e-15)
    for probability in (1e-4, 0.025, 0.4, 0.5, 0.9, 0.975, 0.9999):
        expected = stats.t.ppf(probability, freedom)
        assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_incomplete_beta_and_normal_functions_are_scipys() -> None:
    for a, b in ((0.5, 0.5), (2.0, 0.5), (50.0, 0.5), (3.0, 7.0), (200.0, 300.0)):
        for x in (0.0, 1e-6, 0.1, 0.4, 0.5, 0.99, 1.0):
            assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-300)
    for value in (-30.0, -5.0, -1.0, 0.0, 2.0, 8.0):
        assert normal_cdf(value) == pytest.approx(stats.norm.cdf(value), rel=1e-12)
    for probability in (1e-9, 0.025, 0.5, 0.999):
        assert normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("trials", [1, 2, 59, 367, 5000, 100_000])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9, 0.99])
def test_the_binomial_distribution_is_scipys(trials: int, chance: float) -> None:
    expected = stats.binom.cdf(np.arange(trials + 1), trials, chance)
    np.testing.assert_allclose(binomial_cdf(trials, chance), expected, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 30, 59, 100, 367, 368, 1000, 3000])
@pytest.mark.parametrize("percent", [10, 50, 90, 99])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_of_a_percentile_is_scipys(count: int, percent: float, level: float) -> None:
    samples = np.random.default_rng(count).lognormal(size=count)
    found = percentile_interval(samples, percent, level)
    expected = stats.quantile_test(samples, p=percent / 100).confidence_interval(level)
    assert found.value == np.percentile(samples, percent)
    for met, bound in ((found.low, expected.low), (found.high, expected.high)):
        assert met is None if np.isnan(bound) else met == pytest.approx(bound, abs=1e-9)


def test_too_few_samples_bound_no_p99_from_above() -> None:
    # 1 - 0.99^n, the chance that the largest of n lies above p99, reaches 0.975 at n = 368.
    samples = np.random.default_rng(0).random(368)
    assert percentile_interval(samples[:367], 99).high is None
    assert percentile_interval(samples, 99).high == samples.max()
    assert percentile_interval(samples[:5], 50).low is None
    assert percentile_interval(samples[:6], 50).low == samples[:6].min()


def test_dependent_samples_are_worth_less_and_widen_the_interval() -> None:
    samples = _latencies(np.random.default_rng(1), 1000, memory=0.9)
    independent = percentile_interval(samples, 50)
    size = percentile_size(samples, 50)
    dependent = percentile_interval(samples, 50, effective_size=size)
    assert size < 300
    assert dependent.low < independent.low < independent.value < independent.high < dependent.high
    assert percentile_interval(samples, 50, effective_size=1e9) == independent
    assert percentile_interval(samples, 99, effective_size=100).high is None


@pytest.mark.parametrize("memory", [0.0, 0.3, 0.6, 0.8])
def test_the_effective_size_is_that_of_the_known_process(memory: float) -> None:
    random = np.random.default_rng(2)
    met = np.median([effective_size(_autoregressive(random, 3000, memory)) for _ in range(60)])
    assert met == pytest.approx(3000 * (1 - memory) / (1 + memory), rel=0.15)


def test_images_that_take_turns_are_no_dependence() -> None:
    samples = _latencies(np.random.default_rng(3), 800, cycle=8)
    assert effective_size(samples, cycle=8) > 600
    slow_then_fast = np.sort(samples)
    assert effective_size(slow_then_fast, cycle=8) < 40
    assert effective_size(np.full(50, 0.01)) == 50
    assert effective_size(np.array([1.0])) == 1


@pytest.mark.parametrize(
    ("count", "cycle", "length"), [(1, 1, 1), (100, 1, 10), (100, 8, 8), (1000, 8, 32), (5, 8, 5), (64, 8, 8)]
)
def test_blocks_hold_whole_passes_over_the_images(count: int, cycle: int, length: int) -> None:
    assert block_length(count, cycle) == length


def test_intervals_of_dependent_samples_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(4)
    truth_p50 = float(np.median(_latencies(random, 400_000)))
    truth_mean = float(np.mean(_latencies(random, 400_000)))
    covered, naive, rate = 0, 0, 0
    for _ in range(200):
        samples = _latencies(random, 600, memory=0.7)
        interval = latency_intervals(samples)["p50"]
        covered += interval.low <= truth_p50 <= interval.high
        plain = percentile_interval(samples, 50)
        naive += plain.low <= truth_p50 <= plain.high
        throughput = throughput_interval(samples, resamples=200)
        rate += throughput.low <= 1 / truth_mean <= throughput.high
    assert naive / 200 < 0.8  # what taking them for independent would do
    assert covered / 200 > 0.88
    assert rate / 200 > 0.85


def test_the_bootstrap_keeps_neighbours_together() -> None:
    samples = np.arange(100.0)
    seen = []

    def statistic(resamples: np.ndarray) -> np.ndarray:
        seen.append(resamples)
        return resamples.mean(axis=1)

    values = block_bootstrap(samples, statistic, resamples=50, seed=3)
    steps = np.diff(np.concatenate(seen), axis=1).reshape(50, -1) % 100
    joints = [step for step in range(99) if step % 10 != 9]
    assert (steps[:, joints] == 1).all()
    assert values.shape == (50,)
    np.testing.assert_array_equal(values, block_bootstrap(samples, mean_of, resamples=50, seed=3))


def test_the_bootstrap_of_independent_samples_has_the_textbook_spread() -> None:
    random = np.random.default_rng(5)
    means, medians = [], []
    for _ in range(25):
        samples = random.normal(size=900)
        means.append(block_bootstrap(samples, mean_of, resamples=300).std())
        medians.append(block_bootstrap(samples, percentile_of(50), resamples=100).std())
    assert np.mean(means) == pytest.approx(1 / 30, rel=0.08)
    assert np.mean(medians) == pytest.approx(math.sqrt(math.pi / 2) / 30, rel=0.12)


def test_throughput_is_count_over_time_with_its_interval_around_it() -> None:
    samples = _latencies(np.random.default_rng(6), 500)
    found = throughput_interval(samples, cycle=4)
    assert found.value == pytest.approx(500 / samples.sum(), rel=1e-12)
    assert found.low < found.value < found.high
    assert (found.high - found.low) / found.value < 0.04


@pytest.mark.parametrize(("first", "second"), [(3, 4), (5, 5), (8, 8), (10, 1), (20, 30), (60, 50)])
def test_the_rank_test_is_scipys(first: int, second: int) -> None:
    random = np.random.default_rng(first)
    for shift in (0.0, 0.7):
        a, b = random.normal(size=first), random.normal(shift, size=second)
        for x, y in ((a, b), (a.round(1), b.round(1))):
            found = mann_whitney(x, y)
            expected = stats.mannwhitneyu(x, y, method="exact" if found.exact else "asymptotic")
            assert found.statistic == expected.statistic
            assert found.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert mann_whitney([1.0] * 3, [1.0] * 4).p_value == 1.0


def test_the_counts_of_orderings_are_all_orderings() -> None:
    for first, second in ((1, 1), (2, 3), (7, 5)):
        counts = rank_sum_counts(first, second)
        assert counts.sum() == math.comb(first + second, first)
        np.testing.assert_array_equal(counts, counts[::-1])
    np.testing.assert_array_equal(rank_sum_counts(2, 2), [1, 1, 2, 1, 1])


@pytest.mark.parametrize(("first", "second"), [(4, 4), (5, 5), (9, 6), (30, 40)])
def test_the_shift_interval_is_where_the_rank_test_stops_rejecting(first: int, second: int) -> None:
    random = np.random.default_rng(second)
    a, b = random.normal(size=first), random.normal(2.0, size=second)
    found = shift_interval(a, b)
    differences = (b[:, None] - a).ravel()
    assert found.value == np.median(differences)
    assert found.low is not None
    assert found.high is not None
    exact = first * second <= 1000
    for inside, outside in ((found.low + 1e-9, found.low - 1e-9), (found.high - 1e-9, found.high + 1e-9)):
        p_values = [
            stats.mannwhitneyu(a + shift, b, method="exact" if exact else "asymptotic", use_continuity=False).pvalue
            for shift in (inside, outside)
        ]
        assert p_values[0] > 0.05 - (0 if exact else 2e-3)
        assert p_values[1] <= 0.05 + (0 if exact else 2e-3)


def test_three_values_a_side_give_no_interval_of_a_shift() -> None:
    found = shift_interval([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (found.value, found.low, found.high) == (3.0, None, None)


@pytest.mark.parametrize("samples", [[], [[1.0, 2.0]], [1.0, math.nan], [math.inf]])
def test_samples_that_are_none_are_refused(samples: list[float]) -> None:
    with pytest.raises(BenchError, match="sample"):
        percentile_interval(samples, 50)
    with pytest.raises(BenchError, match="sample"):
        mann_whitney(samples, [1.0])


def test_arguments_out_of_range_are_refused_with_what_is_expected() -> None:
    with pytest.raises(BenchError, match=r"percentile 100\.0 at level 0.95: expected 0\.\.100"):
        percentile_interval([1.0], 100.0)
    with pytest.raises(BenchError, match="0 resamples was asked for, expected at least 1"):
        block_bootstrap([1.0], mean_of, resamples=0)
    with pytest.raises(BenchError, match=r"latency sample of 0\.0 s was met"):
        throughput_interval([0.0, 1.0])
