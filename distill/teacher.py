"""The teacher: found, loaded, checked against the student, frozen and made cheap to run."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from ultralytics.nn.tasks import load_checkpoint, yaml_model_load
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from distill.errors import DistillError
from distill.losses import Activations, HeadPair
from distill.tasks import TASKS, task_of_head

__all__ = [
    "Teacher",
    "check_pair",
    "file_sha256",
    "find_weights",
    "head_pair",
    "load_teacher",
    "load_weights",
    "student_model",
    "student_task",
]

log = logging.getLogger(__name__)


class Teacher:
    """A frozen detector that answers with raw head outputs.

    Convolutions and batch norms are fused, gradients are off, and the head is told that it trains, which makes
    ``Detect`` return its raw outputs without decoding boxes (its layers stay in evaluation mode). Not a module:
    nothing of it can end up in a state dict, an optimizer or a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        imgsz: int | None = None,
    ) -> None:
        """Take over a loaded model (it is changed in place) and move it to ``device`` as ``dtype``.

        Args:
            model: a detector.
            device: where it shall run.
            dtype: its precision.
            imgsz: longer side in pixels that images are resized to before it sees them; None leaves them as they are.
        """
        fused = model.fuse(verbose=False).eval().requires_grad_(False)  # type: ignore[operator]
        self.model: nn.Module = _without_masks_and_keypoints(fused).to(device=device, dtype=dtype)
        self.model.model[-1].training = True  # .train() would wake the layers below it too
        self._run: Callable[[torch.Tensor], Any] = self.model
        self._dtype, self._memory_format = dtype, torch.contiguous_format
        self._imgsz = imgsz

    def run_as(self, dtype: torch.dtype, memory_format: torch.memory_format, compiled: bool = False) -> None:
        """Change precision and memory format, and let ``torch.compile`` have it."""
        self.model.to(dtype=dtype).to(memory_format=memory_format)
        self._dtype, self._memory_format = dtype, memory_format
        self._run = torch.compile(self.model) if compiled else self.model

    def resized(self, images: torch.Tensor) -> torch.Tensor:
        """The images at the size that this teacher sees."""
        if self._imgsz is None:
            return images
        scale = self._imgsz / max(images.shape[2:])
        size = [max(32, round(side * scale / 32) * 32) for side in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", antialias=True)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, *context: Any) -> Activations:
        """Run images (batch, channels, height, width), 0 to 1, and return the raw head outputs."""
        seen = self.resized(images).to(self._dtype).contiguous(memory_format=self._memory_format)
        return Activations.of_head(self._run(seen))


def _without_masks_and_keypoints(model: Any) -> Any:
    """The model without the branches whose outputs no loss reads (ultralytics 8.4 passes over an absent one)."""
    head = model.model[-1]
    if hasattr(head, "cv4"):
        head.cv4 = None
    if hasattr(head, "proto"):
        head.proto = nn.Identity()
    return model


@dataclass(frozen=True)
class _Head:
    """The facts of a detector that a teacher and its student must share, or be bridged by a projector."""

    kind: str
    task: str
    end2end: bool
    strides: tuple[int, ...]
    reg_max: int
    image_channels: int
    widths: tuple[int, ...]

    @classmethod
    def of(cls, model: nn.Module) -> _Head:
        layers: Any = model.model
        head = layers[-1]
        kind = type(head).__name__
        return cls(
            kind=kind,
            task=next((t for t, known in TASKS.items() if known.head == kind), str(getattr(model, "task", "detect"))),
            end2end=getattr(head, "one2one_cv2", None) is not None,
            strides=tuple(int(s) for s in getattr(head, "stride", ())),
            reg_max=int(getattr(head, "reg_max", 0)),
            image_channels=int(getattr(model, "yaml", {}).get("channels", 3)),
            widths=_level_widths(head),
        )

    @property
    def name(self) -> str:
        return f"{self.kind} head" + (" (end-to-end)" if self.end2end else "")


def find_weights(name: str, role: str) -> Path:
    """Find a ``.pt`` file, letting ultralytics download it where it is one of its own and there is internet.

    Args:
        name: a path, or the bare name of published weights such as ``yolov8x.pt``.
        role: ``teacher`` or ``student``, for the message.

    Raises:
        DistillError: for a wrong suffix, or a file that is neither here nor downloadable.
    """
    if Path(name).suffix != ".pt":
        raise DistillError(f"{role} {name!r} is not a PyTorch checkpoint: expected a file ending in .pt")
    if Path(name).is_file():
        return Path(name)
    known = Path(name).name in GITHUB_ASSETS_NAMES
    advice = f"put the file at {Path(name).absolute()}, or give the path of another one"
    if not known:
        raise DistillError(f"{role} {name!r} not found: {advice}")
    try:
        found = Path(attempt_download_asset(name))
    except (OSError, MemoryError) as error:  # ultralytics: ConnectionError offline, MemoryError on a full disk
        reason = " ".join(str(error).replace("❌", "").split()).rstrip(".")
        raise DistillError(f"{role} {name!r} is not here and could not be downloaded ({reason}): {advice}") from error
    if not found.is_file():
        raise DistillError(f"{role} {name!r} is not here and could not be downloaded: {advice}")
    return found


def load_weights(path: Path, role: str) -> nn.Module:
    """Load a checkpoint as a float32 model in evaluation mode.

    Raises:
        DistillError: when the file is truncated, is no checkpoint, or is of a model this ultralytics cannot build.
    """
    try:
        model, _ = load_checkpoint(path)
    except (TypeError, RuntimeError, EOFError, OSError, AttributeError, ImportError, pickle.UnpicklingError) as error:
        # ultralytics 8.4.190 turns most damage into TypeError and lets the rest fall through: a zip cut inside its
        # directory is an OSError of torch, another object's pickle an AttributeError.
        reason = " ".join(str(error).split()).removeprefix("ERROR ❌️ ")[:160]
        raise DistillError(
            f"{role} {path} is not a loadable ultralytics checkpoint ({type(error).__name__}: {reason}): "
            "copy or download it again"
        ) from error
    if not isinstance(model, nn.Module):
        raise DistillError(f"{role} {path} holds no model: expected a checkpoint written by ultralytics")
    return model


def load_teacher(path: Path, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Teacher:
    """Load the checkpoint at ``path`` as a frozen teacher on ``device``."""
    return Teacher(load_weights(path, "teacher"), device=device, dtype=dtype)


def student_model(name: str, data: Mapping[str, Any]) -> nn.Module:
    """Build the student as it will be trained: its own layers, the data set's classes.

    Args:
        name: a ``.pt`` checkpoint to start from, or a ``.yaml`` architecture to train from scratch.
        data: the data set as ultralytics resolves it (``nc``, ``channels``, of poses ``kpt_shape``).

    Raises:
        DistillError: for a file that is missing, damaged or of another kind.
    """
    config = _student_config(name)
    return TASKS[task_of_head(config["head"][-1][2], name)].build(config, data)


def student_task(name: str) -> str:
    """The student's task, ``detect``, ``segment`` or ``pose``.

    Raises:
        DistillError: as :func:`student_model`.
    """
    return task_of_head(_student_config(name)["head"][-1][2], name)


def _student_config(name: str) -> dict[str, Any]:
    """The architecture of a student, as its yaml has it."""
    if Path(name).suffix in {".yaml", ".yml"}:
        try:
            config = yaml_model_load(name)
        except FileNotFoundError as error:
            raise DistillError(
                f"student {name!r} not found: give an architecture such as yolov8n.yaml, or a .pt checkpoint"
            ) from error
    elif Path(name).suffix == ".pt":
        config = load_weights(find_weights(name, "student"), "student").yaml
    else:
        raise DistillError(
            f"student {name!r}: expected a .pt checkpoint, or a .yaml architecture to train from scratch"
        )
    if not isinstance(config, dict) or not {"backbone", "head"} <= config.keys():
        raise DistillError(f"student {name!r} describes no network: expected keys backbone and head")
    return config


def check_pair(teacher: nn.Module, student: nn.Module, data: Mapping[str, Any]) -> None:
    """Refuse a teacher that cannot teach this student on this data.

    Args:
        teacher: as loaded from its checkpoint.
        student: as :func:`student_model` builds it.
        data: the data set, with ``names`` (id to name) that the student will learn.

    Raises:
        DistillError: naming the two values that differ and what to do.
    """
    t, s = _Head.of(teacher), _Head.of(student)
    again = "choose a teacher and student of one family, such as yolov8x and yolov8n"
    for model, head in (("teacher", t), ("student", s)):
        if head.kind not in {task.head for task in TASKS.values()} or head.end2end:
            expected = TASKS[s.task if s.task in TASKS else "detect"].head
            raise DistillError(
                f"{model} is a {head.task} model with a {head.name}: expected a {expected} head; {again}"
            )
    for what, theirs, ours in (
        ("task", t.task, s.task),
        ("strides", t.strides, s.strides),
        ("reg_max", t.reg_max, s.reg_max),
        ("input channels", t.image_channels, s.image_channels),
    ):
        if theirs != ours:
            raise DistillError(f"teacher and student differ in {what}: {theirs} and {ours}; {again}")
    _check_classes([str(n) for n in _in_order(teacher.names)], [str(n) for n in _in_order(data["names"])])


def head_pair(teacher: nn.Module, student: nn.Module) -> HeadPair:
    """The sizes by which losses build their projectors; call :func:`check_pair` first."""
    t, s = _Head.of(teacher), _Head.of(student)
    ours: Any = student.model
    theirs: Any = teacher.model
    return HeadPair(s.widths, t.widths, s.reg_max, student_head=ours[-1], teacher_head=theirs[-1])


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_classes(teacher: Sequence[str], student: Sequence[str]) -> None:
    advice = "train the teacher on this data first, or give the data it was trained on"
    if len(teacher) != len(student):
        raise DistillError(f"teacher knows {len(teacher)} classes, the student's data has {len(student)}: {advice}")
    for index, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
        if theirs.strip().lower() != ours.strip().lower():
            raise DistillError(f"class {index} is {theirs!r} for the teacher and {ours!r} in the data: {advice}")


def _in_order(names: Any) -> list[Any]:
    return [names[k] for k in sorted(names)] if isinstance(names, Mapping) else list(names)


def _level_widths(head: Any) -> tuple[int, ...]:
    """Input channels of each box branch, which are the channels of the neck levels."""
    branches = getattr(head, "cv2", None) or getattr(head, "one2one_cv2", None) or ()
    return tuple(next(m for m in branch.modules() if isinstance(m, nn.Conv2d)).in_channels for branch in branches)
