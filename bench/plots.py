"""Plots as inline SVG text: no library, no script, colours from the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from deploy.bundle import ENGINES

_CHARACTER = 6.6  # mean width in px of a 12 px label character, to keep labels apart
_LINE = 14


@dataclass(frozen=True)
class Point:
    """One bundle on one device in the accuracy plot.

    Attributes:
        latency_ms: x.
        accuracy: y, in percent.
        label: short name, unlike all others.
        engine: chooses the colour.
        precision: chooses the shape.
        device: points of one device share a Pareto front.
        tip: lines of the tooltip.
        emulated: drawn hollow.
    """

    latency_ms: float
    accuracy: float
    label: str
    engine: str
    precision: str
    device: str
    tip: Sequence[str]
    emulated: bool = False


def accuracy_plot(points: Sequence[Point], width: int, height: int, metric: str = "mAP50-95") -> str:
    """Accuracy against latency with the Pareto front of each device.

    Args:
        points: at least one.
        width: px of the drawing, labels are made for this size.
        height: px of the drawing.
        metric: what the accuracy is called.

    Returns:
        An `<svg>` element. Points carry `data-tip` and take the keyboard's focus.
    """
    plot = _Axes(points, width, height)
    parts = [plot.grid(metric)]
    for device in dict.fromkeys(point.device for point in points):
        parts.append(_front_line(pareto_front([point for point in points if point.device == device]), plot))
    parts += _labels(points, plot)
    parts += [_marker(point, plot) for point in points]
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" '
        f'aria-label="Accuracy against latency">{"".join(parts)}</svg>'
    )


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other point beats in latency and accuracy at once, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_ms, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def histogram(samples_ms: Sequence[float], width: int = 260, height: int = 64, bins: int = 40) -> str:
    """Distribution of latency samples with the three percentiles marked; no sample is left out.

    Samples far beyond p99 would squeeze all others into one bar: they share a last bar of their own, which is named.

    Args:
        samples_ms: at least one.
        width: px of the drawing.
        height: px of the drawing.
        bins: bars between the least and the greatest sample that is not far beyond p99.

    Returns:
        An `<svg>` element.
    """
    samples = np.asarray(samples_ms, np.float64)
    percentiles = np.percentile(samples, [50, 90, 99])
    low, high = float(samples.min()), float(samples.max())
    high = min(high, float(percentiles[2] + 0.5 * (percentiles[2] - low)))
    beyond = int((samples > high).sum())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(samples[samples <= high], bins=bins, range=(low, high))
    base, step = height - 16, width / (bins + 2)
    # A lone slow sample must stay visible beside hundreds: no bar is under 1.5 px.
    bars = "".join(
        f'<rect class="{"beyond" if index > bins else "bar"}" x="{index * step:.1f}" '
        f'y="{base - size:.1f}" width="{step - 0.8:.1f}" height="{size:.1f}"/>'
        for index, count in enumerate([*counts, 0, beyond])
        if (size := max(1.5, count / max(counts.max(), beyond) * (base - 4)) if count else 0)
    )
    marks = "".join(
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}"/>'
        for x in ((value - low) / (high - low) * bins * step for value in percentiles)
    )
    right = f"{beyond} slower, up to {samples.max():.2f} ms" if beyond else f"{samples.max():.2f} ms"
    return (
        f'<svg class="small" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="Distribution of {len(samples)} samples from {samples.min():.2f} to {samples.max():.2f} ms">'
        f'<g class="bars">{bars}</g>{marks}<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>'
        f'<text x="0" y="{height - 4}">{samples.min():.2f}</text>'
        f'<text x="{width}" y="{height - 4}" text-anchor="end">{right}</text></svg>'
    )


def order_plot(samples_ms: Sequence[float], width: int = 260, height: int = 64, columns: int = 130) -> str:
    """Latency in the order the samples were taken: warming up, throttling and interruptions show here.

    Args:
        samples_ms: at least one.
        width: px of the drawing.
        height: px of the drawing.
        columns: neighbouring samples are joined into this many bars from their least to their greatest.

    Returns:
        An `<svg>` element.
    """
    samples = np.asarray(samples_ms, np.float64)
    low, high = float(samples.min()), float(samples.max())
    scale = (height - 20) / (high - low) if high > low else 0.0
    groups = np.array_split(samples, min(columns, len(samples)))
    step = width / len(groups)
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{2 + (high - group.max()) * scale:.1f}" '
        f'width="{max(1.0, step - 0.5):.1f}" height="{max(1.5, (group.max() - group.min()) * scale):.1f}"/>'
        for index, group in enumerate(groups)
    )
    return (
        f'<svg class="small" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{len(samples)} samples in the order taken">'
        f'<g class="bars">{bars}</g><line class="axis" x1="0" x2="{width}" y1="{height - 16}" y2="{height - 16}"/>'
        f'<text x="0" y="{height - 4}">first</text>'
        f'<text x="{width}" y="{height - 4}" text-anchor="end">sample {len(samples)}</text></svg>'
    )


class _Axes:
    """Scales and grid of the accuracy plot: latency logarithmic where it spans a factor of 6 or more."""

    def __init__(self, points: Sequence[Point], width: int, height: int) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 54, width - 14, 14, height - 40
        latencies = [point.latency_ms for point in points]
        self.logarithmic = max(latencies) >= 6 * min(latencies)
        if self.logarithmic:
            self.x_low, self.x_high = min(latencies) / 1.25, max(latencies) * 1.25
            self.x_ticks = _log_ticks(self.x_low, self.x_high)
        else:
            self.x_ticks = _ticks(0.0, max(latencies) * 1.08, 6)
            self.x_low, self.x_high = 0.0, max(latencies) * 1.08
        values = [point.accuracy for point in points]
        spread = max(max(values) - min(values), 2.0)  # less is noise and must not look like more
        self.y_low, self.y_high = min(values) - 0.2 * spread, max(values) + 0.2 * spread
        self.y_ticks = _ticks(self.y_low, self.y_high, 6)

    def x(self, latency_ms: float) -> float:
        if self.logarithmic:
            part = math.log(latency_ms / self.x_low) / math.log(self.x_high / self.x_low)
        else:
            part = latency_ms / self.x_high
        return self.left + part * (self.right - self.left)

    def y(self, accuracy: float) -> float:
        return self.bottom - (accuracy - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)

    def grid(self, metric: str) -> str:
        parts = []
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.bottom + 16}" text-anchor="middle">{tick:g}</text>')
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        scale = ", logarithmic" if self.logarithmic else ""
        parts.append(
            f'<text x="{(self.left + self.right) / 2:.0f}" y="{self.height - 6}" text-anchor="middle">'
            f"latency, p50 ms per image{scale} (left is better)</text>"
            f'<text x="12" y="{(self.top + self.bottom) / 2:.0f}" text-anchor="middle" '
            f'transform="rotate(-90 12 {(self.top + self.bottom) / 2:.0f})">{metric} %</text>'
        )
        return "".join(parts)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values within low..high, at most about `most`."""
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**decade for decade in decades for factor in (1, 2, 5) if low <= factor * 10.0**decade <= high]


def _front_line(front: Sequence[Point], plot: _Axes) -> str:
    if len(front) < 2:
        return ""
    corners = [f"M{plot.x(front[0].latency_ms):.1f} {plot.y(front[0].accuracy):.1f}"]
    for point in front[1:]:  # a step: between two bundles there is none
        corners.append(f"H{plot.x(point.latency_ms):.1f}V{plot.y(point.accuracy):.1f}")
    return f'<path class="front" d="{"".join(corners)}"/>'


_Box = tuple[float, float, float, float]


def _labels(points: Sequence[Point], plot: _Axes) -> list[str]:
    """A label beside each point where there is room; points without one still have their tooltip."""
    centres = [(plot.x(point.latency_ms), plot.y(point.accuracy)) for point in points]
    taken: list[_Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    written = []
    for point, (x, y) in zip(points, centres, strict=True):
        length = len(point.label) * _CHARACTER
        # Above the line first: the front runs to the right of a point and upwards from the next.
        places = (("start", x + 6, y - 15), ("start", x + 11, y), ("end", x - 11, y), ("end", x - 6, y - 15))
        for anchor, side, centre in (*places, ("start", x + 6, y + 15), ("end", x - 6, y + 15)):
            left = side if anchor == "start" else side - length
            box = (left - 3, centre - _LINE / 2, left + length + 3, centre + _LINE / 2)
            inside = box[0] >= plot.left and box[2] <= plot.right and box[1] >= plot.top and box[3] <= plot.bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                written.append(
                    f'<text class="label" x="{side:.1f}" y="{centre + 4:.1f}" text-anchor="{anchor}">'
                    f"{escape(point.label)}</text>"
                )
                break
    return written


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _marker(point: Point, plot: _Axes) -> str:
    x, y = plot.x(point.latency_ms), plot.y(point.accuracy)
    tip = escape("\n".join([point.label, *point.tip]), quote=True)
    spoken = escape(", ".join([point.label, *point.tip]), quote=True)
    classes = f"point {engine_class(point.engine)}{' emulated' if point.emulated else ''}"
    return (
        f'<g class="{classes}" tabindex="0" role="img" aria-label="{spoken}" data-tip="{tip}">'
        f'<circle class="target" cx="{x:.1f}" cy="{y:.1f}" r="14"/>{_shape(point.precision, x, y)}</g>'
    )


def engine_class(engine: str) -> str:
    """The style class that colours a runtime; one for all that are not known."""
    return f"engine-{engine}" if engine in ENGINES else "engine-other"


def legend_mark(engine: str, precision: str) -> str:
    """A small marker as the plot draws it, for the legend and the table."""
    return (
        f'<svg class="mark-key" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">'
        f'<g class="point {engine_class(engine)}">{_shape(precision, 8, 8)}</g></svg>'
    )


def _shape(precision: str, x: float, y: float) -> str:
    if precision == "int8":
        return f'<rect class="dot" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" rx="1"/>'
    if precision == "fp16":
        return f'<path class="dot" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
