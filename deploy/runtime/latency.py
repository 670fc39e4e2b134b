"""Percentiles of any number of durations in fixed memory, for streams that run for weeks."""

from __future__ import annotations

import math

_SHORTEST_S = 1e-6
_LONGEST_S = 1e4
_STEP = 1.01  # buckets grow by 1 %: a percentile is off by at most half of that
_LOG_STEP = math.log(_STEP)


class LatencyHistogram:
    """Durations from 1 µs to 10 000 s counted in buckets 1 % wide; what lies outside counts as the nearest."""

    def __init__(self) -> None:
        self._counts = [0] * (int(math.log(_LONGEST_S / _SHORTEST_S) / _LOG_STEP) + 1)
        self._total = 0
        self._longest_s = 0.0

    def __len__(self) -> int:
        return self._total

    def add(self, duration_s: float) -> None:
        """Count one duration."""
        bounded_s = min(max(duration_s, _SHORTEST_S), _LONGEST_S)
        bucket = int(math.log(bounded_s / _SHORTEST_S) / _LOG_STEP)
        self._counts[min(bucket, len(self._counts) - 1)] += 1
        self._total += 1
        self._longest_s = max(self._longest_s, duration_s)

    def percentile_s(self, percent: float) -> float:
        """The duration that `percent` (0..100) of those counted do not exceed, within 0.5 %; NaN without any."""
        if not self._total:
            return math.nan
        rank = max(1, math.ceil(self._total * percent / 100.0))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_SHORTEST_S * math.exp((bucket + 0.5) * _LOG_STEP), self._longest_s)
        return self._longest_s

    @property
    def longest_s(self) -> float:
        """The longest one, exactly; NaN without any."""
        return self._longest_s if self._total else math.nan
