"""The trainings of a study: each in a folder of its own, resumed where interrupted, skipped where finished."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch

from distill.classification.classifier import Classifier
from distill.classification.fit import accuracy
from distill.classification.methods.eskd import kept_weights
from distill.classification.processes import Processes
from distill.classification.recipe import ClassRecipe
from distill.classification.run import Run
from distill.classification.saved import load_classifier
from distill.classification.sources import open_data
from distill.classification.stage import Stage
from distill.classification.training import new_run, resumable, resume_run, train
from distill.errors import DistillError
from distill.whole import write_whole

__all__ = ["Task", "completed", "plain_teacher", "run_tasks", "teacher_folder"]

log = logging.getLogger(__name__)

_ALONE: Final = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Task:
    """One training of a study.

    Attributes:
        key: its folder's name.
        recipe: what to train.
        published: whether it is a teacher: published whole, for others to learn from.
        teacher_epoch: the teacher is taken as it was after this epoch; None takes it as it ended.
    """

    key: str
    recipe: ClassRecipe
    published: bool = False
    teacher_epoch: int | None = None


def plain_teacher(recipe: ClassRecipe, name: str, epochs: int, keep: Sequence[int] = ()) -> Task:
    """The plain training of a network that will teach, with the recipe's data, batch and seed."""
    settings = replace(recipe.settings, views=0, teach_epochs="+".join(map(str, keep)))
    own = replace(recipe, method="none", teachers=(), student=name, epochs=epochs, settings=settings)
    return Task(f"{name}-s{recipe.seed}", own, published=True)


def teacher_folder(out: Path, name: str, seed: int) -> Path:
    """Where that teacher's run is."""
    return out / "teachers" / f"{name}-s{seed}"


def completed(task: Task, out: Path) -> dict[str, Any] | None:
    """The record of a finished task."""
    path = _folder(task, out) / "record.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if record["recipe"] != _identity(task):
        raise DistillError(f"{path.parent} was trained with other settings: give the study another --out")
    return record


def run_tasks(tasks: Iterable[Task], out: Path, jobs: int) -> None:
    """Run what is not finished, ``jobs`` at a time with one thread each, in the order given.

    Raises:
        DistillError: when one fails; those that run are finished first.
    """
    waiting = [task for task in tasks if completed(task, out) is None]
    if not waiting or not jobs:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(min(jobs, len(waiting)), get_context("spawn"), _prepare_worker) as pool:
        running = {pool.submit(_run_task, task, out): task for task in waiting}
        try:
            for number, done in enumerate(as_completed(running), start=1):
                record = done.result()
                log.info(
                    "%d/%d  %s  top-1 %.2f  %.0f s of CPU",
                    *(number, len(waiting), running[done].key, 100 * record["top1"], record["cpu_s"]),
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _prepare_worker() -> None:
    torch.set_num_threads(1)


def _run_task(task: Task, out: Path) -> dict[str, Any]:
    """Train one, or finish it, and write its record."""
    began = time.process_time()
    folder = _folder(task, out)
    data = open_data(task.recipe.data)
    if task.published:
        top1 = _published(task, folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if task.teacher_epoch is None:
            student, run = train(task.recipe, data, folder, _ALONE, answers=out / "answers")
        else:
            run = Run(task.recipe, data, folder, _ALONE, answers=out / "answers")
            student = _taught_at(run, task.teacher_epoch)
        top1 = accuracy(student, run.pixels(data.val), run.precision)
    rows = Stage(folder / "training" / "student").history()
    record = {
        "key": task.key,
        "recipe": _identity(task),
        "method": task.recipe.method,
        "seed": task.recipe.seed,
        "teacher_epoch": task.teacher_epoch,
        "top1": top1,
        "top1_by_epoch": [row["top1"] for row in rows],
        "cpu_s": time.process_time() - began,
    }
    write_whole(folder / "record.json", json.dumps(record, indent=2) + "\n")
    return record


def _published(task: Task, folder: Path) -> float:
    """Train a teacher as the command line does."""
    described = folder / "student" / "student.json"
    if not described.is_file():
        if resumable(folder):
            resume_run(folder, _ALONE)
        else:
            new_run(task.recipe, open_data(task.recipe.data), folder, _ALONE)
    return float(json.loads(described.read_text("utf-8"))["metrics"]["top1"])


def _taught_at(run: Run, epoch: int) -> Classifier:
    """Hinton's distillation from the teacher as it was after an epoch."""
    source, size = run.teacher_source(), run.recipe.imgsz
    classifier, _ = load_classifier(source, run.data.names, height=size, width=size)
    teacher = run.at(classifier, kept_weights(source, (epoch,))[epoch])
    return run.train("student", run.taught(run.student(), teacher, weights={"kd": 1.0}, balance=0.9)).eval()


def _folder(task: Task, out: Path) -> Path:
    return out / ("teachers" if task.published else "students") / task.key


def _identity(task: Task) -> dict[str, Any]:
    """What must be equal for a finished training to count."""
    recipe = task.recipe
    teachers = [Path(t).name for t in recipe.teachers]
    return {
        "method": recipe.method,
        "teachers": teachers,
        "student": recipe.student,
        "data_sha256": recipe.data_sha256,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "imgsz": recipe.imgsz,
        "settings": recipe.settings.changed(),
    }
