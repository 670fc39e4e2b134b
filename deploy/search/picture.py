"""The search as a picture: latency against damage, a colour for each target, its Pareto front as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.search.search import FLOAT, PLAIN, Candidate, pareto

_COLOURS = ("#3d7ec2", "#c2703d", "#3f9e62", "#8a5bb5", "#b5a02b")
_NAME_LENGTH = 24


def draw(candidates: Sequence[Candidate], chosen: Sequence[Candidate], file: Path) -> None:
    """Write the picture as a PNG; `chosen` get a ring."""
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(one.target for one in candidates))
    figure = Figure(figsize=(5.2 * len(targets), 4.4), dpi=120, layout="constrained")
    all_axes = figure.subplots(1, len(targets), squeeze=False, sharey=True)[0]
    for axes, target, colour in zip(all_axes, targets, _COLOURS * len(targets), strict=False):
        own = [one for one in candidates if one.target == target]
        front = pareto(own)
        axes.plot([1e3 * one.latency_s for one in front], [one.damage_percent for one in front], color=colour, lw=1)
        for one in own:
            x, y = 1e3 * one.latency_s, one.damage_percent
            marker = {FLOAT: "s", PLAIN: "D"}.get(one.name, "o")
            axes.plot(x, y, marker, color=colour, markersize=6, alpha=1.0 if one in front else 0.45)
            if any(one.name == best.name and target == best.target for best in chosen):
                axes.plot(x, y, "o", color="none", markeredgecolor="#222222", markersize=13, markeredgewidth=1.5)
            axes.annotate(_short(one.name), (x, y), (6, 4), textcoords="offset points", fontsize=7)
        axes.set_title(target, fontsize=10, loc="left")
        axes.set_xlabel("latency p50, ms")
        axes.margins(x=0.22, y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    all_axes[0].set_ylabel("damage, % of the float confidence")
    figure.suptitle(
        "Float layers named; diamond: all in INT8, square: FP32, ring: chosen", fontsize=9, x=0.01, ha="left"
    )
    figure.savefig(file)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"
