"""Run by test_ranks.py as each of two processes: python two_ranks.py WORK TEACHER DATA STAGE."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG, RANK

from distill import yolo
from distill.callbacks import Distillation, DistillationCriterion
from distill.ranks import average_gradients
from distill.teacher_options import TeacherOptions
from distill.trainer import DistillationTrainer

SEVERAL = {"response": 1.0, "ld": 0.5, "cwd": 1.0, "fitnets": 1.0}
EXACT = TeacherOptions(precision="fp32")
#: Large ones, as untrained boxes are: where the target scores sum to less than 1, ultralytics divides by 1 instead.
LABELS = ([0.5, 0.5, 0.95, 0.95], [0.3, 0.5, 0.55, 0.95], [0.7, 0.5, 0.55, 0.95], [0.5, 0.3, 0.95, 0.55])


def batch_of(images: list[int]) -> dict[str, torch.Tensor]:
    """A batch of some of four fixed images of 64 px, four objects each."""
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return {
        "img": pixels[images],
        "batch_idx": torch.arange(len(images)).float().repeat_interleave(4),
        "cls": torch.tensor([[float((i + k) % 2)] for i in images for k in range(4)]),
        "bboxes": torch.tensor([list(LABELS[k]) for _ in images for k in range(4)]),
    }


def gradients(
    images: list[int], teacher: str, weights: dict[str, float], *, labels: bool, statistics: bool
) -> dict[str, torch.Tensor]:
    """Gradients of one step on student and projectors, as trained here or by all processes together.

    Args:
        images: of this process.
        teacher: checkpoint.
        weights: the distillation losses.
        labels: whether the label losses count.
        statistics: whether batch norms take the batch's statistics.
    """
    settings = copy(DEFAULT_CFG)
    if not labels:
        settings.box = settings.cls = settings.dfl = 0.0
    torch.manual_seed(0)
    model: Any = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.args = settings
    names = {0: "red", 1: "blue"}
    with tempfile.TemporaryDirectory() as folder:
        trainer = SimpleNamespace(
            model=model, data={"names": names}, device=torch.device("cpu"), amp=False, args=settings, save_dir=folder
        )
        prepared = Distillation(teacher, weights, 1.0, options=EXACT).prepare(trainer)
        prepared.teacher(batch_of(images)["img"])  # writes down the layout that it chooses
    model.criterion = DistillationCriterion(model.init_criterion(), prepared, lambda: 1.0)
    model.train()
    if not statistics:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    world = distributed.get_world_size() if distributed.is_initialized() else 1
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if world > 1 else model
    (wrapped(batch_of(images))[0].sum() * world).backward()
    average_gradients(prepared.losses.parameters())
    named = [*model.named_parameters(), *prepared.losses.named_parameters(prefix="projectors")]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def arguments(work: Path, teacher: str, data: str, out: str) -> list[str]:
    """A training of two epochs, of which the gradients are summed over several batches."""
    common = ["--student", "yolov8n.yaml", "--data", data, "--epochs", "2", "--imgsz", "64", "--batch", "4"]
    return [*common, "--teacher", teacher, "--device", "cpu", "--seed", "3", "--out", str(work / out)]


def other_port() -> None:
    """Meet at another port: what is left of the group before must not be met there."""
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def main(work: Path, teacher: str, data: str, stage: str) -> int:
    """Run a stage as this process."""
    if stage == "hang":
        if RANK == 1:
            DistillationTrainer.preprocess_batch = lambda self, batch: time.sleep(600)  # type: ignore[method-assign]
        return yolo.main(arguments(work, teacher, data, "hung"))
    distributed.init_process_group("gloo")
    steps = {
        "alike": gradients([0, 1], teacher, SEVERAL, labels=True, statistics=True),
        "unlike": gradients([2 * RANK, 2 * RANK + 1], teacher, {"fitnets": 1.0}, labels=False, statistics=False),
    }
    torch.save(steps, work / f"steps-{RANK}.pt")
    distributed.destroy_process_group()
    other_port()
    final_eval, run_callbacks = DistillationTrainer.final_eval, DistillationTrainer.run_callbacks

    def dump(self: DistillationTrainer) -> None:
        state = {"model": dict(self.model.module.named_parameters()), "projectors": self.projectors.state_dict()}
        torch.save(state, work / f"trained-{RANK}.pt")
        final_eval(self)

    DistillationTrainer.final_eval = dump  # type: ignore[method-assign]
    assert yolo.main(arguments(work, teacher, data, "whole")) == 0

    def interrupt(self: DistillationTrainer, event: str) -> None:
        run_callbacks(self, event)
        if event == "on_fit_epoch_end":
            raise KeyboardInterrupt

    other_port()
    DistillationTrainer.final_eval = final_eval  # type: ignore[method-assign]
    DistillationTrainer.run_callbacks = interrupt  # type: ignore[method-assign]
    assert yolo.main(arguments(work, teacher, data, "cut")) == 130
    distributed.barrier()  # the second is interrupted before the first has saved
    distributed.destroy_process_group()
    other_port()
    DistillationTrainer.run_callbacks = run_callbacks  # type: ignore[method-assign]
    assert yolo.main(["--resume", str(work / "cut")]) == 0
    other_port()
    if RANK == 1:
        DistillationTrainer.preprocess_batch = lambda self, batch: os._exit(7)  # type: ignore[method-assign]
    return yolo.main(arguments(work, teacher, data, "dead"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
