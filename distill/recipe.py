"""What a run was asked to do, kept beside it as JSON so that it can be resumed and described."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from distill.errors import DistillError
from distill.whole import write_whole

__all__ = ["RECIPE_FILE", "Recipe", "TeacherFile", "read_recipe", "write_recipe"]

RECIPE_FILE: Final = "recipe.json"
_SCHEMA: Final = 2


@dataclass(frozen=True)
class TeacherFile:
    """A teacher's checkpoint.

    Attributes:
        path: where it lies.
        sha256: of its bytes.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """One training, distilled or plain.

    Attributes:
        student: ``.pt`` checkpoint to start from, or ``.yaml`` architecture.
        teachers: the teachers' checkpoints; empty when nothing is distilled from a teacher.
        data: path of the data set's yaml.
        data_sha256: hash of the training images and labels.
        epochs, imgsz, batch, seed: as ultralytics understands them.
        losses: weight of each distillation loss, by name; empty for plain training.
        temperature: T of the losses on logits.
        task: what the student does, ``detect``, ``segment`` or ``pose``.
        schedule: the factor on all losses by epoch, as ``--schedule`` takes it.
        settings: ultralytics' training settings that differ from its defaults, by name.
        device: as ultralytics understands it; empty chooses.
        workers: data-loading processes.
        combine: how several teachers become one, ``mean`` or ``confidence``.
        assistants: students of the teachers that teach in their turn, the largest first: each as ``student``.
        peers: further students that train beside this one and teach it: each as ``student``.
        teacher_precision, teacher_compile, teacher_imgsz: how teachers are run, as in
            :class:`distill.teacher_options.TeacherOptions`.
        views: how many augmented views of each image there are; 0: none repeats.
        cache: folder where teacher outputs are kept; None: nowhere.
        cache_limit: what that folder may hold, in 10^9 bytes; None: what the disk can.
    """

    student: str
    teachers: tuple[TeacherFile, ...]
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
    schedule: str = "constant"
    task: str = "detect"
    combine: str = "mean"
    assistants: tuple[str, ...] = ()
    teacher_precision: str = "auto"
    teacher_compile: bool = False
    teacher_imgsz: int | None = None
    views: int = 0
    cache: str | None = None
    cache_limit: float | None = None
    peers: tuple[str, ...] = ()

    def with_teachers(self, found: Sequence[TeacherFile]) -> Recipe:
        """The same recipe with its teachers found elsewhere, in the same order.

        Raises:
            DistillError: when they are not the same teachers.
        """
        if len(found) != len(self.teachers):
            raise DistillError(
                f"--teacher names {len(found)} files, but the run began with {len(self.teachers)}: give the original "
                "ones in their order, or start a new run without --resume"
            )
        for now, then in zip(found, self.teachers, strict=True):
            if now.sha256 != then.sha256:
                raise DistillError(
                    f"teacher {now.path} has SHA-256 {now.sha256[:12]}, but the run began with {then.sha256[:12]}: "
                    "give the original file with --teacher, or start a new run without --resume"
                )
        return replace(self, teachers=tuple(found))


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write ``recipe.json`` into the run folder, whole or not at all."""
    write_whole(folder / RECIPE_FILE, json.dumps({"schema": _SCHEMA, **asdict(recipe)}, indent=2) + "\n")


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
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema == 1:
        content = _of_schema_1(content)
    elif schema != _SCHEMA:
        raise DistillError(f"{path} is not of schema {_SCHEMA}: start a new run without --resume")
    known = {f.name for f in fields(Recipe)}
    needed = {f.name for f in fields(Recipe) if f.default is MISSING and f.default_factory is MISSING}
    if not needed <= content.keys() <= known:
        raise DistillError(f"{path} lacks or adds keys: start a new run without --resume")
    try:
        content["teachers"] = tuple(TeacherFile(**teacher) for teacher in content["teachers"])
    except TypeError as error:
        raise DistillError(f"{path} has damaged teachers: start a new run without --resume") from error
    content |= {name: tuple(content.get(name, ())) for name in ("assistants", "peers")}
    return Recipe(**content)


def _of_schema_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of before there were several teachers, in today's form."""
    content = dict(content)
    path, sha256 = content.pop("teacher", None), content.pop("teacher_sha256", None)
    return {**content, "teachers": [] if path is None else [{"path": path, "sha256": sha256}]}
