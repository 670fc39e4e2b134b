"""Teacher assistants: the teacher teaches the first, each teaches the next, the last teaches the student.

Improved knowledge distillation via teacher assistants (TAKD, Mirzadeh et al. 2020): where the gap between a teacher and
its student is large, networks of sizes in between narrow it step by step.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ultralytics.utils import RANK

from distill.data import DataSet
from distill.errors import DistillError
from distill.recipe import Recipe, TeacherFile, read_recipe, write_recipe
from distill.teacher import check_pair, file_sha256, student_model
from distill.training import (
    begin,
    check_run,
    go_on,
    new_run,
    resumable_epoch,
    resume_run,
    same_data,
    same_teachers,
)

__all__ = ["STAGES", "broke_off", "finished_assistants", "new_chain", "resume_chain"]

log = logging.getLogger(__name__)

#: Below the run folder: a whole run folder for every assistant.
STAGES: Final = "stages"


def new_chain(recipe: Recipe, data: DataSet, out: Path) -> Path:
    """Train the assistants one after the other, then the student, in a new folder ``out``.

    ``out`` is the student's own run folder, with those of the assistants in ``out/stages``. Its recipe is what was
    asked for; each step's own teacher is in that step's recipe and in ``student.json``. All steps share losses, epochs
    and settings.

    Returns:
        Path of ``student.json``.

    Raises:
        DistillError: when two that follow each other do not go together, before anything is written, or a training
            fails.
    """
    _check_alone()
    check_run(replace(recipe, student=recipe.assistants[0]), data)
    steps = [student_model(name, data.description) for name in (*recipe.assistants, recipe.student)]
    for teaches, learns in itertools.pairwise(steps):
        teaches.names = data.description["names"]
        check_pair(teaches, learns, data.description)
    out.mkdir(parents=True)
    write_recipe(recipe, out)
    return _run(recipe, data, out, device=None, workers=None)


def resume_chain(out: Path, *, teacher: str | None, device: str | None, workers: int | None) -> Path:
    """Go on where a chain broke off: finished assistants stay, the step that broke off goes on, the rest follows.

    The arguments are those of :func:`distill.training.resume_run`; ``teacher`` is the first one's.

    Raises:
        DistillError: when it is finished, or teachers, assistants or data are not those of the run.
    """
    _check_alone()
    recipe = read_recipe(out)
    if (out / "student").exists():
        raise DistillError(f"{out} is finished, its student is in {out / 'student'}: nothing to resume")
    if not _finished(_stage(recipe, out, 1)) or teacher is not None:
        recipe = same_teachers(recipe, teacher)
    return _run(recipe, same_data(recipe), out, device=device, workers=workers)


def broke_off(out: Path) -> str | None:
    """Where a chain stands, as the end of a sentence that begins with ``interrupted``; None when nothing is kept."""
    recipe = read_recipe(out)
    steps = len(recipe.assistants) + 1
    folders = [*(_stage(recipe, out, number) for number in range(1, steps)), out]
    number, folder = next(((n, f) for n, f in enumerate(folders, start=1) if not _finished(f)), (steps, out))
    epochs = resumable_epoch(folder)
    if number == 1 and epochs is None:
        return None
    return f" in step {number} of {steps} after {epochs or 0} of {recipe.epochs} epochs"


def finished_assistants(recipe: Recipe, out: Path) -> list[TeacherFile]:
    """The assistants of a chain that have learned, the first first; of any other run none.

    Raises:
        DistillError: when a checkpoint is not the one that was published.
    """
    folders = (_stage(recipe, out, number) for number in range(1, len(recipe.assistants) + 1))
    return [_taught(folder) for folder in folders if _finished(folder)]


def _check_alone() -> None:
    """Refuse processes of ``torchrun``, none of which would know when another has finished a step."""
    if RANK != -1:
        raise DistillError(
            "--assistants go with --device 0,1, not with torchrun: there, train each step by itself, with --teacher "
            "student.pt of the one before"
        )


def _run(recipe: Recipe, data: DataSet, out: Path, *, device: str | None, workers: int | None) -> Path:
    """Do what is left to do."""
    teachers = recipe.teachers
    steps = len(recipe.assistants) + 1
    try:
        for number, assistant in enumerate(recipe.assistants, start=1):
            folder = _stage(recipe, out, number)
            step = replace(recipe, student=assistant, teachers=teachers, assistants=())
            log.info("step %d of %d: %s", number, steps, assistant)
            if not _finished(folder):
                _train_step(step, data, folder, device=device, workers=workers)
            teachers = (_taught(folder),)
    finally:
        if broke_off(out) is None:
            shutil.rmtree(out, ignore_errors=True)
    step = replace(recipe, teachers=teachers, assistants=())
    log.info("step %d of %d: %s", steps, steps, recipe.student)
    if resumable_epoch(out) is not None:
        return go_on(step, data, out, device=device, workers=workers)
    shutil.rmtree(out / "train", ignore_errors=True)
    return begin(_elsewhere(step, device, workers), data, out)


def _train_step(step: Recipe, data: DataSet, folder: Path, *, device: str | None, workers: int | None) -> None:
    """Train an assistant, or go on with it where it broke off."""
    if resumable_epoch(folder) is not None:
        teachers = ",".join(teacher.path for teacher in step.teachers)
        resume_run(folder, teacher=teachers, device=device, workers=workers)
        return
    shutil.rmtree(folder, ignore_errors=True)  # killed before its first epoch was complete
    new_run(_elsewhere(step, device, workers), data, folder)


def _stage(recipe: Recipe, out: Path, number: int) -> Path:
    return out / STAGES / f"{number}-{Path(recipe.assistants[number - 1]).stem}"


def _finished(folder: Path) -> bool:
    return (folder / "student" / "student.json").is_file()


def _taught(folder: Path) -> TeacherFile:
    """A finished assistant, as the teacher of the next.

    Raises:
        DistillError: when its checkpoint is not the one that it was published with.
    """
    described: Mapping[str, Any] = json.loads((folder / "student" / "student.json").read_text("utf-8"))["student"]
    path = (folder / "student" / described["file"]).resolve()
    sha256 = file_sha256(path) if path.is_file() else "no file"
    if sha256 != described["sha256"]:
        raise DistillError(
            f"assistant {path} has SHA-256 {sha256[:12]}, but was published with {described['sha256'][:12]}: restore "
            f"it, or remove {folder} to train it again"
        )
    return TeacherFile(str(path), sha256)


def _elsewhere(recipe: Recipe, device: str | None, workers: int | None) -> Recipe:
    """The recipe on another device, or with other data-loading processes, where they are given."""
    return replace(
        recipe,
        device=recipe.device if device is None else device,
        workers=recipe.workers if workers is None else workers,
    )
