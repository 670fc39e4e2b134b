"""What a classification run was asked to do, kept beside it as JSON so that it can be resumed and described."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from distill.classification.pixels import Frame
from distill.classification.settings import Settings, parse_settings
from distill.errors import DistillError
from distill.whole import write_whole

__all__ = ["ClassRecipe", "read_recipe", "write_recipe"]

_FILE: Final = "recipe.json"
_SCHEMA: Final = 1
#: What JSON must hold, by name.
_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("method", "student", "data", "data_sha256"), str),
    **dict.fromkeys(("epochs", "imgsz", "batch", "seed"), int),
    **dict.fromkeys(("temperature", "balance"), (int, float, type(None))),
    "teachers": list,
    "losses": (dict, type(None)),
}


@dataclass(frozen=True)
class ClassRecipe:
    """One classification run.

    Attributes:
        method: by its name in ``METHODS``.
        teachers: architectures to train first, or paths of trained ones; none for plain training.
        student: architecture, or an ultralytics checkpoint.
        data: name of a set, or root of an image folder.
        data_sha256: of the training split.
        epochs: of the student.
        imgsz: side of the input, in pixels.
        batch: images per step.
        seed: of weights, order and augmentation.
        losses: weights that replace the method's own; None keeps those.
        temperature: T of losses on logits; None takes the method's.
        balance: weight of teachers against labels, 0 to 1; None takes the method's.
        settings: everything else.
    """

    method: str
    teachers: tuple[str, ...]
    student: str
    data: str
    data_sha256: str
    epochs: int
    imgsz: int
    batch: int
    seed: int
    losses: Mapping[str, float] | None = None
    temperature: float | None = None
    balance: float | None = None
    settings: Settings = field(default_factory=Settings)

    @property
    def frame(self) -> Frame:
        """How the run sees an image."""
        size, resize = self.imgsz, self.settings.resize
        if self.settings.fit == "crop":
            return Frame(size, size, "crop", max(resize or round(size * 8 / 7), size))
        return Frame(size, size)


def write_recipe(recipe: ClassRecipe, folder: Path) -> None:
    """Write ``recipe.json``, whole or not at all."""
    content = {"schema": _SCHEMA, "task": "classify", **asdict(recipe)}
    write_whole(folder / _FILE, json.dumps(content, indent=2) + "\n")


def read_recipe(folder: Path) -> ClassRecipe:
    """Read the recipe of a run folder.

    Raises:
        DistillError: when the folder is no classification run, or its recipe is damaged or of another version.
    """
    path = folder / _FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DistillError(f"{folder} is not a run to resume: it has no {_FILE}") from error
    except ValueError as error:
        raise DistillError(f"{path} is damaged ({error}): start a new run without --resume") from error
    if not isinstance(content, dict) or content.pop("task", None) != "classify":
        raise DistillError(f"{path} is not of a classification: resume a detection run with python -m distill.yolo")
    settings = content.get("settings")
    if (
        content.pop("schema", None) != _SCHEMA
        or content.keys() != {f.name for f in fields(ClassRecipe)}
        or not isinstance(settings, dict)
        or settings.keys() != {f.name for f in fields(Settings)}
    ):
        raise DistillError(f"{path} is of another version: start a new run without --resume")
    if odd := next((name for name, kinds in _KINDS.items() if not isinstance(content[name], kinds)), None):
        raise DistillError(f"{path} is damaged ({odd} is {content[odd]!r}): start a new run without --resume")
    try:
        checked = parse_settings([f"{name}={value}" for name, value in settings.items()])
    except DistillError as error:
        raise DistillError(f"{path} is damaged ({error}): start a new run without --resume") from error
    return ClassRecipe(**{**content, "teachers": tuple(content["teachers"]), "settings": checked})
