"""Named recipes: which losses, how strong, for how long."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

from distill.errors import DistillError
from distill.losses import LOSSES, parse_losses
from distill.schedules import Schedule, parse_schedule

__all__ = ["DEFAULT_RECIPE", "LossRecipe", "known_recipes", "read_loss_recipe"]

#: Used where neither recipe nor losses are given; chosen by the study in docs/results/distillation.md.
DEFAULT_RECIPE: Final = "default"
_KEYS: Final = ("source", "temperature", "schedule", "losses")


@dataclass(frozen=True)
class LossRecipe:
    """What a student is taught by.

    Attributes:
        losses: weight of each distillation loss, by name.
        temperature: T of the losses on logits.
        schedule: the factor on all weights, by epoch.
        source: where the recipe is from, in words.
    """

    losses: Mapping[str, float]
    temperature: float = 1.0
    schedule: Schedule = field(default_factory=Schedule)
    source: str = ""


def known_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with this package."""
    folder = resources.files("distill") / "recipes"
    return tuple(sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml")))


def read_loss_recipe(name: str) -> LossRecipe:
    """Read a named recipe, or a TOML file of the reader's own.

    The file holds a table ``[losses]`` of name = weight and, if wanted, ``temperature``, ``schedule`` and ``source``::

        source = "ours, for small cells"
        temperature = 2.0
        schedule = "cosine"

        [losses]
        cwd = 1.0
        ld = 0.25

    Args:
        name: one of :func:`known_recipes`, or a path that ends in ``.toml``.

    Raises:
        DistillError: for an unknown name, a missing file, or a file with other contents.
    """
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text("utf-8")
        except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
            raise DistillError(f"recipe {name} cannot be read ({type(error).__name__}): give a TOML file") from error
    elif name in known_recipes():
        text = (resources.files("distill") / "recipes" / f"{name}.toml").read_text("utf-8")
    else:
        raise DistillError(
            f"unknown recipe {name!r}: the known ones are {', '.join(known_recipes())}, or give a .toml file's path"
        )
    try:
        return _checked(tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise DistillError(f"recipe {name} is not TOML ({error}): correct it") from error


def _checked(content: Mapping[str, Any], name: str) -> LossRecipe:
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise DistillError(f"recipe {name} has {unknown[0]!r}: the known keys are {', '.join(_KEYS)}")
    losses = content.get("losses")
    if not isinstance(losses, dict) or not losses:
        raise DistillError(f"recipe {name} has no losses: add a table [losses] with some of {', '.join(LOSSES)}")
    temperature = content.get("temperature", 1.0)
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < float("inf"):
        raise DistillError(f"recipe {name} has temperature {temperature!r}: expected a number above 0")
    return LossRecipe(
        losses=parse_losses(",".join(f"{key}={value}" for key, value in losses.items())),
        temperature=float(temperature),
        schedule=parse_schedule(content.get("schedule", "constant")),
        source=str(content.get("source", "")),
    )
