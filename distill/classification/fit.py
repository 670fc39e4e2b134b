"""The training loop: one stage, from its first epoch or from where it was interrupted, to its weights."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.classification.learner import Learner, total
from distill.classification.lessons import Batch, Precision, TrainingImages
from distill.classification.pixels import Pixels
from distill.classification.processes import Processes
from distill.classification.schedule import build_optimizer, freeze, learning_rate
from distill.classification.settings import Settings
from distill.classification.stage import Stage, read_tensors
from distill.errors import DistillError

__all__ = ["Course", "accuracy", "fit"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Course:
    """What a stage trains on and how long.

    Attributes:
        train: the training images.
        held_out: images to choose by; None takes the last epoch.
        score: images whose accuracy is shown, and nothing is chosen by.
        epochs: how many.
        batch: images per step, over all processes.
        seed: of what a network draws while it trains, such as dropout.
        settings: the schedule.
        keep: epochs (from 1) whose weights are kept as well.
    """

    train: TrainingImages
    held_out: Pixels | None
    score: Pixels
    epochs: int
    batch: int
    seed: int
    settings: Settings
    keep: Collection[int] = ()


def fit(learner: Learner, course: Course, stage: Stage, processes: Processes) -> None:
    """Train ``learner`` and leave its student with the resulting weights; a finished stage is only loaded.

    The first process writes the state after every epoch. A stage that goes on after an interruption takes the same
    steps, on the CPU bit for bit, as one that was never interrupted.

    Raises:
        DistillError: when the loss is no longer finite, or the stage's files do not fit.
    """
    network, precision = learner.student.network, course.train.precision
    learner.to(precision.device, memory_format=precision.memory_format)  # type: ignore[call-overload]
    if not stage.done:
        _Training(learner, course, stage, processes).run()
        processes.wait()
    # Read back where it was trained, too: processes other than the first have batch norms that saw other images.
    _load(network, stage.weights_path)
    torch.manual_seed(course.seed)  # what is drawn next is the same whether this stage was trained or only loaded


@torch.no_grad()
def accuracy(classifier: nn.Module, pixels: Pixels, precision: Precision, *, top: int = 1) -> float:
    """Share of images whose class is among the ``top`` best logits."""
    training = classifier.training
    classifier.eval()
    right = 0
    for indices, images in pixels.batches(torch.arange(len(pixels)), 128):
        with precision.context():
            logits = classifier(precision.images(images))
        best = logits.topk(min(top, logits.shape[1]), dim=1).indices.cpu()
        right += int((best == pixels.labels[indices][:, None]).any(dim=1).sum())
    classifier.train(training)
    return right / len(pixels)


class _Training:
    """One stage while it runs."""

    def __init__(self, learner: Learner, course: Course, stage: Stage, processes: Processes) -> None:
        self.learner, self.course, self.stage, self.processes = learner, course, stage, processes
        self.precision = course.train.precision
        self.network = learner.student.network
        settings = course.settings
        self.optimizer = build_optimizer(learner, settings)
        self.scaler = torch.amp.GradScaler(self.precision.device.type, enabled=self.precision.amp is torch.float16)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()} if settings.ema else {}
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.step = 0
        torch.manual_seed(course.seed)

    def run(self) -> None:
        if self.stage.started:
            self._restore(self.stage.read_state())
        called = self.processes.wrap(self.learner)
        while len(self.history) < self.course.epochs and not self._stale():
            epoch = len(self.history)
            began = time.monotonic()
            row = {"epoch": epoch + 1.0, **self._train_epoch(called, epoch)}
            with self._averaged():
                row |= self._scores()
                if self.course.held_out is not None and row["held_out"] > max(
                    (r["held_out"] for r in self.history), default=-1.0
                ):
                    self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
                if epoch + 1 in self.course.keep and self.processes.first:
                    self.stage.keep(epoch + 1, self.network.state_dict())
            self.history.append(row)
            if self.processes.first:
                self.stage.write_state(self._state(), self.history)
                self._report(row, time.monotonic() - began)
        self._finish()

    def _train_epoch(self, called: nn.Module, epoch: int) -> dict[str, float]:
        """Take an epoch's steps; return the mean of each part of the loss."""
        settings, course = self.course.settings, self.course
        self.learner.train()
        freeze(self.learner, all_but_head=epoch < settings.freeze_epochs)
        steps = math.ceil(len(course.train.pixels) / course.batch)
        sums: dict[str, float] = {}
        count = 0
        batches = course.train.epoch(epoch, course.batch, rank=self.processes.rank, world=self.processes.world)
        for number, batch in enumerate(_shown(batches, epoch, steps, self.processes)):
            rate = learning_rate(settings, epoch + number / steps, course.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with self.precision.context():
                parts: Mapping[str, Tensor] = called(batch)
            loss = total(parts)
            if not bool(loss.isfinite()):
                raise DistillError(
                    f"the loss became {float(loss.detach()):g} at epoch {epoch + 1}, batch {number + 1} of {steps} "
                    f"({', '.join(f'{k} {float(v.detach()):.3g}' for k, v in parts.items())}): "
                    "lower the rate with --set lr=..., or a weight; the epochs before are kept"
                )
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self.scaler.scale(loss))
            if settings.clip:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.learner.parameters(), settings.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._follow()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            count += 1
        if not count:
            raise DistillError(
                f"{len(course.train.pixels)} training images make no batch of 2 or more for each process: add images"
            )
        return {f"loss_{name}": value / count for name, value in sums.items()}

    def _follow(self) -> None:
        """Let the average follow the weights, faster at first (as ultralytics does)."""
        if not self.average:
            return
        self.step += 1
        decay = self.course.settings.ema * (1 - math.exp(-self.step / 200))
        for name, value in self.network.state_dict().items():
            if value.dtype.is_floating_point:
                self.average[name].mul_(decay).add_(value.detach(), alpha=1 - decay)
            else:
                self.average[name].copy_(value)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The student with its averaged weights, where there are any, while the block runs."""
        live = {k: v.detach().clone() for k, v in self.network.state_dict().items()} if self.average else {}
        if self.average:
            self.network.load_state_dict(self.average)
        yield
        if live:
            self.network.load_state_dict(live)

    def _scores(self) -> dict[str, float]:
        student, scores = self.learner.student, {}
        if self.processes.first:
            scores["top1"] = accuracy(student, self.course.score, self.precision)
            if self.course.held_out is not None:
                scores["held_out"] = accuracy(student, self.course.held_out, self.precision)
        return self.processes.share(scores)

    def _stale(self) -> bool:
        """Whether the held-out accuracy has not risen for too long."""
        patience = self.course.settings.patience
        if not patience or not self.history or self.course.held_out is None:
            return False
        scores = [row["held_out"] for row in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    def _state(self) -> dict[str, Any]:
        device = self.precision.device
        return {
            "epochs": self.course.epochs,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average,
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        if state["epochs"] != self.course.epochs:
            raise DistillError(
                f"{self.stage.folder} is a training of {state['epochs']} epochs, not {self.course.epochs}: "
                "its schedule cannot be stretched; start a new run"
            )
        try:
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise DistillError(
                f"{self.stage.folder} is a training of other layers than this version builds: start a new run"
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        self.average = {k: v.to(self.precision.device) for k, v in state["average"].items()}
        self.step, self.best = state["step"], state["best"]
        self.history = [dict(row) for row in state["history"]]
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.precision.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.precision.device)

    def _finish(self) -> None:
        """Give the student its final weights and write them."""
        if self.best or self.average:
            self.network.load_state_dict(self.best or self.average)
        if self.processes.first:
            weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
            self.stage.finish(weights)

    def _report(self, row: Mapping[str, float], seconds: float) -> None:
        losses = "  ".join(f"{k.removeprefix('loss_')} {v:.4g}" for k, v in row.items() if k.startswith("loss_"))
        held_out = f"  held-out {100 * row['held_out']:.2f}" if "held_out" in row else ""
        log.info(
            "%s %d/%d  %s  top-1 %.2f%s  %.1f s",
            *(self.stage.folder.name, int(row["epoch"]), self.course.epochs),
            *(losses, 100 * row["top1"], held_out, seconds),
        )


def _load(network: nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise DistillError(f"{path} holds another network's weights: start a new run") from error


def _shown(batches: Iterator[Batch], epoch: int, steps: int, processes: Processes) -> Iterator[Batch]:
    """The batches, with a counter on a terminal."""
    visible = processes.first and sys.stderr.isatty()
    for number, batch in enumerate(batches):
        if visible:
            sys.stderr.write(f"\repoch {epoch + 1}  batch {number + 1}/{steps} ")
            sys.stderr.flush()
        yield batch
    if visible:
        sys.stderr.write("\r\x1b[K")
