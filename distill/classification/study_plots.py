"""The plots of a study: what a teacher's epoch and size do to its students."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["plot_epochs", "plot_sizes"]

_TEACHER: Final = "#7a7a7a"
_STUDENT: Final = "#0b63a5"
_CHAIN: Final = "#c4501b"
Scores = Mapping[int, float]  # top-1 by seed, 0 to 1


def plot_epochs(
    path: Path, teacher: Sequence[Sequence[float]], students: Mapping[int, Scores], baseline: Scores
) -> None:
    """Draw the accuracy of the teacher by epoch (left) and of its students by the epoch that taught them (right)."""
    figure, (left, right) = _two_panels()
    epochs = range(1, len(teacher[0]) + 1)
    means = [100 * statistics.mean(curve[e - 1] for curve in teacher) for e in epochs]
    lows, highs = ([100 * pick(curve[e - 1] for curve in teacher) for e in epochs] for pick in (min, max))
    left.fill_between(epochs, lows, highs, color=_TEACHER, alpha=0.2, linewidth=0)
    left.plot(epochs, means, color=_TEACHER)
    left.set(title="the teacher", xlabel="its epoch", ylabel="top-1, %")
    _points(right, list(students), list(students.values()), _STUDENT, "taught by that epoch")
    _level(right, baseline)
    right.set(title="its students", xlabel="epoch of the teacher that taught", xscale="log")  # the first ones lie close
    right.set_xticks(list(students), labels=map(str, students))
    right.minorticks_off()
    right.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_sizes(
    path: Path,
    parameters: Mapping[str, int],
    teachers: Mapping[str, Scores],
    direct: Mapping[str, Scores],
    through: Mapping[str, Scores],
    baseline: Scores,
) -> None:
    """Draw the accuracy of teachers by size (left) and of their students, alone and through assistants (right)."""
    figure, (left, right) = _two_panels()
    names = [name for name in parameters if teachers[name]]
    _points(left, [parameters[n] for n in names], [teachers[n] for n in names], _TEACHER, "")
    left.set(title="teachers", xlabel="parameters", ylabel="top-1, %", xscale="log")
    _sizes(left, {f"{parameters[n] / 1000:,.0f}k": parameters[n] for n in names})
    taught = [name for name in parameters if direct[name]]
    _points(right, [parameters[n] for n in taught], [direct[n] for n in taught], _STUDENT, "by this teacher alone")
    offsets = [max(parameters.values()) * 1.25 ** (number + 1) for number in range(len(through))]
    if through:
        _points(right, offsets, list(through.values()), _CHAIN, "by the largest through 1, 2, ... assistants", line="")
    _level(right, baseline)
    right.set(title="their students", xlabel="parameters of the teacher, and assistants", xscale="log")
    chains = {f"+{number}": x for number, x in enumerate(offsets, start=1)}
    _sizes(right, {f"{parameters[n] / 1000:,.0f}k": parameters[n] for n in taught} | chains)
    right.margins(y=0.4)  # room for the legend
    right.legend(frameon=False, fontsize=8, loc="lower left")
    _save(figure, path)


def _sizes(axis: Any, ticks: Mapping[str, float]) -> None:
    """Name the points instead of the powers of ten between them."""
    axis.set_xticks(list(ticks.values()), labels=list(ticks))
    axis.minorticks_off()


def _two_panels() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _points(axis: Any, xs: Sequence[float], scores: Sequence[Scores], colour: str, label: str, line: str = "-") -> None:
    """Means joined by a line, and every seed as a small dot."""
    axis.plot(
        *(xs, [100 * statistics.mean(s.values()) for s in scores]),
        color=colour,
        marker="o",
        linestyle=line,
        label=label or None,
    )
    for x, seeds in zip(xs, scores, strict=True):
        axis.plot([x] * len(seeds), [100 * v for v in seeds.values()], ".", color=colour, alpha=0.4, markersize=4)


def _level(axis: Any, baseline: Scores) -> None:
    """The baseline as a dashed line, its seeds as a band."""
    if baseline:
        values = [100 * v for v in baseline.values()]
        axis.axhspan(min(values), max(values), color="black", alpha=0.06, linewidth=0)
        axis.axhline(statistics.mean(values), color="black", linestyle="--", linewidth=1, label="no teacher")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
