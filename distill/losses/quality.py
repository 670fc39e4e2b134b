"""Quality-focal response distillation: class logits, where student and teacher disagree."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import Activations, HeadPair
from distill.losses.regions import object_score

__all__ = ["QualityResponse"]


class QualityResponse(nn.Module):
    """Quality focal loss (QFL, Li et al. 2020, "Generalized Focal Loss", equation 2), labelled by the teacher.

    QFL trains a score that is class and box quality in one, as YOLOv8's is. Its label y in 0..1 is here the teacher's
    score, as in the distillation of PP-YOLOE+ (Xu et al. 2022). With y = sigmoid(t) and the student's q = sigmoid(s):

        L = 1 / M * sum over anchors, classes of |y - q|^2 * BCE(q, y)

    The factor (beta = 2) silences the thousands of background anchors on which both agree, so unlike ``response`` it
    is loud only where they differ. M is the teacher's score mass, at least 1. QFL has no temperature.
    """

    def __init__(self, pair: HeadPair, temperature: float) -> None:
        """Take nothing: the pair is not needed and the temperature does not apply."""
        super().__init__()

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Compare ``scores`` of shape (batch, classes, anchors); return a float32 scalar, in nats."""
        quality, logits = teacher.scores.detach().float().sigmoid(), student.scores.float()
        bce = F.softplus(logits) - quality * logits
        focal = (quality - logits.sigmoid()).square()
        return (focal * bce).sum() / object_score(teacher).sum().clamp(min=1.0)
