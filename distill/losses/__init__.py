"""Distillation losses, one published method per file, and the list of the known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from distill.errors import DistillError
from distill.losses.feature import ChannelWiseDistillation
from distill.losses.localization import LocalizationDistillation
from distill.losses.protocol import Activations, DistillLoss, HeadPair
from distill.losses.response import ResponseDistillation

__all__ = ["DEFAULT_LOSSES", "LOSSES", "Activations", "DistillLoss", "HeadPair", "build_losses", "parse_losses"]

#: Every known loss under the name used in ``--losses`` and, as ``kd_NAME``, in the progress bar and results.csv.
LOSSES: Final[Mapping[str, Callable[[HeadPair, float], nn.Module]]] = {
    "response": ResponseDistillation,
    "ld": LocalizationDistillation,
    "feature": ChannelWiseDistillation,
}

#: Weights used when ``--losses`` is not given, at temperature 1. Chosen by the size of each loss's gradient on the
#: student's backbone and neck against that of box + cls + dfl together (YOLOv8-n from scratch, YOLOv8-s teacher, BCCD
#: at 160 px, epochs 1 to 10): at weight 1 the ratio is 0.5 to 0.7 for response, 0.1 to 0.2 for ld, 0.2 to 0.3 for
#: feature; ultralytics' own class and DFL losses stand at 0.3 to 0.4 and 0.2 to 0.4. The teacher thus pulls about
#: as hard as the labels' class loss and does not outvote them. At temperature 2 the ratio of response rises to 1.1 to
#: 2.0, because softening a sigmoid lifts thousands of background anchors; hence 1. Gradients say how loud a loss is,
#: not how useful: trials of 15 epochs (about 50 optimizer steps) were too short to rank recipes by accuracy.
DEFAULT_LOSSES: Final = "response=0.5,ld=0.5,feature=0.25"


def parse_losses(text: str) -> dict[str, float]:
    """Read ``--losses``: ``name=weight`` pairs joined by commas, or ``none``.

    Args:
        text: for example ``response=1.0,ld=0.25``; a name without a weight counts 1.0.

    Returns:
        Weights by name, in the order given; empty for ``none`` (plain training, the baseline).

    Raises:
        DistillError: for an unknown or repeated name, or a weight that is not a finite number above zero.
    """
    if text.strip().lower() == "none":
        return {}
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in LOSSES:
            raise DistillError(f"unknown loss {name!r} in --losses: the known ones are {', '.join(LOSSES)}, or none")
        if name in weights:
            raise DistillError(f"loss {name!r} appears twice in --losses: give it once, with one weight")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = float("nan")
        if not 0 < weight < float("inf"):
            raise DistillError(f"weight {value!r} of loss {name!r}: expected a number above 0, as in {name}=1.0")
        weights[name] = weight
    return weights


def build_losses(names: Mapping[str, float], pair: HeadPair, temperature: float) -> nn.ModuleDict:
    """Build the named losses for one teacher-student pair, keyed by name."""
    return nn.ModuleDict({name: LOSSES[name](pair, temperature) for name in names})
