"""Focal and global distillation: objects and background apart, and relations between positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import project, projectors, same_size
from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_maps

__all__ = ["FocalGlobal"]

#: The authors' values for one-stage detectors: foreground, background, attention, global; attention's temperature.
_ALPHA, _BETA, _GAMMA, _LAMBDA = 1e-3, 5e-4, 1e-3, 5e-6
_TEMPERATURE = 0.5


class FocalGlobal(nn.Module):
    """FGD (Yang et al. 2022, "Focal and Global Knowledge Distillation for Detectors", section 3).

    Per level, with the student's map s at the teacher's width by a 1x1 convolution:

    - attention of a map F: A_S = H W softmax( mean over channels of |F| / 0.5 ) over positions,
      A_C = C softmax( mean over positions of |F| / 0.5 ) over channels;
    - focal: sum of ( alpha M_fg + beta M_bg ) A_S(t) A_C(t) (t - s)^2;
    - attention: gamma ( |A_S(t) - A_S(s)| + |A_C(t) - A_C(s)| ), summed;
    - global: lambda sum of ( R(t) - R(s) )^2 with R the global context block (GcBlock, Cao et al. 2019),
      one for each side.

    Sums run over channels and positions, are averaged over the batch and added over levels, with alpha = 0.001, beta =
    0.0005, gamma = 0.001 and lambda = 0.000005 inside, so the published weight is 1.

    The paper's masks are the labelled boxes, each divided by its area. Here the teacher's highest class
    probability p stands for them: M_fg = p / max(1, sum of p), M_bg = (1 - p) / sum of (1 - p), per image and level.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Build a projector and two context blocks per level; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)
        self.student_context = nn.ModuleList(_Context(c) for c in pair.teacher_channels)
        self.teacher_context = nn.ModuleList(_Context(c) for c in pair.teacher_channels)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``feats``, per level (batch, channels, height, width); return a float32 scalar."""
        per_level = []
        for index, objects in enumerate(object_maps(teacher)):
            s, t = same_size(project(self.projectors[index], student.feats[index]), teacher.feats[index].detach())
            related = self.teacher_context[index](t) - self.student_context[index](s)
            per_level.append(_focal(s, t, objects) + _LAMBDA * _per_image(related.float().square()))
        return torch.stack(per_level).sum()


class _Context(nn.Module):
    """Global context block: R(F) = F + W2 ReLU(LN(W1 context)), context = sum over positions of softmax(Wk F) F."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.position = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.expand = nn.Linear(hidden, channels)
        nn.init.zeros_(self.expand.weight)  # R is the identity at first, as in the authors' code
        nn.init.zeros_(self.expand.bias)

    def forward(self, features: Tensor) -> Tensor:
        where = self.position(features).flatten(start_dim=1).float().softmax(dim=1)
        context = (features.flatten(start_dim=2) * where.unsqueeze(1)).sum(dim=2)
        added: Tensor = self.expand(F.relu(self.norm(self.reduce(context))))
        return features + added[:, :, None, None]


def _focal(s: Tensor, t: Tensor, objects: Tensor) -> Tensor:
    """Focal and attention loss of one level: maps (batch, channels, height, width), objects with one channel."""
    background = 1 - objects
    foreground_mask = objects / objects.sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
    background_mask = background / background.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    where_t, what_t = _attention(t)
    where_s, what_s = _attention(s)
    mask = _ALPHA * foreground_mask + _BETA * background_mask
    focal = _per_image(mask * where_t * what_t * (t - s).square())
    return focal + _GAMMA * (_per_image((where_t - where_s).abs()) + _per_image((what_t - what_s).abs()))


def _attention(features: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial (batch, 1, height, width) and channel attention (batch, channels, 1, 1), each of mean 1."""
    batch, channels, height, width = features.shape
    strength = features.abs()
    where = F.softmax(strength.mean(dim=1).flatten(start_dim=1) / _TEMPERATURE, dim=1) * (height * width)
    what = F.softmax(strength.mean(dim=(2, 3)) / _TEMPERATURE, dim=1) * channels
    return where.view(batch, 1, height, width), what.view(batch, channels, 1, 1)


def _per_image(values: Tensor) -> Tensor:
    """Sum over all but the batch, averaged over the batch."""
    return values.flatten(start_dim=1).sum(dim=1).mean()
