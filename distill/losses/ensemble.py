"""Several teachers as one: of logits, and of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import project, projector, same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["FeatureEnsemble", "combine_logits", "combine_probabilities", "confidence_weights", "trust"]


def combine_logits(logits: Sequence[Tensor], weights: Tensor | None = None) -> Tensor:
    """The weighted mean of teachers' logits: the geometric mean of their predictions (Hinton et al. 2015, section 1).

    Args:
        logits: of each teacher, (batch, classes).
        weights: (teachers, batch), summing to 1 over teachers; None counts all alike.

    Returns:
        (batch, classes) float32.
    """
    stacked = torch.stack([z.float() for z in logits])
    return stacked.mean(dim=0) if weights is None else (weights.unsqueeze(2) * stacked).sum(dim=0)


def combine_probabilities(logits: Sequence[Tensor], temperature: float, weights: Tensor | None = None) -> Tensor:
    """Logits of the weighted arithmetic mean of teachers' predictions at temperature T (Hinton et al. 2015).

    ``softmax(result / T)`` is that mean, so the result goes into any loss on logits that uses the same T.

    Args:
        logits: of each teacher, (batch, classes).
        temperature: T > 0.
        weights: (teachers, batch), summing to 1 over teachers; None counts all alike.

    Returns:
        (batch, classes) float32.
    """
    log_p = torch.stack([F.log_softmax(z.float() / temperature, dim=1) for z in logits])
    share = log_p.new_full(log_p.shape[:2], 1 / len(logits)) if weights is None else weights
    return torch.logsumexp(log_p + share.clamp(min=1e-12).log().unsqueeze(2), dim=0) * temperature


def confidence_weights(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """How far each of K teachers is trusted on each image (CA-MKD, Zhang et al. 2022).

    "Confidence-Aware Multi-Teacher Knowledge Distillation": with the cross entropy L_k of teacher k on the label,

        w_k = ( 1 - exp(L_k) / sum over teachers j of exp(L_j) ) / (K - 1)

    Args:
        logits: of each teacher, (batch, classes); one teacher alone is trusted wholly.
        labels: (batch,) int64.

    Returns:
        (teachers, batch) float32, summing to 1 over teachers.
    """
    return trust(torch.stack([F.cross_entropy(z.float(), labels, reduction="none") for z in logits]))


def trust(cost: Tensor) -> Tensor:
    """The weights of :func:`confidence_weights` from each teacher's cost: (teachers, ...), summing to 1 over them."""
    if len(cost) == 1:
        return torch.ones_like(cost)
    return (1 - F.softmax(cost, dim=0)) / (len(cost) - 1)


class FeatureEnsemble(nn.Module):
    """Features of several teachers (FEED, Park and Kwak 2019, "Feature-level Ensemble Knowledge Distillation").

    The student's last map, through a learned 1x1 convolution per teacher k, follows each teacher's last map, both at
    length 1 (the paper sums where this takes the mean over teachers and images):

        L = mean over teachers, images of || r_k(s) / ||r_k(s)||_2 - t_k / ||t_k||_2 ||_1

    Teachers may differ in width, depth and map size. Not in a list of losses by name, because it needs a pair and
    activations per teacher.
    """

    def __init__(self, pairs: Sequence[FeaturePair]) -> None:
        """Build one projector per teacher from its pair with the student."""
        super().__init__()
        self.projectors = nn.ModuleList(projector(p.student_channels[-1], p.teacher_channels[-1]) for p in pairs)

    def forward(self, student: FeatureActivations, teachers: Sequence[FeatureActivations]) -> Tensor:
        """Compare the last of ``feats`` with each teacher's; return a float32 scalar."""
        per_teacher = []
        for layer, teacher in zip(self.projectors, teachers, strict=True):
            s, t = same_size(project(layer, student.feats[-1]), teacher.feats[-1].detach())
            unit_s, unit_t = (F.normalize(f.flatten(start_dim=1), dim=1) for f in (s, t))
            per_teacher.append((unit_s - unit_t).abs().sum(dim=1).mean())
        return torch.stack(per_teacher).mean()
