"""Deep mutual learning: peers that train together and teach each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.losses.kd import SoftTargets, softened_kl
from distill.losses.protocol import ClassPair

__all__ = ["MutualLearning", "peer_losses"]


class MutualLearning(SoftTargets):
    """One peer's distillation from another (Zhang et al. 2018, "Deep Mutual Learning", section 3.1).

        L = mean over images of KL( p_peer || p_own ), at temperature 1

    Hinton's loss at temperature 1, with a teacher that itself learns: each peer calls it on the other's detached
    activations and adds its own cross entropy. More than two peers: :func:`peer_losses`.
    """

    def __init__(self, pair: ClassPair, temperature: float) -> None:
        """Take nothing from the pair; the paper has no temperature."""
        super().__init__(pair, 1.0)


def peer_losses(logits: Sequence[Tensor]) -> list[Tensor]:
    """What each of K peers learns from the others (section 3.3): the mean KL from the K - 1 others to it.

    Args:
        logits: of each peer, (batch, classes); at least two.

    Returns:
        One float32 scalar per peer, in nats, with a gradient to that peer alone.
    """
    losses = []
    for own, mine in enumerate(logits):
        from_others = [softened_kl(mine, peer.detach(), 1.0).mean() for k, peer in enumerate(logits) if k != own]
        losses.append(torch.stack(from_others).mean())
    return losses
