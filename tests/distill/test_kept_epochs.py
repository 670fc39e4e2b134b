"""Early-stopped teachers: epochs that are kept, and teach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from distill import yolo
from distill.trainer import DistillationTrainer

Arguments = Callable[..., list[str]]


def test_kept_epochs_survive_a_resume_and_teach(
    arguments: Arguments,
    interrupt_after: Callable[[int], pytest.MonkeyPatch],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "teacher"
    averages: list[dict[str, torch.Tensor]] = []
    save = DistillationTrainer.save_model

    def remember(self: DistillationTrainer) -> bool:
        averages.append({k: v.detach().clone().half() for k, v in self.ema.ema.state_dict().items()})
        return save(self)

    monkeypatch.setattr(DistillationTrainer, "save_model", remember)
    with monkeypatch.context():
        interrupt_after(2)
        assert yolo.main([*arguments(out, plain=True), "--epochs", "3", "--set", "save_period=1", "nbs=4"]) == 130
        monkeypatch.setattr(DistillationTrainer, "save_model", remember)
    weights = out / "train" / "weights"
    assert sorted(p.name for p in weights.iterdir()) == ["best.pt", "epoch0.pt", "epoch1.pt", "last.pt", "state.pt"]
    assert yolo.main(["--resume", str(out)]) == 0
    assert sorted(p.name for p in weights.iterdir()) == ["best.pt", "epoch0.pt", "epoch1.pt", "epoch2.pt", "last.pt"]
    for epoch, average in enumerate(averages):
        kept = weights / f"epoch{epoch}.pt"
        assert torch.load(kept, weights_only=False)["optimizer"] is None
        state = load_checkpoint(kept)[0].half().state_dict()
        assert all(torch.equal(state[k], average[k].to(state[k].dtype)) for k in state)
    assert len(averages) == 3
    assert not torch.equal(averages[0]["model.0.conv.weight"], averages[2]["model.0.conv.weight"])

    taught = tmp_path / "taught"
    early = ["--teacher", str(weights / "epoch1.pt"), "--losses", "response", "--epochs", "1"]
    assert yolo.main([*arguments(taught, plain=True), *early]) == 0
    assert "train/kd_response" in (taught / "train" / "results.csv").read_text()
