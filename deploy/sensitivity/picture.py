"""Sensitivity as a picture: a bar for each block or layer in forward order, weights and activations apart."""

from __future__ import annotations

import math
from pathlib import Path

from deploy.sensitivity.measure import Cost, Sensitivity

WEIGHTS_COLOUR, ACTIVATIONS_COLOUR, BOTH_COLOUR = "#c2703d", "#3d7ec2", "#222222"
_NAMED = 3  # of the costliest, written beside their bars


def draw(sensitivity: Sensitivity, file: Path) -> None:
    """Write the picture as a PNG."""
    # No figure manager, which would want a display.
    from matplotlib.figure import Figure

    costs = sensitivity.costs
    width = max(7.0, 0.32 * len(costs) + 1.5)
    figure = Figure(figsize=(width, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    places = range(len(costs))
    axes.bar([x - 0.21 for x in places], [_height(one.weights_percent) for one in costs], 0.4,
             color=WEIGHTS_COLOUR, label="its weights alone in INT8")  # fmt: skip
    axes.bar([x + 0.21 for x in places], [_height(one.activations_percent) for one in costs], 0.4,
             color=ACTIVATIONS_COLOUR, label="its activations alone")  # fmt: skip
    axes.plot(places, [_height(one.damage_percent) for one in costs], "_", markersize=13, markeredgewidth=2,
              color=BOTH_COLOUR, label="both")  # fmt: skip
    for one in sensitivity.ranked()[:_NAMED]:
        place, height = costs.index(one), _height(max(one.damage_percent, one.weights_percent, one.activations_percent))
        axes.annotate(f"{one.damage_percent:.1f} %", (place, height), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes.set_xticks(list(places), [label(one) for one in costs], rotation=60, ha="right", rotation_mode="anchor",
                    fontsize=8)  # fmt: skip
    axes.set_xlim(-0.8, len(costs) - 0.2)
    axes.margins(y=0.12)
    axes.set_ylabel("damage, % of the float confidence")
    axes.set_title(
        f"{sensitivity.student}, {sensitivity.imgsz} px: cost of each {sensitivity.granularity} in INT8, all else "
        f"float (the whole: {sensitivity.whole_percent:.1f} %)",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def label(cost: Cost) -> str:
    """A name without what all of them begin with."""
    return cost.name.removeprefix("model.").removesuffix(".conv")


def _height(percent: float) -> float:
    return percent if math.isfinite(percent) else 0.0
