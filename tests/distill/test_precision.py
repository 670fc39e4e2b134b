"""bfloat16 on the CPU: executed as such, resumed exactly, and gone from ultralytics afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.engine import trainer as engine
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import torch_utils

from distill import yolo
from distill.precision import Float32Criterion, cpu_bfloat16, float32_outputs

BFLOAT16 = ("--epochs", "2", "--set", "amp=bf16")


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the criterion of the first training batch met: precision of the outputs, of the teacher, of the losses."""
    seen: dict[str, Any] = {}
    call = Float32Criterion.__call__

    def look(self: Float32Criterion, outputs: Any, batch: dict[str, Any]) -> Any:
        loss, parts = call(self, outputs, batch)
        if not seen:
            distilling = self.criterion.distillation
            teacher = distilling.teacher(batch["img"])
            seen["student"], seen["teacher"], seen["loss"] = outputs["scores"].dtype, teacher.scores.dtype, loss.dtype
            seen["channels last"] = batch["img"].is_contiguous(memory_format=torch.channels_last)
            seen["parts"] = dict(parts)
        return loss, parts

    monkeypatch.setattr(Float32Criterion, "__call__", look)
    yield seen
    assert engine.autocast is torch_utils.autocast


def test_a_bfloat16_training_on_the_cpu_resumes_to_the_same_weights(
    arguments: Callable[..., list[str]],
    interrupt_after: Callable[[int], pytest.MonkeyPatch],
    read_results: Callable[[Path], list[dict[str, str]]],
    dtypes: dict[str, Any],
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert yolo.main(arguments(whole, *BFLOAT16)) == 0
    assert dtypes["student"] == dtypes["teacher"] == torch.bfloat16
    assert dtypes["loss"] == torch.float32
    assert dtypes["channels last"]
    assert all(float(part) > 0 for part in dtypes["parts"].values())

    patch = interrupt_after(1)
    assert yolo.main(arguments(cut, *BFLOAT16)) == 130
    patch.undo()
    assert yolo.main(["--resume", str(cut)]) == 0
    assert read_results(cut) == read_results(whole)
    one, other = (load_checkpoint(out / "train" / "weights" / "last.pt")[0].state_dict() for out in (cut, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_plain_training_takes_bfloat16_too_and_saves_nothing_of_this_project(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    assert yolo.main(arguments(out, "--epochs", "1", "--set", "amp=bf16", plain=True)) == 0
    checkpoint = (out / "train" / "weights" / "last.pt").read_bytes()
    assert b"distill." not in checkpoint
    assert engine.autocast is torch_utils.autocast


def test_the_loss_of_bfloat16_outputs_is_that_of_the_same_numbers_in_float32() -> None:
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.args = get_cfg()
    images = torch.rand(2, 3, 64, 64)
    batch = {
        "img": images,
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.5, 0.3]]),
    }
    plain = model.init_criterion()
    with cpu_bfloat16(), engine.autocast(torch.bfloat16, device="cpu"):
        outputs = model(images)
        loss, _ = Float32Criterion(plain)(outputs, batch)
    assert outputs["boxes"].dtype == torch.bfloat16
    expected, _ = plain(float32_outputs(outputs), batch)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert type(copy.deepcopy(Float32Criterion(plain))) is type(plain)
