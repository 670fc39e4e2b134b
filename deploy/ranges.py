"""Ranges of tensors from the calibration images, by any of the methods, for every target that takes ranges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from deploy.histogram import Histogram, Range, entropy_range, mse_range, percentile_range
from deploy.quantization import Recipe

__all__ = ["STEPS_OF_8_BITS", "Range", "RangeEstimator", "estimate_ranges"]

STEPS_OF_8_BITS = 255
# Values of one tensor in one image that enter its histogram; evenly spaced, all of them where there are fewer.
_SAMPLED = 1 << 16

Tensors = Mapping[str, NDArray[np.float32]]


class RangeEstimator:
    """The range of one tensor; 0 always lies within, as it must have a step of its own."""

    def __init__(self) -> None:
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._histogram = Histogram()

    def add(self, values: NDArray[np.float32], *, histogram: bool = True) -> None:
        """Count the tensor in one more image; values that are not finite, such as a border of -inf, are left out.

        Args:
            values: of any shape.
            histogram: whether they are counted in bins too, which the methods but the two of extremes need.
        """
        finite = values[np.isfinite(values)]
        self._lows.append(min(float(finite.min(initial=0.0)), 0.0))
        self._highs.append(max(float(finite.max(initial=0.0)), 0.0))
        if histogram:
            self._histogram.add(finite[:: -(-finite.size // _SAMPLED) or 1])

    def range(self, method: str, percentile: float = 100.0, steps: int = STEPS_OF_8_BITS) -> Range:
        """Least and greatest value to tell apart.

        Args:
            method: one of `deploy.quantization.RANGE_METHODS`.
            percentile: for "percentile", see there.
            steps: of the quantized numbers, for "mse" and "entropy".
        """
        if method == "mean-minmax":
            return float(np.mean(self._lows)), float(np.mean(self._highs))
        if method == "minmax":
            return min(self._lows), max(self._highs)
        if method == "percentile":
            low, high = percentile_range(self._histogram, percentile)
        else:
            low, high = {"mse": mse_range, "entropy": entropy_range}[method](self._histogram, steps)
        return max(low, min(self._lows)), min(high, max(self._highs))  # bins reach a little beyond


def estimate_ranges(images: Iterable[Tensors], recipe: Recipe, whole: Iterable[str] = ()) -> dict[str, Range]:
    """The range of each tensor by the recipe's method, in one pass.

    Args:
        images: for each calibration image, tensor name to values.
        recipe: names the method.
        whole: tensors that get the extremes over all images whatever the method: outputs, on which nothing computes
            that could gain from finer steps.
    """
    estimators: dict[str, RangeEstimator] = {}
    counted = recipe.ranges not in ("minmax", "mean-minmax")
    for tensors in images:
        for name, values in tensors.items():
            estimators.setdefault(name, RangeEstimator()).add(values, histogram=counted)
    entire = frozenset(whole)
    return {
        name: one.range("minmax" if name in entire else recipe.ranges, recipe.percentile)
        for name, one in estimators.items()
    }
