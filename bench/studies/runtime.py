"""`python -m bench.studies.runtime`: from image to detections, against ultralytics' `predict` on the same runtimes.

Three questions: is it faster, are the detections the same, and how much memory does it take. Every contender works in
a process of its own; they take turns, and all but the one at work are stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.errors import BenchError
from bench.machine import machine_facts, machine_state
from bench.studies.page_file import refuse_existing, run_study, write_page
from bench.studies.runtime_equality import CONF, IOU, MAX_DET, measure_equality
from bench.studies.runtime_latency import OURS, THEIRS, Cell, Entrant, measure_cell
from bench.studies.runtime_memory import Memory, import_times_s, measure_memory
from bench.studies.runtime_models import ENGINES, PRECISIONS, Workshop, has_bf16
from bench.studies.runtime_page import Setting, document
from bench.studies.runtime_verdicts import Findings
from deploy.cli import log, positive_whole_number
from deploy.dataset import load_dataset
from deploy.errors import DeployError
from deploy.runtime.resize import OPENCV_SIDE
from deploy.student import find_student

SECTIONS = ("latency", "equality", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_study(_parser(), _study, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.runtime",
        description="Bundles against ultralytics' predict on its own exports: latency, equality, memory.",
    )
    parser.add_argument("--data", type=Path, required=True, help="data.yaml: train calibrates INT8, val is detected in")
    parser.add_argument("--student", type=Path, required=True, help="student folder or .pt checkpoint of its classes")
    parser.add_argument(
        "--equal",
        nargs=3,
        action="append",
        default=[],
        metavar=("STUDENT", "DATA", "IMGSZ"),
        help="compare detections of this student on this data as well; may be repeated",
    )
    parser.add_argument(
        "--imgsz", type=positive_whole_number, nargs="+", default=[320, 640], help="sides (default: 320 640)"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all three")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of latency (default: both)"
    )
    parser.add_argument("--threads", type=positive_whole_number, default=2, help="of every contender (default: 2)")
    parser.add_argument("--rounds", type=positive_whole_number, default=10, help="default: %(default)s")
    parser.add_argument("--images", type=positive_whole_number, default=20, help="of a round (default: %(default)s)")
    parser.add_argument("--calibration-images", type=positive_whole_number, default=48, help="at most (default: 48)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all three")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/runtime-study"), help="keeps models between runs (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    refuse_existing(arguments.out)
    before = machine_state()
    main_set = _workshop(arguments, arguments.student, arguments.data)
    others = [(_workshop(arguments, Path(student), Path(data)), _side(side)) for student, data, side in arguments.equal]
    _make_models(arguments, main_set, others)
    arguments.work.mkdir(parents=True, exist_ok=True)
    log_file = arguments.work / "workers.log"
    cells, equalities, memories, imports_s = [], [], [], []
    if "memory" in arguments.only:
        imports_s = import_times_s()
        memories = list(_memories(arguments, main_set, log_file))
    if "latency" in arguments.only:
        cells = list(_cells(arguments, main_set, log_file))
    if "equality" in arguments.only:
        for workshop, side in ((main_set, max(arguments.imgsz)), *others):
            equalities += measure_equality(workshop, side, arguments.threads, log_file)
    workshops = [main_set, *(workshop for workshop, _ in others)] if "equality" in arguments.only else [main_set]
    setting = Setting(
        command=command,
        threads=arguments.threads,
        rounds=arguments.rounds,
        per_round=arguments.images,
        sources=[(workshop.student, load_dataset(workshop.data_yaml, "val")) for workshop in workshops],
        calibration_images=arguments.calibration_images,
        machine=machine_facts(),
        load_before=before["load_average"],
    )
    text = document(setting, Findings(tuple(cells), tuple(equalities), tuple(memories), tuple(imports_s)))
    write_page(text, arguments.out)
    return 0


def _workshop(arguments: argparse.Namespace, student: Path, data: Path) -> Workshop:
    label = load_dataset(data, "val").name.split("/")[0]
    return Workshop(arguments.work, find_student(student), data, label, arguments.calibration_images)


def _side(text: str) -> int:
    try:
        return positive_whole_number(text)
    except argparse.ArgumentTypeError as error:
        raise BenchError(f"IMGSZ of --equal is {error}") from None


def _make_models(arguments: argparse.Namespace, main_set: Workshop, others: Sequence[tuple[Workshop, int]]) -> None:
    """Everything is made before anything is measured; what fails here is told again, in its row, when it is used."""
    precisions = PRECISIONS if "memory" in arguments.only else arguments.precisions
    wanted = [
        (engine, precision, side)
        for side in arguments.imgsz
        for engine in arguments.engines
        for precision in precisions
    ]
    for engine, precision, side in wanted if {"latency", "memory"} & set(arguments.only) else []:
        for make in (main_set.bundle, main_set.export):
            try:
                make(side, engine, precision)
            except (BenchError, DeployError) as error:
                log(f"not made: {error}")
    if "equality" in arguments.only:
        for workshop, side in ((main_set, max(arguments.imgsz)), *others):
            for engine in ENGINES:
                workshop.bundle(side, engine, "fp32")


def _images(workshop: Workshop) -> list[str]:
    return [str(image.path) for image in load_dataset(workshop.data_yaml, "val").images]


def _cells(arguments: argparse.Namespace, workshop: Workshop, log_file: Path) -> Iterator[Cell]:
    images = _images(workshop)
    for side in arguments.imgsz:
        for engine in arguments.engines:
            for precision in arguments.precisions:
                cell = (side, engine, precision)
                try:
                    entrants = list(_entrants(arguments, workshop, *cell))
                except (BenchError, DeployError) as error:
                    yield Cell(*cell, (), failures={"models": str(error)})
                    continue
                yield measure_cell(cell, entrants, images, arguments.rounds, arguments.images, log_file)


def _entrants(
    arguments: argparse.Namespace, workshop: Workshop, side: int, engine: str, precision: str
) -> Iterator[Entrant]:
    ours, theirs = _requests(arguments, workshop, side, engine, precision)
    yield Entrant("bundle", OURS, ours, as_it_comes=True)
    other = "numpy" if side <= OPENCV_SIDE else "opencv"  # the way of resizing that is not the usual one here
    yield Entrant(f"bundle, {other}", OURS, {**ours, "resize": other})
    yield Entrant("ultralytics", THEIRS, theirs, as_it_comes=True)
    if engine == "tflite":
        yield Entrant(f"ultralytics, {arguments.threads} threads", THEIRS, {**theirs, "threads_forced": True})
    if engine == "openvino" and has_bf16():
        for hint in ("f32", "bf16"):
            yield Entrant(f"bundle, {hint}", OURS, {**ours, "options": {"inference_precision": hint}})
        yield Entrant("ultralytics, f32", THEIRS, {**theirs, "precision_forced": "f32"})


def _requests(
    arguments: argparse.Namespace, workshop: Workshop, side: int, engine: str, precision: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What opens the bundle and ultralytics' export of one cell."""
    common: Mapping[str, Any] = {
        "engine": engine,
        "imgsz": side,
        "threads": arguments.threads,
        "cpus": arguments.threads,
        "conf": CONF,
        "iou": IOU,
        "max_det": MAX_DET,
    }
    bundle = workshop.bundle(side, engine, precision).path.resolve()
    export = workshop.export(side, engine, precision).resolve()
    return {**common, "kind": "bundle", "model": str(bundle)}, {
        **common,
        "kind": "ultralytics",
        "model": str(export),
    }


def _memories(arguments: argparse.Namespace, workshop: Workshop, log_file: Path) -> Iterator[Memory]:
    images = _images(workshop)
    for side in arguments.imgsz:
        for engine in arguments.engines:
            try:
                requests = _requests(arguments, workshop, side, engine, "int8")
            except (BenchError, DeployError) as error:
                yield Memory("bundle", side, engine, failure=str(error))
                continue
            ours, theirs = requests
            with TemporaryDirectory() as cache:  # of opened models: filled by the first load, used by the second
                for name, request in (
                    ("bundle, first load", {**ours, "cache": cache}),
                    ("bundle", {**ours, "cache": cache}),
                    ("bundle, numpy", {**ours, "cache": cache, "resize": "numpy"}),
                    ("bundle, opencv", {**ours, "cache": cache, "resize": "opencv"}),
                    ("ultralytics", theirs),
                ):
                    yield measure_memory(name, side, engine, request, images, log_file)


if __name__ == "__main__":
    sys.exit(main())
