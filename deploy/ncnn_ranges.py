"""How large the values of a tensor are over many images, and where a symmetric int8 range should end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GREATEST = 127  # of symmetric int8: -128 is not used

_BINS = 4096
_CANDIDATES = np.linspace(0.1, 1.0, 181)  # parts of the greatest magnitude that are tried as the end of the range


class Magnitudes:
    """A histogram of magnitudes in one pass: its range doubles whenever a greater one comes."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._top = 0.0
        self._greatest: list[float] = []

    def add(self, values: NDArray[np.float32]) -> None:
        """Take in one image's tensor, of any shape."""
        magnitudes = np.abs(values).ravel()
        greatest = float(magnitudes.max(initial=0.0))
        self._greatest.append(greatest)
        if greatest == 0.0:
            return
        if self._top == 0.0:
            self._top = greatest
        while self._top < greatest:
            halves = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([halves, np.zeros(_BINS // 2, np.int64)])
            self._top *= 2
        magnitudes *= np.float32(_BINS / self._top)
        bins = np.minimum(magnitudes.astype(np.int32), _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)

    def limit(self, method: str, percentile: float) -> float:
        """The magnitude that becomes 127.

        Args:
            method: one of `deploy.quantization.RANGE_METHODS`.
            percentile: of the values that "percentile" keeps.
        """
        if self._top == 0.0:
            return 1.0  # all is zero, and stays so at any scale
        found = {
            "mean-minmax": lambda: float(np.mean(self._greatest)),
            "minmax": lambda: max(self._greatest),
            "percentile": lambda: self._percentile(percentile),
            "mse": self._least_squares,
            "entropy": self._least_divergence,
        }[method]()
        return found or max(self._greatest)

    @property
    def _centres(self) -> NDArray[np.float64]:
        return (np.arange(_BINS, dtype=np.float64) + 0.5) * np.float64(self._top / _BINS)

    def _percentile(self, percentile: float) -> float:
        reached = np.cumsum(self._counts) / self._counts.sum()
        return float((np.searchsorted(reached, percentile / 100) + 1) * self._top / _BINS)

    def _least_squares(self) -> float:
        """The end of the range with the least squared error of rounding and cutting off."""
        centres, greatest = self._centres, max(self._greatest)

        def error(limit: float) -> float:
            step = limit / GREATEST
            rounded = np.minimum(np.rint(centres / step), GREATEST) * step
            return float(self._counts @ (centres - rounded) ** 2)

        return float(min((greatest * part for part in _CANDIDATES), key=error))

    def _least_divergence(self) -> float:
        """The end of the range with the least Kullback-Leibler divergence from what was measured.

        Migacz, "8-bit inference with TensorRT" (2017): the histogram up to the end, with all that lies beyond it in its
        last bin, against the same in 128 steps.
        """
        counts = self._counts.astype(np.float64)
        counts[0] = 0.0  # zeros are exact at any scale
        ends = np.unique(np.linspace(GREATEST + 1, _BINS, 128).astype(int))
        best = min(ends, key=lambda end: _divergence(counts, int(end)))
        return float(best * self._top / _BINS)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    kept = counts[:end].copy()
    inside = kept.copy()
    kept[-1] += counts[end:].sum()
    steps = np.minimum((np.arange(end) * (GREATEST + 1)) // end, GREATEST)
    filled = inside > 0
    totals = np.bincount(steps, inside, GREATEST + 1)
    cells = np.bincount(steps, filled, GREATEST + 1)
    spread = np.where(filled, (totals / np.maximum(cells, 1))[steps], 0.0)
    p, q = kept / max(kept.sum(), 1.0), spread / max(spread.sum(), 1.0)
    both = (p > 0) & (q > 0)
    missing = p[(p > 0) & (q == 0)].sum()
    return float((p[both] * np.log(p[both] / q[both])).sum() + missing * 100.0)
