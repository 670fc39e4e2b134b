"""The distillation losses of a classifier, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from distill.losses.at import AttentionTransfer
from distill.losses.crd import ContrastiveDistillation
from distill.losses.cwd import ChannelWiseDistillation
from distill.losses.dkd import DecoupledDistillation
from distill.losses.extractive import ExtractiveDistillation
from distill.losses.fitnets import MiddleHint
from distill.losses.kd import SoftTargets
from distill.losses.mutual import MutualLearning
from distill.losses.names import parse_weights
from distill.losses.protocol import ClassPair
from distill.losses.rkd import Relations
from distill.losses.subclass import SubclassDistillation

__all__ = ["CLASS_LOSSES", "build_class_losses", "parse_class_losses"]

#: Every known loss under the name used in ``--losses``.
CLASS_LOSSES: Final[Mapping[str, Callable[[ClassPair, float], nn.Module]]] = {
    "kd": SoftTargets,
    "dkd": DecoupledDistillation,
    "extractive": ExtractiveDistillation,
    "subclass": SubclassDistillation,
    "mutual": MutualLearning,
    "fitnets": MiddleHint,
    "at": AttentionTransfer,
    "cwd": ChannelWiseDistillation,
    "rkd": Relations,
    "crd": ContrastiveDistillation,
}


def parse_class_losses(text: str) -> dict[str, float]:
    """Read a classifier's ``--losses``, as :func:`distill.losses.names.parse_weights` does.

    Raises:
        DistillError: for an unknown or repeated name, or a weight that is not a finite number above zero.
    """
    return parse_weights(text, CLASS_LOSSES)


def build_class_losses(names: Mapping[str, float], pair: ClassPair, temperature: float) -> nn.ModuleDict:
    """Build the named losses for one teacher-student pair, keyed by name."""
    return nn.ModuleDict({name: CLASS_LOSSES[name](pair, temperature) for name in names})
