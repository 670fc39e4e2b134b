"""`python -m deploy.sensitivity`: which blocks or layers of a student cost accuracy in INT8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.build import FALLBACK_IMGSZ, calibration_list
from deploy.calibration import CalibrationList
from deploy.cli import log, positive_whole_number, run_command, unused_path, whole_folder
from deploy.errors import CalibrationError, DeployError
from deploy.sensitivity.measure import GRANULARITIES, Probe, Sensitivity, measure
from deploy.steps import step
from deploy.student import Student, find_student

if TYPE_CHECKING:
    from deploy.graph import Graph

DEFAULT_IMAGES = 16
RECORD_NAME, PICTURE_NAME = "sensitivity.json", "sensitivity.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


def open_student(student: Student, calibration: Path | None, imgsz: int | None) -> tuple[Graph, int]:
    """A loaded student, and the side of its input in pixels; default that of the training, else 640.

    Raises:
        DeployError: the student cannot be used, or `calibration` does not exist.
    """
    from deploy.graph import check_imgsz, load_graph

    if calibration is not None and not calibration.exists():
        raise CalibrationError(
            f"no --calibration {calibration}: check the path of the data.yaml or the folder of images"
        )
    with step(f"loading {student.checkpoint.name} of {student.name}"):
        graph = load_graph(student.checkpoint, student.record)
    return graph, check_imgsz(imgsz or student.imgsz or graph.trained_imgsz or FALLBACK_IMGSZ[graph.task], graph)


def open_probe(graph: Graph, images: CalibrationList, imgsz: int) -> Probe:
    """A student's probe at `imgsz` pixels."""
    with step(f"ranges of the activations on {len(images)} images, {imgsz} px"):
        return Probe(graph, images.images, imgsz)


def _run(arguments: argparse.Namespace) -> int:
    student = find_student(arguments.student)
    out = arguments.out or unused_path(Path("runs/sensitivity") / f"{student.name}-{arguments.granularity}")
    if out.exists():
        raise DeployError(f"{out} already exists: choose another --out or remove it")
    graph, imgsz = open_student(student, arguments.calibration, arguments.imgsz)
    probe = open_probe(graph, calibration_list(student, arguments.calibration, arguments.images), imgsz)
    text = f"quantizing one {arguments.granularity} at a time on {len(probe.images)} images"
    with whole_folder(out) as folder:
        with step(text):
            whole, costs = measure(probe, arguments.granularity, arguments.reverse)
        result = Sensitivity(
            student=student.name,
            student_sha256=student.sha256,
            imgsz=imgsz,
            granularity=arguments.granularity,
            images=len(probe.images),
            whole_percent=whole,
            costs=costs,
        )
        (folder / RECORD_NAME).write_text(result.to_json(), encoding="utf-8")
        with step("drawing"):
            from deploy.sensitivity.picture import draw

            draw(result, folder / PICTURE_NAME)
    sys.stdout.write(result.to_json() if arguments.json else table(result, arguments.top))
    log(f"{out}: {RECORD_NAME}, {PICTURE_NAME}")
    names = ",".join(one.name for one in result.ranked()[:2])
    log(f"next: python -m deploy.search, or by hand: python -m deploy.onnx --int8 --float-layers {names}")
    return 0


def table(sensitivity: Sensitivity, most: int | None = None) -> str:
    """The costs in columns, costliest first; `most` of them, default all."""
    reverse = any(one.relief_percent is not None for one in sensitivity.costs)
    heads = [sensitivity.granularity, "damage %", "weights %", "activations %", "class dB", "box dB", "MACs %"]
    rows = [[*heads, "relief %"] if reverse else heads]
    for one in sensitivity.ranked()[:most]:
        row = [one.name, f"{one.damage_percent:.2f}", f"{one.weights_percent:.2f}", f"{one.activations_percent:.2f}"]
        row += [f"{one.class_sqnr_db:.1f}", f"{one.box_sqnr_db:.1f}", f"{100 * one.macs_share:.1f}"]
        rows.append([*row, "" if one.relief_percent is None else f"{one.relief_percent:+.2f}"] if reverse else row)
    rows.append(["all of them", f"{sensitivity.whole_percent:.2f}"] + [""] * (len(rows[0]) - 2))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def add_student_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is measured, and on what."""
    parser.add_argument(
        "--student", type=Path, help="student folder, run folder, or .pt checkpoint (default: the newest below runs/)"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="data.yaml or image-folder data set, whose train split is used, or a folder of training images "
        "(default: the student's training images)",
    )
    parser.add_argument(
        "--imgsz", type=positive_whole_number, help="side of the input in pixels (default: the student's)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.sensitivity",
        description="Quantize one block or layer of a student at a time, in simulation, and rank them by cost.",
    )
    add_student_flags(parser)
    parser.add_argument(
        "--images",
        type=positive_whole_number,
        default=DEFAULT_IMAGES,
        metavar="N",
        help="how many of them at most, chosen evenly (default: %(default)s)",
    )
    parser.add_argument("--granularity", choices=GRANULARITIES, default="block", help="(default: %(default)s)")
    parser.add_argument(
        "--reverse", action="store_true", help="measure the reverse too: all in INT8 but one (doubles the time)"
    )
    parser.add_argument("--out", type=Path, help="folder to make (default: runs/sensitivity/STUDENT-GRANULARITY)")
    parser.add_argument("--top", type=positive_whole_number, metavar="N", help="print the N costliest (default: all)")
    parser.add_argument("--json", action="store_true", help="print sensitivity.json instead of the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
