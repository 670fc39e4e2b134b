"""Distillation attached to a student's criterion: what it adds, and what it never leaves behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import ModelEMA

from distill.callbacks import Distillation, DistillationCriterion
from distill.errors import DistillError
from distill.losses import Activations
from distill.teacher import load_teacher, load_weights

BATCH = {
    "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    "batch_idx": torch.tensor([0.0, 1.0]),
    "cls": torch.tensor([[0.0], [1.0]]),
    "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.3, 0.2]]),
}


@pytest.fixture
def trainer(trainer_of: Callable[[Any], SimpleNamespace]) -> SimpleNamespace:
    """What ultralytics' trainer of a YOLOv8n looks like to a callback."""
    torch.manual_seed(0)
    return trainer_of(DetectionModel("yolov8n.yaml", nc=2, verbose=False))


def test_each_loss_is_a_named_part_and_the_parts_make_the_total(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    Distillation(str(toy_teacher), {"response": 2.0, "ld": 0.5}, 1.0)(trainer)
    trainer.model.train()
    loss, parts = trainer.model(BATCH)
    assert list(parts) == ["box_loss", "cls_loss", "dfl_loss", "kd_response", "kd_ld"]
    assert float(loss.detach().sum()) == pytest.approx(2 * sum(float(v) for v in parts.values()), rel=1e-5)


def test_a_weight_scales_its_own_part_alone(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    trainer.model.train()
    named = []
    for weight in (1.0, 3.0):
        Distillation(str(toy_teacher), {"response": weight, "ld": 1.0}, 1.0)(trainer)
        named.append(trainer.model(BATCH)[1])
    assert float(named[1]["kd_response"]) == pytest.approx(3 * float(named[0]["kd_response"]), rel=1e-4)
    assert float(named[1]["kd_ld"]) == pytest.approx(float(named[0]["kd_ld"]), rel=1e-4)


def test_evaluation_has_no_part_of_the_teacher(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    Distillation(str(toy_teacher), {"ld": 1.0}, 1.0)(trainer)
    _, parts = trainer.model.eval().loss(BATCH)
    assert list(parts) == ["box_loss", "cls_loss", "dfl_loss"]


def test_the_students_own_losses_are_those_of_plain_training(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    trainer.model.train()
    plain, plain_parts = trainer.model(BATCH)
    Distillation(str(toy_teacher), {"response": 2.0}, 1.0)(trainer)
    distilled, parts = trainer.model(BATCH)
    assert torch.equal(distilled[:3], plain)
    assert all(torch.equal(parts[name], value) for name, value in plain_parts.items())


def test_losses_see_the_boxes_that_ultralytics_assigned(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    seen = []

    class Watch(torch.nn.Module):
        def forward(self, student: Activations, teacher: Activations) -> torch.Tensor:
            seen.append((student.assigned, teacher.assigned))
            return student.boxes.sum() * 0

    Distillation(str(toy_teacher), {"response": 1.0}, 1.0)(trainer)
    trainer.model.criterion.distillation.losses["response"] = Watch()
    trainer.model.train()
    trainer.model(BATCH)
    (assigned, of_teacher) = seen[0]
    assert of_teacher is None
    assert assigned.edges.shape == (2, 4, 84)
    assert 0 < int(assigned.foreground.sum()) < 84
    x = [0.5 + i % 8 for i in range(64)]  # anchor points of the finest level, 8 x 8, in its strides of 8 px
    y = [0.5 + i // 8 for i in range(64)]
    (image, anchor) = next(pair for pair in assigned.foreground.nonzero().tolist() if pair[1] < 64)
    (cx, cy, w, h) = (8 * v for v in BATCH["bboxes"][image].tolist())  # 64 px are 8 strides
    left, top, right, bottom = assigned.edges[image, :, anchor].tolist()
    assert (left, right) == pytest.approx((x[anchor] - cx + w / 2, cx + w / 2 - x[anchor]), abs=1e-5)
    assert (top, bottom) == pytest.approx((y[anchor] - cy + h / 2, cy + h / 2 - y[anchor]), abs=1e-5)


def test_a_copy_of_the_student_carries_the_plain_criterion(trainer: SimpleNamespace, toy_teacher: Path) -> None:
    Distillation(str(toy_teacher), {"ld": 1.0}, 1.0)(trainer)
    assert type(trainer.model.criterion) is DistillationCriterion
    for duplicate in (copy.deepcopy(trainer.model), ModelEMA(trainer.model).ema):
        assert type(duplicate.criterion) is v8DetectionLoss
    assert trainer.model.state_dict().keys() == copy.deepcopy(trainer.model).state_dict().keys()


def test_the_callback_travels_to_another_process(toy_teacher: Path) -> None:
    callback = Distillation(str(toy_teacher), {"ld": 1.0}, 1.0)
    assert pickle.loads(pickle.dumps(callback)) == callback
    assert len(pickle.dumps(callback)) < 1000  # a path travels, not a model


def test_a_learned_projector_is_refused_without_the_trainer_that_can_save_it(
    trainer: SimpleNamespace, toy_teacher: Path
) -> None:
    with pytest.raises(DistillError, match="DistillationTrainer"):
        Distillation(str(toy_teacher), {"feature": 1.0}, 1.0)(trainer)


def test_the_callback_alone_distils_in_plain_ultralytics(toy_data: Path, toy_teacher: Path, tmp_path: Path) -> None:
    model = YOLO("yolov8n.yaml")
    model.add_callback("on_pretrain_routine_end", Distillation(str(toy_teacher), {"response": 1.0}, 1.0))
    model.train(data=str(toy_data), epochs=1, imgsz=64, batch=5, plots=False, project=str(tmp_path), name="run")
    assert "train/kd_response" in (tmp_path / "run" / "results.csv").read_text()


def test_the_teacher_answers_as_the_unfused_model_and_decodes_nothing(toy_teacher: Path) -> None:
    reference = load_weights(toy_teacher, "teacher")
    with torch.no_grad():
        _, expected = reference(BATCH["img"])
    raw = load_teacher(toy_teacher, device=torch.device("cpu"))(BATCH["img"])
    torch.testing.assert_close(raw.scores, expected["scores"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(raw.boxes, expected["boxes"], rtol=1e-3, atol=1e-3)
    assert [tuple(f.shape) for f in raw.feats] == [tuple(f.shape) for f in expected["feats"]]
    assert not raw.scores.requires_grad
