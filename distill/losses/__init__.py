"""Distillation losses, one published method per file, and the lists of the known ones."""

from __future__ import annotations

from distill.losses.classification import CLASS_LOSSES, build_class_losses, parse_class_losses
from distill.losses.detection import LOGIT_LOSSES, LOSSES, build_losses, parse_losses
from distill.losses.protocol import Activations, AssignedBoxes, ClassActivations, ClassPair, DistillLoss, HeadPair

__all__ = [
    "CLASS_LOSSES",
    "LOGIT_LOSSES",
    "LOSSES",
    "Activations",
    "AssignedBoxes",
    "ClassActivations",
    "ClassPair",
    "DistillLoss",
    "HeadPair",
    "build_class_losses",
    "build_losses",
    "parse_class_losses",
    "parse_losses",
]
