"""What a handful of paired trainings says, in numbers and in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

__all__ = ["Comparison", "compare", "spread"]

_LEVEL: Final = 0.05


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, seed by seed, in points of top-1.

    Attributes:
        seeds: how many pairs.
        mean: of the differences.
        deviation: standard deviation of the differences; NaN for one pair.
        low, high: smallest and largest difference.
        t_p: p of the paired t-test; NaN where it cannot be computed.
        wilcoxon_p: p of the exact Wilcoxon signed-rank test.
        words: what may be said.
    """

    seeds: int
    mean: float
    deviation: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float
    words: str


def compare(method: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare by the seeds that both have; None when there are none.

    Args:
        method: top-1 by seed, 0 to 1.
        baseline: the same of the baseline.
    """
    shared = sorted(method.keys() & baseline.keys())
    if not shared:
        return None
    differences = np.array([100 * (method[s] - baseline[s]) for s in shared])
    t_p = wilcoxon_p = math.nan
    if len(shared) > 1 and float(np.ptp(differences)) > 0:
        t_p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    if np.any(differences != 0):
        wilcoxon_p = float(stats.wilcoxon(differences, method="exact" if len(shared) <= 25 else "auto").pvalue)
    return Comparison(
        seeds=len(shared),
        mean=float(differences.mean()),
        deviation=float(differences.std(ddof=1)) if len(shared) > 1 else math.nan,
        low=float(differences.min()),
        high=float(differences.max()),
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
        words=_words(differences, t_p),
    )


def _words(differences: np.ndarray[tuple[int], np.dtype[np.float64]], p: float) -> str:
    """``helped`` and ``hurt`` need the t-test; what all seeds agree on without it is said as that."""
    if len(differences) < 2:
        return "one seed says nothing"
    direction = "helped" if differences.mean() > 0 else "hurt"
    if p < _LEVEL:
        return direction
    if bool((differences > 0).all()):
        return "better in every seed, not beyond chance"
    if bool((differences < 0).all()):
        return "worse in every seed, not beyond chance"
    return "no difference shown"


def spread(values: Mapping[int, float]) -> str:
    """Mean, standard deviation and range of top-1 over seeds, in per cent."""
    if not values:
        return "-"
    percent = np.array([100 * v for v in values.values()])
    deviation = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
    return f"{percent.mean():.2f}{deviation} ({percent.min():.2f} to {percent.max():.2f})"
