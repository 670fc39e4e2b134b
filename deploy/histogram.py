"""A histogram that takes values of any size in one pass, and the clipping ranges that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 4096  # of either sign: some thirty for each step of 8 bits
_CANDIDATES = 64  # ends tried between none and all of a side
_SWEEPS = 2

Range = tuple[float, float]


class Histogram:
    """Counts in bins whose width is a power of 2 and whose borders include 0.

    Where a value lies outside, neighbouring bins are joined until it lies within. The result depends on the values
    alone, not on their order.
    """

    def __init__(self) -> None:
        self._width = 0.0
        self._counts: NDArray[np.float64] = np.zeros(2 * _BINS)

    def add(self, values: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]] | None = None) -> None:
        """Count `values` of any shape, each as 1 or as its weight; those that are not finite are left out."""
        flat = values.ravel()
        finite = np.isfinite(flat)
        flat = flat[finite]
        greatest = float(np.abs(flat).max(initial=0.0))
        if greatest > 0:
            self._widen(2.0 ** math.floor(math.log2(greatest)) * 2 / _BINS)
        places = np.floor(flat / self._width).astype(np.int64) if self._width else np.zeros(len(flat), np.int64)
        counted = None if weights is None else weights.ravel()[finite]
        self._counts += np.bincount(places + _BINS, counted, minlength=2 * _BINS)

    def filled(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Centres and counts of the bins from the first to the last that is not empty, and their width."""
        (places,) = np.nonzero(self._counts)
        if not len(places):
            return np.zeros(1), np.ones(1), 0.0
        span = slice(places[0], places[-1] + 1)
        centres = np.arange(-_BINS, _BINS, dtype=np.float64) + 0.5
        return centres[span] * self._width, self._counts[span], self._width

    def _widen(self, width: float) -> None:
        if not self._width:
            self._width = width
        while self._width < width:
            halves = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[_BINS // 2 : _BINS // 2 + _BINS] = halves
            self._width *= 2


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """The range that leaves out 100 - `percentile` percent of the values at either end; 0 always lies within."""
    centres, counts, width = histogram.filled()
    share = np.cumsum(counts) / counts.sum()
    cut = 1 - percentile / 100
    edges = np.append(centres - width / 2, centres[-1] + width / 2)
    shares = np.concatenate([[0.0], share])
    low, high = np.interp([cut, 1 - cut], shares, edges)
    return min(float(low), 0.0), max(float(high), 0.0)


def mse_range(histogram: Histogram, steps: int) -> Range:
    """The range of `steps` equal steps with the least mean squared error of rounding and clipping."""
    centres, counts, _ = histogram.filled()

    def error(low: float, high: float) -> float:
        step = (high - low) / steps
        zero = round(-low / step)
        rounded = (np.clip(np.rint(centres / step) + zero, 0, steps) - zero) * step
        return float((counts * (rounded - centres) ** 2).sum())

    return _least(histogram, error)


def entropy_range(histogram: Histogram, steps: int) -> Range:
    """The range of `steps` equal steps whose values tell most of the distribution: least Kullback-Leibler divergence.

    The distribution is clipped to the range, what lies outside counted at its ends; the quantized one is spread evenly
    over the bins that each step covers and that are not empty. After Migacz, 8-bit Inference with TensorRT, 2017.
    """
    centres, counts, _ = histogram.filled()

    def divergence(low: float, high: float) -> float:
        inside = (centres >= low) & (centres <= high)
        if not inside.any():
            return math.inf
        kept = np.where(inside, counts, 0.0)
        clipped = kept.copy()
        first, last = np.flatnonzero(inside)[[0, -1]]
        clipped[first] += counts[:first].sum()
        clipped[last] += counts[last + 1 :].sum()
        levels = np.clip(np.rint((centres - low) / (high - low) * steps), 0, steps).astype(np.int64)
        sums = np.bincount(levels, kept, steps + 1)
        filled = np.bincount(levels, kept > 0, steps + 1)
        spread = np.where(kept > 0, sums[levels] / np.maximum(filled[levels], 1), 0.0)
        if not spread.any():
            return math.inf
        # A bin that only clipping filled has no share in the quantized distribution: a little, so that it counts.
        p, q = clipped / clipped.sum(), np.maximum(spread / spread.sum(), 1e-9)
        there = p > 0
        return float((p[there] * np.log(p[there] / q[there])).sum())

    return _least(histogram, divergence)


def _least(histogram: Histogram, cost: Callable[[float, float], float]) -> Range:
    """The range of least cost: one end after the other moves towards 0, the whole range first."""
    centres, _, width = histogram.filled()
    lowest, highest = min(float(centres[0]) - width / 2, 0.0), max(float(centres[-1]) + width / 2, 0.0)
    if highest == lowest:
        return lowest, highest
    low, high = lowest, highest
    parts = np.arange(_CANDIDATES, 0, -1) / _CANDIDATES
    for _ in range(_SWEEPS):
        if highest > 0:
            high = min((highest * part for part in parts), key=lambda end: cost(low, end))
        if lowest < 0:
            low = min((lowest * part for part in parts), key=lambda end: cost(end, high))
    return low, high
