"""A classifier cut before the softmax: an ultralytics checkpoint, or the exported program that distill wrote."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.bundle import OutputSpec
from deploy.checkpoint import Body, Checkpoint, check_class_names, check_finite, first_line
from deploy.errors import StudentError

FITS = ("crop", "stretch")
OUTPUT_NAME = "logits"


@dataclass(frozen=True)
class ClassifierInput:
    """What an exported classifier takes.

    Attributes:
        imgsz: side in pixels, which cannot be another one.
        fit: "crop" or "stretch"; see `deploy.bundle.InputSpec`.
        resize: short side in pixels before a "crop"; None otherwise.
    """

    imgsz: int
    fit: str
    resize: int | None


class UltralyticsLogits(nn.Module):
    """An ultralytics classifier without its softmax."""

    def __init__(self, layers: Sequence[Any], saved: Sequence[int]) -> None:
        """Take over the layers of an ultralytics model, the last of which is a `Classify`; see `Body`."""
        super().__init__()
        head: Any = layers[-1]
        self.body = Body(layers, saved)
        self.conv, self.pool, self.linear = head.conv, head.pool, head.linear

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """(1, 3, H, W) float in 0..1 to logits (1, classes)."""
        features = self.conv(torch.cat(self.body(images), 1))
        return (self.linear(self.pool(features).flatten(1)),)


class ExportedLogits(nn.Module):
    """An exported program as a module that the exporters can call."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """(1, 3, H, W) float in 0..1 to logits (1, classes)."""
        return (self.program(images),)

    def train(self, mode: bool = True) -> ExportedLogits:
        """Nothing: an exported program is in evaluation mode for good and refuses to be asked."""
        return self


def ultralytics_logits(checkpoint: Checkpoint, path: Path) -> tuple[UltralyticsLogits, tuple[OutputSpec, ...]]:
    """Fuse the BatchNorms of a classifier and drop its softmax.

    Raises:
        StudentError: not a name for each class.
    """
    check_class_names(checkpoint.class_names, checkpoint.head.linear.out_features, path)
    checkpoint.model.fuse(verbose=False)
    network = UltralyticsLogits(list(checkpoint.model.model), checkpoint.model.save)
    return network, logits_outputs(len(checkpoint.class_names))


def exported_logits(path: Path, class_names: Sequence[str], imgsz: int) -> tuple[ExportedLogits, int]:
    """Load an exported program.

    It is a program: PyTorch unpickles parts of it and calls whatever functions its graph names, so a file made to do
    harm would do it here. Its record's SHA-256 tells that it was not changed, not who made it.

    Args:
        path: a `.pt2` that `torch.export.save` wrote: float32 (batch, 3, imgsz, imgsz) in 0..1 to (batch, classes).
        class_names: of the student's record.
        imgsz: of the student's record, in pixels.

    Returns:
        The network and its number of parameters.

    Raises:
        StudentError: no such program, or one that makes something else of such an image.
    """
    try:
        program = torch.export.load(path)
        network = ExportedLogits(program.module())
        with torch.inference_mode():
            (met,) = network(torch.zeros(1, 3, imgsz, imgsz))
        shape: Any = tuple(met.shape)
    except (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError, EOFError) as error:
        raise StudentError(
            f"{path} cannot be run on an image of {imgsz} px ({first_line(error)}): distil the student again"
        ) from error
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise StudentError(f"{path} is damaged ({first_line(error)}): copy or distil the student again") from error
    if shape != (1, len(class_names)):
        raise StudentError(
            f"{path} gives logits of shape {shape}, its record names {len(class_names)} classes: distil it again"
        )
    check_finite(network, path)
    return network, sum(parameter.numel() for parameter in program.parameters())


def recorded_input(record: Mapping[str, Any], path: Path) -> tuple[ClassifierInput, tuple[str, ...]]:
    """What a student's record says of its input and its classes.

    `resize` counts for a "crop" alone; distill writes 0 where there is none.

    Args:
        record: content of a classifier's student.json.
        path: what to call the student in errors.

    Raises:
        StudentError: a field is missing or has a wrong value.
    """
    given, names = record.get("input"), record.get("class_names")
    if not isinstance(given, Mapping) or not isinstance(names, list) or not names:
        raise StudentError(f"the student.json of {path} lacks input or class_names: distil the student again")
    height, width, fit, resize = (given.get(name) for name in ("height", "width", "fit", "resize"))
    if not _is_size(height) or height != width:
        raise StudentError(f"{path} takes images of {height!r} x {width!r} px, expected a square: distil it at one")
    if fit not in FITS:
        raise StudentError(f"{path} has the fit {fit!r}, expected one of {', '.join(FITS)}: distil the student again")
    if fit == "crop" and (not _is_size(resize) or int(resize or 0) < int(height or 0)):
        raise StudentError(f"{path} has resize {resize!r}, expected {height} px or more: distil the student again")
    return ClassifierInput(int(height or 0), fit, resize if fit == "crop" else None), tuple(map(str, names))


def logits_outputs(class_count: int) -> tuple[OutputSpec, ...]:
    """The one output of a classifier."""
    return (OutputSpec(OUTPUT_NAME, "logits", 0, class_count, "NC"),)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
