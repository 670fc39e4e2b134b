"""What a run was asked to do, kept beside it as JSON so that it can be resumed and described."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from distill.errors import DistillError

__all__ = ["RECIPE_FILE", "Recipe", "read_recipe", "write_recipe"]

RECIPE_FILE: Final = "recipe.json"
_SCHEMA: Final = 1


@dataclass(frozen=True)
class Recipe:
    """One training, distilled or plain.

    Attributes:
        student: ``.pt`` checkpoint to start from, or ``.yaml`` architecture.
        teacher: path of the teacher's checkpoint; None when nothing is distilled.
        teacher_sha256: SHA-256 of that file.
        data: path of the data set's yaml.
        data_sha256: hash of the training images and labels.
        epochs, imgsz, batch, seed: as ultralytics understands them.
        losses: weight of each distillation loss, by name; empty for plain training.
        temperature: T of the losses on logits.
        settings: ultralytics' training settings that differ from its defaults, by name.
        device: as ultralytics understands it; empty chooses.
        workers: data-loading processes.
    """

    student: str
    teacher: str | None
    teacher_sha256: str | None
    data: str
    data_sha256: str
    epochs: int
    imgsz: int
    batch: int
    seed: int
    losses: Mapping[str, float]
    temperature: float
    settings: Mapping[str, Any]
    device: str
    workers: int

    def with_teacher(self, path: Path, sha256: str) -> Recipe:
        """The same recipe with the teacher found elsewhere.

        Raises:
            DistillError: when it is not the same teacher.
        """
        if sha256 != self.teacher_sha256:
            raise DistillError(
                f"teacher {path} has SHA-256 {sha256[:12]}, but the run began with {str(self.teacher_sha256)[:12]}: "
                "give the original file with --teacher, or start a new run without --resume"
            )
        return replace(self, teacher=str(path))


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write ``recipe.json`` into the run folder, whole or not at all."""
    partial = folder / f".{RECIPE_FILE}.partial-{os.getpid()}"
    text = json.dumps({"schema": _SCHEMA, **asdict(recipe)}, indent=2)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(folder / RECIPE_FILE)


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder.

    Raises:
        DistillError: when the folder is not a run, or its recipe is damaged or of another version.
    """
    path = folder / RECIPE_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DistillError(
            f"{folder} is not a run to resume: it has no {RECIPE_FILE}; give the folder that holds train/"
        ) from error
    except (ValueError, NotADirectoryError) as error:
        raise DistillError(f"{path} is damaged ({error}): start a new run without --resume") from error
    if not isinstance(content, dict) or content.pop("schema", None) != _SCHEMA:
        raise DistillError(f"{path} is not of schema {_SCHEMA}: start a new run without --resume")
    if content.keys() != {f.name for f in fields(Recipe)}:
        raise DistillError(f"{path} lacks or adds keys: start a new run without --resume")
    return Recipe(**content)
