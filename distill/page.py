"""``python -m distill.page RUN``: a run, finished or not, as one self-contained HTML page."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from ultralytics.utils.torch_utils import unset_deterministic

from distill.agreement import AGREEMENT_FILE, compare_run, read_agreement
from distill.arguments import at_least
from distill.chain import finished_assistants
from distill.command import run_command
from distill.data import DataSet, open_data_set, validation_images
from distill.errors import DistillError
from distill.page_samples import Sample, draw_samples
from distill.page_text import Rows, ShownRun, render_page
from distill.recipe import Recipe, TeacherFile, read_recipe
from distill.teacher import file_sha256
from distill.whole import whole_file

__all__ = ["PAGE_FILE", "main", "write_page"]

PAGE_FILE: Final = "page.html"
#: Beside the run's own agreement: that of the run it is shown against, with the same teacher.
_AGAINST_FILE: Final = "agreement-against.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    written: list[Path] = []
    code = run_command(
        lambda: written.append(write_page(args.run, against=args.against, images=args.images, device=args.device)),
        lambda: ": no page was written",
    )
    for path in written:
        sys.stdout.write(f"{path}\n")
    return code


def write_page(run: Path, *, against: Path | None = None, images: int = 6, device: str = "") -> Path:
    """Write ``RUN/page.html``, whole or not at all; one that is there is replaced.

    A run that still trains is shown as far as it is, with its best checkpoint so far. The agreement of an older run,
    and that of ``against`` with the run's teacher, is measured here and kept beside the run.

    Args:
        run: folder of a distillation or a plain training.
        against: folder of a run to compare with, such as the same training without a teacher.
        images: validation images to draw; 0 draws none and loads no model.
        device: as ultralytics understands it; empty chooses.

    Raises:
        DistillError: when a folder is no run, has no complete epoch, or its models, data or images are gone.
    """
    recipe = read_recipe(run)
    shown, other = _read_run(run, recipe), None if against is None else _read_run(against, read_recipe(against))
    notes = _unlike(shown, other)
    samples: list[Sample] = []
    if images:
        data = open_data_set(recipe.data)
        assistants = finished_assistants(recipe, run)
        shown, other = _with_agreement(shown, other, recipe, assistants, data, device)
        samples = draw_samples(
            validation_images(data),
            _models(shown, other, recipe, assistants),
            imgsz=recipe.imgsz,
            device=device,
            class_names=data.names,
            keypoint_shape=data.description.get("kpt_shape"),
            count=images,
        )
        unset_deterministic()
    page = run / PAGE_FILE
    with whole_file(page) as partial:
        partial.write_text(render_page(shown, other, samples, notes), encoding="utf-8", errors="replace")
    return page


def _unlike(shown: ShownRun, other: ShownRun | None) -> list[str]:
    """What makes the two runs no fair comparison."""
    budget = ("student", "data_sha256", "epochs", "imgsz", "batch", "settings")
    differ = [] if other is None else [key for key in budget if shown.recipe[key] != other.recipe[key]]
    if other is None or not differ:
        return []
    return [f"{other.folder.name} differs in more than its teaching ({', '.join(differ)}): no fair comparison"]


def _with_agreement(
    shown: ShownRun,
    other: ShownRun | None,
    recipe: Recipe,
    assistants: Sequence[TeacherFile],
    data: DataSet,
    device: str,
) -> tuple[ShownRun, ShownRun | None]:
    """Both runs with their agreement with what taught the first one, measured where it is not yet known."""
    if not recipe.teachers:
        return shown, other
    for teacher in recipe.teachers:
        if not Path(teacher.path).is_file():
            raise DistillError(f"teacher {teacher.path} is not there any more: put it back, or give --images 0")
    if assistants:
        recipe = replace(recipe, teachers=(assistants[-1],))  # the last one taught the student

    def known(run: ShownRun, name: str) -> ShownRun:
        student, file = _checkpoint(run.folder), shown.folder / name
        agreement = read_agreement(file)
        if agreement is None or agreement["student"]["sha256"] != file_sha256(student):
            agreement = compare_run(student, recipe, data, device, file)
        return replace(run, agreement=agreement)

    return known(shown, AGREEMENT_FILE), None if other is None else known(other, _AGAINST_FILE)


def _models(
    shown: ShownRun, other: ShownRun | None, recipe: Recipe, assistants: Sequence[TeacherFile]
) -> dict[str, Path]:
    """Checkpoints whose detections are drawn, by title."""
    teachers = [Path(teacher.path) for teacher in recipe.teachers]
    titles = ["teacher"] if len(teachers) == 1 else [f"teacher {n}" for n in range(1, len(teachers) + 1)]
    models = dict(zip(titles, teachers, strict=True))
    for number, assistant in enumerate(assistants, start=1):
        models[f"assistant {number}"] = Path(assistant.path)
    models["student"] = _checkpoint(shown.folder)
    return models if other is None else {**models, other.folder.name: _checkpoint(other.folder)}


def _checkpoint(run: Path) -> Path:
    """The finished student, else the best so far."""
    found = next(
        (p for p in (run / "student" / "student.pt", run / "train" / "weights" / "best.pt") if p.exists()), None
    )
    if found is None:
        raise DistillError(f"{run} has no student and no best.pt: wait for its first epoch, or give --images 0")
    return found


def _read_run(folder: Path, recipe: Recipe) -> ShownRun:
    described = folder / "student" / "student.json"
    student = json.loads(described.read_text(encoding="utf-8")) if described.exists() else None
    rows = _read_results(folder / "train" / "results.csv")
    if not rows:
        raise DistillError(f"{folder} has no complete epoch in train/results.csv: wait for the first one")
    content = json.loads(json.dumps(asdict(recipe)))
    return ShownRun(folder, content, student, rows, read_agreement(folder / AGREEMENT_FILE))


def _read_results(path: Path) -> Rows:
    """The epochs of results.csv as numbers; what is no finite number, or was not measured, is None."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{str(k).strip(): _number(v) for k, v in row.items() if k} for row in csv.DictReader(file)]
    for row in rows:
        measured = [k for k in row if k.startswith(("val/", "metrics/"))]
        if not any(row[k] for k in measured):  # ultralytics writes 0 for an epoch that was not validated (val=False)
            row |= dict.fromkeys(measured)
    return rows


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.page",
        description="Show a run, finished or not, as one self-contained HTML page: curves, agreement with the teacher, "
        "detections side by side. Writes RUN/page.html, replacing the one that is there.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run of distill.yolo")
    add("--against", type=Path, metavar="RUN", help="a run to compare with, such as the same one with --losses none")
    add("--images", type=at_least(0), default=6, metavar="N", help="validation images to draw (6); 0 runs no model")
    add("--device", default="", help="cpu or 0 (the first GPU if there is one, else cpu)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
