"""How far a quantized network's raw tensors lie from the float network's, counted where detections are made.

mAP on few images is too coarse to tell one layer from another, and needs labels. The float network's own confident
cells need none: what moves there moves the detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import OutputSpec
from deploy.graph import CLASS_LOGIT_FLOOR

# Cells that score above this in either network count: lower ones hardly move a precision-recall curve.
LEAST_SCORE = 0.05

Cells = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Agreement:
    """What is left of the float network's answers.

    Attributes:
        damage_percent: confidence that was lost, invented or put on a box elsewhere, in percent of the float network's
            own; 0 for equal outputs. Of a classifier the total variation between the two softmaxes, in percent.
        class_sqnr_db: signal to quantization noise of the class logits (of a classifier: its logits) in decibels;
            infinite for equal outputs.
        box_sqnr_db: the same of the DFL logits; NaN of a classifier.
    """

    damage_percent: float
    class_sqnr_db: float
    box_sqnr_db: float


class AgreementMeter:
    """Adds images up; `result` is over all of them."""

    def __init__(self, outputs: Sequence[OutputSpec], reg_max: int) -> None:
        """Measure a network of these raw outputs; `reg_max` is its DFL bins per box side, 0 of a classifier."""
        self._outputs = outputs
        self._bins = np.arange(reg_max, dtype=np.float32)
        self._damage = 0.0
        self._confidence = 0.0
        self._power = {"class": np.zeros(2), "box": np.zeros(2)}  # of the signal and of the noise

    def add(self, expected: Cells, met: Cells) -> None:
        """Count one image.

        Args:
            expected: of the float network: (cells, channels) float32 for each output, as `Engine.infer` gives them.
            met: of the quantized network.
        """
        by_meaning: dict[str, dict[int, int]] = {}
        for index, output in enumerate(self._outputs):
            by_meaning.setdefault(output.meaning, {})[output.stride] = index
        if "logits" in by_meaning:
            self._add_logits(expected[0], met[0])
            return
        for stride, classes in by_meaning["class"].items():
            box = by_meaning["box"][stride]
            self._add_level(expected[classes], met[classes], expected[box], met[box])

    def result(self) -> Agreement:
        """Over all images added; a damage of NaN where the float network is confident nowhere."""
        damage = 100 * self._damage / self._confidence if self._confidence else math.nan
        return Agreement(damage, *(_decibels(*self._power[name]) for name in ("class", "box")))

    def _add_level(
        self,
        classes: NDArray[np.float32],
        met_classes: NDArray[np.float32],
        boxes: NDArray[np.float32],
        met_boxes: NDArray[np.float32],
    ) -> None:
        least = math.log(LEAST_SCORE / (1 - LEAST_SCORE))
        cells = np.flatnonzero((classes.max(axis=1) > least) | (met_classes.max(axis=1) > least))
        if not len(cells):
            return
        logits, met_logits = classes[cells], met_classes[cells]
        scores, met_scores = _sigmoid(logits), _sigmoid(met_logits)
        confident = (logits > least) | (met_logits > least)
        own = np.where(logits > least, scores, 0)
        overlap = _overlap(self._distances(boxes[cells]), self._distances(met_boxes[cells]))
        self._confidence += float(own.sum())
        self._damage += float((np.abs(scores - met_scores) * confident).sum())
        self._damage += float((own * (1 - overlap)[:, None]).sum())
        floor = np.float32(CLASS_LOGIT_FLOOR)
        self._add_power("class", np.maximum(logits, floor), np.maximum(met_logits, floor))
        self._add_power("box", boxes[cells], met_boxes[cells])

    def _add_logits(self, expected: NDArray[np.float32], met: NDArray[np.float32]) -> None:
        self._confidence += 1
        self._damage += float(np.abs(_softmax(expected) - _softmax(met)).sum() / 2)
        self._add_power("class", expected, met)

    def _add_power(self, name: str, expected: NDArray[np.float32], met: NDArray[np.float32]) -> None:
        signal = float((expected.astype(np.float64) ** 2).sum())
        self._power[name] += (signal, float(((expected.astype(np.float64) - met) ** 2).sum()))

    def _distances(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """(cells, 4) distances left, top, right, bottom in cells; see `deploy.runtime.decode`."""
        bins = boxes.reshape(len(boxes), 4, len(self._bins))
        return np.asarray(_softmax(bins) @ self._bins, np.float32)


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """IoU (cells,) of boxes around the same centre, given as distances of their sides from it."""
    shared = np.minimum(one, other)
    inner, first, second = ((box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (shared, one, other))
    return np.asarray(inner / np.maximum(first + second - inner, 1e-9), np.float32)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float32)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def _decibels(signal: float, noise: float) -> float:
    if not signal:
        return math.nan
    return 10 * math.log10(signal / noise) if noise else math.inf
