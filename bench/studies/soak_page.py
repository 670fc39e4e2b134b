"""A soak as a section of Markdown and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.studies.soak_run import MEGABYTE, Soak

_COLOURS = ("#1f77b4", "#d9700e", "#2ca02c", "#9467bd", "#8c564b", "#17becf")
_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 720, 150, 64, 16, 28, 46
_PLOT_WINDOWS = 100


def section(
    soaks: Sequence[Soak],
    failures: Sequence[Sequence[str]],
    command: str,
    machine: Mapping[str, Any],
    most_growth_mb: float,
    plot: Path | None,
) -> str:
    """Markdown: a table of fates and memory, one of latency over time, the verdict, and how it was measured."""
    lines = ["## Soak", "", *_fates(soaks), ""]
    if plot is not None:
        lines += [f"![Resident memory and latency over the frames]({plot.name})", ""]
    lines += [*_latency(soaks), "", *_verdicts(soaks, failures, most_growth_mb), "", *_method(soaks, command, machine)]
    return "\n".join(lines) + "\n"


def _fates(soaks: Sequence[Soak]) -> Iterator[str]:
    yield (
        "| bundle | px | read | processed | dropped | failed | changed results | FPS | MB once settled "
        "| MB at the end | slope, MB per 10 000 frames |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for soak in soaks:
        stats, memory = soak.stats, soak.memory_bytes / MEGABYTE
        yield (
            f"| {soak.name} | {soak.imgsz[0]} | {stats.read} | {stats.processed} | {stats.dropped} | {stats.failed} "
            f"| {soak.changed_results} | {stats.fps:.0f} | {soak.settled_bytes / MEGABYTE:.1f} | {memory[-1]:.1f} "
            f"| {_slope(soak)} |"
        )


def _slope(soak: Soak) -> str:
    slope = soak.growth_bytes_per_frame
    return "too short to tell" if math.isnan(slope) else f"{1e4 * slope / MEGABYTE:+.3f}"


def _latency(soaks: Sequence[Soak]) -> Iterator[str]:
    yield "From a frame's capture to its result, ms, p50 / p99 of each tenth of the frames:"
    yield ""
    yield (
        "| bundle | " + " | ".join(f"{10 * tenth}–{10 * tenth + 10} %" for tenth in range(10)) + " | last / first p50 |"
    )
    yield "| --- |" + " ---: |" * 11
    for soak in soaks:
        cells = [_percentiles(window) for window in soak.windows_s()]
        yield f"| {soak.name} | " + " | ".join(cells) + f" | {soak.drift:.3f} |"


def _percentiles(latencies_s: NDArray[np.float64]) -> str:
    if not len(latencies_s):
        return "–"
    p50, p99 = 1e3 * np.percentile(latencies_s, (50, 99))
    return f"{p50:.1f} / {p99:.1f}"


def _verdicts(soaks: Sequence[Soak], failures: Sequence[Sequence[str]], most_growth_mb: float) -> Iterator[str]:
    yield f"Allowed: no frame lost, no result changed, at most {most_growth_mb:g} MB of growth per 10 000 frames."
    yield ""
    for soak, found in zip(soaks, failures, strict=True):
        yield f"- {soak.name}: {_verdict(soak, found)}."


def _verdict(soak: Soak, failures: Sequence[str]) -> str:
    if failures:
        return f"**missed**: {'; '.join(failures)}"
    too_short = ", but for growth, which so few frames do not tell" if math.isnan(soak.growth_bytes_per_frame) else ""
    return f"**met**{too_short}"


def _method(soaks: Sequence[Soak], command: str, machine: Mapping[str, Any]) -> Iterator[str]:
    yield "```"
    yield command
    yield "```"
    yield ""
    first = soaks[0].job
    yield (
        f"- {len(first.images)} images, decoded from their files each time, go round through the stream; "
        f"{first.threads} threads per inference; each bundle in a fresh process."
    )
    for soak in soaks:
        busy = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in soak.stats.busy_s.items())
        yield (
            f"- {soak.name}: {soak.facts['library']} {soak.facts['version']}, {soak.stats.elapsed_s:.0f} s, "
            f"{soak.detections} detections in the first round; seconds by stage: {busy}."
        )
    flags = " ".join(machine["cpu_flags"])
    system = f"{machine['cores']} cores, {machine['architecture']}, {machine['system']}"
    yield f"- Machine: {machine['model']}, {system}, {flags}."
    yield (
        "- The slope is a least-squares line through resident memory (`/proc/self/statm`, some 500 samples), the first "
        "tenth of the frames, at least 500, left out. Results are compared by a checksum of boxes, scores and classes."
    )


def soak_plot(soaks: Sequence[Soak]) -> str:
    """An SVG file: resident memory above, median latency below, both over frames."""
    frames = max(soak.job.frames for soak in soaks)
    memory = [(soak.memory_frames.astype(np.float64), soak.memory_bytes / MEGABYTE) for soak in soaks]
    latency = [_medians_ms(soak) for soak in soaks]
    height = _TOP + 2 * _PANEL + 2 * _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#555">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        *_legend(soaks),
        *_panel(memory, frames, _TOP, "resident memory, MB"),
        *_panel(latency, frames, _TOP + _PANEL + _GAP, "latency p50, ms"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _medians_ms(soak: Soak) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    windows = [window for window in soak.windows_s(_PLOT_WINDOWS) if len(window)]
    ends = np.cumsum([len(window) for window in windows]).astype(np.float64)
    return ends, np.array([1e3 * np.median(window) for window in windows])


def _legend(soaks: Sequence[Soak]) -> Iterator[str]:
    for index, soak in enumerate(soaks):
        x = _LEFT + 150 * index
        yield f'<rect x="{x}" y="8" width="14" height="4" fill="{_COLOURS[index % len(_COLOURS)]}"/>'
        yield f'<text x="{x + 20}" y="14">{escape(soak.name)}</text>'


def _panel(
    lines: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], frames: int, top: int, title: str
) -> Iterator[str]:
    """Lines over frames, y from 0, so that a slope looks as steep as it is."""
    highest = 1.08 * max((float(ys.max()) for _, ys in lines if len(ys)), default=1.0)
    width, bottom = _WIDTH - _LEFT - _RIGHT, top + _PANEL
    for share in (0.0, 0.5, 1.0):
        y = bottom - share / 1.08 * _PANEL
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * highest / 1.08:.3g}</text>'
    for index, (xs, ys) in enumerate(lines):
        points = " ".join(
            f"{_LEFT + x / frames * width:.1f},{bottom - y / highest * _PANEL:.1f}" for x, y in zip(xs, ys, strict=True)
        )
        yield f'<polyline points="{points}" fill="none" stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="1.3"/>'
    for share in (0.0, 0.5, 1.0):
        x = _LEFT + share * width
        yield f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle">{round(share * frames)}</text>'
    yield f'<text x="{_LEFT}" y="{bottom + 29}">{escape(title)}, over frames</text>'
