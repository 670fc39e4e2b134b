from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploy.runtime.nms
from deploy.runtime.nms import nms


def _random_boxes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], axis=1).astype(np.float32)
    scores = rng.integers(1, 40, count).astype(np.float32) / 40  # many ties
    return boxes, scores, rng.integers(0, 3, count)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1500), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]))
def test_the_same_boxes_survive_as_in_torchvision(count: int, seed: int, iou: float) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    boxes, scores, class_ids = _random_boxes(count, seed)
    kept = nms(boxes, scores, class_ids, iou, max_det=2000)
    expected = set()
    for class_id in range(3):
        members = np.flatnonzero(class_ids == class_id)
        # torchvision's sort is not stable on ties: break them by order, as documented here.
        ranked = members[np.argsort(-scores[members], kind="stable")]
        rank_scores = torch.arange(len(ranked), 0, -1, dtype=torch.float32)
        survivors = torchvision.ops.nms(torch.from_numpy(boxes[ranked]), rank_scores, iou).numpy()
        expected |= set(ranked[survivors].tolist())
    assert set(kept.tolist()) == expected
    assert (np.diff(scores[kept]) <= 0).all()


def test_at_most_max_det_boxes_are_kept_and_they_are_the_best() -> None:
    boxes = np.array([[10 * i, 0, 10 * i + 5, 5] for i in range(50)], np.float32)
    scores = np.linspace(0.1, 0.9, 50, dtype=np.float32)
    kept = nms(boxes, scores, np.zeros(50, np.int64), iou=0.5, max_det=7)
    assert kept.tolist() == list(range(49, 42, -1))


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    kept = nms(boxes, np.array([0.5, 0.9, 0.8], np.float32), np.array([0, 0, 1]), iou=0.7, max_det=300)
    assert kept.tolist() == [1, 2]


def test_an_overlap_of_exactly_the_threshold_survives() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU is exactly 0.5
    assert len(nms(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), iou=0.5, max_det=10)) == 2
    assert len(nms(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), iou=0.49, max_det=10)) == 1


def test_no_boxes_give_no_boxes() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert nms(empty, np.zeros(0, np.float32), np.zeros(0, np.int64), 0.7, 300).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 32), st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.booleans())
def test_a_few_boxes_are_compared_one_by_one_with_the_same_result(
    count: int, seed: int, iou: float, aligned: bool
) -> None:
    boxes, scores, class_ids = _random_boxes(count, seed)
    if aligned:  # overlaps of exactly the threshold, and boxes without area
        boxes = np.round(boxes / 20) * 20
    few = nms(boxes, scores, class_ids, iou, max_det=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy.runtime.nms, "_FEW", 0)
        assert few.tolist() == nms(boxes, scores, class_ids, iou, max_det=20).tolist()


def test_too_close_to_the_threshold_a_few_boxes_are_left_to_the_matrix() -> None:
    kept_of_few = deploy.runtime.nms._kept_of_few
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]]
    assert kept_of_few(boxes, [0, 0], 0.5) is None
    assert kept_of_few(boxes, [0, 1], 0.5) == [0, 1]
    assert kept_of_few(boxes, [0, 0], 0.51) == [0, 1]
    assert kept_of_few(boxes, [0, 0], 0.49) == [0]
    assert kept_of_few([[0.0, 0.0, 0.0, 5.0]], [0], 0.5) is None  # no area
