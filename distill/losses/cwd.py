"""Channel-wise distillation: the student's channels look where the teacher's channels look."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.losses.maps import channel_norm, project, projectors, same_size
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["ChannelWiseDistillation"]


class ChannelWiseDistillation(nn.Module):
    """Channel-wise distillation (CWD, Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction").

    Each channel of a map is read as a distribution over positions, and the student's follows the teacher's (section
    3.2):

        L = mean over maps, batch, channels of KL( softmax over positions(t) || softmax over positions(s) )

    A learned 1x1 convolution brings the student's channels to the teacher's (the projector of FitNets, Romero et
    al. 2015), and both sides are first normalised per channel without learned scale, as DAMO-YOLO does (Xu et
    al. 2022): the softmax then sees the same contrast whatever the teacher's feature scale. On a detector's neck it
    is the loss with the largest published gain on a head comparable to YOLOv8's. The projector is
    training-only: it lives in the loss, is never part of the student, and is discarded with the loss.

    The temperature is fixed at 1: after normalisation the contrast is already set, and ``--temperature`` speaks
    of logits.
    """

    def __init__(self, pair: FeaturePair, temperature: float) -> None:
        """Build one projector per map; the temperature does not apply."""
        super().__init__()
        self.projectors = projectors(pair)

    def forward(self, student: FeatureActivations, teacher: FeatureActivations) -> Tensor:
        """Compare ``feats``, per map (batch, channels, height, width); return a float32 scalar, in nats."""
        per_map = []
        for layer, s_map, t_map in zip(self.projectors, student.feats, teacher.feats, strict=True):
            s, t = same_size(project(layer, s_map), t_map.detach())
            log_q, log_p = _log_attention(s), _log_attention(t)
            # Not spelled out: of the products only the gradient is kept, and these maps are large.
            kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
            per_map.append(kl / (log_q.shape[0] * log_q.shape[1]))
        return torch.stack(per_map).mean()


def _log_attention(features: Tensor) -> Tensor:
    """Log-softmax over positions of per-channel normalised features, shape (batch, channels, positions)."""
    return F.log_softmax(channel_norm(features).flatten(start_dim=2), dim=2)
