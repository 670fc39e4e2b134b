"""Which weights learn in an epoch, and how fast."""

from __future__ import annotations

import math

import torch

from distill.classification.learner import Learner
from distill.classification.settings import Settings

__all__ = ["build_optimizer", "freeze", "learning_rate"]


def build_optimizer(learner: Learner, settings: Settings) -> torch.optim.Optimizer:
    """Weights are decayed; biases and the scales of norms are not."""
    parameters = list(learner.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=0.1)


def learning_rate(settings: Settings, epoch: float, epochs: int) -> float:
    """The learning rate at a fractional epoch: a linear rise, then a cosine; a function of time alone."""
    highest = settings.lr or {"adamw": 1e-3, "sgd": 0.05}[settings.optimizer]
    if settings.freeze_epochs and epoch >= settings.freeze_epochs:
        highest *= settings.finetune_lr
    warmup = min(settings.warmup, epochs / 2)
    if epoch < warmup:
        return highest * (epoch + 0.01) / (warmup + 0.01)
    return highest * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1e-9)))


def freeze(learner: Learner, *, all_but_head: bool) -> None:
    """Feature extraction: only the last layer of the student learns, and its norms keep their statistics."""
    head = learner.student.network.get_submodule(learner.student.layers.head)
    learner.student.network.requires_grad_(not all_but_head)
    head.requires_grad_(True)
    if all_but_head:
        learner.student.network.eval()
