"""The repeatability study as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.columns import figure_text
from bench.compare_figures import CPU, Change, disturbance, run_figure
from bench.compare_pair import Comparison
from bench.rows import Row
from bench.statistics import latency_intervals
from bench.studies.repeatability_gate import Rate

_MS = 1e3
_FIGURES: tuple[tuple[str, Callable[[Row], float]], ...] = (
    *(
        (f"{name}, ms", lambda row, name=name: _MS * run_figure(row, name))
        for name in ("p10", "p50", "p90", "p99", "mean")
    ),
    ("inference p50, ms", lambda row: _MS * row.inference_p50_s),
    ("processor time per image, ms", lambda row: _MS * run_figure(row, CPU)),
    ("images per second", lambda row: row.fps),
    ("peak RSS, MB", lambda row: row.peak_rss_bytes / 1e6),
    ("load, ms", lambda row: _MS * row.load_s),
    ("first inference, ms", lambda row: _MS * row.result.first_inference_s),
)


def page(
    plain: Sequence[Row],
    slowed: Sequence[Row],
    rates: Mapping[str, Sequence[Rate]],
    accuracy: tuple[bool, Comparison] | None,
    slowdown: float,
    command: str,
) -> str:
    """The document."""
    first = plain[0].result
    machine, state = first.machine, first.machine.get("before") or {}
    medians, spent = (_longer(plain, slowed, figure) for figure in (_p50_s, _cpu_s))
    lines = [
        "# Repeatability of the protocol, and what the gate makes of it",
        "",
        f"`{plain[0].bundle}` ({plain[0].engine}, {plain[0].precision}, {plain[0].pixels} px, {plain[0].threads} "
        f"threads), {len(plain)} runs by `bench/run.py`, each in a fresh process, in turns with {len(slowed)} runs of "
        f"the same bundle slowed on purpose: each image takes {100 * slowdown:g} % more work. Measured, their medians "
        f"lie {medians:.1f} % higher, their processor time {spent:.1f} %.",
        "",
        f"Machine: {machine.get('processor')}, {machine.get('cores')} cores, {machine.get('system')}, kernel "
        f"{machine.get('kernel')}; load before the first run {(state.get('load_average') or ['unknown'])[0]}, "
        f"before the others {_loads(plain[1:])}; from {first.created} to {slowed[-1].result.created}.",
        "",
        "## Spread over the runs",
        "",
        "| figure | mean | standard deviation | lowest to highest |",
        "| --- | ---: | ---: | ---: |",
        *(_spread_line(title, [value(row) for row in plain]) for title, value in _FIGURES),
        "",
        _within_line(plain),
        "",
        _disturbance_line(plain, slowed),
        "",
        "## The gate on these runs",
        "",
        "Slowdown tolerated 5 %; a regression is called where the whole 95 % interval lies beyond it. Draws of several "
        "runs overlap, so the counts are not independent of each other.",
        "",
        *(line for name, judged in rates.items() for line in _rate_table(name, judged)),
        "## Accuracy",
        "",
        *_accuracy_lines(accuracy),
        "",
        "## Command",
        "",
        "```",
        command,
        "```",
        "",
    ]
    return "\n".join(lines)


def _p50_s(row: Row) -> float:
    return row.p50_s


def _cpu_s(row: Row) -> float:
    return run_figure(row, CPU)


def _longer(plain: Sequence[Row], slowed: Sequence[Row], figure: Callable[[Row], float]) -> float:
    """How much the slowed runs' figure lies above the plain ones', in percent of geometric means."""
    first, second = (np.log([figure(row) for row in rows]).mean() for rows in (plain, slowed))
    return float(100 * np.expm1(second - first))


def _loads(rows: Sequence[Row]) -> str:
    loads = [(row.result.machine.get("before") or {}).get("load_average") or [] for row in rows]
    known = [load[0] for load in loads if load]
    return f"{min(known):g} to {max(known):g}" if known else "unknown"


def _spread_line(title: str, values: Sequence[float]) -> str:
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return (
        f"| {title} | {figure_text(mean)} | {100 * spread / mean:.2f} % | "
        f"{figure_text(min(values))} to {figure_text(max(values))} ({100 * (max(values) / min(values) - 1):.1f} %) |"
    )


def _within_line(rows: Sequence[Row]) -> str:
    """How much narrower the interval of one run is than what the runs really do."""
    parts = []
    for name in ("p50", "p90", "p99"):
        halves, missing = [], 0
        for row in rows:
            cycle = int(row.result.protocol.get("timed_images") or 1)
            found = latency_intervals(row.result.latency.total_s(), cycle)[name]
            if found.low is None or found.high is None:
                missing += 1
            else:
                halves.append((found.high - found.low) / 2 / found.value)
        real = 1.96 * float(np.std(np.log([run_figure(row, name) for row in rows]), ddof=1))
        met = f"±{100 * float(np.mean(halves)):.1f} %" if halves else "none"
        unbounded = f" ({missing} of {len(rows)} runs too short to bound it)" if missing else ""
        parts.append(f"{name} {met}{unbounded} against ±{100 * real:.1f} %")
    return (
        "The 95 % interval that one run gives of its own percentile, on average, against what 95 % of the runs span: "
        f"{'; '.join(parts)}."
    )


def _disturbance_line(plain: Sequence[Row], slowed: Sequence[Row]) -> str:
    """What few runs assume of the spread, against the spread."""
    parts = []
    for name, rows in (("plain", plain), ("slowed", slowed)):
        assumed = 100 * float(np.mean([disturbance(row) for row in rows]))
        real = 100 * float(np.std(np.log([row.p50_s for row in rows]), ddof=1))
        parts.append(f"{name} runs {assumed:.1f} % against {real:.1f} %")
    return (
        "How far a run's median lies above its tenth percentile, which few runs take for the spread of medians, "
        f"against that spread: {'; '.join(parts)}."
    )


def _rate_table(statistic: str, rates: Sequence[Rate]) -> list[str]:
    return [
        f"### Judged by `--statistic {statistic}`",
        "",
        "| comparisons | runs | number | regressed | unclear | within |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(_rate_line(rate) for rate in rates),
        "",
    ]


def _rate_line(rate: Rate) -> str:
    def part(count: int) -> str:
        return f"{count} ({100 * count / rate.comparisons:.0f} %)"

    within = rate.comparisons - rate.regressed - rate.unclear
    return (
        f"| {rate.what} | {rate.runs} | {rate.comparisons} | {part(rate.regressed)} | {part(rate.unclear)} | "
        f"{part(within)} |"
    )


def _accuracy_lines(accuracy: tuple[bool, Comparison] | None) -> list[str]:
    if accuracy is None:
        return ["Not measured: the runs left no detections."]
    equal, comparison = accuracy
    change = next(change for change in comparison.changes if change.figure.startswith("mAP"))
    return [
        "All runs made the same detections, to the last bit."
        if equal
        else "The runs did not all make the same detections.",
        f"With detections taken away until half a point is lost, mAP50-95 is {change.baseline:.2f} before and "
        f"{change.candidate:.2f} after ({change.change:+.2f} points{_interval(change)}): the gate says "
        f"{change.verdict}, 0.3 points being tolerated.",
    ]


def _interval(change: Change) -> str:
    return "" if change.low is None else f", paired bootstrap {change.low:+.2f} to {change.high:+.2f}"
