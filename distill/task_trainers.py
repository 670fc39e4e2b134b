"""The trainer of each task: distillation on ultralytics' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer

from distill.trainer import DistillationTrainer

__all__ = ["TRAINERS", "PoseDistillationTrainer", "SegmentationDistillationTrainer"]


class SegmentationDistillationTrainer(DistillationTrainer, SegmentationTrainer):  # type: ignore[misc]
    """Distils a segmenter: classes, boxes and neck from the teacher, masks from the labels."""


class PoseDistillationTrainer(DistillationTrainer, PoseTrainer):  # type: ignore[misc]
    """Distils a pose estimator: classes, boxes and neck from the teacher, keypoints from the labels."""


#: By ultralytics' name of the task; found by their module in the processes of a multi-GPU training.
TRAINERS: Final[Mapping[str, type[DistillationTrainer]]] = {
    "detect": DistillationTrainer,
    "segment": SegmentationDistillationTrainer,
    "pose": PoseDistillationTrainer,
}
