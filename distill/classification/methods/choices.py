"""What methods read from a recipe: settings that are lists, and flags that they would ignore."""

from __future__ import annotations

from distill.classification.recipe import ClassRecipe
from distill.errors import DistillError

__all__ = ["numbers", "refuse"]


def numbers(text: str, name: str, highest: int) -> tuple[int, ...]:
    """Epochs joined by ``+``, such as ``4+8+16``, in rising order; empty for none.

    Raises:
        DistillError: for anything but whole numbers from 1 to ``highest``.
    """
    if not text:
        return ()
    parts = text.split("+")
    if not all(part.isdecimal() and 1 <= int(part) <= highest for part in parts):
        raise DistillError(f"--set {name}={text}: expected epochs from 1 to {highest} joined by +, such as 1+{highest}")
    return tuple(sorted({int(part) for part in parts}))


def refuse(recipe: ClassRecipe, *flags: str) -> None:
    """Refuse flags that the recipe's method has no use for, rather than ignore them.

    Raises:
        DistillError: when one of them was given.
    """
    for flag in flags:
        if getattr(recipe, flag) is not None:
            raise DistillError(f"method {recipe.method} has no use for --{flag}: drop it, or give another --method")
