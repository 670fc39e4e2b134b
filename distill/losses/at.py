"""Attention transfer: the student's maps are strong where the teacher's are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["AttentionTransfer"]


class AttentionTransfer(nn.Module):
    """Activation-based attention transfer (Zagoruyko and Komodakis 2017, "Paying More Attention to Attention").

    The attention map of a feature map A is Q = vec( sum over channels c of |A_c|^2 ), their F_sum^2. Equation 2 brings
    the normalised maps of student and teacher together:

        L = sum over maps of mean over batch, positions of ( Q_s / ||Q_s|| - Q_t / ||Q_t|| )^2

    The mean over positions, squared, is the form of the authors' code, for which they give beta = 1000. Channels
    are summed away, so nothing is learned; where the maps differ in size the larger is average-pooled.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Take nothing from the pair; the temperature does not apply."""
        super().__init__()

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar."""
        per_map = []
        for s_map, t_map in zip(student.feats, teacher.feats, strict=True):
            s, t = same_size(s_map, t_map.detach())
            per_map.append((_attention(s) - _attention(t)).square().mean())
        return torch.stack(per_map).sum()


def _attention(features: Tensor) -> Tensor:
    """The normalised attention map, shape (batch, positions), each row of length 1."""
    return F.normalize(features.square().mean(dim=1).flatten(start_dim=1), dim=1)
