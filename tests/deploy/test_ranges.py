"""Ranges against what is known of distributions, and against a plain sort or search over the same values."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.histogram import Histogram, entropy_range, mse_range, percentile_range
from deploy.quantization import RANGE_METHODS, Recipe
from deploy.ranges import RangeEstimator, estimate_ranges


def _histogram(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(size=400_000).astype(np.float32)


def test_bins_hold_what_numpy_counts_in_them() -> None:
    values = np.random.default_rng(1).normal(3, 20, 10_000)
    centres, counts, width = _histogram(values).filled()
    expected, _ = np.histogram(values, np.append(centres - width / 2, centres[-1] + width / 2))
    assert np.array_equal(counts, expected)
    assert np.log2(width) == round(np.log2(width))


def test_a_histogram_depends_on_the_values_and_not_on_their_order() -> None:
    parts = [np.random.default_rng(size + 3).normal(0, 10.0**size, 1000) for size in range(-3, 4)]
    results = []
    for order in (parts, parts[::-1]):
        histogram = Histogram()
        for part in order:
            histogram.add(part)
        results.append(histogram.filled())
    assert results[0][2] == results[1][2]
    assert all(np.array_equal(one, other) for one, other in zip(results[0][:2], results[1][:2], strict=True))


def test_percentiles_are_those_of_the_sorted_values(normal: np.ndarray) -> None:
    low, high = percentile_range(_histogram(normal), 99.9)
    assert (low, high) == pytest.approx(tuple(np.percentile(normal, [0.1, 99.9])), abs=0.01)
    assert percentile_range(_histogram(np.abs(normal)), 99.0)[0] == 0  # 0 stays within


def test_the_least_squared_error_of_4_bits_clips_a_normal_and_a_laplace_distribution_where_theory_says(
    normal: np.ndarray,
) -> None:
    """Banner et al. 2019, "Post training 4-bit quantization", section 3.1: 2.55 sigma and 5.03 b."""
    low, high = mse_range(_histogram(normal), steps=15)
    assert (-low, high) == pytest.approx((2.55, 2.55), abs=0.15)
    laplace = np.random.default_rng(0).laplace(size=400_000)
    low, high = mse_range(_histogram(laplace), steps=15)
    assert (high - low) / 2 == pytest.approx(5.03, abs=0.2)  # its few steps need not lie evenly around 0


def test_no_other_range_has_a_smaller_squared_error(normal: np.ndarray) -> None:
    values = np.maximum(normal, -0.2)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        zero = round(-low / step)
        return float((((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step - values) ** 2).mean())

    found = error(*mse_range(_histogram(values), steps=255))
    tried = [error(-0.2 * a, high) for a in (0.9, 1.0, 1.1) for high in np.linspace(2.5, values.max(), 30)]
    assert found < 1.02 * min(tried)


def test_entropy_keeps_a_uniform_distribution_whole_and_cuts_off_a_lone_outlier() -> None:
    uniform = np.random.default_rng(2).uniform(0, 8, 200_000)
    low, high = entropy_range(_histogram(uniform), steps=255)
    assert low == pytest.approx(0, abs=0.01)
    assert high == pytest.approx(8, abs=0.15)
    with_outlier = np.append(np.abs(np.random.default_rng(3).normal(size=200_000)), 400.0)
    low, high = entropy_range(_histogram(with_outlier), steps=255)
    assert 2.5 < high < 40


def test_extremes_are_of_all_images_or_their_mean() -> None:
    estimator = RangeEstimator()
    for values in ([-1.0, 2.0], [-3.0, 10.0], [0.5, 6.0]):
        estimator.add(np.array(values, np.float32))
    assert estimator.range("minmax") == (-3, 10)
    assert estimator.range("mean-minmax") == pytest.approx((-4 / 3, 6))  # the third holds 0 too


@pytest.mark.parametrize("method", [method for method in RANGE_METHODS if method != "fisher"])
def test_every_method_takes_constants_zeros_and_infinite_borders(method: str) -> None:
    for values, most in (([0.0, 0.0], 0.0), ([2.0, 2.0], 2.0), ([-np.inf, 1.0, 2.0], 2.0), ([-1.0, np.nan], 0.0)):
        estimator = RangeEstimator()
        estimator.add(np.array(values, np.float32))
        low, high = estimator.range(method, 99.9)
        assert -1 <= low <= 0 <= high <= most


def test_outputs_get_the_extremes_whatever_the_method() -> None:
    images = [{"inner": np.array([0, 1], np.float32), "out": np.array([-9, 1], np.float32)} for _ in range(2)]
    images[1] = {"inner": np.array([0, 3], np.float32), "out": np.array([-1, 5], np.float32)}
    found = estimate_ranges(images, Recipe("mean-minmax", 99.9, ()), ["out"])
    assert found == {"inner": (0, 2), "out": (-9, 5)}


def test_what_weighs_nothing_stretches_no_range() -> None:
    values = np.append(np.random.default_rng(4).uniform(0, 2, 10_000), 50.0).astype(np.float32)
    weighted = Histogram()
    weighted.add(values, np.where(values > 2, 0.0, 1.0))
    assert mse_range(weighted, steps=255)[1] == pytest.approx(2, abs=0.05)
    assert mse_range(_histogram(values), steps=255)[1] > 40


def test_known_ranges_go_before_the_method() -> None:
    class Known:
        def find(self, marks):
            return (-1.0, 7.0) if marks[0][1] == 3 else None

    images = [{"one": np.array([0, 3], np.float32), "two": np.array([0, 5], np.float32)}]
    found = estimate_ranges(images, Recipe("fisher", 99.9, ()), known=Known())
    assert found == {"one": (-1, 7), "two": (0, 5)}
    assert estimate_ranges(images, Recipe("fisher", 99.9, ()), ["one"], Known())["one"] == (0, 3)
