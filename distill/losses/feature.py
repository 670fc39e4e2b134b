"""Feature distillation: the student's neck looks where the teacher's neck looks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import Activations, HeadPair

__all__ = ["ChannelWiseDistillation"]


class ChannelWiseDistillation(nn.Module):
    """Channel-wise distillation (CWD, Shu et al. 2021) of the three neck levels P3, P4, P5.

    Each channel of a level is read as a distribution over positions, and the student's follows the teacher's:

        L = mean over levels, batch, channels of KL( softmax over positions(t) || softmax over positions(s) )

    A learned 1x1 convolution brings the student's channels to the teacher's (the projector of FitNets, Romero et
    al. 2015), and both sides are first normalised per channel without learned scale, as DAMO-YOLO does (Xu et
    al. 2022): the softmax then sees the same contrast whatever the teacher's feature scale. It
    is the neck loss with the largest published gain on a head comparable to YOLOv8's. The projector is
    training-only: it lives in the loss, is never part of the student, and is discarded with the loss.

    The temperature is fixed at 1: after normalisation the contrast is already set, and ``--temperature`` speaks
    of logits.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Build one projector per level; the temperature does not apply."""
        super().__init__()
        self.projectors = nn.ModuleList(
            _projector(student, teacher)
            for student, teacher in zip(pair.student_channels, pair.teacher_channels, strict=True)
        )

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``feats``, per level (batch, channels, height, width); return a float32 scalar, in nats."""
        per_level = []
        for projector, s, t in zip(self.projectors, student.feats, teacher.feats, strict=True):
            log_q = _log_attention(projector(s.to(next(projector.parameters()).dtype)))
            log_p = _log_attention(t.detach())
            per_level.append((log_p.exp() * (log_p - log_q)).sum(dim=2).mean())
        return torch.stack(per_level).mean()


def _projector(student_channels: int, teacher_channels: int) -> nn.Conv2d:
    """A 1x1 convolution; the identity at first where the widths agree, so that equal features start at zero."""
    projector = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    if student_channels == teacher_channels:
        nn.init.dirac_(projector.weight)
    else:
        nn.init.kaiming_normal_(projector.weight, nonlinearity="linear")
    return projector


def _log_attention(features: Tensor) -> Tensor:
    """Log-softmax over positions of per-channel normalised features, shape (batch, channels, positions)."""
    normalised = F.batch_norm(features.float(), running_mean=None, running_var=None, training=True)
    return F.log_softmax(normalised.flatten(start_dim=2), dim=2)
