"""COCO's greedy matching of detections to labelled objects, and the checks before it.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context", and the rules of its evaluation,
https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

# Made as pycocotools makes them, to the last bit: an overlap of exactly 0.55 must fall on the same side.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100  # per image and class


class _Labelled(Protocol):
    @property
    def boxes_xyxy(self) -> NDArray[Any]: ...

    @property
    def class_ids(self) -> NDArray[Any]: ...


class DetectionsLike(Protocol):
    """Anything with the three arrays of detections of one image, `deploy.runtime.Detections` among them."""

    @property
    def boxes_xyxy(self) -> NDArray[Any]:
        """(n, 4) left, top, right, bottom in pixels."""

    @property
    def scores(self) -> NDArray[Any]:
        """(n,) in 0..1."""

    @property
    def class_ids(self) -> NDArray[Any]:
        """(n,) integers."""


@dataclass(frozen=True)
class ImageTruth:
    """Labelled objects of one image.

    Attributes:
        boxes_xyxy: (m, 4) left, top, right, bottom in pixels of the source image.
        class_ids: (m,) integers.
    """

    boxes_xyxy: NDArray[Any]
    class_ids: NDArray[Any]


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image, in any order.

    Attributes:
        boxes_xyxy: (n, 4) left, top, right, bottom in pixels of the source image.
        scores: (n,) in 0..1.
        class_ids: (n,) integers.
    """

    boxes_xyxy: NDArray[Any]
    scores: NDArray[Any]
    class_ids: NDArray[Any]


@dataclass(frozen=True)
class ClassMatches:
    """Outcome of matching for one class over all images.

    Attributes:
        images: (n,) image index of each detection, best score first.
        correct: (thresholds, n) whether the detection matched an object.
        truth_images: (m,) image index of each labelled object.
    """

    images: NDArray[np.int64]
    correct: NDArray[np.bool_]
    truth_images: NDArray[np.int64]


def match_classes(
    detections: Sequence[DetectionsLike], truths: Sequence[ImageTruth], class_count: int
) -> list[ClassMatches]:
    """Match every class of every image at `IOU_THRESHOLDS`.

    Args:
        detections: one entry per image.
        truths: one entry per image, same order.
        class_count: class ids lie in 0..class_count - 1.

    Returns:
        One entry per class.

    Raises:
        BenchError: the two lists differ in length, hold no labelled object at all, or an array is malformed, not
            finite, or has a class id out of range.
    """
    if len(detections) != len(truths):
        raise BenchError(
            f"there are detections for {len(detections)} images and truth for {len(truths)}: give one entry per image"
        )
    found = _rows(detections, "detections", class_count, [entry.scores for entry in detections])
    known = _rows(truths, "truth", class_count, None)
    if not len(known.images):
        raise BenchError(f"no labelled object in {len(truths)} images, mAP is undefined: check the labels of the data")
    by_class = np.lexsort((-found.scores, found.class_ids))  # stable: equal scores stay in image order
    starts = np.searchsorted(found.class_ids[by_class], np.arange(class_count + 1))
    return [
        _match_class(found, by_class[starts[k] : starts[k + 1]], known, np.flatnonzero(known.class_ids == k))
        for k in range(class_count)
    ]


def true_positives(detections: DetectionsLike, truth: ImageTruth, iou: float = 0.5) -> NDArray[np.bool_]:
    """Which detections of one image find an object of their class, each object once, by the same matching.

    Args:
        detections: of the image.
        truth: of the image.
        iou: the least overlap that counts, 0..1.

    Returns:
        (n,) bool, in the order of `detections`.
    """
    found = np.zeros(len(detections.scores), np.bool_)
    best_first = np.argsort(-np.asarray(detections.scores, np.float64), kind="stable")
    for class_id in np.intersect1d(detections.class_ids, truth.class_ids):
        chosen = best_first[detections.class_ids[best_first] == class_id]
        ious = pairwise_iou(
            _boxes(detections.boxes_xyxy[chosen]), _boxes(truth.boxes_xyxy[truth.class_ids == class_id])
        )
        found[chosen] = _match_greedily(ious, np.array([iou]))[0]
    return found


@dataclass(frozen=True)
class _Rows:
    """Boxes of all images in one table, in image order."""

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def _match_class(
    found: _Rows, best_first: NDArray[np.int64], known: _Rows, truth_rows: NDArray[np.int64]
) -> ClassMatches:
    truth_images = known.images[truth_rows]
    if not len(truth_rows):
        return ClassMatches(np.zeros(0, np.int64), np.zeros((len(IOU_THRESHOLDS), 0), np.bool_), truth_images)
    by_image = np.argsort(found.images[best_first], kind="stable")
    images = found.images[best_first][by_image]
    rank = np.arange(len(images)) - np.searchsorted(images, images)
    kept = np.zeros(len(images), np.bool_)
    kept[by_image] = rank < MAX_DETECTIONS
    correct = np.zeros((len(IOU_THRESHOLDS), len(images)), np.bool_)
    for image in np.unique(truth_images):
        first, last = np.searchsorted(images, [image, image + 1])
        group = by_image[first : min(last, first + MAX_DETECTIONS)]
        truth_boxes = known.boxes[truth_rows[truth_images == image]]
        correct[:, group] = _match_greedily(pairwise_iou(found.boxes[best_first[group]], truth_boxes), IOU_THRESHOLDS)
    return ClassMatches(found.images[best_first][kept], correct[:, kept], truth_images)


def _match_greedily(ious: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Give each detection, best score first, the free object it overlaps most.

    Args:
        ious: (n, m) detections by objects, detections best first.
        thresholds: (t,) least overlaps that count.

    Returns:
        (t, n) whether the detection got an object.
    """
    # pycocotools caps the threshold so that an IoU of 1 minus rounding still passes a threshold of 1.
    needed = np.minimum(thresholds, 1 - 1e-10)
    correct = np.zeros((len(thresholds), len(ious)), np.bool_)
    taken = np.zeros((len(thresholds), ious.shape[1]), np.bool_)
    rows = np.arange(len(thresholds))
    for index in np.flatnonzero((ious >= needed.min()).any(axis=1)):
        free = np.where(taken, -1.0, ious[index])
        chosen = free.shape[1] - 1 - free[:, ::-1].argmax(axis=1)  # of equal overlaps the last, as pycocotools does
        hit = free[rows, chosen] >= needed
        taken[rows[hit], chosen[hit]] = True
        correct[:, index] = hit
    return correct


def pairwise_iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4); boxes without area overlap nothing."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner
    shared = np.where((sides > 0).all(axis=2), sides[:, :, 0] * sides[:, :, 1], 0.0)
    area_first: NDArray[np.float64] = (first[:, 2:] - first[:, :2]).prod(axis=1)
    area_second: NDArray[np.float64] = (second[:, 2:] - second[:, :2]).prod(axis=1)
    together = area_first[:, None] + area_second[None, :] - shared
    return np.asarray(np.divide(shared, together, out=np.zeros_like(shared), where=shared > 0))


def _rows(
    entries: Sequence[_Labelled], what: str, class_count: int, scores: Sequence[NDArray[Any]] | None = None
) -> _Rows:
    """Put every image's arrays into one table, refusing what cannot be scored."""
    for number, entry in enumerate(entries):
        count = np.size(entry.class_ids)
        boxes = np.shape(entry.boxes_xyxy)
        if boxes != (count, 4) and not (count == 0 and np.size(entry.boxes_xyxy) == 0):
            raise BenchError(f"{what} of image {number}: {count} class ids and boxes of shape {boxes}, expected (n, 4)")
        if scores is not None and np.shape(scores[number]) != (count,):
            raise BenchError(
                f"{what} of image {number}: {count} class ids and scores of shape {np.shape(scores[number])}, "
                "expected as many scores as boxes"
            )
    images = np.repeat(np.arange(len(entries)), [np.size(entry.class_ids) for entry in entries])
    table = _Rows(
        images,
        np.concatenate([np.zeros((0, 4)), *(_boxes(entry.boxes_xyxy) for entry in entries)]),
        np.concatenate([np.zeros(0, np.int64), *(np.asarray(entry.class_ids, np.int64) for entry in entries)]),
        np.zeros(len(images))
        if scores is None
        else np.concatenate([np.zeros(0), *(np.asarray(values, np.float64) for values in scores)]),
    )
    _check_values(table, what, class_count)
    return table


def _check_values(table: _Rows, what: str, class_count: int) -> None:
    bad = np.flatnonzero(~(np.isfinite(table.boxes).all(axis=1) & np.isfinite(table.scores)))
    if len(bad):
        row = bad[0]
        raise BenchError(
            f"{what} of image {table.images[row]} are not finite (box {table.boxes[row].tolist()}, "
            f"score {table.scores[row]}), expected numbers: the model or its decoding is broken, verify the bundle"
        )
    outside = np.flatnonzero((table.class_ids < 0) | (table.class_ids >= class_count))
    if len(outside):
        row = outside[0]
        raise BenchError(
            f"{what} of image {table.images[row]} have class {table.class_ids[row]}, expected 0..{class_count - 1}: "
            "the bundle and the data set name different classes"
        )


def _boxes(boxes: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(boxes, np.float64).reshape(-1, 4)
