"""Response distillation: the student's class logits follow the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_score

__all__ = ["ResponseDistillation", "bernoulli_kl"]


class ResponseDistillation(nn.Module):
    """Knowledge distillation with temperature (Hinton et al. 2015, section 2) for a sigmoid head.

    YOLOv8 scores every class with its own sigmoid, so the distribution to match is one Bernoulli per anchor and
    class, not a softmax over classes (the inconsistency Yang et al. 2023, "Bridging Cross-task Protocol
    Inconsistency", show to cost accuracy). With student logits s, teacher logits t, temperature T:

        L = T^2 / M * sum over anchors, classes of KL( sigmoid(t / T) || sigmoid(s / T) )

    T^2 keeps the gradient's size comparable when T changes (Hinton et al.). A KL and not a bare cross
    entropy, so that the loss is zero for identical logits and the log shows a distance, with the same gradient.

    M is the teacher's mass, the sum over anchors of its highest class probability, at least 1: the counterpart of
    ``target_scores_sum``, by which ultralytics divides its own class loss. At T = 1 the gradient is then exactly
    that of ultralytics' class loss with the teacher's scores in place of the assigned targets.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take the temperature T > 0; the pair is not needed."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``scores`` of shape (batch, classes, anchors); return a float32 scalar, in nats."""
        teacher_logits = teacher.scores.detach().float()
        mass = object_score(teacher).sum().clamp(min=1.0)
        s, t = student.scores.float() / self.temperature, teacher_logits / self.temperature
        return bernoulli_kl(s, t).sum() * (self.temperature**2 / mass)


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL( sigmoid(teacher) || sigmoid(student) ) of logits, element by element, in nats."""
    # p log(p/q) + (1-p) log((1-p)/(1-q)) in logits: no logarithm of a rounded probability.
    return torch.sigmoid(teacher) * (teacher - student) + F.softplus(student) - F.softplus(teacher)
