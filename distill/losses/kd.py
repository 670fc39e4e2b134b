"""Hinton's distillation: the student's class distribution follows the teacher's softened one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["SoftTargets", "softened_kl"]


class SoftTargets(nn.Module):
    """Knowledge distillation (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network").

    With student logits s, teacher logits t and the temperature T of their equation 1:

        L = T^2 * mean over images of KL( softmax(t / T) || softmax(s / T) )

    T^2 because the gradient of soft targets shrinks as 1 / T^2 (their section 2). They write a cross entropy; the KL
    has the same gradient and is zero for identical logits.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take the temperature T > 0; the pair is not needed."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``logits`` of shape (batch, classes); return a float32 scalar, in nats."""
        return softened_kl(student.logits, teacher.logits.detach(), self.temperature).mean()


def softened_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(t / T) || softmax(s / T) ) over the last dimension, in float32.

    Args:
        student_logits: (..., classes).
        teacher_logits: the same shape; detach it where it must not learn.
        temperature: T > 0.

    Returns:
        One value per row, shape (...), in nats.
    """
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1) * temperature**2
