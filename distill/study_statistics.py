"""What a handful of paired trainings says, in numbers and in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

__all__ = ["Comparison", "compare", "comparison_cells", "difference", "p_value", "spread", "verdict"]

_LEVEL: Final = 0.05


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, seed by seed, in points of top-1 or mAP.

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
        method: top-1 or mAP by seed, 0 to 1.
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
    """Mean, standard deviation and range over seeds, in per cent."""
    if not values:
        return "-"
    percent = np.array([100 * v for v in values.values()])
    deviation = f" ± {percent.std(ddof=1):.2f}" if len(percent) > 1 else ""
    return f"{percent.mean():.2f}{deviation} ({percent.min():.2f} to {percent.max():.2f})"


def difference(result: Comparison | None) -> str:
    """Mean, standard deviation and range of the differences, signed, in points."""
    if result is None:
        return "-"
    deviation = "" if math.isnan(result.deviation) else f" ± {result.deviation:.2f}"
    return f"{result.mean:+.2f}{deviation} ({result.low:+.2f} to {result.high:+.2f})"


def p_value(value: float) -> str:
    """Three digits, or a dash where there is none."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def comparison_cells(result: Comparison | None) -> str:
    """Four cells of a table: difference, both p, and what may be said."""
    if result is None:
        return "- | - | - | -"
    return f"{difference(result)} | {p_value(result.t_p)} | {p_value(result.wilcoxon_p)} | {result.words}"


def verdict(compared: Mapping[str, Comparison], named: Callable[[str], str] = str) -> list[str]:
    """The table in sentences, with what so few seeds can and cannot show.

    Args:
        compared: rows against the baseline, by name.
        named: how a name is written.
    """
    lines = []
    for words, sentence in (
        ("helped", "Helped (paired t-test below 0.05)"),
        ("better in every seed, not beyond chance", "Better in every seed, but the t-test does not exclude chance"),
        ("no difference shown", "No difference shown"),
        ("worse in every seed, not beyond chance", "Worse in every seed, but the t-test does not exclude chance"),
        ("hurt", "Hurt (paired t-test below 0.05)"),
    ):
        rows = sorted((m for m, c in compared.items() if c.words == words), key=lambda m: -compared[m].mean)
        if rows:
            lines.append(f"- {sentence}: {', '.join(f'{named(m)} ({compared[m].mean:+.2f})' for m in rows)}.")
    if compared:
        seeds = max(c.seeds for c in compared.values())
        lines += [
            "",
            f"With {seeds} seeds the smallest p that the Wilcoxon test can give is {2 / 2**seeds:.3g}. Of "
            f"{len(compared)} comparisons at the 5 % level {0.05 * len(compared):.1f} would come out by chance alone.",
        ]
    return lines
