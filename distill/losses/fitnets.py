"""FitNets: the student's hidden map regresses the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import project, projector, projectors, same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["Hints", "MiddleHint"]


class Hints(nn.Module):
    """Hint-based training (FitNets, Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3).

    A learned regressor r, here a 1x1 convolution, predicts the teacher's map t (the hint) from the student's map s:

        L = 1/2 * mean over batch, channels, positions of ( t - r(s) )^2 , averaged over the maps

    The paper takes the squared norm of the whole map; the mean over its elements makes the weight independent of
    the map's size. Where the maps differ in size the larger is average-pooled.

    Minimised together with the task it is the joint form. Minimised alone it is stage one of the paper's two stages:
    only the layers up to the guided map receive a gradient, and stage two then trains the whole student without it.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Build one regressor per map; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar."""
        per_map = [
            _hint(layer, s, t) for layer, s, t in zip(self.projectors, student.feats, teacher.feats, strict=True)
        ]
        return torch.stack(per_map).mean()


class MiddleHint(nn.Module):
    """The same for one map, the middle one, as the paper chooses its hint in a classifier.

    Attributes:
        level: index of the hint in ``feats``: of n maps the one at n // 2.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Build the regressor of the middle map; the temperature does not apply."""
        super().__init__()
        self.level = len(pair.student_channels) // 2
        self.projector = projector(pair.student_channels[self.level], pair.teacher_channels[self.level])

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare the middle one of ``feats``; return a float32 scalar."""
        return _hint(self.projector, student.feats[self.level], teacher.feats[self.level])


def _hint(layer: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    s, t = same_size(project(layer, student), teacher.detach())
    return F.mse_loss(s, t) / 2
