"""The page of a study: what was trained, on what budget, what came out, and what may be said of it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import ultralytics

from distill.data import DataSet, validation_images
from distill.loss_recipes import read_loss_recipe
from distill.study_section import processor, public_command
from distill.study_statistics import Comparison, compare, comparison_cells, difference, p_value, spread, verdict

if TYPE_CHECKING:
    from distill.study import Study

__all__ = ["study_page"]

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # student.json by arm and seed
_BASELINE: Final = "none"
_PEER: Final = "distill_model"


def study_page(study: Study, found: Found, data: DataSet, title: str, command: str, image: Path, report: Path) -> str:
    """Write the section, and draw its plot.

    Args:
        study: the budget.
        found: ``student.json`` of every finished training, by arm and seed.
        data: the data set.
        title: heading.
        command: as it was typed.
        image: where the plot goes.
        report: the page that the section is for.
    """
    scores = {arm: {seed: float(s["metrics"]["map50_95"]) for seed, s in runs.items()} for arm, runs in found.items()}
    scores = {arm: by_seed for arm, by_seed in scores.items() if by_seed}
    against_none, against_peer = (_against(scores, name) for name in (_BASELINE, _PEER))
    rows = [
        f"| {arm} | {spread(by_seed)} | {_map50(found[arm])} | {comparison_cells(against_none.get(arm))} "
        f"| {difference(against_peer.get(arm))} | {_p(against_peer.get(arm))} | {len(by_seed)} |"
        for arm, by_seed in scores.items()
    ]
    if len(scores) > 1:
        _plot(image, scores)
    picture = f"![mAP50-95 of every student by how it was trained]({os.path.relpath(image, report.parent)})"
    return "\n".join(
        [
            *_head(study, data, title, command),
            "| training | mAP50-95, % | mAP50, % | against none, points | t-test p | Wilcoxon p | so "
            "| against distill_model, points | t-test p | seeds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *([picture, ""] if len(scores) > 1 else []),
            *verdict({arm: c for arm, c in against_none.items() if c.seeds > 1}),
            "",
            *_teachers(found),
            *_recipes(found),
        ]
    )


def _head(study: Study, data: DataSet, title: str, command: str) -> list[str]:
    start = "from scratch" if Path(study.student).suffix in {".yaml", ".yml"} else "from its weights"
    settings = ", ".join(f"`{pair}`" for pair in study.settings)
    return [
        f"## {title}",
        "",
        f"{data.train_images:,} training and {len(validation_images(data)):,} validation images, {len(data.names)} "
        f"classes. Student `{Path(study.student).name}` {start}, {study.epochs} epochs of {study.batch} images a step "
        f"at {study.imgsz} px in every row; ultralytics' settings {settings}, otherwise its defaults. A seed fixes the "
        "first weights and the order of the images: rows are compared seed by seed. The last epoch counts; nothing "
        "was chosen on the validation images. mAP by ultralytics' validation, all classes.",
        "",
        f"Made by (ultralytics {ultralytics.__version__}, PyTorch {torch.__version__}, {processor()}, "
        f"{torch.get_num_threads()} threads; the same command goes on where it was interrupted):",
        "",
        "```bash",
        public_command(command),
        "```",
        "",
    ]


def _against(scores: Mapping[str, Mapping[int, float]], name: str) -> dict[str, Comparison]:
    """Every other arm against one, by the seeds that both have."""
    if name not in scores:
        return {}
    pairs = ((arm, compare(by_seed, scores[name])) for arm, by_seed in scores.items() if arm != name)
    return {arm: result for arm, result in pairs if result is not None and arm != _BASELINE}


def _map50(runs: Mapping[int, Mapping[str, Any]]) -> str:
    return f"{100 * statistics.mean(float(run['metrics']['map50']) for run in runs.values()):.2f}"


def _p(result: Comparison | None) -> str:
    return "-" if result is None else p_value(result.t_p)


def _teachers(found: Found) -> list[str]:
    """One line for each teacher that taught."""
    seen = {
        teacher["sha256"]: teacher
        for runs in found.values()
        for run in runs.values()
        for teacher in (run.get("teachers") or ())
    }
    return [
        f"- Teacher `{teacher['file']}`: {teacher['parameters']:,} parameters, SHA-256 {teacher['sha256'][:12]}."
        for teacher in seen.values()
    ]


def _recipes(found: Found) -> list[str]:
    """What each recipe is, with its source."""
    lines = []
    for name in dict.fromkeys(arm.partition("@")[0] for arm in found):
        if name == _PEER:
            lines.append("- `distill_model`: ultralytics' own, `train(distill_model=..., dis=6)`, in this trainer.")
        elif name != _BASELINE:
            recipe = read_loss_recipe(name)
            losses = ", ".join(f"{loss}={weight:g}" for loss, weight in recipe.losses.items())
            source = f" {recipe.source}" if recipe.source else ""
            lines.append(
                f"- `{Path(name).stem}`: {losses}; temperature {recipe.temperature:g}, {recipe.schedule}.{source}"
            )
    return lines


def _plot(path: Path, scores: Mapping[str, Mapping[int, float]]) -> None:
    """Every student as a point, every arm's mean as a bar, the baseline's mean as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = sorted(scores, key=lambda arm: statistics.mean(scores[arm].values()))
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.36 * len(order)), layout="constrained")
    for row, arm in enumerate(order):
        values = [100 * v for v in scores[arm].values()]
        axes.plot([statistics.mean(values)] * 2, [row - 0.3, row + 0.3], color="#0b63a5", linewidth=2)
        axes.plot(values, [row] * len(values), "o", color="#0b63a5", alpha=0.5, markersize=5, markeredgewidth=0)
    if _BASELINE in scores:
        mean = statistics.mean(scores[_BASELINE].values())
        axes.axvline(100 * mean, color="#7a7a7a", linewidth=1, linestyle="--")
    axes.set(xlabel="mAP50-95, %", yticks=range(len(order)))
    axes.set_yticklabels([Path(arm).stem if arm.endswith(".toml") else arm for arm in order])
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
