"""Writes ``student/``: the exported program, its weights and the JSON that says where they come from."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from torch import Tensor

from distill.classification.classifier import Classifier
from distill.classification.folders import ImageFolder
from distill.classification.lessons import FrozenTeacher
from distill.classification.recipe import ClassRecipe
from distill.classification.stage import write_tensors
from distill.errors import DistillError
from distill.teacher import file_sha256

__all__ = ["export_program", "publish_classifier"]

_SCHEMA: Final = 1
_MOST_IMAGES: Final = 4096  # of one batch of the exported program
_TOLERANCE: Final = 1e-4  # of logits, relative to the largest


def publish_classifier(
    student: Classifier,
    out: Path,
    *,
    recipe: ClassRecipe,
    data: ImageFolder,
    teachers: Sequence[FrozenTeacher],
    metrics: Mapping[str, float],
) -> Path:
    """Write ``out/student``, whole or not at all.

    Args:
        student: trained.
        out: the run folder.
        recipe: what was asked.
        data: trained and scored on.
        teachers: in the order they were used.
        metrics: ``top1`` and ``top5`` on the data's validation images, 0 to 1.

    Returns:
        Path of ``student.json``.
    """
    final, partial = out / "student", out / f".student.partial-{os.getpid()}"
    partial.mkdir()
    try:
        weights = {k: v.detach().cpu().contiguous() for k, v in student.network.state_dict().items()}
        write_tensors(partial / "weights.pt", weights)
        frame = recipe.frame
        export_program(student, partial / "student.pt2", height=frame.height, width=frame.width)
        description = _describe(partial, student, recipe, data, teachers, metrics)
        (partial / "student.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final / "student.json"


def export_program(student: Classifier, path: Path, *, height: int, width: int) -> None:
    """Export float32 (batch, 3, height, width) RGB from 0 to 1 to logits (batch, classes), any batch up to 4096.

    Raises:
        DistillError: when what is read back answers otherwise than the network.
    """
    model = copy.deepcopy(student).cpu().float().eval()
    model.to(memory_format=torch.contiguous_format)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.rand(3, 3, height, width)
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(_Logits(model).eval(), (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        expected: Tensor = model(images)
        found: Tensor = torch.export.load(path).module()(images)
    drift = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not drift <= _TOLERANCE:
        raise DistillError(
            f"the exported {student.name} drifts by {drift:.2g} of its largest logit, expected at most {_TOLERANCE:g}: "
            "choose another network, or report it"
        )


class _Logits(torch.nn.Module):
    """A classifier as nothing but a function of images."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.model(images))


def _describe(
    folder: Path,
    student: Classifier,
    recipe: ClassRecipe,
    data: ImageFolder,
    teachers: Sequence[FrozenTeacher],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The contents of ``student.json``, which deploy and bench read."""
    frame = recipe.frame
    described = [
        {"name": t.classifier.name, "sha256": t.sha256, "parameters": t.classifier.parameter_count()} for t in teachers
    ]
    return {
        "schema": _SCHEMA,
        "task": "classify",
        "student": {
            "file": "student.pt2",
            "sha256": file_sha256(folder / "student.pt2"),
            "weights_sha256": file_sha256(folder / "weights.pt"),
            "init": student.name,
            "parameters": student.parameter_count(),
            "subclasses": student.subclasses,
        },
        "teacher": described[0] if described else None,
        "teachers": described,
        "data": {
            "root": str(data.root),
            "train": data.train.name,
            "val": data.val.name,
            "train_sha256": data.train.sha256,
            "val_sha256": data.val.sha256,
        },
        "imgsz": recipe.imgsz,
        "input": asdict(frame),
        "class_names": list(data.names),
        "method": recipe.method,
        "losses": None if recipe.losses is None else dict(recipe.losses),
        "temperature": recipe.temperature,
        "balance": recipe.balance,
        "settings": recipe.settings.changed(),
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "metrics": dict(metrics),
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
