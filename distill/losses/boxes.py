"""Distillation of decoded boxes: the teacher's as soft labels, or as a bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import edge_distances, object_score

__all__ = ["BoundedRegression", "SoftOverlap", "edge_iou"]


class SoftOverlap(nn.Module):
    """IoU loss with the teacher's boxes as labels, weighted by its scores.

    The box part of the distillation of PP-YOLOE+ (PaddleDetection, after Xu et al. 2022), with the IoU loss of Yu et
    al. 2016 ("UnitBox") in its linear form:

        L = 1 / W * sum over anchors a of w_a * ( 1 - IoU(student's box, teacher's box) )

    w_a is the teacher's highest class probability and W its sum, at least 1. Boxes are decoded as YOLOv8 does, by the
    mean of each edge's distribution. Both boxes hang on the same anchor and IoU has no scale, so neither strides
    nor anchor points are needed, and the boxes always meet: the gradient never vanishes for want of overlap.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take the number of bins from the pair; the temperature does not apply."""
        super().__init__()
        self.reg_max = pair.reg_max

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``boxes`` of shape (batch, 4 * reg_max, anchors); return a float32 scalar, 0 to 1."""
        weight = object_score(teacher)
        s, t = (edge_distances(boxes, self.reg_max) for boxes in (student.boxes, teacher.boxes.detach()))
        return ((1 - edge_iou(s, t)) * weight).sum() / weight.sum().clamp(min=1.0)


class BoundedRegression(nn.Module):
    """Teacher-bounded regression (Chen et al. 2017, "Learning Efficient Object Detection Models", equation 4).

    A teacher's box may be worse than the student's, so it is not a label but a bound: the student pays its distance
    to the *true* box only while the teacher is closer. With edge distances R in strides, over the n anchors that
    ultralytics' assigner gave a labelled box y:

        L = 1 / n * sum over anchors of ||R_s - y||^2  where  ||R_s - y||^2 + m > ||R_t - y||^2,  else 0

    with the margin m = 0, so that a student as good as the teacher pays nothing. It needs the student's ``assigned``
    boxes, which the criterion fills in.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take the number of bins from the pair; the temperature does not apply."""
        super().__init__()
        self.reg_max = pair.reg_max

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``boxes`` (batch, 4 * reg_max, anchors) with the labels; a float32 scalar, in squared strides.

        Raises:
            DistillError: when the student's activations carry no assigned boxes.
        """
        if student.assigned is None:
            raise DistillError("bounded regression found no assigned boxes: train with DistillationCriterion")
        labels = student.assigned.edges
        s, t = (
            (edge_distances(boxes, self.reg_max) - labels).square().sum(dim=1)
            for boxes in (student.boxes, teacher.boxes.detach())
        )
        foreground = student.assigned.foreground
        return (s * (foreground & (s > t))).sum() / foreground.sum().clamp(min=1)


_TINY = 1e-6


def edge_iou(s: Tensor, t: Tensor) -> Tensor:
    """IoU of boxes on the same anchors, 0 to 1, (batch, anchors).

    Args:
        s: left, top, right and bottom edge distances of the one, (batch, 4, anchors).
        t: of the other.
    """
    overlap = _area(torch.minimum(s, t))
    # The small area keeps two empty boxes at IoU 1 and their gradient finite.
    return (overlap + _TINY) / (_area(s) + _area(t) - overlap + _TINY)


def _area(edges: Tensor) -> Tensor:
    """Area of boxes given by left, top, right and bottom, (batch, 4, anchors) to (batch, anchors)."""
    return (edges[:, 0] + edges[:, 2]) * (edges[:, 1] + edges[:, 3])
