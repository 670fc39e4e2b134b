"""One training from recipe to published student, started or resumed."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from ultralytics import YOLO
from ultralytics.utils import RANK
from ultralytics.utils import callbacks as ultralytics_callbacks
from ultralytics.utils.torch_utils import select_device, strip_optimizer

from distill.agreement import AGREEMENT_FILE, compare_run
from distill.arguments import split_names
from distill.callbacks import Distillation
from distill.console import log_epoch
from distill.data import DataSet, open_data_set
from distill.errors import DistillError
from distill.peers import MutualLearning, check_peers
from distill.publish import publish_student
from distill.ranks import FIRST, check_ranks, named_loss, own_devices
from distill.recipe import Recipe, read_recipe, write_recipe
from distill.schedules import parse_schedule
from distill.state import STATE_FILE, read_state
from distill.task_trainers import TRAINERS
from distill.tasks import TASKS, check_labels
from distill.teacher import check_pair, load_weights, student_model
from distill.teacher_arguments import teacher_options
from distill.teachers import find_teachers
from distill.trainer import COPY_SUFFIX

__all__ = [
    "begin",
    "check_device",
    "check_run",
    "go_on",
    "new_run",
    "resumable_epoch",
    "resume_run",
    "same_data",
    "same_teachers",
]

log = logging.getLogger(__name__)

_THREADS: Final = torch.get_num_threads()  # every core that this process may use, or what OMP_NUM_THREADS says


def new_run(recipe: Recipe, data: DataSet, out: Path) -> Path:
    """Train a student as the recipe says, in a new folder ``out``.

    Everything that can be refused is refused before the folder exists; a run that ends before its first epoch is
    saved leaves no folder.

    Returns:
        Path of ``student.json``.

    Raises:
        DistillError: when teacher, student and data do not go together, or the training fails.
    """
    check_run(recipe, data)
    if not FIRST:
        return begin(recipe, data, out)
    out.mkdir(parents=True)
    try:
        write_recipe(recipe, out)
        return begin(recipe, data, out)
    finally:
        if resumable_epoch(out) is None and not (out / "student").exists():
            shutil.rmtree(out, ignore_errors=True)


def check_run(recipe: Recipe, data: DataSet) -> None:
    """Refuse what does not go together, before anything is written.

    Raises:
        DistillError: when the device is not here, or teachers, student and data do not fit each other.
    """
    check_device(recipe.device)
    check_ranks(recipe.batch, recipe.device)
    check_labels(recipe.task, recipe.student, data)
    student = student_model(recipe.student, data.description)
    for teacher in recipe.teachers:
        check_pair(load_weights(Path(teacher.path), "teacher"), student, data.description)
    check_peers(student, recipe.peers, data.description)


def begin(recipe: Recipe, data: DataSet, out: Path) -> Path:
    """Train in the run folder ``out`` from the first epoch; return the path of ``student.json``."""
    return _finish(out, recipe, data, _train(recipe, out, _settings(recipe, out)))


def resume_run(out: Path, *, teacher: str | None, device: str | None, workers: int | None) -> Path:
    """Continue the run in folder ``out`` after its last complete epoch, distillation included.

    Args:
        out: the run folder.
        teacher: where the teachers' files are now, joined by commas, if they moved.
        device: another device to go on with.
        workers: another number of data-loading processes.

    Raises:
        DistillError: when there is nothing to resume, or teacher or data are not those of the run.
    """
    recipe = read_recipe(out)
    if (out / "student").exists():
        raise DistillError(f"{out} is finished, its student is in {out / 'student'}: nothing to resume")
    return go_on(same_teachers(recipe, teacher), same_data(recipe), out, device=device, workers=workers)


def go_on(recipe: Recipe, data: DataSet, out: Path, *, device: str | None, workers: int | None) -> Path:
    """Train in the run folder ``out`` from its last complete epoch; return the path of ``student.json``."""
    check_device(recipe.device if device is None else device)
    state = read_state(out / "train" / "weights" / STATE_FILE)
    if state["finished"]:
        if RANK != -1:
            raise DistillError(f"{out} has no epoch left to train: resume it in one process, without torchrun")
        return _finish(out, recipe, data, _validate(recipe, out))
    settings = _settings(recipe, out)
    settings |= {"resume": str(out / "train" / "weights" / "last.pt"), "save_dir": str((out / "train").resolve())}
    settings |= {"device": own_devices(device)} if device is not None else {}
    settings |= {"workers": workers} if workers is not None else {}
    return _finish(out, recipe, data, _train(recipe, out, settings))


def resumable_epoch(out: Path) -> int | None:
    """Number of complete epochs that a run can continue after; None when there is nothing to continue."""
    try:
        return int(read_state(out / "train" / "weights" / STATE_FILE)["epoch"]) + 1
    except DistillError:
        return None


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have, before anything is written."""
    try:
        found = select_device(device, verbose=False)
    except (ValueError, RuntimeError):
        found = None
    if not isinstance(found, torch.device):  # ultralytics 8.4.190 hands "tpu" back as a string
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise DistillError(
            f"device {device!r} is not here: this machine has the cpu and {count} CUDA devices; give --device cpu"
            + (" or --device 0" if count else "")
        )


def same_teachers(recipe: Recipe, teacher: str | None) -> Recipe:
    """The recipe with its teachers found and verified; unchanged for a plain run."""
    if not recipe.teachers:
        if teacher is not None:
            raise DistillError(f"--teacher {teacher}: the run was started without a teacher")
        return recipe
    names = [t.path for t in recipe.teachers] if teacher is None else split_names(teacher, "--teacher")
    return recipe.with_teachers(find_teachers(names))


def same_data(recipe: Recipe) -> DataSet:
    """The recipe's data set, opened.

    Raises:
        DistillError: when its training images or labels are no longer those of the run.
    """
    data = open_data_set(recipe.data)
    if data.train_sha256 != recipe.data_sha256:
        raise DistillError(
            f"training data {recipe.data} changed since the run was started: restore it, or start without --resume"
        )
    return data


def _settings(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Arguments for ultralytics; its defaults elsewhere, so that a plain run is its plain recipe."""
    return {
        **recipe.settings,
        "mode": "train",
        "task": recipe.task,
        "model": recipe.student,
        "data": recipe.data,
        "epochs": recipe.epochs,
        "imgsz": recipe.imgsz,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "device": own_devices(recipe.device),
        "workers": recipe.workers,
        "project": str(out.resolve()),
        "name": "train",
        "exist_ok": True,
        "plots": False,  # they need fonts that ultralytics would download
    }


def _train(recipe: Recipe, out: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run ultralytics' training and return the metrics of its final validation."""
    attached = ultralytics_callbacks.get_default_callbacks()
    attached["on_fit_epoch_end"].append(log_epoch)
    if recipe.teachers:
        attached["on_pretrain_routine_end"].append(
            Distillation(
                tuple(teacher.path for teacher in recipe.teachers),
                dict(recipe.losses),
                recipe.temperature,
                parse_schedule(recipe.schedule),
                recipe.combine,
                teacher_options(recipe),
            )
        )
    if recipe.peers:
        attached["on_pretrain_routine_end"].append(
            MutualLearning(
                recipe.peers, dict(recipe.losses), recipe.temperature, recipe.seed, parse_schedule(recipe.schedule)
            )
        )
    trainer = TRAINERS[recipe.task](overrides=settings, _callbacks=attached)
    torch.set_num_threads(_THREADS)  # choosing the CPU, ultralytics 8.4 leaves one core idle: half of a two-core board
    try:
        with named_loss(lambda: _again(out)):
            trainer.train()
    except torch.cuda.OutOfMemoryError as error:
        raise DistillError(
            f"out of GPU memory at batch {recipe.batch}, {recipe.imgsz} px: start again with a smaller --batch"
        ) from error
    except subprocess.CalledProcessError as error:
        raise DistillError(
            f"a process of the multi-GPU training ended with code {error.returncode}: its own error is above"
        ) from error
    if not FIRST:
        return {}
    if trainer.ddp:  # trained in other processes: their best epoch's metrics are in the checkpoint
        best = torch.load(out / "train" / "weights" / "best.pt", map_location="cpu", weights_only=False)
        return _named(best["train_metrics"], recipe.task)
    return _named(trainer.metrics, recipe.task)


def _again(out: Path) -> str:
    """What to do in all processes after one of them was lost."""
    begun = resumable_epoch(out) is not None
    return f"continue with --resume {shlex.quote(str(out))} in all" if begun else "start all again"


def _finish(out: Path, recipe: Recipe, data: DataSet, metrics: Mapping[str, float]) -> Path:
    """Publish the student and drop the state, which nobody needs any more."""
    if not FIRST:
        return out / "student" / "student.json"
    weights = out / "train" / "weights"
    best = weights / "best.pt"
    if not best.exists():
        raise DistillError(f"the training ended without {best}: look at its log, and start again")
    described = publish_student(best, out, recipe=recipe, data=data, metrics=metrics)
    (weights / STATE_FILE).unlink(missing_ok=True)
    if recipe.teachers:
        try:
            compare_run(out / "student" / "student.pt", recipe, data, recipe.device, out / AGREEMENT_FILE)
        except DistillError as error:  # the student is there, and python -m distill.page measures it later
            log.warning("no %s: %s", AGREEMENT_FILE, error)
    return described


def _validate(recipe: Recipe, out: Path) -> dict[str, float]:
    """Strip and validate the best epoch of a run that was killed between its last epoch and its end."""
    weights = out / "train" / "weights"
    for path in (weights / "best.pt", weights / "last.pt"):
        copy = path.with_name(f"{path.stem}{COPY_SUFFIX}")
        strip_optimizer(path, s=str(copy))
        copy.replace(path)
    with tempfile.TemporaryDirectory(prefix="distill-val-") as scratch:
        result = YOLO(weights / "best.pt").val(
            data=recipe.data,
            imgsz=recipe.imgsz,
            batch=recipe.batch * 2,  # as at the end of a training
            device=recipe.device,
            plots=False,
            project=scratch,
            name="val",
        )
    return _named(result.results_dict, recipe.task)


def _named(metrics: Mapping[str, Any], task: str) -> dict[str, float]:
    return {ours: round(float(metrics[theirs]), 5) for ours, theirs in TASKS[task].metrics.items()}
