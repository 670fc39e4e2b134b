"""Score-weighted features: what ultralytics' own distillation compares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.losses.maps import project, same_size
from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_maps

__all__ = ["ScoredFeatures"]


class ScoredFeatures(nn.Module):
    """The loss of ultralytics 8.4's ``train(distill_model=...)``, whose default weight ``dis`` is 6.

    A mean squared error at each neck level, every position weighed by the teacher's highest class probability w there:

        L = sum over levels of  ( sum over images, positions of w * sum over channels ( p(s) - t )^2 )
                                / ( channels * sum over images, positions of w )

    with a projector p of two learned 1x1 convolutions and a ReLU between them, from the student's channels to the
    teacher's. It starts at random, as theirs does: equal features do not cost 0, a teacher equal to p(s) does.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Build one projector per level; the temperature does not apply."""
        super().__init__()
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(student, teacher, 1), nn.ReLU(), nn.Conv2d(teacher, teacher, 1))
            for student, teacher in zip(pair.student_channels, pair.teacher_channels, strict=True)
        )

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``feats``, per level (batch, channels, height, width); return a float32 scalar."""
        per_level = []
        weights = object_maps(teacher)
        for layer, s_map, t_map, weight in zip(self.projectors, student.feats, teacher.feats, weights, strict=True):
            s, t = same_size(project(layer, s_map), t_map.detach())
            error = ((s - t).square() * weight).sum()
            per_level.append(error / (weight.sum() * t.shape[1]).clamp(min=1e-9))
        return torch.stack(per_level).sum()
