"""Where a detector's teacher is sure of an object, and where its boxes lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses.protocol import Activations

__all__ = ["edge_distances", "object_maps", "object_score"]


def object_score(activations: Activations) -> Tensor:
    """The highest class probability of each anchor, float32 (batch, anchors), outside the graph.

    YOLOv8 is trained so that this score tracks the overlap of the predicted box with the object: a soft mask of what
    is worth copying, near 0 on background. It needs no labels and no second assignment.
    """
    return activations.scores.detach().float().sigmoid().amax(dim=1)


def object_maps(activations: Activations) -> list[Tensor]:
    """The same, level by level as maps of one channel, each (batch, 1, height, width)."""
    sizes = [feats.shape[2:] for feats in activations.feats]
    score = object_score(activations)
    levels = torch.split(score, [h * w for h, w in sizes], dim=1)
    return [level.reshape(len(score), 1, h, w) for level, (h, w) in zip(levels, sizes, strict=True)]


def edge_distances(boxes: Tensor, reg_max: int) -> Tensor:
    """Expected distance of each box edge from its anchor: the mean of the DFL distribution.

    Args:
        boxes: DFL logits, (batch, 4 * reg_max, anchors).
        reg_max: bins per edge.

    Returns:
        Left, top, right and bottom in strides of the anchor's level, float32 (batch, 4, anchors), never negative.
    """
    probabilities = F.softmax(boxes.float().view(boxes.shape[0], 4, reg_max, -1), dim=2)
    bins = torch.arange(reg_max, device=boxes.device, dtype=torch.float32)
    return (probabilities * bins.view(1, 1, -1, 1)).sum(dim=2)
