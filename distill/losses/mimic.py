"""Feature mimicking where the teacher sees objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.losses.maps import project, projectors, same_size
from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_maps

__all__ = ["FeatureMimic"]


class FeatureMimic(nn.Module):
    """Feature mimic (Li, Jin and Yan 2017, "Mimicking Very Efficient Network for Object Detection").

    A whole map is mostly background that drowns the objects; Li et al. regress features inside N proposals only:

        L = 1 / (2 N) * sum over proposals of mean over elements of ( t - r(s) )^2

    with a learned regressor r, here a 1x1 convolution. YOLOv8 has no proposals; each position of P3, P4 and P5 is one,
    counted by the teacher's highest class probability there, and N is the sum of these, at least 1.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Build one regressor per level; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``feats``, per level (batch, channels, height, width); return a float32 scalar."""
        proposals = object_maps(teacher)
        distances = []
        for layer, s_map, t_map, weight in zip(self.projectors, student.feats, teacher.feats, proposals, strict=True):
            s, t = same_size(project(layer, s_map), t_map.detach())
            distances.append(((t - s).square().mean(dim=1, keepdim=True) * weight).sum())
        count = torch.stack([weight.sum() for weight in proposals]).sum().clamp(min=1.0)
        return torch.stack(distances).sum() / (2 * count)
