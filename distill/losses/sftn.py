"""Student-friendly teachers: a teacher trained with student branches that read its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses.kd import softened_kl

__all__ = ["student_friendly_loss"]


def student_friendly_loss(
    teacher_logits: Tensor,
    branch_logits: Sequence[Tensor],
    labels: Tensor,
    *,
    temperature: float = 1.0,
    branch_kl: float = 3.0,
    branch_ce: float = 1.0,
) -> Tensor:
    """The loss of a teacher in training (SFTN, Park et al. 2021, "Learning Student-Friendly Teacher Networks").

    A student branch is the student's remaining blocks set on one of the teacher's feature maps, through a small
    transform. With q the softmax, y the label and the mean over branches R:

        L = CE(q_T, y) + branch_kl * mean over R of KL( q_R || q_T ) + branch_ce * mean over R of CE(q_R, y)

    The KL is softened by T, times T^2, and its gradient reaches teacher and branches: the teacher shall become one
    that branches can follow, which is why nothing is detached here. The branches are thrown away afterwards.

    Args:
        teacher_logits: (batch, classes).
        branch_logits: of each student branch, (batch, classes); at least one.
        labels: (batch,) int64.
        temperature: T of the KL.
        branch_kl: lambda of the KL.
        branch_ce: lambda of the branches' cross entropy.

    Returns:
        A float32 scalar, in nats.
    """
    kl = torch.stack([softened_kl(teacher_logits, branch, temperature).mean() for branch in branch_logits]).mean()
    ce = torch.stack([F.cross_entropy(branch.float(), labels) for branch in branch_logits]).mean()
    return F.cross_entropy(teacher_logits.float(), labels) + branch_kl * kl + branch_ce * ce
