"""COCO detection metrics in numpy, what chance alone does to a difference of two of them, and top-1 and top-5.

The definition is that of the COCO evaluation (Lin et al. 2014, "Microsoft COCO: Common Objects in Context";
https://cocodataset.org/#detection-eval): greedy matching in order of score, IoU thresholds 0.50:0.05:0.95, precision
interpolated at 101 recalls, boxes of all areas, at most 100 detections per image and class, classes without truth left
out of the mean. YOLO labels know no crowd regions, so there are none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.matching import IOU_THRESHOLDS, ClassMatches, DetectionsLike, ImageDetections, ImageTruth, match_classes

__all__ = [
    "DetectionsLike",
    "ImageDetections",
    "ImageTruth",
    "PairedDifference",
    "Scores",
    "TopScores",
    "paired_bootstrap",
    "score",
    "top_scores",
]

# Made as pycocotools makes it, to the last bit: a recall of 57/100 must fall on the same side of 0.57.
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)

# Weighted counts held at a time while resampling, so that memory stays near 100 MB whatever the data set.
_RESAMPLE_BLOCK = 4_000_000


@dataclass(frozen=True)
class Scores:
    """COCO metrics of a set of images, all in 0..1.

    Attributes:
        map50_95: mean AP over IoU 0.50:0.05:0.95 and over the classes that have truth.
        map50: mean AP at IoU 0.50 over the classes that have truth.
        per_class_ap: (class_count,) AP50-95 per class, nan where there is no truth.
        per_class_ap50: (class_count,) AP50 per class, nan where there is no truth.
        images: how many images were scored.
        truths: how many labelled objects they hold.
    """

    map50_95: float
    map50: float
    per_class_ap: NDArray[np.float64]
    per_class_ap50: NDArray[np.float64]
    images: int
    truths: int


@dataclass(frozen=True)
class PairedDifference:
    """A difference in mAP50-95 (0..1) and its 95 % interval over resampled images.

    Attributes:
        difference: first minus second, on the images as they are.
        low: 2.5th percentile over the resamples.
        high: 97.5th percentile over the resamples.
        samples: how many resamples.
    """

    difference: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class TopScores:
    """Accuracy of a classifier, all in 0..1.

    Attributes:
        top1: part of the images whose class is the likeliest one.
        top5: part of the images whose class is among the five likeliest.
        per_class_top1: (class_count,) the same as `top1` per true class, nan where there is no image of it.
        images: how many images were scored.
    """

    top1: float
    top5: float
    per_class_top1: NDArray[np.float64]
    images: int


def top_scores(ranked: Sequence[NDArray[np.int64]], truths: NDArray[np.int64], class_count: int) -> TopScores:
    """Top-1 and top-5 of classifications against truth.

    Args:
        ranked: per image the class ids, likeliest first; five of them are enough, none is wrong.
        truths: (n,) the class id of each image.
        class_count: class ids lie in 0..class_count - 1.

    Raises:
        BenchError: the two differ in length, there is no image, or a true class id is out of range.
    """
    if len(ranked) != len(truths) or not len(truths):
        raise BenchError(f"{len(ranked)} classifications for {len(truths)} images: give one entry per image")
    if truths.min() < 0 or truths.max() >= class_count:
        raise BenchError(f"true classes are {truths.min()}..{truths.max()}, expected 0..{class_count - 1}")
    first = np.array([ids[:1].tolist() == [truth] for ids, truth in zip(ranked, truths.tolist(), strict=True)])
    among = np.array([truth in ids[:5].tolist() for ids, truth in zip(ranked, truths.tolist(), strict=True)])
    images = np.bincount(truths, minlength=class_count)
    right = np.bincount(truths[first], minlength=class_count)
    per_class = np.where(images > 0, right / np.maximum(images, 1), np.nan)
    return TopScores(float(first.mean()), float(among.mean()), per_class, len(truths))


def score(detections: Sequence[DetectionsLike], truths: Sequence[ImageTruth], class_count: int) -> Scores:
    """COCO mAP of detections against truth.

    Args:
        detections: one entry per image, made at a low score threshold (0.001 is usual) so that the whole
            precision-recall curve is there.
        truths: one entry per image, same order.
        class_count: class ids lie in 0..class_count - 1.

    Raises:
        BenchError: the two lists differ in length, hold no labelled object at all, or an array is malformed, not
            finite, or has a class id out of range.
    """
    matches = match_classes(detections, truths, class_count)
    ap = _average_precision(matches, np.ones((1, len(truths))))[0]
    per_class = ap.mean(axis=1)
    return Scores(
        map50_95=float(np.nanmean(per_class)),
        map50=float(np.nanmean(ap[:, 0])),
        per_class_ap=per_class,
        per_class_ap50=ap[:, 0].copy(),
        images=len(truths),
        truths=sum(len(truth.class_ids) for truth in truths),
    )


def paired_bootstrap(
    detections_a: Sequence[DetectionsLike],
    detections_b: Sequence[DetectionsLike],
    truths: Sequence[ImageTruth],
    class_count: int,
    samples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """How far the difference in mAP50-95 of two detectors could be an accident of the images chosen.

    Images are drawn with replacement, the same ones for both detectors, and both are scored on each draw; the
    interval is the percentile interval of Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    Matching does not depend on which other images are drawn, so it is done once and an image drawn k times counts
    k times.

    Args:
        detections_a: one entry per image, of the first detector.
        detections_b: one entry per image, of the second detector.
        truths: one entry per image, same order.
        class_count: class ids lie in 0..class_count - 1.
        samples: resamples, at least 1.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The difference a - b.

    Raises:
        BenchError: as `score`, or `samples` below 1.
    """
    if samples < 1:
        raise BenchError(f"a bootstrap of {samples} samples was asked for, expected at least 1 (1000 is usual)")
    matches_a = match_classes(detections_a, truths, class_count)
    matches_b = match_classes(detections_b, truths, class_count)
    whole = np.ones((1, len(truths)))
    draws = np.random.default_rng(seed).multinomial(len(truths), [1 / len(truths)] * len(truths), size=samples)
    differences = _map50_95(matches_a, draws) - _map50_95(matches_b, draws)
    # A draw without a single labelled object has no mAP; with real data it does not happen.
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    difference = _map50_95(matches_a, whole) - _map50_95(matches_b, whole)
    return PairedDifference(float(difference[0]), float(low), float(high), samples)


def _map50_95(matches: Sequence[ClassMatches], image_counts: NDArray[Any]) -> NDArray[np.float64]:
    """mAP50-95 (r,) for each row of image counts (r, images); nan where no drawn image has truth."""
    per_class = _average_precision(matches, image_counts).mean(axis=2)
    known = np.isfinite(per_class)
    total = np.where(known, per_class, 0.0).sum(axis=1)
    means = np.full(len(total), np.nan)
    np.divide(total, known.sum(axis=1), out=means, where=known.any(axis=1))
    return means


def _average_precision(matches: Sequence[ClassMatches], image_counts: NDArray[Any]) -> NDArray[np.float64]:
    """AP (r, classes, thresholds) where image i counts `image_counts[r, i]` times; nan for a class without truth."""
    ap = np.full((len(image_counts), len(matches), len(IOU_THRESHOLDS)), np.nan)
    for class_id, found in enumerate(matches):
        if not len(found.truth_images):
            continue
        block = max(1, _RESAMPLE_BLOCK // max(1, len(found.images)))
        for first in range(0, len(image_counts), block):
            counts = image_counts[first : first + block]
            truths = counts[:, found.truth_images].sum(axis=1, dtype=np.float64)
            detected = np.cumsum(counts[:, found.images], axis=1, dtype=np.float64)
            for index, correct in enumerate(found.correct):
                hits = np.flatnonzero(correct)
                correct_so_far = np.cumsum(counts[:, found.images[hits]], axis=1, dtype=np.float64)
                ap[first : first + block, class_id, index] = _interpolated_ap(correct_so_far, detected[:, hits], truths)
    return ap


def _interpolated_ap(
    correct: NDArray[np.float64], detected: NDArray[np.float64], truths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean precision at the 101 recalls, from the points of the curve where recall rises.

    Precision at a recall is the best precision at that recall or beyond, which is always reached at a correct
    detection, so the false ones between them need no points of their own.

    Args:
        correct: (r, h) correct detections up to and including each correct one, in order of score.
        detected: (r, h) all detections up to and including the same.
        truths: (r,) labelled objects.

    Returns:
        (r,) nan where there is no labelled object.
    """
    if correct.shape[1] == 0:
        return np.where(truths > 0, 0.0, np.nan)
    precision = np.divide(correct, detected, out=np.zeros_like(correct), where=detected > 0)
    best_beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = correct / np.where(truths > 0, truths, np.nan)[:, None]
    reached = np.searchsorted(RECALL_THRESHOLDS, recall, side="right")  # recalls served up to this point
    served = np.diff(reached, axis=1, prepend=0)
    return np.where(truths > 0, (served * best_beyond).sum(axis=1) / len(RECALL_THRESHOLDS), np.nan)
