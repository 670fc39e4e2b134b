"""The page of a study: what was run, on what budget, what came out, and what may be said of it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from distill.classification.methods import REMARKS
from distill.classification.networks import build_classifier
from distill.classification.study_plots import plot_epochs, plot_sizes
from distill.classification.study_tasks import Task, completed
from distill.study_section import processor, public_command
from distill.study_statistics import compare, comparison_cells, difference, p_value, spread, verdict

if TYPE_CHECKING:
    from distill.classification.study import Study

__all__ = ["eskd_page", "methods_page", "takd_page"]

Scores = dict[int, float]  # top-1 by seed


def methods_page(study: Study, methods: Sequence[str], title: str, command: str, image: Path, report: Path) -> str:
    """Every method against none."""
    baseline = _scores(study, [study.plain_task(seed) for seed in range(study.seeds)])
    rows, shown, compared = [], [], {}
    for method in methods:
        tasks = [study.method_task(method, seed) for seed in range(study.seeds)]
        known = [task for task in tasks if task is not None]
        scores = baseline if method == "none" else _scores(study, known)
        if not scores:
            continue
        result = None if method == "none" else compare(scores, baseline)
        if result is not None:
            compared[method] = result
        shown.append(method)
        rows.append(
            f"| {_marked(method)} | {spread(scores)} | {comparison_cells(result)} | {len(scores)} "
            f"| {_cost(study, known)} |"
        )
    return "\n".join(
        [
            *_head(study, title, command),
            *_teachers(study, study.teachers[: 2 if "heterogeneous" in methods else 1]),
            "",
            "| method | top-1, % | against none, points | t-test p | Wilcoxon p | so | seeds | CPU s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            *(f"- \\* {method}: {REMARKS[method]}" for method in shown if method in REMARKS),
            "- CPU s: of one training, with the teachers that its method trains itself. Ready teachers are not in it, "
            "and their answers are computed once and shared: the first row that asks pays for them.",
            "",
            *verdict({m: c for m, c in compared.items() if c.seeds > 1}, _marked),
        ]
    )


def eskd_page(study: Study, _: Sequence[str], title: str, command: str, image: Path, report: Path) -> str:
    """Students of a teacher at several of its epochs."""
    from distill.classification.study import eskd_task

    seeds = range(study.seeds)
    baseline = _scores(study, [study.plain_task(seed) for seed in seeds])
    teacher = [curve for seed in seeds if (curve := _teacher_curve(study, seed))]
    students = {epoch: _scores(study, [eskd_task(study, epoch, s) for s in seeds]) for epoch in study.keep}
    students = {epoch: scores for epoch, scores in students.items() if scores}
    if teacher and students:
        plot_epochs(image, teacher, students, baseline)
    full = students.get(study.keep[-1], {})
    by_epoch = {f"epoch {epoch}": scores for epoch, scores in students.items()}
    rows = []
    for epoch, scores in students.items():
        top1 = _range([curve[epoch - 1] for curve in teacher])
        against = comparison_cells(compare(scores, baseline))
        last = "-" if epoch == study.keep[-1] else difference(compare(scores, full))
        rows.append(f"| {epoch} | {top1} | {spread(scores)} | {against} | {last} |")
    return "\n".join(
        [
            *_head(study, title, command),
            *_teachers(study, study.teachers[:1]),
            f"No teacher: {spread(baseline)} % top-1." if baseline else "",
            "",
            "| teacher's epoch | teacher's top-1, % | student's top-1, % | against none, points | t-test p | "
            "Wilcoxon p | so | against the finished teacher, points |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            _image(image, report, "accuracy of the teacher and of its students by the teacher's epoch"),
            "",
            "The epochs are those of one training whose rate falls along a cosine to its last: an early teacher is "
            "also one that was not annealed.",
            "",
            *_best_of(by_epoch, f"epoch {study.keep[-1]}", "the finished teacher"),
        ]
    )


def takd_page(study: Study, _: Sequence[str], title: str, command: str, image: Path, report: Path) -> str:
    """Students of teachers of several sizes, alone and through assistants."""
    from distill.classification.study import chain_task, direct_task

    seeds = range(study.seeds)
    baseline = _scores(study, [study.plain_task(seed) for seed in seeds])
    parameters = {name: _parameters(study, name) for name in study.teachers}
    teachers = {name: _scores(study, [study.teacher_task(name, s) for s in seeds]) for name in study.teachers}
    direct = {name: _scores(study, [direct_task(study, name, s) for s in seeds]) for name in study.teachers}
    chains = {n: _scores(study, [chain_task(study, n, s) for s in seeds]) for n in range(1, len(study.teachers))}
    through = {_path(study, n): scores for n, scores in chains.items() if scores}
    if any(direct.values()):
        plot_sizes(image, parameters, teachers, direct, through, baseline)
    rows = [
        f"| {name} | {parameters[name]:,} | {spread(teachers[name])} | {spread(scores)} "
        f"| {comparison_cells(compare(scores, baseline))} | - |"
        for name, scores in direct.items()
        if scores
    ]
    largest = direct[study.teachers[-1]]
    rows += [
        f"| {path} | | | {spread(scores)} | {comparison_cells(compare(scores, baseline))} "
        f"| {difference(compare(scores, largest))} |"
        for path, scores in through.items()
    ]
    return "\n".join(
        [
            *_head(study, title, command),
            f"No teacher: {spread(baseline)} % top-1." if baseline else "",
            "",
            "| teacher, or chain | parameters | teacher's top-1, % | student's top-1, % | against none, points | "
            "t-test p | Wilcoxon p | so | against the largest teacher alone, points |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            _image(image, report, "accuracy of students by the size of their teacher, alone and through assistants"),
            "",
            *_best_of({n: s for n, s in direct.items() if s}, study.teachers[-1], "the largest teacher"),
        ]
    )


def _head(study: Study, title: str, command: str) -> list[str]:
    recipe, data = study.recipe, study.data
    settings = recipe.settings.changed()
    named = ", ".join(f"{k}={v}" for k, v in settings.items()) or "the defaults"
    return [
        f"## {title}",
        "",
        f"{len(data.train.labels):,} training and {len(data.val.labels):,} test images, {len(data.names)} classes, "
        f"{recipe.imgsz} px. Student `{recipe.student}`, {_parameters(study, recipe.student):,} parameters, "
        f"{recipe.epochs} epochs of {recipe.batch} images a step in every row; teachers {study.teacher_epochs} epochs. "
        f"Settings: {named}. A seed fixes the student's first weights, the order of images and their augmentation, "
        "in every row alike: rows are compared seed by seed. The last epoch counts; nothing was chosen on the test "
        "images. Students are scored in the precision they were trained in. Weights, temperature and balance are the "
        "defaults of each method, after its paper.",
        "",
        f"Made by (PyTorch {torch.__version__}, {processor()}, one thread each; the same command goes on where it "
        "was interrupted):",
        "",
        "```bash",
        public_command(command),
        "```",
        "",
    ]


def _teachers(study: Study, names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        scores = _scores(study, [study.teacher_task(name, seed) for seed in range(study.seeds)])
        if scores:
            lines.append(f"Teacher `{name}`, {_parameters(study, name):,} parameters: {spread(scores)} % top-1.\n")
    return lines


def _scores(study: Study, tasks: Sequence[Task]) -> Scores:
    found = ((task.recipe.seed, completed(task, study.out)) for task in tasks)
    return {seed: record["top1"] for seed, record in found if record is not None}


def _cost(study: Study, tasks: Sequence[Task]) -> str:
    """Mean CPU seconds of a row's trainings, those of the teachers and assistants that it trains itself included."""
    seconds = [record["cpu_s"] for task in tasks if (record := completed(task, study.out)) is not None]
    return f"{statistics.mean(seconds):.0f}" if seconds else "-"


def _teacher_curve(study: Study, seed: int) -> list[float]:
    record = completed(study.teacher_task(study.teachers[0], seed), study.out)
    return [] if record is None else [float(v) for v in record["top1_by_epoch"]]


def _marked(method: str) -> str:
    """Its name, with an asterisk where there is a remark."""
    return f"{method}*" if method in REMARKS else method


def _range(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def _best_of(rows: dict[str, Scores], last: str, whole: str) -> list[str]:
    """Which row is best, and how sure that is against the last."""
    rows = {name: scores for name, scores in rows.items() if scores}
    if len(rows) < 2 or last not in rows:
        return []
    best = max(rows, key=lambda name: statistics.mean(rows[name].values()))
    if best == last:
        return [f"Here {whole} teaches best."]
    result = compare(rows[best], rows[last])
    said = (
        "" if result is None else f", {difference(result)} points better than {whole} (t-test p {p_value(result.t_p)})"
    )
    return [f"The best student on average is that of {best}{said}. It is picked from these rows after the fact."]


def _path(study: Study, number: int) -> str:
    return " → ".join(study.teachers[-1 - number :][::-1])


def _parameters(study: Study, name: str) -> int:
    size = study.recipe.imgsz
    return build_classifier(name, classes=len(study.data.names), height=size, width=size).parameter_count()


def _image(image: Path, report: Path, words: str) -> str:
    return f"![{words}]({os.path.relpath(image, report.parent)})"
