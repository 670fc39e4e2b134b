"""What losses on feature maps share: projectors, equal sizes, equal scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import FeaturePair

__all__ = ["channel_norm", "pooled", "project", "projector", "projectors", "same_size"]


def projectors(pair: FeaturePair) -> nn.ModuleList:
    """One :func:`projector` per map of the pair, from the student's channels to the teacher's."""
    return nn.ModuleList(
        projector(student, teacher)
        for student, teacher in zip(pair.student_channels, pair.teacher_channels, strict=True)
    )


def projector(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """A 1x1 convolution; the identity at first where the widths agree, so that equal features start at zero."""
    layer = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    if student_channels == teacher_channels:
        nn.init.dirac_(layer.weight)
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer


def project(layer: nn.Module, features: Tensor) -> Tensor:
    """Run a projector on the student's map in the projector's own precision, whatever the map's."""
    projected: Tensor = layer(features.to(next(layer.parameters()).dtype))
    return projected


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the smaller one's height and width, in float32; the other stays as it is.

    Args:
        student: (batch, channels, height, width).
        teacher: (batch, other channels, other height, other width).
    """
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    s, t = (F.adaptive_avg_pool2d(f.float(), size) if f.shape[2:] != size else f for f in (student, teacher))
    return s, t


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps :func:`pooled`, both in float32."""
    s, t = pooled(student, teacher)
    return s.float(), t.float()


def channel_norm(features: Tensor) -> Tensor:
    """Each channel with mean 0 and variance 1 over batch and positions, without learned scale, in float32."""
    if features[:, :1].numel() == 1:  # one image, one position: batch_norm refuses what has no variance
        return torch.zeros_like(features, dtype=torch.float32)
    return F.batch_norm(features.float(), running_mean=None, running_var=None, training=True)
