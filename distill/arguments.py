"""Numbers and lists on a command line: refused with what was expected."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from distill.errors import DistillError

__all__ = ["at_least", "image_size", "number_within", "split_names"]


def at_least(lowest: int) -> Callable[[str], int]:
    """An argparse type: a whole number from ``lowest`` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least {lowest}")
        return int(text)

    return parse


def image_size(text: str) -> int:
    """An argparse type: pixels, at least 64 and a multiple of 32."""
    size = at_least(64)(text)
    if size % 32:
        raise argparse.ArgumentTypeError(
            f"{size} is not a multiple of 32: try {size // 32 * 32} or {-(-size // 32) * 32}"
        )
    return size


def number_within(lowest: float, words: str, highest: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number from ``lowest`` to ``highest``, or above ``lowest`` where there is no highest.

    Args:
        lowest: bound.
        words: the bounds, as they stand behind "expected a number".
        highest: bound.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        within = lowest <= value <= highest if highest < float("inf") else lowest < value < highest
        if not within:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number {words}")
        return value

    return parse


def split_names(text: str, flag: str) -> tuple[str, ...]:
    """Read names joined by commas.

    Raises:
        DistillError: for an empty name, as in ``a.pt,,b.pt``.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise DistillError(f"{flag} {text!r} has an empty name: join names by commas, as in a.pt,b.pt")
    return names
