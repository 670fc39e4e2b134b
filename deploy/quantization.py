"""The recipe of a quantization: how ranges are found, and which layers stay in float."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from deploy.errors import ExportError

# How the range of a tensor follows from the calibration images; see `deploy.ranges`.
RANGE_METHODS = ("mean-minmax", "minmax", "percentile", "mse", "entropy", "fisher")
DEFAULT_PERCENTILE = 99.99

# Precisions whose making reads the calibration images.
CALIBRATED = ("int8", "w8a16")


@dataclass(frozen=True)
class Quantization:
    """How a student is quantized, whatever the target. None leaves a choice to the target's measured default.

    Attributes:
        ranges: one of `RANGE_METHODS`: "mean-minmax" (mean over the images of each one's extremes), "minmax"
            (extremes over all images), "percentile" (both ends cut off), "mse" (the least squared error of
            rounding), "entropy" (the least Kullback-Leibler divergence) or "fisher" (the least distance of the
            network's outputs; see `deploy.fisher`).
        percentile: part in percent (50..100] of the values that "percentile" keeps at either end.
        float_layers: names or prefixes of the student's layers that stay in float: `model.0`, `model.22.cv2.0`,
            `model.22`. These and no others; see `deploy.layers`.
    """

    ranges: str | None = None
    percentile: float = DEFAULT_PERCENTILE
    float_layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no target could do.

        Raises:
            ExportError: an unknown method, or a percentile outside (50, 100].
        """
        if self.ranges is not None and self.ranges not in RANGE_METHODS:
            raise ExportError(f"no ranges by {self.ranges!r}: give one of {', '.join(RANGE_METHODS)}")
        if not 50 < self.percentile <= 100:
            raise ExportError(f"percentile {self.percentile:g}: expected a number above 50, at most 100")


AS_THE_TARGET_DOES = Quantization()


@dataclass(frozen=True)
class Recipe:
    """A `Quantization` with every choice made, for one target and student.

    Attributes:
        ranges: one of `RANGE_METHODS`.
        percentile: as in `Quantization`.
        float_layers: full names of the layers that stay in float, in forward order.
    """

    ranges: str
    percentile: float
    float_layers: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        fields: dict[str, Any] = {"ranges": self.ranges, "float_layers": list(self.float_layers)}
        return fields | ({"percentile": self.percentile} if self.ranges == "percentile" else {})


def parse_ranges(text: str) -> tuple[str, float]:
    """The method and the percentile of `--ranges`: a method's name, or `percentile:99.9`.

    Raises:
        ExportError: an unknown method, or no such percentile.
    """
    match = re.fullmatch(r"percentile(?::(\d+(?:\.\d+)?))?", text)
    method, percentile = ("percentile", float(match[1] or DEFAULT_PERCENTILE)) if match else (text, DEFAULT_PERCENTILE)
    Quantization(method, percentile)
    return method, percentile


def parse_layers(text: str) -> tuple[str, ...]:
    """The names of `--float-layers`, divided by commas; `none` for none."""
    return () if text == "none" else tuple(name for name in (part.strip() for part in text.split(",")) if name)
