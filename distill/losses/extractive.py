"""Distillation from the classes that the teacher finds likelier than chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["ExtractiveDistillation"]

_UNIFORM_SHARE = 0.2  # epsilon, as in label smoothing


class ExtractiveDistillation(nn.Module):
    """After Kobayashi 2022, "Extractive Knowledge Distillation" (WACV).

    The temperature of Hinton's loss entangles the student's probabilities, the teacher's and the weight of the loss;
    the paper takes them apart, and keeps of the teacher what is distinctive, its deviation from a uniform guess:

        L = mean over images of KL( q || softmax(s) ),   q = (1 - epsilon) * d / sum(d) + epsilon / classes
        d = max( softmax(t / T) - 1 / classes, 0 ),   epsilon = 0.2

    T softens the teacher only: the student answers at temperature 1, and there is no factor T^2. The loss counts 72
    times the labels' cross entropy (7.2 and 0.1).

    **Second hand**: the paper itself was not at hand. The equations are those on which two independent public
    reimplementations of it agree; epsilon and the weights stand in one of them. A teacher that finds all classes
    equally likely has no d and teaches the uniform share alone. Because q is not the teacher's own distribution,
    identical logits do not cost 0; the loss is 0 where the student's probabilities equal q.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take the teacher's temperature T > 0; the pair is not needed."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``logits`` of shape (batch, classes); return a float32 scalar, in nats."""
        p = F.softmax(teacher.logits.detach().float() / self.temperature, dim=1)
        chance = 1 / p.shape[1]
        # Rounding leaves a teacher without an opinion some 1e-8 above chance: that is none.
        distinctive = F.relu(p - chance - 1e-7)
        total = distinctive.sum(dim=1, keepdim=True)
        extracted = torch.where(total > 0, distinctive / total.clamp(min=1e-12), chance)
        target = (1 - _UNIFORM_SHARE) * extracted + _UNIFORM_SHARE * chance
        return F.kl_div(F.log_softmax(student.logits.float(), dim=1), target, reduction="batchmean")
