"""`python -m deploy.repair`: repair a student once, to be deployed to every target."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.build import FALLBACK_IMGSZ, calibration_list
from deploy.cli import log, number_within, positive_whole_number, run_command, unused_path, whole_folder, whole_number
from deploy.command import add_calibration_flags, check_calibration_source
from deploy.errors import ExportError, StudentError
from deploy.repair.names import DEFAULT_METHODS, METHOD_NAMES, NONE, parse_methods
from deploy.steps import step
from deploy.student import REPAIR_RECORD, Student, find_student


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _repair(arguments))


def _repair(arguments: argparse.Namespace) -> int:
    check_calibration_source(arguments.calibration)
    methods = parse_methods(arguments.methods)
    student = find_student(arguments.student)
    _check_not_repaired(student)
    if not methods:
        raise ExportError(f"--methods {NONE} repairs nothing: give some of {', '.join(METHOD_NAMES)}")
    out = arguments.out or unused_path(Path("runs/repair") / student.name / "student")
    images = calibration_list(student, arguments.calibration, arguments.calibration_images)
    from deploy.graph import check_imgsz, load_graph
    from deploy.repair.methods import repair
    from deploy.repair.qat import Training
    from deploy.repair.student_folder import write_repaired_student

    with whole_folder(out) as folder:
        with step(f"loading {student.checkpoint.name} of {student.name}"):
            graph = load_graph(student.checkpoint, student.record)
        size = arguments.imgsz or student.imgsz or graph.trained_imgsz or FALLBACK_IMGSZ[graph.task]
        training = Training(steps=arguments.steps, rate=arguments.rate)
        repaired = repair(graph, images, check_imgsz(size, graph), methods, arguments.seed, training)
        write_repaired_student(student, repaired.graph, repaired.record, folder)
    record = repaired.record
    if arguments.json:
        sys.stdout.write(json.dumps({"student": str(out), "repair": record}) + "\n")
    else:
        sys.stdout.write(f"{out}\n")
    log(
        f"distance of the simulated INT8 from the float student on {record['held_out']} held-out images: "
        f"{record['distance_before']:.4f} before, {record['distance_after']:.4f} after "
        f"({', '.join(record['kept']) or 'nothing kept'})"
    )
    if record["kept"]:
        log(f"next: python -m deploy.openvino --int8 --student {out}")
    else:
        log(f"nothing helped: {out} holds the weights of {student.checkpoint}, so deploy those")
    return 0


def _check_not_repaired(student: Student) -> None:
    if REPAIR_RECORD in student.record:
        raise StudentError(f"{student.checkpoint} is repaired already: give the student that it was made from")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.repair",
        description="Repair a student's weights for INT8, without labels; the float student is the teacher.",
    )
    parser.add_argument(
        "--student", type=Path, help="student folder, run folder or .pt checkpoint (default: the newest below runs/)"
    )
    add_calibration_flags(parser)
    parser.add_argument(
        "--methods",
        default=",".join(DEFAULT_METHODS),
        metavar="NAME,NAME",
        help=f"some of {', '.join(METHOD_NAMES)} (default: %(default)s)",
    )
    parser.add_argument(
        "--imgsz", type=positive_whole_number, help="side of the deployed input (default: the student's)"
    )
    parser.add_argument("--steps", type=positive_whole_number, default=300, help="of qat (default: %(default)s)")
    parser.add_argument(
        "--rate",
        type=lambda text: number_within(0.0, 1.0, text),
        default=0.002,
        help="of qat: greatest change of a weight per step, in steps of its int8 grid (default: %(default)s)",
    )
    parser.add_argument("--seed", type=lambda text: whole_number(0, text), default=0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="student folder to make (default: runs/repair/STUDENT/student)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the folder's path")
    return parser


if __name__ == "__main__":
    sys.exit(main())
