"""The tasks that can be distilled, by ultralytics' names for them, and what tells them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from ultralytics.nn.tasks import DetectionModel, PoseModel, SegmentationModel

from distill.data import DataSet
from distill.errors import DistillError

__all__ = ["TASKS", "Task", "check_labels", "task_of_head"]

_BOXES: Final = {"map50_95": "metrics/mAP50-95(B)", "map50": "metrics/mAP50(B)"}


@dataclass(frozen=True)
class Task:
    """A task of ultralytics' detectors.

    Attributes:
        head: class of the network's last layer.
        build: makes the network of an architecture, for a data set.
        metrics: ultralytics' names of what a validation measures, by those of ``student.json``.
    """

    head: str
    build: Callable[[dict[str, Any], Mapping[str, Any]], nn.Module]
    metrics: Mapping[str, str]


#: Class logits, box edges and neck features are distilled in all of them. Masks and keypoints are learned from labels.
TASKS: Final[Mapping[str, Task]] = {
    "detect": Task(
        "Detect", lambda config, data: DetectionModel(config, ch=data["channels"], nc=data["nc"], verbose=False), _BOXES
    ),
    "segment": Task(
        "Segment",
        lambda config, data: SegmentationModel(config, ch=data["channels"], nc=data["nc"], verbose=False),
        {**_BOXES, "mask_map50_95": "metrics/mAP50-95(M)", "mask_map50": "metrics/mAP50(M)"},
    ),
    "pose": Task(
        "Pose",
        lambda config, data: PoseModel(
            config, ch=data["channels"], nc=data["nc"], data_kpt_shape=data["kpt_shape"], verbose=False
        ),
        {**_BOXES, "pose_map50_95": "metrics/mAP50-95(P)", "pose_map50": "metrics/mAP50(P)"},
    ),
}


def task_of_head(head: str, name: str) -> str:
    """The task of a network by its last layer's class.

    Args:
        head: as the architecture's yaml has it, such as ``Segment``.
        name: of the student, for the message.

    Raises:
        DistillError: for a head that cannot be distilled.
    """
    if head == "v10Detect":  # trains plainly; a teacher for it is refused by its end-to-end branch
        return "detect"
    found = next((task for task, known in TASKS.items() if known.head == head), None)
    if found is None:
        raise DistillError(
            f"student {name!r} has a {head} head: expected a detection model such as yolov8n.pt, or one that segments "
            "(yolov8n-seg.pt) or finds poses (yolov8n-pose.pt)"
        )
    return found


def check_labels(task: str, student: str, data: DataSet) -> None:
    """Refuse labels that the student's task cannot be learned from.

    Raises:
        DistillError: keypoints without a pose student, a pose student without keypoints, masks of boxes alone.
    """
    keypoints = data.description.get("kpt_shape")
    if task == "pose" and not keypoints:
        raise DistillError(f"student {student!r} finds poses, but {data.yaml} has no kpt_shape: give pose data")
    if task != "pose" and keypoints:
        raise DistillError(
            f"{data.yaml} labels keypoints (kpt_shape), but student {student!r} has a {task} head: "
            "give a pose student, such as yolov8n-pose.pt"
        )
    if task == "segment" and not data.polygons:
        raise DistillError(f"student {student!r} segments, but the labels of {data.yaml} are boxes: give polygons")
