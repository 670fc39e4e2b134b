"""Several teachers of a detector as one: logits combined anchor by anchor, features each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.ensemble import trust
from distill.losses.protocol import Activations
from distill.losses.regions import object_score

__all__ = ["COMBINATIONS", "EnsembleActivations", "PerTeacher", "combine_teachers"]


@dataclass(frozen=True)
class EnsembleActivations(Activations):
    """Several teachers' outputs for one batch.

    ``boxes`` and ``scores`` are the combined logits, float32; ``feats`` are those of the first teacher.

    Attributes:
        members: each teacher's own outputs.
        shares: how much each teacher counts in losses on features, (teachers,) float32, summing to 1.
    """

    members: tuple[Activations, ...] = ()
    shares: Tensor | None = None


class PerTeacher(nn.Module):
    """A loss that compares features: one copy per teacher, so that each has projectors of its own.

        L = sum over teachers k of share_k * L_k

    with equal shares for ``mean`` (as FEED, Park and Kwak 2019, adds its teachers up), and for ``confidence`` the
    shares that :func:`combine_teachers` gives. Each copy sees its own teacher's scores where it asks for objects.
    """

    def __init__(self, losses: Sequence[nn.Module]) -> None:
        """Take one loss per teacher, in the teachers' order."""
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, student: Activations, teacher: EnsembleActivations) -> Tensor:
        """Compare the student with each of ``teacher.members``; return a float32 scalar."""
        assert teacher.shares is not None
        costs = [loss(student, member) for loss, member in zip(self.losses, teacher.members, strict=True)]
        return (torch.stack(costs) * teacher.shares).sum()


def combine_teachers(members: Sequence[Activations], how: str, reg_max: int) -> EnsembleActivations:
    """Several teachers' raw outputs as those of one.

    The logits' weighted mean is the geometric mean of the predictions (Hinton et al. 2015, section 1), of each class's
    Bernoulli and of each box edge's distribution (DFL).

    - ``mean``: all teachers count alike, everywhere.
    - ``confidence``: at each anchor a teacher counts the more, the less the entropy H of its own prediction there, as
      Kwon et al. 2020 ("Adaptive Knowledge Distillation Based on Entropy") prefer teachers of low entropy. The
      weights have the form of CA-MKD (Zhang et al. 2022), which has the cross entropy on the label in H's place; an
      anchor has no label before it is assigned:

          w_k = ( 1 - exp(H_k) / sum over teachers j of exp(H_j) ) / (K - 1)

      For scores H is summed over classes, for boxes it is the mean over the four edges: a flat distribution is an
      unsure edge (Li et al. 2021, "Generalized Focal Loss V2").

    Args:
        members: raw outputs of each of K >= 2 teachers for the same batch: the same anchors, classes and bins.
        how: one of ``COMBINATIONS``.
        reg_max: DFL bins per edge.
    """
    scores = torch.stack([member.scores.detach().float() for member in members])
    boxes = torch.stack([member.boxes.detach().float() for member in members])
    score_weights, box_weights = (
        _WEIGHTS[how](cost) for cost in (_class_entropy(scores), _edge_entropy(boxes, reg_max))
    )
    combined = Activations(
        boxes=(box_weights.unsqueeze(2) * boxes).sum(dim=0),
        scores=(score_weights.unsqueeze(2) * scores).sum(dim=0),
        feats=members[0].feats,
    )
    objects = object_score(combined).clamp(min=1e-12)  # where nothing is seen at all, shares are still shares
    shares = (score_weights * objects).sum(dim=(1, 2))
    return EnsembleActivations(
        combined.boxes, combined.scores, combined.feats, members=tuple(members), shares=shares / shares.sum()
    )


def _equal(cost: Tensor) -> Tensor:
    return torch.full_like(cost, 1 / len(cost))


_WEIGHTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"mean": _equal, "confidence": trust}

#: The known ways of ``--combine``.
COMBINATIONS: Final = tuple(_WEIGHTS)


def _class_entropy(scores: Tensor) -> Tensor:
    """Entropy of all classes in nats: (teachers, batch, classes, anchors) to (teachers, batch, anchors)."""
    return (F.softplus(scores) - scores * scores.sigmoid()).sum(dim=2)


def _edge_entropy(boxes: Tensor, reg_max: int) -> Tensor:
    """Mean entropy of the edges in nats: (teachers, batch, 4 * reg_max, anchors) to (teachers, batch, anchors)."""
    teachers, batch, _, anchors = boxes.shape
    log_p = F.log_softmax(boxes.view(teachers, batch, 4, reg_max, anchors), dim=3)
    return -(log_p.exp() * log_p).sum(dim=3).mean(dim=2)
