"""`python -m bench.studies.int8`: what INT8 costs in accuracy and wins in speed, against ultralytics' own exports.

For ONNX Runtime, OpenVINO and LiteRT: the FP32 and INT8 bundles of a student, the INT8 bundle of the repaired student,
ultralytics' exports of the same weights calibrated on the same images, and a peer's TFLite file. What was measured is
kept in `--work`, so that the same command goes on where an earlier one stopped, and parts can be measured apart.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.errors import BenchError
from bench.machine import machine_facts
from bench.studies import int8_parts as parts
from bench.studies.figures_folder import FiguresFolder
from bench.studies.int8_networks import Network, Sources, entrants, make_networks
from bench.studies.int8_page import Figures, Setting, document
from bench.studies.page_file import refuse_existing, run_study, write_page
from bench.studies.runtime_models import ENGINES, Workshop, has_bf16
from deploy.cli import positive_whole_number
from deploy.dataset import DetectionDataset, evenly_spaced, load_dataset
from deploy.graph import load_graph
from deploy.student import REPAIR_RECORD, Student, find_student

SECTIONS = ("accuracy", "latency", "memory", "audit")
TIMED_IMAGES = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_study(_parser(), _study, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.int8",
        description="INT8 against FP32 and against ultralytics' exports: accuracy, latency, memory, what was executed.",
    )
    parser.add_argument("--data", type=Path, required=True, help="data.yaml: train calibrates INT8, val is scored")
    parser.add_argument("--student", type=Path, required=True, help="student folder or .pt checkpoint of its classes")
    parser.add_argument("--repaired", type=Path, help="the student folder that python -m deploy.repair made of it")
    parser.add_argument("--peer", type=Path, help="an INT8 .tflite with one decoded output, boxes in 0..1")
    parser.add_argument("--imgsz", type=positive_whole_number, default=640, help="side in pixels (default: 640)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="default: all three")
    parser.add_argument("--threads", type=positive_whole_number, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=positive_whole_number, default=10, help="of latency (default: %(default)s)")
    parser.add_argument("--images", type=positive_whole_number, default=20, help="of a round (default: %(default)s)")
    parser.add_argument("--calibration-images", type=positive_whole_number, default=48, help="at most (default: 48)")
    parser.add_argument(
        "--resamples", type=positive_whole_number, default=2000, help="of the bootstrap (default: 2000)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="measure these, show all that is known"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/int8-study"), help="keeps models and figures (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    refuse_existing(arguments.out)
    student = find_student(arguments.student)
    repaired = _repaired(arguments.repaired, student)
    dataset = load_dataset(arguments.data, "val")
    if arguments.peer is not None and not arguments.peer.is_file():
        raise BenchError(f"no --peer {arguments.peer}: check the path")
    sources = _sources(arguments, student, repaired, dataset)
    kept = FiguresFolder(
        arguments.work / "figures" / f"{sources.plain.label}-{arguments.imgsz}",
        {
            "student": student.sha256,
            "data": dataset.sha256,
            "calibration images": arguments.calibration_images,
        },
    )
    networks = [network for engine in arguments.engines for network in make_networks(sources, engine)]
    figures = _measure(arguments, kept, networks, student, dataset)
    setting = Setting(command, arguments, student, repaired, dataset, machine_facts())
    write_page(document(setting, networks, figures), arguments.out)
    return 0


def _repaired(folder: Path | None, student: Student) -> Student | None:
    if folder is None:
        return None
    repaired = find_student(folder)
    original = repaired.record.get(REPAIR_RECORD, {}).get("original", {}).get("sha256")
    if original != student.sha256:
        raise BenchError(
            f"{folder} was not repaired from {student.checkpoint}: give what this makes: "
            f"python -m deploy.repair --student {student.checkpoint}"
        )
    return repaired


def _sources(
    arguments: argparse.Namespace, student: Student, repaired: Student | None, dataset: DetectionDataset
) -> Sources:
    label = dataset.name.split("/")[0]
    workshop = partial(
        Workshop, arguments.work, data_yaml=arguments.data, calibration_images=arguments.calibration_images
    )
    return Sources(
        plain=workshop(student=student, label=label),
        repaired=None if repaired is None else workshop(student=repaired, label=f"{label}-repaired"),
        peer=arguments.peer,
        imgsz=arguments.imgsz,
    )


def _measure(
    arguments: argparse.Namespace,
    kept: FiguresFolder,
    networks: Sequence[Network],
    student: Student,
    dataset: DetectionDataset,
) -> Figures:
    """Measure what is asked for and not kept yet; all that is known afterwards."""
    images = [str(image.path) for image in evenly_spaced(dataset.images, TIMED_IMAGES)]
    log_file = arguments.work / "workers.log"
    figures = Figures(_accuracy(arguments, kept, networks, student, dataset), {}, {}, {})
    for engine in arguments.engines:
        made = [network for network in networks if network.engine == engine and network.model is not None]
        for threads in arguments.threads:
            name = f"latency-{engine}-{threads}-{_together(made)}"
            figures.latency[engine, threads] = _part(
                arguments,
                kept,
                name,
                partial(
                    parts.latency,
                    list(entrants(made, arguments.imgsz, threads, has_bf16())),
                    (engine, arguments.imgsz),
                    images,
                    (arguments.rounds, arguments.images),
                    log_file,
                ),
            )
        most = max(arguments.threads)
        for network, entrant in zip(made, entrants(made, arguments.imgsz, most, bf16=False), strict=True):
            own = f"{engine}-{network.fingerprint}"
            measure = partial(parts.memory, entrant, engine, arguments.imgsz, images, log_file)
            figures.memory[network.name] = _part(arguments, kept, f"memory-{own}", measure)
            if network.is_ours:
                measure = partial(parts.audit, network, most)
                figures.audit[network.name] = _part(arguments, kept, f"audit-{own}", measure)
    return figures


def _accuracy(
    arguments: argparse.Namespace,
    kept: FiguresFolder,
    networks: Sequence[Network],
    student: Student,
    dataset: DetectionDataset,
) -> parts.Figures:
    made = [network for network in networks if network.model is not None]

    def measure() -> parts.Figures:
        graph = load_graph(student.checkpoint, student.record)
        return parts.accuracy(made, graph, dataset, arguments.imgsz, arguments.resamples)

    return _part(arguments, kept, f"accuracy-{_together(made)}", measure)


def _part(
    arguments: argparse.Namespace, kept: FiguresFolder, name: str, measure: Callable[[], parts.Figures]
) -> parts.Figures:
    if name.split("-")[0] in arguments.only:
        return kept.measured(name, measure)
    return kept.part(name) or {}


def _together(networks: Sequence[Network]) -> str:
    """One fingerprint for all: what is measured in turns or paired is figures of them all."""
    return hashlib.sha256("".join(network.fingerprint for network in networks).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
