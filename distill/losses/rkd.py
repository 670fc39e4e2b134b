"""Relational distillation: the student's images lie to each other as the teacher's do."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.protocol import ClassActivations, ClassPair, FeatureActivations, FeaturePair

__all__ = ["PooledRelations", "Relations", "angle_loss", "distance_loss"]

#: Weight of the angles against the distances (the authors use 1 and 2, or 25 and 50).
_ANGLE_WEIGHT = 2.0


class Relations(nn.Module):
    """Relational knowledge distillation (RKD, Park et al. 2019, "Relational Knowledge Distillation").

    Not the embeddings of the images are matched but their mutual relations, so widths may differ and nothing is
    learned. With psi_D the distances between the images of a batch divided by their mean (section 3.2.1), psi_A the
    cosines of the angles of all triplets (section 3.2.2) and l the Huber loss with threshold 1:

        L = mean over pairs of l( psi_D(s), psi_D(t) ) + 2 * mean over triplets of l( psi_A(s), psi_A(t) )

    Means run over all ordered pairs and triplets of the batch, as in the authors' code, so that a repeated batch
    costs the same. A batch of one image has no relations and costs 0.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take nothing from the pair; the temperature does not apply."""
        super().__init__()

    def forward(self, student: ClassActivations, teacher: ClassActivations) -> Tensor:
        """Compare ``embedding`` of shape (batch, dimensions); return a float32 scalar."""
        return _relations(student.embedding.float(), teacher.embedding.detach().float())


class PooledRelations(nn.Module):
    """The same relations between images, of each feature map averaged over its positions: for a detector's neck.

    The mean over maps. A detector has no one embedding of an image; average pooling makes one of each level.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Take nothing from the pair; the temperature does not apply."""
        super().__init__()

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar."""
        per_map = [
            _relations(s.float().mean(dim=(2, 3)), t.detach().float().mean(dim=(2, 3)))
            for s, t in zip(student.feats, teacher.feats, strict=True)
        ]
        return torch.stack(per_map).mean()


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    return distance_loss(student, teacher) + _ANGLE_WEIGHT * angle_loss(student, teacher)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between distances in units of their mean, over all pairs of rows of (batch, dimensions)."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of all angles i, j, k at the vertex j, over rows of (batch, dimensions)."""
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _distances(points: Tensor) -> Tensor:
    """Distances between rows over their mean; equal rows, at distance 0, do not count in that mean."""
    # Not through matrix products: near rows would lose their distance to cancellation.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = distances > 0
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def _angles(points: Tensor) -> Tensor:
    """Cosine at j between the directions to i and to k, indexed [j, i, k]; 0 where a direction has no length."""
    directions = points.unsqueeze(0) - points.unsqueeze(1)  # [j, i]: from j to i
    squares = directions.square().sum(dim=2, keepdim=True)
    lengths = torch.where(squares > 0, squares, 1.0).sqrt()  # no root of 0: its gradient is infinite
    directions = directions / lengths
    with torch.autocast(points.device.type, enabled=False):
        return directions @ directions.transpose(1, 2)
