"""Subclass distillation: a teacher that invents subclasses, and a student that learns them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import DistillError
from distill.losses.kd import softened_kl
from distill.losses.protocol import ClassActivations, ClassPair

__all__ = ["SubclassDistillation", "class_logits", "spread_loss"]


class SubclassDistillation(nn.Module):
    """Subclass distillation (Müller, Kornblith and Hinton 2020, "Subclass Distillation").

    Teacher and student end in classes * s logits, s subclasses of each class side by side. The student matches the
    teacher's distribution over all of them:

        L = T^2 * mean over images of KL( softmax(t / T) || softmax(s / T) ) over the classes * s subclasses

    The probability of a class is the sum over its subclasses: train and evaluate both with :func:`class_logits`, and
    the teacher with :func:`spread_loss` added, or it leaves all but one subclass of a class unused. With s = 1 this
    is Hinton's loss.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take the number of classes from the pair, and the temperature T > 0."""
        super().__init__()
        self.classes = pair.classes
        self.temperature = temperature

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``logits`` of shape (batch, classes * s); return a float32 scalar, in nats.

        Raises:
            DistillError: when the two have different numbers of logits, or no whole number of subclasses.
        """
        theirs, ours = teacher.logits.shape[1], student.logits.shape[1]
        if theirs != ours or ours % self.classes:
            raise DistillError(
                f"subclass distillation: teacher has {theirs} logits, student {ours}, for {self.classes} classes; "
                f"expected the same multiple of {self.classes}: train both with the same number of subclasses"
            )
        return softened_kl(student.logits, teacher.logits.detach(), self.temperature).mean()


def class_logits(subclass_logits: Tensor, classes: int) -> Tensor:
    """Logits of classes whose softmax is the sum of their subclasses' probabilities.

    Args:
        subclass_logits: (batch, classes * s), the subclasses of a class side by side.
        classes: how many classes there are.

    Returns:
        (batch, classes) float32, the log of the summed exponentials.
    """
    return torch.logsumexp(subclass_logits.float().reshape(len(subclass_logits), classes, -1), dim=2)


def spread_loss(subclass_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The auxiliary loss of the teacher's training, which keeps its images apart in subclass logits.

    With v_i the logits of image i, centred and scaled to length 1, over the n images of the batch:

        L = -1/n * sum over i of log[ exp(v_i.v_i / T) / ( 1/n * sum over j of exp(v_i.v_j / T) ) ]
          =  1/n * sum over i of log( sum over j of exp(v_i.v_j / T) ) - 1/T - log n

    At most 0, reached when all images have the same logits up to shift and scale; the more they differ, the lower.

    Args:
        subclass_logits: (batch, classes * s).
        temperature: T of this loss, not of the distillation.

    Returns:
        A float32 scalar, in nats.
    """
    centred = subclass_logits.float() - subclass_logits.float().mean(dim=1, keepdim=True)
    v = F.normalize(centred, dim=1)
    with torch.autocast(v.device.type, enabled=False):
        similarity = v @ v.T
    return torch.logsumexp(similarity / temperature, dim=1).mean() - 1 / temperature - math.log(len(v))
