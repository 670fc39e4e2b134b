"""Pearson distillation: the student's channels correlate with the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import channel_norm, project, projectors, same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["PearsonDistillation"]


class PearsonDistillation(nn.Module):
    """PKD (Cao et al. 2022, "PKD: General Distillation Framework ... via Pearson Correlation Coefficient").

    Both sides are normalised per channel to mean 0 and variance 1 over batch and positions; half their squared
    distance is then one minus their correlation, whatever the two scales:

        L = mean over maps, channels, batch, positions of 1/2 ( norm(s) - norm(t) )^2  =  1 - r(s, t)

    A 1x1 convolution brings the student's channels to the teacher's; the paper's detectors have equal widths.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Build one projector per map; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar, 0 to 2."""
        per_map = []
        for layer, s_map, t_map in zip(self.projectors, student.feats, teacher.feats, strict=True):
            s, t = same_size(project(layer, s_map), t_map.detach())
            per_map.append(F.mse_loss(channel_norm(s), channel_norm(t)) / 2)
        return torch.stack(per_map).mean()
