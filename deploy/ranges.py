"""Ranges of tensors from the calibration images, by any of the methods, for every target that takes ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.histogram import Histogram, Range, entropy_range, mse_range, percentile_range
from deploy.quantization import Recipe

__all__ = ["STEPS_OF_8_BITS", "Known", "Mark", "Range", "RangeEstimator", "estimate_ranges", "mark_of"]

STEPS_OF_8_BITS = 255
# Values of one tensor in one image that enter its histogram; evenly spaced, all of them where there are fewer.
_SAMPLED = 1 << 16

Tensors = Mapping[str, NDArray[np.float32]]
Mark = tuple[float, float, float]  # least, greatest and mean value of a tensor in one image


class Known(Protocol):
    """Ranges that were found elsewhere, for tensors that are known by their values."""

    def find(self, marks: Sequence[Mark]) -> Range | None:
        """The range of the tensor with these marks in the first calibration images, in order; None of no such one."""


def mark_of(values: NDArray[np.float32]) -> Mark:
    """Of a tensor's finite values; 0 always counts as one of them for the first two."""
    finite = values[np.isfinite(values)]
    mean = float(finite.mean(dtype=np.float64)) if finite.size else 0.0
    return min(float(finite.min(initial=0.0)), 0.0), max(float(finite.max(initial=0.0)), 0.0), mean


class RangeEstimator:
    """The range of one tensor; 0 always lies within, as it must have a step of its own."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._histogram = Histogram()

    def add(self, values: NDArray[np.float32], *, histogram: bool = True) -> None:
        """Count the tensor in one more image; values that are not finite, such as a border of -inf, are left out.

        Args:
            values: of any shape.
            histogram: whether they are counted in bins too, which the methods but the two of extremes need.
        """
        self.marks.append(mark_of(values))
        if histogram:
            finite = values[np.isfinite(values)]
            self._histogram.add(finite[:: -(-finite.size // _SAMPLED) or 1])

    def range(self, method: str, percentile: float = 100.0, steps: int = STEPS_OF_8_BITS) -> Range:
        """Least and greatest value to tell apart.

        Args:
            method: one of `deploy.quantization.RANGE_METHODS` but "fisher".
            percentile: for "percentile", see there.
            steps: of the quantized numbers, for "mse" and "entropy".
        """
        lows, highs, _ = zip(*self.marks, strict=True)
        if method == "mean-minmax":
            return float(np.mean(lows)), float(np.mean(highs))
        if method == "minmax":
            return min(lows), max(highs)
        if method == "percentile":
            low, high = percentile_range(self._histogram, percentile)
        else:
            low, high = {"mse": mse_range, "entropy": entropy_range}[method](self._histogram, steps)
        return max(low, min(lows)), min(high, max(highs))  # bins reach a little beyond


def estimate_ranges(
    images: Iterable[Tensors], recipe: Recipe, whole: Iterable[str] = (), known: Known | None = None
) -> dict[str, Range]:
    """The range of each tensor by the recipe's method, in one pass.

    Args:
        images: for each calibration image, tensor name to values.
        recipe: names the method.
        whole: tensors that get the extremes over all images whatever the method: outputs, on which nothing computes
            that could gain from finer steps.
        known: ranges that go before the method; what it does not know gets the mean of the extremes, if the method is
            "fisher".
    """
    estimators: dict[str, RangeEstimator] = {}
    method = "mean-minmax" if recipe.ranges == "fisher" else recipe.ranges
    counted = method not in ("minmax", "mean-minmax")
    for tensors in images:
        for name, values in tensors.items():
            estimators.setdefault(name, RangeEstimator()).add(values, histogram=counted)
    entire = frozenset(whole)
    ranges = {}
    for name, one in estimators.items():
        found = None if known is None or name in entire else known.find(one.marks)
        ranges[name] = found or one.range("minmax" if name in entire else method, recipe.percentile)
    return ranges
