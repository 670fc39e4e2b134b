"""Channel-wise distillation: the student's channels look where the teacher's channels look."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from distill.losses.maps import pooled, projectors
from distill.losses.protocol import FeatureActivations, FeaturePair

__all__ = ["ChannelWiseDistillation"]

_EPSILON: Final = 1e-5  # of a variance, as batch normalisation takes it
#: On a CPU so many numbers of a map are worked on at once: they stay in a core's cache between the passes.
_BLOCK: Final = 1 << 19


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

    A softmax does not see what is added to all positions, so of the normalisation only the division by the standard
    deviation counts. The student's follows from the covariance of its own, fewer channels and is folded into the
    projector: maps of the teacher's width are made block by block and never kept.

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
            with torch.autocast(s_map.device.type, enabled=False):
                per_map.append(_divergence(next(layer.parameters()).flatten(1), s_map, t_map.detach()))
        return torch.stack(per_map).mean()


def _divergence(weight: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean KL over batch and channels of one map.

    Args:
        weight: of the projector, (teacher's channels, student's channels).
        student: (batch, student's channels, height, width).
        teacher: (batch, teacher's channels, other height, other width).
    """
    # Pooling the student before its projector is the same as after it, and cheaper.
    s, t = (features.flatten(2) for features in pooled(student, teacher))
    total: Tensor = _SummedDivergence.apply(weight.float(), s.float(), t)
    return total / (t.shape[0] * t.shape[1])


class _SummedDivergence(torch.autograd.Function):
    """KL( softmax(t / std(t)) || softmax(W s / std(W s)) ) over positions, summed over batch and channels.

    Its gradient towards the student's logits is the difference of the two softmaxes. It is worked out together with
    the value, while a block of the map is at hand; what is kept for the backward pass has the student's width.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum, float32.

        Args:
            ctx: of autograd.
            weight: W, (channels, k).
            student: s, (batch, k, positions).
            teacher: t, (batch, channels, positions), in any precision.
        """
        count = student.shape[0] * student.shape[2]
        centred = student - student.mean(dim=(0, 2), keepdim=True)
        covariance = torch.matmul(centred, centred.mT).sum(dim=0) / count
        spread = weight @ covariance
        scale = ((spread * weight).sum(dim=1).clamp(min=0) + _EPSILON).rsqrt()[:, None]
        total, of_folded, of_student = _blockwise(weight * scale, student, teacher)
        # Through the standard deviation: of the weight, and of the student by way of its covariance.
        of_variance = -0.5 * scale**3 * (of_folded * weight).sum(dim=1, keepdim=True)
        of_weight = of_folded * scale + 2 * of_variance * spread
        of_covariance = weight.T @ (of_variance * weight)
        of_student += torch.matmul(2 / count * of_covariance, centred)
        ctx.save_for_backward(of_weight, of_student)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale what :meth:`forward` worked out; the teacher gets nothing."""
        of_weight, of_student = ctx.saved_tensors
        return of_weight * gradients[0], of_student * gradients[0], None


def _blockwise(weight: Tensor, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of KL( softmax(t / std(t)) || softmax(W s) ), and its gradients towards W and s."""
    blocks = _blocks(teacher)
    scale = (_variance(teacher, blocks) + _EPSILON).rsqrt()[:, None]
    total, of_weight, of_student = student.new_zeros(()), torch.zeros_like(weight), torch.empty_like(student)
    # A teacher that runs in bfloat16 does so because that is fast here, and its maps are no more precise than that.
    # Not so float16, which would lose the small gradients.
    exact = torch.bfloat16 if teacher.dtype == torch.bfloat16 else torch.float32
    weight, student = weight.to(exact), student.to(exact)
    for rows in blocks:
        s = student[rows]
        log_q = torch.matmul(weight, s).float().log_softmax(dim=2)
        log_p = teacher[rows].float().mul(scale).log_softmax(dim=2)
        p = log_p.exp()
        total += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
        error = log_q.exp_().sub_(p).to(exact)
        of_weight += torch.matmul(error, s.mT).sum(dim=0)
        of_student[rows] = torch.matmul(weight.T, error)
    return total, of_weight, of_student


def _variance(features: Tensor, blocks: list[slice]) -> Tensor:
    """Of each channel over batch and positions, (channels,), float32; ``features`` (batch, channels, positions)."""
    means, squares = [], []
    for rows in blocks:
        block = features[rows].float()
        means.append(block.mean(dim=2))
        squares.append((block - means[-1][:, :, None]).square_().mean(dim=2))  # torch.var is many times slower
    return torch.cat(squares).mean(dim=0) + torch.cat(means).var(dim=0, correction=0)


def _blocks(features: Tensor) -> list[slice]:
    """Images to be worked on together: on a CPU what fits its cache, elsewhere all."""
    images = features.shape[0]
    at_once = max(1, _BLOCK // features[0].numel()) if features.device.type == "cpu" else images
    return [slice(first, first + at_once) for first in range(0, images, at_once)]
