"""How a figure changed from one side to the other, with an interval that knows of the spread from run to run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.distributions import student_quantile
from bench.errors import BenchError
from bench.rows import Row
from bench.statistics import LEVEL, Statistic, block_bootstrap, mean_of, percentile_of

REGRESSED, IMPROVED, WITHIN, UNCLEAR, SHOWN = "regressed", "improved", "within", "unclear", "shown"

STATISTICS: Mapping[str, Statistic] = {
    "p10": percentile_of(10),
    "p50": percentile_of(50),
    "p90": percentile_of(90),
    "p99": percentile_of(99),
    "mean": mean_of,
}
CPU = "cpu"  # processor time per image, of all threads: hardly disturbed by what else runs on the machine
JUDGED = (*STATISTICS, CPU)

# What the assumed spread counts for beside the measured one, in degrees of freedom: as much as five runs would tell.
PRIOR_FREEDOM = 4.0
MEMORY_SPREAD = 0.005  # assumed for the peak memory, from run to run
_PASSES_TO_LEVEL = 5  # over the images, from which on their medians say what differs between them
_CPU_SHARE = 1 / 3  # of what disturbs the median, that disturbs the processor time
_RESAMPLES = 400  # for a standard deviation, which needs fewer than an interval


@dataclass(frozen=True)
class Change:
    """One figure on both sides.

    Attributes:
        figure: e.g. "p50".
        unit: of `baseline` and `candidate`, e.g. "ms".
        baseline: mean over its runs (geometric for times and memory).
        candidate: mean over its runs.
        change: candidate over baseline minus one; for an accuracy the difference in points.
        low: lower end of its 95 % interval; None where there is none.
        high: upper end of its 95 % interval; None where there is none.
        verdict: "regressed", "improved", "within", "unclear", or "shown" for a figure that is not judged.
        limit: the change tolerated; None for a figure that is not judged.
        spread: standard deviation from run to run that the interval was made with; None for an accuracy.
        detectable: the least change that would have been called a regression; None for a figure not judged.
    """

    figure: str
    unit: str
    baseline: float
    candidate: float
    change: float
    low: float | None
    high: float | None
    verdict: str
    limit: float | None = None
    spread: float | None = None
    detectable: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A quotient of two figures, in logarithms (so that 10 % slower and 10 % faster are alike).

    Attributes:
        log: natural logarithm of candidate over baseline.
        margin: half the width of its interval.
        spread: standard deviation of one run's logarithm.
    """

    log: float
    margin: float
    spread: float


def latency_changes(
    baseline: Sequence[Row], candidate: Sequence[Row], gated: str, limit: float, assumed: float, paired: bool
) -> list[Change]:
    """The statistic of the whole time per image that is judged, and the others for information.

    Args:
        baseline: at least one run.
        candidate: at least one run.
        gated: the one of `JUDGED` that is judged.
        limit: relative slowdown tolerated, e.g. 0.05.
        assumed: see `log_ratio`; of the judged one.
        paired: see `log_ratio`.

    Raises:
        BenchError: processor time is to be judged and a run has none.
    """
    changes = []
    timed = all(row.result.cpu_s_per_image for row in (*baseline, *candidate))
    for name in [gated, *(name for name in ("p50", "p90", "p99", *([CPU] if timed else [])) if name != gated)]:
        figures = [[run_figure(row, name) for row in rows] for rows in (baseline, candidate)]
        within = float(np.mean([run_variance(row, name) for row in (*baseline, *candidate)]))
        ratio = log_ratio(figures[0], figures[1], within, assumed, paired)
        changes.append(_judged(name, "ms", 1e3, figures, ratio, limit if name == gated else None))
    return changes


def stage_changes(baseline: Sequence[Row], candidate: Sequence[Row], assumed: float, paired: bool) -> list[Change]:
    """Medians of preprocess, inference and postprocess, which tell where a change comes from."""
    changes = []
    for stage in ("preprocess", "inference", "postprocess"):
        figures = [
            [row.result.latency.percentiles_s(getattr(row.result.latency, f"{stage}_s"))["p50"] for row in rows]
            for rows in (baseline, candidate)
        ]
        if min(map(min, figures)) > 0.0:  # a clock too coarse for a short stage
            ratio = log_ratio(figures[0], figures[1], 0.0, assumed, paired)
            changes.append(_judged(f"{stage} p50", "ms", 1e3, figures, ratio, None))
    return changes


def memory_change(baseline: Sequence[Row], candidate: Sequence[Row], limit: float, paired: bool) -> Change:
    """Peak resident memory.

    An engine that compiles a model needs more than one that finds it compiled in its cache, so only runs of one kind
    are compared, the most frequent one that both sides have; if they have none in common nothing is judged.
    """
    kept = [
        [row for row in rows if cache_state(row) == _shared_state(baseline, candidate)]
        for rows in (baseline, candidate)
    ]
    alike = all(kept)
    figures = [[float(row.peak_rss_bytes) for row in rows] for rows in (kept if alike else (baseline, candidate))]
    ratio = log_ratio(figures[0], figures[1], 0.0, MEMORY_SPREAD, paired and len(figures[0]) == len(figures[1]))
    return _judged("peak RSS", "MB", 1e-6, figures, ratio, limit if alike else None)


def cache_state(row: Row) -> str:
    """Whether the engine found its compiled model in its cache: "loaded", "stored" (made and kept), "off" and more."""
    return str(row.result.executed.get("model_cache", "off"))


def _shared_state(baseline: Sequence[Row], candidate: Sequence[Row]) -> str | None:
    first, second = (Counter(map(cache_state, rows)) for rows in (baseline, candidate))
    shared = set(first) & set(second)
    return max(sorted(shared), key=lambda state: min(first[state], second[state])) if shared else None


def log_ratio(
    baseline: Sequence[float],
    candidate: Sequence[float],
    within_variance: float,
    assumed: float,
    paired: bool = False,
) -> Ratio:
    """Candidate over baseline with its 95 % interval, from one figure per run.

    Each run is one observation of log(figure): the spread between runs (another layout in memory, another clock,
    another neighbour) is not seen from inside one. It is estimated from the runs of both sides together and moderated
    by an assumed one, worth `PRIOR_FREEDOM` degrees of freedom (Smyth 2004, "Linear models and empirical Bayes methods
    for assessing differential expression in microarray experiments", section 4): with one run a side the assumption is
    all there is, with many it hardly counts, and two runs that happen to agree do not pass for a quiet machine.

    Args:
        baseline: the figure of each run, above 0.
        candidate: the figure of each run, above 0.
        within_variance: of one run's logarithm, as far as its own samples show it; adds to the assumption.
        assumed: standard deviation from run to run, relative (see `assumed_spread`).
        paired: take the runs in pairs by their order, which removes what drifts slowly if they were taken in turns;
            as many on both sides.
    """
    first, second = np.log(np.asarray(baseline, np.float64)), np.log(np.asarray(candidate, np.float64))
    prior = assumed**2 + within_variance
    if paired:
        steps = second - first
        freedom = len(steps) - 1.0
        squares = float(((steps - steps.mean()) ** 2).sum()) / 2.0  # a difference varies twice as much as one run
        weight = 2.0 / len(steps)
    else:
        freedom = len(first) + len(second) - 2.0
        squares = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
        weight = 1.0 / len(first) + 1.0 / len(second)
    variance = (PRIOR_FREEDOM * prior + squares) / (PRIOR_FREEDOM + freedom)
    margin = student_quantile((1.0 + LEVEL) / 2.0, PRIOR_FREEDOM + freedom) * math.sqrt(variance * weight)
    return Ratio(float(second.mean() - first.mean()), margin, math.sqrt(variance))


def run_figure(row: Row, statistic: str) -> float:
    """One of `JUDGED` of a run's time per image, in seconds.

    Raises:
        BenchError: the result has no processor time and that is asked for.
    """
    if statistic == CPU:
        spent_s = row.result.cpu_s_per_image
        if not spent_s:
            raise BenchError(
                f"{row.folder} has no processor time: run the bench again, or judge by another --statistic"
            )
        return spent_s
    total = np.asarray(row.result.latency.total_s(), np.float64)
    return float(STATISTICS[statistic](total[None])[0])


def run_variance(row: Row, statistic: str) -> float:
    """Variance of the logarithm of `run_figure` over block resamples of the run's own samples; of `CPU` unknown, 0."""
    if statistic == CPU:
        return 0.0
    drawn = block_bootstrap(row.result.latency.total_s(), STATISTICS[statistic], _cycle(row), _RESAMPLES)
    return float(np.log(drawn).var())


def _cycle(row: Row) -> int:
    """After how many samples the timed loop returned to the same image."""
    cycle = row.result.protocol.get("timed_images")
    return cycle if isinstance(cycle, int) and cycle > 0 else 1


def assumed_spread(
    baseline: Sequence[Row], candidate: Sequence[Row], least: float, paired: bool = False, statistic: str = "p50"
) -> float:
    """The spread from run to run to assume: `least`, or more where few runs tell of a load on the machine.

    A run whose typical sample takes longer than its fast ones shared the machine with something, and how much of that
    a run meets is chance. So where the runs are too few to show their spread (their degrees of freedom do not exceed
    `PRIOR_FREEDOM`) it is taken to be no less than what lies between the tenth percentile and the median of a run,
    on average over the runs; what differs between images is taken out first. `bench.studies.repeatability` holds it
    against real spreads. Processor time does not wait, but others empty its caches: a third of that is assumed of it.

    Args:
        baseline: at least one run.
        candidate: at least one run.
        least: relative.
        paired: whether the runs are taken in pairs.
        statistic: the one that is judged.
    """
    rows = [*baseline, *candidate]
    freedom = len(baseline) - 1 if paired else len(rows) - 2
    share = _CPU_SHARE if statistic == CPU else 1.0
    return least if freedom > PRIOR_FREEDOM else max(least, share * float(np.mean([disturbance(row) for row in rows])))


def disturbance(row: Row) -> float:
    """How far a run's median time per image lies above its tenth percentile, as a logarithm, images set equal."""
    logs = np.log(np.asarray(row.result.latency.total_s(), np.float64))
    cycle = _cycle(row)
    if len(logs) >= _PASSES_TO_LEVEL * cycle:
        for image in range(cycle):
            logs[image::cycle] -= np.median(logs[image::cycle])
    p10, p50 = np.percentile(logs, [10, 50])
    return float(p50 - p10)


def verdict(low: float, high: float, limit: float) -> str:
    """What an interval of a relative change says about a limit on growth.

    Returns:
        "regressed" where all of it lies above the limit, "improved" where all of it lies as far below zero, "within"
        where none of it lies above the limit, "unclear" where some of it does.
    """
    if low > limit:
        return REGRESSED
    if high < -limit:
        return IMPROVED
    return WITHIN if high <= limit else UNCLEAR


def _judged(
    name: str, unit: str, factor: float, figures: Sequence[Sequence[float]], ratio: Ratio, limit: float | None
) -> Change:
    low, high = math.expm1(ratio.log - ratio.margin), math.expm1(ratio.log + ratio.margin)
    first, second = (factor * math.exp(float(np.mean(np.log(side)))) for side in figures)
    return Change(
        name,
        unit,
        first,
        second,
        math.expm1(ratio.log),
        low,
        high,
        SHOWN if limit is None else verdict(low, high, limit),
        limit,
        ratio.spread,
        None if limit is None else (1.0 + limit) * math.exp(ratio.margin) - 1.0,
    )
