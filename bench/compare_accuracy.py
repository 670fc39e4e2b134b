"""Whether accuracy was lost: the recorded figures, and what the choice of images alone could do to their difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.accuracy import ImageDetections, ImageTruth, PairedDifference, paired_bootstrap
from bench.classes_file import read_classes
from bench.compare_figures import IMPROVED, REGRESSED, WITHIN, Change
from bench.detections_file import DetectionsFile, read_detections
from bench.errors import BenchError
from bench.records import CLASSES_NAME, DETECTIONS_NAME
from bench.rows import Row

# Attribute of a result's accuracy to its title: the first that is there is judged.
_FIGURES = {"map50_95": "mAP50-95", "top1": "top-1"}
_POINTS = 100.0
_RESAMPLES = 1000


def accuracy_change(baseline: Sequence[Row], candidate: Sequence[Row], limit_points: float) -> Change | None:
    """Compare the accuracy of two sides that were scored on the same images.

    The same bundle on the same images detects the same, however noisy the machine, so the recorded figures are judged
    as they stand: a loss beyond the limit is a regression. Where both sides left what they found, the paired bootstrap
    over the images tells besides how far the difference could be an accident of these images.

    Args:
        baseline: at least one run.
        candidate: at least one run.
        limit_points: loss tolerated, in points of 0..100.

    Returns:
        None where a side has no accuracy.

    Raises:
        BenchError: what lies beside a result is not what it was scored by, or cannot be read.
    """
    name = next(
        (name for name in _FIGURES if all(_value(row, name) is not None for row in (*baseline, *candidate))), ""
    )
    if not name:
        return None
    first, second = (float(np.mean([_value(row, name) for row in rows])) for rows in (baseline, candidate))
    points = _POINTS * (second - first)
    low, high = _interval(baseline[-1], candidate[-1], name)
    verdict = REGRESSED if -points > limit_points else IMPROVED if points > limit_points else WITHIN
    return Change(
        _FIGURES[name], "%", _POINTS * first, _POINTS * second, points, low, high, verdict, limit_points,
        detectable=limit_points,
    )  # fmt: skip


def _value(row: Row, name: str) -> float | None:
    return getattr(row.result.accuracy, name, None)


def _interval(baseline: Row, candidate: Row, name: str) -> tuple[float | None, float | None]:
    """Points of candidate minus baseline, 2.5th to 97.5th percentile over resampled images."""
    found = _map_difference(baseline, candidate) if name == "map50_95" else _top1_difference(baseline, candidate)
    if found is None:
        return None, None
    before, after = _value(baseline, name), _value(candidate, name)
    assert before is not None
    assert after is not None
    if abs(found.difference - (after - before)) > 1e-6:
        raise BenchError(
            f"{candidate.folder} and {baseline.folder}: the recorded {_FIGURES[name]} differs by {after - before:+.6f}"
            f", what lies beside it by {found.difference:+.6f}: one belongs to another run, run the bench again"
        )
    return _POINTS * found.low, _POINTS * found.high


def _map_difference(baseline: Row, candidate: Row) -> PairedDifference | None:
    files = [row.folder / DETECTIONS_NAME for row in (baseline, candidate)]
    if not all(file.is_file() for file in files):
        return None
    first, second = map(read_detections, files)
    if first.truths is None or not _same_truth(first, second):
        return None
    classes = 1 + max(int(one.class_ids.max(initial=0)) for file in (first, second) for one in _labelled(file))
    return paired_bootstrap(second.detections, first.detections, first.truths, classes, _RESAMPLES)


def _labelled(file: DetectionsFile) -> list[ImageDetections | ImageTruth]:
    return [*file.detections, *(file.truths or ())]


def _top1_difference(baseline: Row, candidate: Row) -> PairedDifference | None:
    files = [row.folder / CLASSES_NAME for row in (baseline, candidate)]
    if not all(file.is_file() for file in files):
        return None
    first, second = map(read_classes, files)
    if not np.array_equal(first.truth, second.truth):
        return None
    right = [(file.class_ids[:, :1] == file.truth[:, None]).sum(axis=1) for file in (first, second)]
    gained = right[1] - right[0]
    # Images drawn with replacement: only how many gained, lost and stayed matters, and that is multinomial.
    shares = [float((gained == sign).mean()) for sign in (1, -1, 0)]
    drawn = np.random.default_rng(0).multinomial(len(gained), shares, size=_RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / len(gained), [2.5, 97.5])
    return PairedDifference(float(gained.mean()), float(low), float(high), _RESAMPLES)


def _same_truth(first: DetectionsFile, second: DetectionsFile) -> bool:
    if first.truths is None or second.truths is None or len(first.truths) != len(second.truths):
        return False
    return all(
        np.array_equal(a.class_ids, b.class_ids) and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        for a, b in zip(first.truths, second.truths, strict=True)
    )
