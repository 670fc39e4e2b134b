"""Every registered detection loss trains through the command, and what it learns with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import yolo
from distill.losses import LOSSES
from distill.trainer import DistillationTrainer

LEARNING = ("feature", "cwd", "fitnets", "mimic", "pkd", "mgd", "fgd", "scored", "crosskd")


def test_every_loss_trains_through_the_command(
    arguments: Callable[..., list[str]],
    read_results: Callable[[Path], list[dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began: dict[str, torch.Tensor] = {}
    trainers: list[Any] = []
    build_optimizer = DistillationTrainer.build_optimizer

    def remember(self: DistillationTrainer, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self, *args, **kwargs)
        trainers.append(self)
        began.update({name: p.detach().clone() for name, p in self.projectors.named_parameters()})
        return optimizer

    monkeypatch.setattr(DistillationTrainer, "build_optimizer", remember)
    losses = ",".join(f"{name}=0.1" for name in LOSSES)
    assert yolo.main([*arguments(tmp_path / "run"), "--epochs", "2", "--losses", losses, "--set", "nbs=4"]) == 0
    for row in read_results(tmp_path / "run"):
        parts = {name: float(row[f"train/kd_{name}"]) for name in LOSSES}
        assert all(math.isfinite(part) and part > 0 for part in parts.values()), parts
    moved = {name for name, p in trainers[0].projectors.named_parameters() if not torch.equal(p, began[name])}
    assert {name.split(".")[0] for name in moved} == set(LEARNING)
