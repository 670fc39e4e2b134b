"""Distillation from the teacher's probabilities without their uniform part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["ExtractiveDistillation"]


class ExtractiveDistillation(nn.Module):
    """After Kobayashi 2022, "Extractive Knowledge Distillation" (WACV): written from its abstract, not its equations.

    The abstract says that the softmax temperature entangles three things, the student's probabilities, the teacher's
    probabilities and the weight of the loss; that the paper takes them apart; and that, from an analysis of the
    temperature and the *uniformity* of the teacher's probabilities, it extracts the effective knowledge by touching
    the teacher alone. The paper's equations were not available when this was written, so the following is a
    reading of that text, **not a reproduction of the published formula**, and its numbers are not the paper's:

    - apart: T softens the teacher only; the student answers at temperature 1, and there is no factor T^2;
    - extracted: the softened teacher is split into a uniform part and the rest, p = u * (1 / classes) + (1 - u) * r,
      with the largest possible u = classes * min p, and the student follows the rest r:

        L = mean over images of KL( r || softmax(s) ),   r = (p - min p) / sum(p - min p),   p = softmax(t / T)

    A teacher that finds all classes equally likely has no rest and costs nothing. Because r is not the teacher's own
    distribution, identical logits do not cost 0; the loss is 0 where the student's probabilities equal r.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take the teacher's temperature T > 0; the pair is not needed."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``logits`` of shape (batch, classes); return a float32 scalar, in nats."""
        p = F.softmax(teacher.logits.detach().float() / self.temperature, dim=1)
        rest = p - p.amin(dim=1, keepdim=True)
        target = rest / rest.sum(dim=1, keepdim=True).clamp(min=1e-12)
        log_q = F.log_softmax(student.logits.float(), dim=1)
        entropy_term: Tensor = torch.special.xlogy(target, target)  # 0 where the target is 0
        return (entropy_term - target * log_q).sum(dim=1).mean()
