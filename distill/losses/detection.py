"""The distillation losses of a detector, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import nn

from distill.losses.at import AttentionTransfer
from distill.losses.boxes import BoundedRegression, SoftOverlap
from distill.losses.crosskd import CrossHead
from distill.losses.cwd import ChannelWiseDistillation
from distill.losses.fgd import FocalGlobal
from distill.losses.fitnets import Hints
from distill.losses.localization import LocalizationDistillation
from distill.losses.mgd import MaskedGeneration
from distill.losses.mimic import FeatureMimic
from distill.losses.names import parse_weights
from distill.losses.pkd import PearsonDistillation
from distill.losses.protocol import HeadPair
from distill.losses.quality import QualityResponse
from distill.losses.response import ResponseDistillation
from distill.losses.rkd import PooledRelations
from distill.losses.scored import ScoredFeatures
from distill.losses.teachers import PerTeacher

__all__ = ["LOGIT_LOSSES", "LOSSES", "build_losses", "parse_losses"]

#: Every known loss under the name used in ``--losses`` and, as ``kd_NAME``, in the progress bar and results.csv.
LOSSES: Final[Mapping[str, Callable[[HeadPair, float], nn.Module]]] = {
    "response": ResponseDistillation,
    "ld": LocalizationDistillation,
    "feature": ChannelWiseDistillation,  # another name of cwd, which recipes of older runs use
    "cwd": ChannelWiseDistillation,
    "quality": QualityResponse,
    "iou": SoftOverlap,
    "bounded": BoundedRegression,
    "fitnets": Hints,
    "mimic": FeatureMimic,
    "at": AttentionTransfer,
    "pkd": PearsonDistillation,
    "mgd": MaskedGeneration,
    "fgd": FocalGlobal,
    "rkd": PooledRelations,
    "scored": ScoredFeatures,
    "crosskd": CrossHead,
}

#: Those that compare what heads say, whatever the features behind it: for teachers combined, and between peers.
LOGIT_LOSSES: Final = ("response", "quality", "ld", "iou", "bounded")


def parse_losses(text: str) -> dict[str, float]:
    """Read a detector's ``--losses``, as :func:`distill.losses.names.parse_weights` does.

    Raises:
        DistillError: for an unknown or repeated name, or a weight that is not a finite number above zero.
    """
    return parse_weights(text, LOSSES)


def build_losses(names: Mapping[str, float], pair: HeadPair | Sequence[HeadPair], temperature: float) -> nn.ModuleDict:
    """Build the named losses, keyed by name.

    Args:
        names: of the losses.
        pair: sizes of teacher and student; of several teachers, one each: what compares features is then built once
            per teacher, what compares logits once, for the teachers combined.
        temperature: T of the losses on logits.
    """
    pairs = [pair] if isinstance(pair, HeadPair) else list(pair)
    return nn.ModuleDict(
        {
            name: LOSSES[name](pairs[0], temperature)
            if len(pairs) == 1 or name in LOGIT_LOSSES
            else PerTeacher([LOSSES[name](one, temperature) for one in pairs])
            for name in names
        }
    )
