"""Masked generative distillation: the teacher's map, generated from a part of the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import project, projectors, same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["MaskedGeneration"]

_MASKED = 0.65  # the authors' ratio for one-stage detectors


class MaskedGeneration(nn.Module):
    """MGD (Yang et al. 2022, "Masked Generative Distillation", section 3).

    Random positions of the student's map, brought to the teacher's width by a 1x1 convolution, are set to zero (65 %
    of them, the same in all channels), and a small network G = 3x3 convolution, ReLU, 3x3 convolution must generate
    the teacher's whole map from the rest:

        L = mean over maps, batch, channels, positions of ( t - G( mask * r(s) ) )^2

    The paper sums over the map and weighs with 2e-5; the mean makes the weight independent of map and width. The two
    3x3 convolutions at the teacher's width are the most expensive thing any of these losses learns. G starts at
    random, so identical maps do not cost 0: the loss says how well the teacher's map can be generated. Masks come
    from torch's global generator.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Build one projector and one generator per map; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)
        self.generators = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))
            for c in pair.teacher_channels
        )

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar."""
        per_map = []
        for layer, generator, s_map, t_map in zip(
            self.projectors, self.generators, student.feats, teacher.feats, strict=True
        ):
            s, t = same_size(project(layer, s_map), t_map.detach())
            kept = torch.rand(s.shape[0], 1, *s.shape[2:], device=s.device) >= _MASKED
            per_map.append(F.mse_loss(generator(s * kept).float(), t))
        return torch.stack(per_map).mean()
