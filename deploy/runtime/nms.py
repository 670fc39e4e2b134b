"""Greedy non-maximum suppression, per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = 30_000  # ultralytics' max_nms: the best so many are looked at
_BLOCK = 192  # 500 candidates: 0.55 ms so, 1.05 ms by 512 at once, on one x86 core
_FEW = 32  # boxes that are compared one by one: the matrices' dozen of calls of numpy take longer
_CLOSE = 1e-5  # of two boxes' areas: nearer to the threshold, the rounding of 32 bits decides
_AREAS = (1e-12, 1e12)  # whose products and sums neither vanish nor overflow in 32 bits


def nms(
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    iou: float,
    max_det: int,
) -> NDArray[np.int64]:
    """Keep a box unless a better kept one of its class overlaps it by more than `iou`.

    Equal scores keep their order. Boxes are worked through in blocks, so memory stays bounded by the block and
    the kept boxes, and work stops at `max_det`.

    Args:
        boxes_xyxy: (n, 4) float32, right of left and below top.
        scores: (n,) float32.
        class_ids: (n,) int64.
        iou: intersection over union, 0..1.
        max_det: the most boxes to keep.

    Returns:
        Indices of the kept boxes, best score first, at most `max_det`.
    """
    order = (-scores).argsort(kind="stable")[:MAX_CANDIDATES]
    if len(order) < 2:
        return order
    ranked, classes = boxes_xyxy.take(order, axis=0), class_ids.take(order)
    if len(order) <= _FEW:
        few = _kept_of_few(ranked.tolist(), classes.tolist(), iou)
        if few is not None:
            return order.take(few[:max_det])
    boxes = _Boxes(ranked, classes)
    kept = _greedy(boxes.overlaps(slice(_BLOCK), slice(_BLOCK), iou))
    for start in range(_BLOCK, len(order), _BLOCK):
        if len(kept) >= max_det:
            break
        block = np.arange(start, min(start + _BLOCK, len(order)))
        block = block[~boxes.overlaps(kept, block, iou).any(axis=0)]
        kept = np.concatenate([kept, block[_greedy(boxes.overlaps(block, block, iou))]])
    return order[kept[:max_det]]


def _kept_of_few(boxes_xyxy: Sequence[Sequence[float]], class_ids: Sequence[int], iou: float) -> list[int] | None:
    """The kept of a few boxes, best score first; None where numbers of 32 bits might decide otherwise."""
    kept: list[int] = []
    by_class: dict[int, list[tuple[float, float, float, float, float]]] = {}
    for index, (left, top, right, bottom) in enumerate(boxes_xyxy):
        area = (right - left) * (bottom - top)
        if not _AREAS[0] < area < _AREAS[1]:
            return None
        rivals = by_class.setdefault(class_ids[index], [])
        for other_left, other_top, other_right, other_bottom, other_area in rivals:
            width = (right if right < other_right else other_right) - (left if left > other_left else other_left)
            height = (bottom if bottom < other_bottom else other_bottom) - (top if top > other_top else other_top)
            if width <= 0 or height <= 0:
                continue
            intersection, areas = width * height, area + other_area
            excess = intersection - iou * (areas - intersection)
            if abs(excess) < _CLOSE * areas:
                return None
            if excess > 0:
                break
        else:
            rivals.append((left, top, right, bottom, area))
            kept.append(index)
    return kept


class _Boxes:
    """Boxes, best score first."""

    def __init__(self, boxes_xyxy: NDArray[np.float32], class_ids: NDArray[np.int64]) -> None:
        # One coordinate at a time: long inner loops over contiguous memory, no axis of length 2 or 4.
        self._corners = boxes_xyxy.T.reshape(2, 2, -1)  # left and top, right and bottom
        sizes = self._corners[1] - self._corners[0]
        self._areas = sizes[0] * sizes[1]
        self._class_ids = class_ids

    def overlaps(self, own: Any, other: Any, iou: float) -> NDArray[np.bool_]:
        """(n, m) matrix: same class and intersection over union above `iou`; of a slice or indices (n,) and (m,)."""
        (lows, highs), (other_lows, other_highs) = self._corners[:, :, own, None], self._corners[:, :, None, other]
        extents = np.minimum(highs, other_highs)
        extents -= np.maximum(lows, other_lows)
        np.maximum(extents, 0, out=extents)
        intersection = np.multiply(extents[0], extents[1], out=extents[0])
        union = self._areas[own, None] + self._areas[other]
        union -= intersection
        union *= np.float32(iou)
        overlaps: NDArray[np.bool_] = intersection > union
        overlaps &= self._class_ids[own, None] == self._class_ids[other]
        return overlaps


def _greedy(overlaps: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which of n boxes in order of score survive, given the (n, n) matrix of who overlaps whom too much."""
    rows, size = overlaps.tobytes(), len(overlaps)
    kept: list[int] = []
    dropped = 0  # a set, one byte for each; whole rows of the matrix are added at once
    for row in range(size):
        if not dropped >> 8 * row & 1:
            kept.append(row)
            dropped |= int.from_bytes(rows[row * size : (row + 1) * size], "little")
    return np.array(kept, np.int64)
