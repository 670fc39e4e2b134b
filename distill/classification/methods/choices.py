"""Settings of methods that are lists, read."""

from __future__ import annotations

from distill.errors import DistillError

__all__ = ["numbers"]


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
