"""Flags of how teachers are run and remembered."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from distill.arguments import at_least, image_size, number_within
from distill.errors import DistillError
from distill.recipe import Recipe
from distill.teacher_options import CacheOptions, TeacherOptions, refuse_options
from distill.teacher_speed import PRECISIONS

__all__ = ["TEACHER_FIELDS", "add_teacher_arguments", "recipe_fields", "teacher_options"]

#: Fields of the recipe, and attributes of the arguments under the same name.
TEACHER_FIELDS: Final = ("teacher_precision", "teacher_compile", "teacher_imgsz", "views", "cache", "cache_limit")


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, none of which has a value unless it is given."""
    add = parser.add_argument_group("how teachers are run").add_argument
    add("--teacher-precision", choices=PRECISIONS, help="auto measures on the first batch which is fastest (auto)")
    add("--teacher-compile", action="store_true", default=None, help="let torch.compile make the teachers")
    add("--teacher-imgsz", type=image_size, metavar="PX", help="smaller images for the teachers (as the student's)")
    add("--views", type=at_least(1), metavar="K", help="only K augmented views of each image, in turn (none repeats)")
    add("--cache", type=_folder, metavar="DIR", help="keep teacher outputs there, and read them from epoch K+1 on")
    add("--cache-limit", type=number_within(0, "above 0"), metavar="GB", help="what DIR may hold (what the disk can)")


def recipe_fields(args: argparse.Namespace, losses: Mapping[str, float], imgsz: int) -> dict[str, Any]:
    """The given flags as fields of a :class:`distill.recipe.Recipe`.

    Raises:
        DistillError: when they do not go with each other or with the losses, or there is no teacher.
    """
    given = {name: getattr(args, name) for name in TEACHER_FIELDS if getattr(args, name) is not None}
    if given and not losses:
        raise DistillError(f"--{next(iter(given)).replace('_', '-')} needs a teacher: drop it, or give --losses")
    if "cache_limit" in given and "cache" not in given:
        raise DistillError("--cache-limit without --cache: give the folder whose size it limits")
    asked = TeacherOptions(
        imgsz=given.get("teacher_imgsz"),
        views=given.get("views", 0),
        cache=CacheOptions(given["cache"], (), "") if "cache" in given else None,
    )
    refuse_options(asked, losses, imgsz)
    return given


def teacher_options(recipe: Recipe) -> TeacherOptions:
    """How a recipe's teachers are run."""
    cache = None
    if recipe.cache is not None:
        hashes = tuple(teacher.sha256 for teacher in recipe.teachers)
        cache = CacheOptions(recipe.cache, hashes, recipe.data_sha256, recipe.cache_limit)
    return TeacherOptions(recipe.teacher_precision, recipe.teacher_compile, recipe.teacher_imgsz, recipe.views, cache)


def _folder(text: str) -> str:
    return str(Path(text).resolve())
