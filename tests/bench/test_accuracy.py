"""mAP against pycocotools, the reference, and the bootstrap against resampling done the long way."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench.accuracy import ImageDetections, ImageTruth, paired_bootstrap, score
from bench.errors import BenchError
from bench.matching import true_positives

TOLERANCE = 1e-6


def _reference(
    detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], class_count: int
) -> tuple[float, float, np.ndarray]:
    """mAP50-95, mAP50 and AP per class by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box: Sequence[float]) -> list[float]:
        left, top, right, bottom = (float(value) for value in box)
        return [left, top, right - left, bottom - top]

    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, (detected, truth) in enumerate(zip(detections, truths, strict=True)):
        for box, class_id in zip(truth.boxes_xyxy, truth.class_ids, strict=True):
            area = xywh(box)[2] * xywh(box)[3]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(class_id), "bbox": xywh(box)}
                | {"area": area, "iscrowd": 0}
            )
        for box, value, class_id in zip(detected.boxes_xyxy, detected.scores, detected.class_ids, strict=True):
            found.append({"image_id": image, "category_id": int(class_id), "bbox": xywh(box), "score": float(value)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": class_id, "name": str(class_id)} for class_id in range(class_count)],
            "annotations": annotations,
        }
        coco.createIndex()
        results = COCO()
        results.dataset = {key: coco.dataset[key] for key in ("images", "categories")}
        results.dataset["annotations"] = [
            entry | {"id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            for number, entry in enumerate(found, start=1)
        ]
        results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes; area all, 100 detections
    per_class = np.array(
        [np.nan if (values := precision[:, :, k]).max() < 0 else values.mean() for k in range(class_count)]
    )
    return float(evaluation.stats[0]), float(evaluation.stats[1]), per_class


def _assert_agrees(
    detections: Sequence[ImageDetections], truths: Sequence[ImageTruth], class_count: int
) -> tuple[float, float]:
    ours = score(detections, truths, class_count)
    map50_95, map50, per_class = _reference(detections, truths, class_count)
    assert ours.map50_95 == pytest.approx(map50_95, abs=TOLERANCE)
    assert ours.map50 == pytest.approx(map50, abs=TOLERANCE)
    np.testing.assert_allclose(ours.per_class_ap, per_class, atol=TOLERANCE)
    return map50_95, map50


def _detections(rows: Sequence[tuple[Sequence[float], float, int]]) -> ImageDetections:
    return ImageDetections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )


def _truth(rows: Sequence[tuple[Sequence[float], int]]) -> ImageTruth:
    return ImageTruth(
        np.array([row[0] for row in rows], np.float64).reshape(-1, 4), np.array([row[1] for row in rows], np.int64)
    )


def _jittered(
    truths: Sequence[ImageTruth], class_count: int, seed: int, spread: float = 0.12, clutter: int = 20
) -> list[ImageDetections]:
    """Detections as a mediocre detector makes them: shifted, missed, doubled, of the wrong class, and clutter."""
    draw = np.random.default_rng(seed)
    found = []
    for truth in truths:
        kept = draw.random(len(truth.class_ids)) < 0.85
        boxes, class_ids = truth.boxes_xyxy[kept], truth.class_ids[kept]
        doubled = draw.random(len(boxes)) < 0.3
        boxes, class_ids = np.concatenate([boxes, boxes[doubled]]), np.concatenate([class_ids, class_ids[doubled]])
        size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        boxes = boxes + draw.normal(0, spread, boxes.shape) * size
        wrong = draw.random(len(boxes)) < 0.1
        class_ids = np.where(wrong, draw.integers(0, class_count, len(boxes)), class_ids)
        corner = draw.uniform(0, 400, (clutter, 2))
        boxes = np.concatenate([boxes, np.concatenate([corner, corner + draw.uniform(5, 200, (clutter, 2))], axis=1)])
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
        class_ids = np.concatenate([class_ids, draw.integers(0, class_count, clutter)])
        values = np.concatenate([draw.beta(4, 2, len(boxes) - clutter), draw.beta(1, 8, clutter)])
        found.append(ImageDetections(boxes.astype(np.float32), np.round(values, 2).astype(np.float32), class_ids))
    return found


@pytest.fixture(scope="module")
def coco_truths(coco_mini: Path) -> tuple[list[ImageTruth], int]:
    from deploy.dataset import load_dataset

    data = load_dataset(coco_mini / "coco-mini.yaml", "val")
    truths = []
    for image in data.images:
        with Image.open(image.path) as opened:
            truths.append(ImageTruth(image.boxes_xyxy(*opened.size), image.class_ids))
    return truths, len(data.class_names)


@pytest.mark.parametrize("seed", range(3))
def test_map_agrees_with_pycocotools_on_real_coco_labels(coco_truths: tuple[list[ImageTruth], int], seed: int) -> None:
    truths, class_count = coco_truths
    map50_95, map50 = _assert_agrees(_jittered(truths, class_count, seed), truths, class_count)
    assert 0.1 < map50_95 < map50 < 0.95  # the case is neither trivial nor hopeless


_CORNERS = st.integers(0, 8)
_SIDES = st.integers(0, 6)
_BOXES = st.tuples(_CORNERS, _CORNERS, _SIDES, _SIDES).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
_CLASSES = st.integers(0, 2)
# Few distinct scores and a coarse grid: equal scores, equal overlaps and duplicate boxes in most examples.
_FOUND = st.lists(st.tuples(_BOXES, st.sampled_from([0.1, 0.5, 0.5000001, 0.9]), _CLASSES), max_size=12)
_KNOWN = st.lists(st.tuples(_BOXES, _CLASSES), max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(_FOUND, _KNOWN), min_size=1, max_size=5).filter(lambda images: any(k for _, k in images)))
def test_map_agrees_with_pycocotools_on_any_boxes(images: list[tuple[list[Any], list[Any]]]) -> None:
    _assert_agrees([_detections(found) for found, _ in images], [_truth(known) for _, known in images], 4)


@pytest.mark.parametrize("seed", range(3))
def test_map_agrees_with_pycocotools_beyond_100_detections_of_one_class_in_an_image(seed: int) -> None:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 500, (2, 160, 2))
    truths = [ImageTruth(np.concatenate([c, c + 30], axis=1), draw.integers(0, 2, 160)) for c in corner]
    detections = []
    for truth in truths:  # every object twice, the better half of the scores spread over both
        boxes = np.concatenate([truth.boxes_xyxy + draw.normal(0, 1.5, (160, 4)), truth.boxes_xyxy])
        values = np.round(draw.random(320), 1)
        detections.append(ImageDetections(boxes.astype(np.float32), values, np.tile(truth.class_ids, 2)))
    assert max(np.bincount(truth.class_ids).max() * 2 for truth in truths) > 100
    _assert_agrees(detections, truths, 2)


def test_classes_without_truth_and_images_without_anything_agree_with_pycocotools() -> None:
    nothing, no_truth = _detections([]), _truth([])
    truths = [_truth([((0, 0, 10, 10), 1)]), no_truth, no_truth, _truth([((5, 5, 25, 25), 3)])]
    detections = [
        _detections([((0, 0, 10, 9), 0.8, 1), ((0, 0, 9, 9), 0.9, 0)]),
        _detections([((1, 1, 4, 4), 0.95, 1)]),
    ]
    detections += [nothing, nothing]
    _assert_agrees(detections, truths, 5)
    result = score(detections, truths, 5)
    assert np.isnan(result.per_class_ap).tolist() == [True, False, True, False, True]
    assert result.per_class_ap[3] == 0.0
    assert (result.images, result.truths) == (4, 2)


@pytest.mark.parametrize("second", [(0, 0, 10, 10), (4, 0, 14, 10)])
def test_a_detection_between_two_objects_takes_the_one_that_pycocotools_gives_it(second: tuple[int, ...]) -> None:
    truths = [_truth([((0, 0, 10, 10), 0), ((4, 0, 14, 10), 0)])]
    # The first overlaps both objects by 2/3; what it takes decides whether the second finds its own.
    _assert_agrees([_detections([((2, 0, 12, 10), 0.9, 0), (second, 0.8, 0)])], truths, 1)


def test_the_truth_itself_scores_exactly_one_and_nothing_scores_zero() -> None:
    truths = [_truth([((0, 0, 10, 10), 0), ((20, 20, 30, 40), 1)]), _truth([((3, 3, 9, 9), 0)])]
    perfect = [ImageDetections(t.boxes_xyxy, np.full(len(t.class_ids), 0.5), t.class_ids) for t in truths]
    assert score(perfect, truths, 2).map50_95 == 1.0
    empty = [_detections([])] * 2
    assert (score(empty, truths, 2).map50_95, score(empty, truths, 2).map50) == (0.0, 0.0)


def test_average_precision_of_a_curve_worked_out_by_hand() -> None:
    # Two objects; in order of score: hit, miss, hit. Precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3.
    truths = [_truth([((0, 0, 10, 10), 0), ((50, 50, 60, 60), 0)])]
    rows = [((0, 0, 10, 10), 0.9, 0), ((20, 20, 30, 30), 0.8, 0), ((50, 50, 60, 60), 0.7, 0)]
    assert score([_detections(rows)], truths, 1).map50_95 == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_the_order_of_detections_within_an_image_does_not_matter_when_scores_differ() -> None:
    draw = np.random.default_rng(0)
    truths = [_truth([((i * 20, 0, i * 20 + 15, 15), i % 2) for i in range(6)])]
    rows = [((i * 20 + draw.integers(4), 0, i * 20 + 15, 15), 0.1 + 0.05 * i, i % 2) for i in range(6)]
    forward, backward = _detections(rows), _detections(rows[::-1])
    assert score([forward], truths, 2).map50_95 == score([backward], truths, 2).map50_95


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["box", "score"])
def test_a_value_that_is_not_finite_is_refused_with_its_image_named(bad: float, where: str) -> None:
    truths = [_truth([((0, 0, 10, 10), 0)])] * 2
    boxes, values = np.array([[0.0, 0, 10, 10]]), np.array([0.5])
    if where == "box":
        boxes[0, 2] = bad
    else:
        values[0] = bad
    broken = ImageDetections(boxes, values, np.array([0]))
    with pytest.raises(BenchError, match=r"image 1 are not finite.*expected numbers"):
        score([_detections([]), broken], truths, 1)


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    truth, found = _truth([((0, 0, 10, 10), 0)]), _detections([((0, 0, 10, 10), 0.5, 2)])
    with pytest.raises(BenchError, match=r"class 2, expected 0\.\.1"):
        score([found], [truth], 2)
    with pytest.raises(BenchError, match="detections for 1 images and truth for 2"):
        score([found], [truth, truth], 3)
    with pytest.raises(BenchError, match="no labelled object in 1 images"):
        score([found], [_truth([])], 3)
    short = ImageDetections(found.boxes_xyxy, np.zeros(0), found.class_ids)
    with pytest.raises(BenchError, match=r"scores of shape \(0,\)"):
        score([short], [truth], 3)
    with pytest.raises(BenchError, match=r"boxes of shape \(1, 3\)"):
        score([ImageDetections(np.zeros((1, 3)), np.zeros(1), np.zeros(1, int))], [truth], 3)
    with pytest.raises(BenchError, match="0 samples"):
        paired_bootstrap([found], [found], [truth], 3, samples=0)


def test_true_positives_are_those_that_find_an_object_of_their_class_each_object_once() -> None:
    truth = _truth([((0, 0, 10, 10), 0), ((20, 0, 30, 10), 1)])
    rows = [((0, 0, 10, 10), 0.6, 0), ((0, 0, 10, 9), 0.9, 0), ((20, 0, 30, 10), 0.8, 0), ((21, 0, 30, 10), 0.2, 1)]
    assert true_positives(_detections(rows), truth).tolist() == [False, True, False, True]


def test_bootstrap_equals_scoring_every_resampled_data_set_the_long_way() -> None:
    draw = np.random.default_rng(3)
    truths = []
    for _ in range(8):
        corner = draw.uniform(0, 200, (5, 2))
        truths.append(ImageTruth(np.concatenate([corner, corner + 40], axis=1), draw.integers(0, 3, 5)))
    # Distinct scores: among equal ones the order of repeated images is arbitrary in either way of counting.
    sharp, blurred = (
        [
            ImageDetections(d.boxes_xyxy, draw.random(len(d.scores)), d.class_ids)
            for d in _jittered(truths, 3, 1, spread)
        ]
        for spread in (0.04, 0.2)
    )
    result = paired_bootstrap(sharp, blurred, truths, 3, samples=40, seed=5)
    counts = np.random.default_rng(5).multinomial(8, [1 / 8] * 8, size=40)
    slow = []
    for row in counts:
        chosen = np.repeat(np.arange(8), row)
        both = [score([found[i] for i in chosen], [truths[i] for i in chosen], 3) for found in (sharp, blurred)]
        slow.append(both[0].map50_95 - both[1].map50_95)
    assert [result.low, result.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist(), abs=1e-12)
    assert result.difference == score(sharp, truths, 3).map50_95 - score(blurred, truths, 3).map50_95
    assert result.low < result.difference < result.high


def test_bootstrap_tells_a_real_difference_from_none(coco_truths: tuple[list[ImageTruth], int]) -> None:
    truths, class_count = coco_truths
    good, poor = (_jittered(truths, class_count, 1, spread) for spread in (0.05, 0.25))
    worse = paired_bootstrap(poor, good, truths, class_count)
    assert worse.samples == 1000
    assert worse.low < worse.difference < worse.high < -0.05
    same = paired_bootstrap(good, good, truths, class_count, samples=50)
    assert (same.low, same.difference, same.high) == (0.0, 0.0, 0.0)
    assert paired_bootstrap(poor, good, truths, class_count, samples=50, seed=1) == paired_bootstrap(
        poor, good, truths, class_count, samples=50, seed=1
    )
