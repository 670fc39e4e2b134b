"""Decoupled distillation: what the teacher says of the true class, and what of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.kd import softened_kl
from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["DecoupledDistillation"]

_TARGET_WEIGHT = 1.0  # alpha; the authors' value throughout
_OTHERS_WEIGHT = 8.0  # beta; the authors' value for most pairs on CIFAR-100 (2 to 8), 0.5 on ImageNet
_NEVER = -1e9  # a logit that leaves a class out of the softmax, finite to keep 0 * log(0) out


class DecoupledDistillation(nn.Module):
    """Decoupled knowledge distillation (DKD, Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7).

    Hinton's KL is TCKD + (1 - p_t) NCKD: the KL of (true class, all others) and the KL among the others alone, which
    a sure teacher (p_t near 1) silences. DKD weighs the two apart:

        L = T^2 * mean over images of ( alpha * TCKD + beta * NCKD ),   alpha = 1, beta = 8
        TCKD = KL( (p_y, 1 - p_y) of the teacher || of the student ),   NCKD = KL over the classes other than y

    with p the softmax at temperature T and y the true class. The authors' code raises the weight of this loss from 0
    over the first 20 of 240 epochs; here it is constant.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take the temperature T > 0; the pair is not needed."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``logits`` of shape (batch, classes) under the student's ``labels``; a float32 scalar, in nats."""
        is_target = F.one_hot(student.labels, student.logits.shape[1]).bool()
        s, t = student.logits.float(), teacher.logits.detach().float()
        target = softened_kl(
            _true_or_other(s, is_target, self.temperature), _true_or_other(t, is_target, self.temperature), 1.0
        )
        others = softened_kl(s.masked_fill(is_target, _NEVER), t.masked_fill(is_target, _NEVER), self.temperature)
        return _TARGET_WEIGHT * self.temperature**2 * target.mean() + _OTHERS_WEIGHT * others.mean()


def _true_or_other(logits: Tensor, is_target: Tensor, temperature: float) -> Tensor:
    """Logits of the two events "the true class" and "any other", shape (batch, 2), already divided by T."""
    softened = logits / temperature
    others = softened.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    return torch.stack([softened[is_target], others], dim=1)
