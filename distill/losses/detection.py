"""The distillation losses of a detector, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from distill.losses.at import AttentionTransfer
from distill.losses.boxes import BoundedRegression, SoftOverlap
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

__all__ = ["DEFAULT_LOSSES", "LOSSES", "build_losses", "parse_losses"]

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
}

#: Weights used when ``--losses`` is not given, at temperature 1. Chosen by the size of each loss's gradient on the
#: student's backbone and neck against that of box + cls + dfl together (YOLOv8-n from scratch, YOLOv8-s teacher, BCCD
#: at 160 px, epochs 1 to 10): at weight 1 the ratio is 0.5 to 0.7 for response, 0.1 to 0.2 for ld, 0.2 to 0.3 for
#: feature; ultralytics' own class and DFL losses stand at 0.3 to 0.4 and 0.2 to 0.4. The teacher thus pulls about
#: as hard as the labels' class loss and does not outvote them. At temperature 2 the ratio of response rises to 1.1 to
#: 2.0, because softening a sigmoid lifts thousands of background anchors; hence 1. Gradients say how loud a loss is,
#: not how useful: trials of 15 epochs (about 50 optimizer steps) were too short to rank recipes by accuracy.
#:
#: The same ratio at weight 1 for all (median of one batch an epoch over 10 epochs of one run as above, teacher trained
#: on BCCD, AdamW, nbs 16, projectors training alongside): bounded 0.7, rkd 0.9, fgd 0.4, quality 0.4, mimic 0.2, pkd
#: 0.2, cwd 0.2, ld 0.2, response 0.8, iou 0.1, fitnets 0.05, at 0.03, mgd 0.03; single batches vary by a factor of 3.
DEFAULT_LOSSES: Final = "response=0.5,ld=0.5,feature=0.25"


def parse_losses(text: str) -> dict[str, float]:
    """Read a detector's ``--losses``, as :func:`distill.losses.names.parse_weights` does.

    Raises:
        DistillError: for an unknown or repeated name, or a weight that is not a finite number above zero.
    """
    return parse_weights(text, LOSSES)


def build_losses(names: Mapping[str, float], pair: HeadPair, temperature: float) -> nn.ModuleDict:
    """Build the named losses for one teacher-student pair, keyed by name."""
    return nn.ModuleDict({name: LOSSES[name](pair, temperature) for name in names})
