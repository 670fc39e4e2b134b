"""Raw head tensors to boxes and scores: only what passes the score threshold is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Manifest

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def decode(outputs: Sequence[NDArray[np.float32]], manifest: Manifest, conf: float, multi_label: bool) -> Candidates:
    """Decode the raw head tensors of one image.

    The distances left, top, right, bottom of a cell's centre to the box sides are the expectation over the
    bins of a softmax (Generalized Focal Loss, Li et al. 2020, equation 3), times the stride.

    Args:
        outputs: one array (cells, channels) float32 for each of `manifest.outputs`, cells row by row.
        manifest: strides, meanings and input size.
        conf: a candidate's score must be above this, 0..1.
        multi_label: every class above `conf` makes a candidate (as in validation), not only a cell's best.

    Returns:
        boxes (n, 4) float32 xyxy in input pixels, scores (n,) float32 in 0..1, class ids (n,) int64. Cells
        with a NaN or infinite score or box make no candidate.
    """
    levels = _levels(outputs, manifest)
    parts = [_decode_level(*level, manifest, conf, multi_label) for level in levels]
    boxes, scores, class_ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return boxes, scores, class_ids


def _levels(
    outputs: Sequence[NDArray[np.float32]], manifest: Manifest
) -> list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """(stride, box logits, class logits) of each pyramid level, finest first."""
    by_stride: dict[int, dict[str, NDArray[np.float32]]] = {}
    for spec, output in zip(manifest.outputs, outputs, strict=True):
        by_stride.setdefault(spec.stride, {})[spec.meaning] = output
    return [(stride, tensors["box"], tensors["class"]) for stride, tensors in sorted(by_stride.items())]


def _decode_level(
    stride: int,
    box_logits: NDArray[np.float32],
    class_logits: NDArray[np.float32],
    manifest: Manifest,
    conf: float,
    multi_label: bool,
) -> Candidates:
    # Compare logits first, a hair below the threshold; the exact comparison follows on the few survivors.
    least_logit = _logit(conf) - 1e-3
    cells: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    if multi_label:
        cells, class_ids = np.nonzero(class_logits > least_logit)
    else:
        cells = np.flatnonzero(class_logits.max(axis=1) > least_logit)
        class_ids = class_logits[cells].argmax(axis=1)
    scores = _sigmoid(class_logits[cells, class_ids])
    columns = math.ceil(manifest.input.width / stride)
    boxes = _decode_boxes(box_logits[cells], cells, columns, stride, manifest.reg_max)
    keep = (scores > conf) & np.isfinite(boxes).all(axis=1)
    return boxes[keep], scores[keep], class_ids[keep]


def _decode_boxes(
    logits: NDArray[np.float32], cells: NDArray[np.int64], columns: int, stride: int, reg_max: int
) -> NDArray[np.float32]:
    """Box logits (n, 4 * reg_max) of the given cells to (n, 4) xyxy in input pixels."""
    bins = logits.reshape(-1, 4, reg_max)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are dropped by the caller
        weights = np.exp(bins - bins.max(axis=2, keepdims=True))
        distances = (weights @ np.arange(reg_max, dtype=np.float32)) / weights.sum(axis=2)
        centres = np.stack([cells % columns, cells // columns], axis=1).astype(np.float32) + np.float32(0.5)
        boxes = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
        return np.asarray(boxes * np.float32(stride), np.float32)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)


def _logit(probability: float) -> float:
    if probability <= 0.0:
        return -math.inf
    return math.inf if probability >= 1.0 else math.log(probability / (1.0 - probability))
