"""Plots: every point and every sample is drawn, where it belongs."""

from __future__ import annotations

import re

import pytest

from bench.plots import Point, accuracy_plot, histogram, order_plot, pareto_front


def _point(latency_ms: float, accuracy: float, device: str = "local") -> Point:
    return Point(latency_ms, accuracy, f"{latency_ms} {accuracy} {device}", "onnx", "fp32", device, ())


def test_the_pareto_front_holds_what_no_other_bundle_beats_in_both() -> None:
    points = [_point(5, 30), _point(9, 41), _point(3, 20), _point(6, 29), _point(9, 40), _point(12, 41)]
    assert pareto_front(points) == [points[2], points[0], points[1]]


@pytest.mark.parametrize("width", [380, 1120])
@pytest.mark.parametrize("slowest", [12.0, 900.0])
def test_points_lie_within_the_plot_faster_to_the_left_and_better_above(width: int, slowest: float) -> None:
    points = [_point(4, 20), _point(7, 30.5), _point(slowest, 40)]
    drawn = accuracy_plot(points, width, 340)
    dots = [(float(x), float(y)) for x, y in re.findall(r'class="dot" cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert dots == sorted(dots)
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)
    assert all(0 < x < width and 0 < y < 340 for x, y in dots)
    assert ("logarithmic" in drawn) == (slowest == 900.0)
    assert drawn.count('class="front"') == 1


def test_one_point_alone_and_points_on_top_of_each_other_can_be_drawn() -> None:
    assert accuracy_plot([_point(4, 0.0)], 380, 340).count('class="dot"') == 1
    same = [_point(4, 20), _point(4, 20, "other")]
    assert accuracy_plot(same, 380, 340).count('class="dot"') == 2


def test_no_latency_sample_is_left_out_of_the_histogram() -> None:
    samples = [10.0] * 60 + [11.0] * 30 + [12.0] * 9 + [95.0]
    drawn = histogram(samples)
    heights = {name: [float(size) for size in re.findall(rf'class="{name}".*?height="([\d.]+)"', drawn)]
               for name in ("bar", "beyond")}  # fmt: skip
    assert len(heights["bar"]) == 3
    assert heights["bar"][0] / heights["bar"][1] == pytest.approx(2.0, rel=0.02)
    assert len(heights["beyond"]) == 1  # the slow one has a bar of its own, however few it is
    assert "1 slower, up to 95.00 ms" in drawn
    assert "beyond" not in histogram([10.0, 11.0, 12.0])
    assert histogram([5.0]).count("<rect") == 1


def test_the_plot_of_samples_in_order_shows_when_the_slow_one_came() -> None:
    samples = [10.0] * 500
    samples[400] = 30.0
    drawn = order_plot(samples, width=260, columns=125)
    heights = [float(size) for size in re.findall(r'height="([\d.]+)"/>', drawn)]
    assert len(heights) == 125
    assert heights.index(max(heights)) == 100
    assert sum(height > 2 for height in heights) == 1
