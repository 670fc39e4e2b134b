"""Cross-head distillation: the student's head is heard through the rest of the teacher's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.localization import LocalizationDistillation
from distill.losses.maps import project, projector
from distill.losses.protocol import Activations, HeadPair
from distill.losses.quality import QualityResponse

__all__ = ["CrossHead"]


class CrossHead(nn.Module):
    """CrossKD (Wang et al. 2024, "CrossKD: Cross-Head Knowledge Distillation for Object Detection", section 3.2).

    Labels and teacher pull the student's predictions into different directions. Here the teacher pulls at the
    student's hidden features instead: after the first layer of each branch of the head they go through the remaining,
    frozen layers of the teacher's head, and what comes out, the cross-head predictions, is compared with the
    teacher's own predictions (equation 4):

        L = QFL( cross scores, teacher's scores ) + LD( cross box edges, teacher's box edges )

    with the losses that the paper takes for GFL, whose head YOLOv8's is most like: :class:`QualityResponse` for classes
    (equation 5) and :class:`LocalizationDistillation` for the distributions of the edges. The student's backbone, neck
    and first head layers get its gradient, its last head layers do not: these are left to the labels.

    The paper's pairs have heads of equal width. YOLOv8's heads are the wider the larger the model, so that a learned
    1x1 convolution brings the student's hidden features to the teacher's width; where the widths agree it is the
    identity at first, and identical networks cost 0.

    ``Detect`` does not return its hidden features. They are computed a second time, without hooks that would have to be
    kept out of copies and checkpoints: the layer again on the same features, normalised by the same batch, its running
    statistics left alone. That costs about a tenth of a YOLOv8-n's own forward and backward pass.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take the heads of the pair and the temperature T > 0 of the edges' distributions.

        Raises:
            DistillError: when the pair carries no heads, or one of another kind than YOLOv8's and YOLO11's.
        """
        super().__init__()
        if pair.student_head is None or pair.teacher_head is None:
            raise DistillError("crosskd needs the heads of teacher and student: train with distill.yolo")
        # In tuples: a module's own modules would go into the optimizer and the saved state.
        self._students = tuple(_branches(pair.student_head))
        self._teachers = tuple(_branches(pair.teacher_head))
        self.box_projectors, self.class_projectors = (
            nn.ModuleList(
                projector(_convolutions(s[0])[-1].out_channels, _convolutions(t[1])[0].in_channels)
                for s, t in zip(students, teachers, strict=True)
            )
            for students, teachers in zip(self._students, self._teachers, strict=True)
        )
        self.quality = QualityResponse(pair, temperature)
        self.localization = LocalizationDistillation(pair, temperature)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare the teacher's ``boxes`` and ``scores`` with those across heads of the student's ``feats``.

        Args:
            student: ``feats``, per level (batch, channels, height, width).
            teacher: ``boxes`` (batch, 4 * reg_max, anchors) and ``scores`` (batch, classes, anchors).

        Returns:
            A float32 scalar, in nats.
        """
        boxes, scores = (
            torch.cat([self._crossed(branch, level, f) for level, f in enumerate(student.feats)], dim=2)
            for branch in range(2)
        )
        crossed = Activations(boxes, scores, student.feats)
        cost: Tensor = self.quality(crossed, teacher) + self.localization(crossed, teacher)
        return cost

    def _crossed(self, branch: int, level: int, features: Tensor) -> Tensor:
        """Predictions of one level, (batch, outputs, positions), of branch 0 (boxes) or 1 (classes)."""
        layer = (self.box_projectors, self.class_projectors)[branch][level]
        hidden = project(layer, _again(self._students[branch][level][0], features))
        for rest in list(self._teachers[branch][level])[1:]:
            hidden = rest(hidden.to(next(rest.parameters()).dtype))
        return hidden.flatten(start_dim=2)


def _branches(head: Any) -> Iterable[tuple[nn.Sequential, ...]]:
    """The box branches and the class branches of a head, one a level, each of three layers."""
    for name in ("cv2", "cv3"):
        branches = tuple(getattr(head, name, None) or ())
        if not branches or any(len(branch) != 3 for branch in branches):
            raise DistillError(
                f"crosskd needs heads whose branches have three layers, as YOLOv8's do; {type(head).__name__} differs"
            )
        yield branches


def _again(block: nn.Module, features: Tensor) -> Tensor:
    """What a layer of convolution, batch norm and activation gave for these features, without updating its statistics.

    In training the batch's own mean and variance normalise, as they did in the student's forward pass: the values are
    the same bit for bit.
    """
    if isinstance(block, nn.Sequential):  # YOLO11: a depthwise and a pointwise one
        for part in block:
            features = _again(part, features)
        return features
    layer: Any = block
    norm = layer.bn
    weight = layer.conv.weight
    convolved = layer.conv(features if torch.is_autocast_enabled(features.device.type) else features.to(weight.dtype))
    mean, variance = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    normalised = F.batch_norm(convolved, mean, variance, norm.weight, norm.bias, norm.training, eps=norm.eps)
    result: Tensor = layer.act(normalised)
    return result


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)]
