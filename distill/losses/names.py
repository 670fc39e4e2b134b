"""Reads ``--losses``: names with weights."""

from __future__ import annotations

from collections.abc import Collection

from distill.errors import DistillError

__all__ = ["parse_weights"]


def parse_weights(text: str, known: Collection[str]) -> dict[str, float]:
    """Read ``--losses``: ``name=weight`` pairs joined by commas, or ``none``.

    Args:
        text: for example ``response=1.0,ld=0.25``; a name without a weight counts 1.0.
        known: the names that exist, in the order in which a message lists them.

    Returns:
        Weights by name, in the order given; empty for ``none`` (plain training, the baseline).

    Raises:
        DistillError: for an unknown or repeated name, or a weight that is not a finite number above zero.
    """
    if text.strip().lower() == "none":
        return {}
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise DistillError(f"unknown loss {name!r} in --losses: the known ones are {', '.join(known)}, or none")
        if name in weights:
            raise DistillError(f"loss {name!r} appears twice in --losses: give it once, with one weight")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = float("nan")
        if not 0 < weight < float("inf"):
            raise DistillError(f"weight {value!r} of loss {name!r}: expected a number above 0, as in {name}=1.0")
        weights[name] = weight
    return weights
