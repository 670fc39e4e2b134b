"""Whether accuracy was lost: the recorded figures, and what the choice of images alone could do to their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.accuracy import paired_bootstrap
from bench.compare_figures import IMPROVED, REGRESSED, WITHIN, Change
from bench.detections_file import DetectionsFile, read_detections
from bench.errors import BenchError
from bench.records import DETECTIONS_NAME, Result
from bench.rows import Row

# Attribute of a result's accuracy to its title: the first that is there is judged.
_FIGURES = {"map50_95": "mAP50-95", "top1": "top-1"}
_POINTS = 100.0
_RESAMPLES = 1000


def accuracy_change(baseline: Sequence[Row], candidate: Sequence[Row], limit_points: float) -> Change | None:
    """Compare the accuracy of two sides that were scored on the same images.

    The same bundle on the same images detects the same, however noisy the machine, so the recorded figures are judged
    as they stand: a loss beyond the limit is a regression. Where both sides left their detections, the paired bootstrap
    over the images tells besides how far the difference could be an accident of these images.

    Args:
        baseline: at least one run.
        candidate: at least one run.
        limit_points: loss tolerated, in points of 0..100.

    Returns:
        None where a side has no accuracy.

    Raises:
        BenchError: detections beside a result are not those it was scored by, or cannot be read.
    """
    name = next(
        (name for name in _FIGURES if all(_value(row, name) is not None for row in (*baseline, *candidate))), ""
    )
    if not name:
        return None
    first, second = (float(np.mean([_value(row, name) for row in rows])) for rows in (baseline, candidate))
    points = _POINTS * (second - first)
    low, high = _interval(baseline[-1], candidate[-1]) if name == "map50_95" else (None, None)
    verdict = REGRESSED if -points > limit_points else IMPROVED if points > limit_points else WITHIN
    return Change(
        _FIGURES[name], "%", _POINTS * first, _POINTS * second, points, low, high, verdict, limit_points,
        detectable=limit_points,
    )  # fmt: skip


def _value(row: Row, name: str) -> float | None:
    return getattr(row.result.accuracy, name, None)


def _interval(baseline: Row, candidate: Row) -> tuple[float | None, float | None]:
    """Points of candidate minus baseline, 2.5th to 97.5th percentile over resampled images."""
    files = [_detections(row) for row in (baseline, candidate)]
    first, second = files
    if first is None or second is None or first.truths is None or not _same_truth(first, second):
        return None, None
    classes = max(len(first.class_names), len(second.class_names))
    found = paired_bootstrap(second.detections, first.detections, first.truths, classes, _RESAMPLES)
    recorded = _recorded(candidate.result) - _recorded(baseline.result)
    if abs(found.difference - recorded) > 1e-6:
        raise BenchError(
            f"{candidate.folder} and {baseline.folder}: the recorded mAP50-95 differs by {recorded:+.6f}, that of "
            f"their {DETECTIONS_NAME} by {found.difference:+.6f}: one belongs to another run, run the bench again"
        )
    return _POINTS * found.low, _POINTS * found.high


def _recorded(result: Result) -> float:
    return float(getattr(result.accuracy, "map50_95", 0.0))


def _detections(row: Row) -> DetectionsFile | None:
    file: Path = row.folder / DETECTIONS_NAME
    return read_detections(file) if file.is_file() else None


def _same_truth(first: DetectionsFile, second: DetectionsFile) -> bool:
    if first.truths is None or second.truths is None or len(first.truths) != len(second.truths):
        return False
    return all(
        np.array_equal(a.class_ids, b.class_ids) and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        for a, b in zip(first.truths, second.truths, strict=True)
    )
