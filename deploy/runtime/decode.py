"""Raw head tensors to boxes and scores: only what passes the score threshold is read at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Manifest
from deploy.runtime.nms import MAX_CANDIDATES
from deploy.runtime.tensors import Outputs, RawTensor

_LARGEST_EXPONENT = 88.0  # of e, in 32 bits


class Survivors(NamedTuple):
    """What the score threshold lets through of one image, in memory of its own: no view of the engine's.

    A cell comes once in the arrays of length m; with `multi_label` it may make several of the n candidates.

    Attributes:
        box_logits: (m, 4 * reg_max) float32.
        anchors: (m, 8) float32: where left, top, right and bottom of an empty box lie, in input pixels, and by how
            much each moves with one bin of distance: minus or plus the stride.
        mask_coefficients: (m, prototypes) float32 of a segmentation model, (m, 0) of others.
        rows: (n,) int64, each candidate's row in the arrays above; finest level first, cells row by row.
        scores: (n,) float32 in 0..1.
        class_ids: (n,) int64.
        finite: whether it is known that no box logit is NaN or infinite.
    """

    box_logits: NDArray[np.float32]
    anchors: NDArray[np.float32]
    mask_coefficients: NDArray[np.float32]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    finite: bool


class Candidates(NamedTuple):
    """Decoded candidates of one image, before NMS.

    Attributes:
        boxes_xyxy: (n, 4) float32 in input pixels.
        scores: (n,) float32 in 0..1.
        class_ids: (n,) int64.
        mask_coefficients: (n, prototypes) float32; (n, 0) without masks.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    mask_coefficients: NDArray[np.float32]


@dataclass(frozen=True)
class _Level:
    """A pyramid level: its cells' first row in the table of all cells, and which of the outputs are its tensors."""

    first: int
    box: int
    classes: int
    mask: int | None


class Head:
    """How to read the outputs of a detection or segmentation model; made once from its manifest."""

    def __init__(self, manifest: Manifest) -> None:
        """Note which output is what, and where every cell lies."""
        self._reg_max = manifest.reg_max
        bins = np.arange(manifest.reg_max, dtype=np.float32)
        self._moments = np.stack([bins, np.ones_like(bins)], axis=1)  # of a distribution: its mean, times its sum
        by_stride: dict[int, dict[str, int]] = {}
        for index, spec in enumerate(manifest.outputs):
            by_stride.setdefault(spec.stride, {})[spec.meaning] = index
        self._levels: list[_Level] = []
        tables: list[NDArray[np.float32]] = []
        for stride, at in sorted(by_stride.items()):
            if "class" in at:
                self._levels.append(_Level(sum(map(len, tables)), at["box"], at["class"], at.get("mask")))
                tables.append(_anchors(manifest.input.height, manifest.input.width, stride))
        self._anchors = np.concatenate(tables)

    def select(self, outputs: Outputs, conf: float, multi_label: bool) -> Survivors:
        """Read what scores above `conf`, and nothing else.

        Args:
            outputs: a `RawTensor`, or an array (cells, channels) float32, for each of the manifest's outputs.
            conf: a candidate's score must be above this, 0..1.
            multi_label: every class above `conf` makes a candidate (as in validation), not only a cell's best.

        Returns:
            At most the `MAX_CANDIDATES` best survivors. NaN is no score.
        """
        tensors = [one if isinstance(one, RawTensor) else RawTensor.of_cells(one) for one in outputs]
        # Compare logits first, a hair below the threshold; the exact comparison follows on the few survivors.
        least = _logit(conf) - 1e-3
        hits = [(level, tensors[level.classes].above(least)) for level in self._levels]
        found = [(level, cells) for level, cells in hits if len(cells)] or hits[:1]
        logits = _joined([tensors[level.classes].at(cells) for level, cells in found])
        if multi_label:
            rows, class_ids = (logits > np.float32(least)).nonzero()
            logits = logits[rows, class_ids]
        else:
            rows, class_ids = np.arange(len(logits)), logits.argmax(axis=1)
            logits = np.maximum.reduce(logits, axis=1)
        # Quantized values are finite, and nobody need look whether they are.
        finite = all(tensors[level.classes].scale and tensors[level.box].scale for level, _ in found)
        scores = _sigmoid(logits, least, finite)
        kept = _chosen(scores, conf)
        if len(kept) < len(scores):
            rows, scores, class_ids = rows[kept], scores[kept], class_ids[kept]
        anchors = self._anchors.take(_joined([cells + level.first for level, cells in found]), axis=0)
        masks = [tensors[level.mask].at(cells) for level, cells in found if level.mask is not None]
        return Survivors(
            _joined([tensors[level.box].at(cells) for level, cells in found]),
            anchors,
            _joined(masks) if masks else anchors[:, :0],
            rows,
            scores,
            class_ids,
            finite,
        )

    def decode(self, survivors: Survivors) -> Candidates:
        """Survivors to boxes.

        The distances left, top, right, bottom of a cell's centre to the box sides are the expectation over the
        bins of a softmax (Generalized Focal Loss, Li et al. 2020, equation 3), times the stride. A cell whose
        box is not finite makes no candidate.
        """
        rows, scores, class_ids = survivors.rows, survivors.scores, survivors.class_ids
        if survivors.finite or _tame(survivors.box_logits):  # then all boxes are finite
            boxes = self._boxes(survivors)
        else:
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is dropped below
                boxes = self._boxes(survivors)
            kept = np.isfinite(boxes[rows]).all(axis=1)
            rows, scores, class_ids = rows[kept], scores[kept], class_ids[kept]
        return Candidates(boxes.take(rows, axis=0), scores, class_ids, survivors.mask_coefficients.take(rows, axis=0))

    def _boxes(self, survivors: Survivors) -> NDArray[np.float32]:
        """(m, 4): the box of each cell."""
        sides = survivors.box_logits.reshape(-1, self._reg_max)
        weights = np.exp(sides - np.maximum.reduce(sides, axis=1, keepdims=True))
        moments = weights @ self._moments
        boxes = (moments[:, 0] / moments[:, 1]).reshape(-1, 4)
        boxes *= survivors.anchors[:, 4:]
        boxes += survivors.anchors[:, :4]
        return boxes


def decode(outputs: Outputs, manifest: Manifest, conf: float, multi_label: bool) -> Candidates:
    """`Head.select` and `Head.decode` in one, for a single image."""
    head = Head(manifest)
    return head.decode(head.select(outputs, conf, multi_label))


def _anchors(height: int, width: int, stride: int) -> NDArray[np.float32]:
    """(cells, 8) float32, row by row; see `Survivors.anchors`."""
    y, x = (np.mgrid[: height // stride, : width // stride].reshape(2, -1) + 0.5) * stride
    outwards = np.full(len(x), stride)
    return np.stack([x, y, x, y, -outwards, -outwards, outwards, outwards], axis=1).astype(np.float32)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _chosen(scores: NDArray[np.float32], conf: float) -> NDArray[np.int64]:
    """Indices of the scores above `conf`, ascending; of too many the best, of equal ones the first."""
    kept = (scores > conf).nonzero()[0]
    if len(kept) > MAX_CANDIDATES:
        kept = np.sort(kept[np.argsort(-scores[kept], kind="stable")[:MAX_CANDIDATES]])
    return kept


def _sigmoid(logits: NDArray[np.float32], least: float, finite: bool) -> NDArray[np.float32]:
    """Scores of logits, all of them above `least` or NaN; `finite` if it is known that none is NaN."""
    if least > -_LARGEST_EXPONENT and (finite or _tame(logits)):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)


def _tame(values: NDArray[np.float32]) -> bool:
    """Whether all are numbers that can be told from infinity when they are squared: of these numpy remarks nothing.

    Asked in order not to set numpy's error state, which takes as long as the arithmetic on a few cells.
    """
    return math.isfinite(np.vdot(values, values))


def _logit(probability: float) -> float:
    if probability <= 0.0:
        return -math.inf
    return math.inf if probability >= 1.0 else math.log(probability / (1.0 - probability))
