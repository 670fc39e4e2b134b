"""Curves of a training as inline SVG: no library; the page's own script reads the values that stand in the figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "draw_curves"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 24


@dataclass(frozen=True)
class Curve:
    """One line of a figure.

    Attributes:
        name: in the legend and the read-out.
        values: one per epoch, from epoch 1; None where there is none.
        colour: a class of the style sheet, ``c0`` to ``c5``.
        dashed: drawn with dashes, as what belongs to another run or to validation.
    """

    name: str
    values: Sequence[float | None]
    colour: str
    dashed: bool = False


def draw_curves(title: str, curves: Sequence[Curve], *, percent: bool = False, width: int = 520) -> str:
    """A figure: title, curves over epochs, legend. It takes the keyboard's focus; arrow keys move along the epochs.

    Args:
        title: what is drawn.
        curves: at least one with a value.
        percent: whether the values are shares, written as percent.
        width: of the drawing, in px; it scales with the page.

    Returns:
        A ``<figure>`` element.
    """
    height = 230
    epochs = max(len(curve.values) for curve in curves)
    axes = _Axes([v for c in curves for v in c.values if v is not None], epochs, width, height, percent)
    lines = "".join(_line(curve, axes) for curve in curves)
    data = {
        "epochs": epochs,
        "percent": percent,
        "box": [axes.left, axes.right, axes.top, axes.bottom],
        "range": [axes.low, axes.high],
        "curves": [{"name": c.name, "values": list(c.values), "colour": c.colour} for c in curves],
    }
    # One curve is named by the title.
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 22 8" width="22" height="8" aria-hidden="true">'
        f'<path class="{_classes(c)}" d="M1 4H21"/></svg>{escape(c.name)}</li>'
        for c in curves
    )
    legend = f'<ul class="legend">{items}</ul>' if len(curves) > 1 else ""
    spoken = f"{title}, {epochs} epochs: " + "; ".join(_spoken(c, percent) for c in curves)
    return (
        f'<figure class="curves"><figcaption>{escape(title)}</figcaption>'
        f'<svg class="plot" viewBox="0 0 {width} {height}" tabindex="0" role="img" aria-label="{escape(spoken)}" '
        f'data-curves="{escape(json.dumps(data, separators=(",", ":")), quote=True)}">{axes.grid()}{lines}'
        f'<line class="cursor" y1="{axes.top}" y2="{axes.bottom}" visibility="hidden"/></svg>'
        f"{legend}</figure>"
    )


class _Axes:
    """Scales and grid: epochs to the right, from 0 (or the least value) upwards."""

    def __init__(self, values: Sequence[float], epochs: int, width: int, height: int, percent: bool) -> None:
        self.left, self.right, self.top, self.bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
        self.epochs, self.percent = epochs, percent
        self.low, self.high = min(0.0, *values), max(values) * 1.04
        if self.high <= self.low:
            self.high = self.low + 1.0

    def x(self, epoch: int) -> float:
        return self.left + (epoch - 1) / max(self.epochs - 1, 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)

    def grid(self) -> str:
        parts = []
        for tick in _ticks(self.low, self.high, 5):
            y = self.y(tick)
            label = f"{100 * tick:g}" if self.percent else f"{tick:g}"
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
            )
        for epoch in _epoch_ticks(self.epochs):
            parts.append(f'<text x="{self.x(epoch):.1f}" y="{self.bottom + 16}" text-anchor="middle">{epoch}</text>')
        return "".join(parts)


def _line(curve: Curve, axes: _Axes) -> str:
    commands, pen = [], "M"
    for epoch, value in enumerate(curve.values, start=1):
        if value is None:
            pen = "M"
            continue
        commands.append(f"{pen}{axes.x(epoch):.1f} {axes.y(value):.1f}")
        pen = "L"
    # A lone epoch has no line: a short dash stands for it, inwards from the last one.
    single = "" if len(commands) != 1 else "h-4" if curve.values[-1] is not None else "h4"
    return f'<path class="{_classes(curve)}" d="{"".join(commands)}{single}"/>'


def _classes(curve: Curve) -> str:
    return f"line {curve.colour}{' dashed' if curve.dashed else ''}"


def _spoken(curve: Curve, percent: bool) -> str:
    values = [v for v in curve.values if v is not None]
    if not values:
        return f"{curve.name} has no values"
    first, last = (f"{100 * v:.1f} %" if percent else f"{v:.4g}" for v in (values[0], values[-1]))
    return f"{curve.name} from {first} to {last}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round values from low to high, about as many as asked."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= rough * 0.999)
    count = math.floor((high - low) / step + 1e-9)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(count + 1) if (first + i) * step <= high]


def _epoch_ticks(epochs: int) -> list[int]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, epochs) if epochs / s <= 8 or s >= epochs)
    return [1, *(e for e in range(step, epochs + 1, step) if e > 1 and e - 1 >= step / 2)]
