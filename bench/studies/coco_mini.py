"""`python -m bench.studies.coco_mini`: what deploying costs in accuracy, against the checkpoint and against others.

One checkpoint, six bundles (three runtimes, FP32 and INT8), ultralytics' own INT8 exports calibrated on the same
images, and a peer's TFLite file: all scored on the same images by the same letterbox, NMS and mAP code.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from bench.accuracy import ImageTruth
from bench.errors import BenchError
from bench.machine import machine_facts
from bench.studies.decoded import Image
from bench.studies.page_file import refuse_existing, write_page
from bench.studies.peers import (
    EXPORT_FORMATS,
    calibration_as_val,
    copy_images,
    export_by_ultralytics,
    write_yaml,
)
from bench.studies.scoring import TOOLS, Row, decoded_detections, detect_all, model_bytes, table
from deploy.build import build_bundle
from deploy.bundle import sha256_file
from deploy.cli import run_command
from deploy.dataset import DetectionDataset, load_dataset
from deploy.graph import Graph, load_graph
from deploy.runtime import default_threads, load_engine, read_image
from deploy.steps import step
from deploy.student import Student, find_student
from deploy.verify import checkpoint_detector, image_truths, scoring_detector

ENGINES = ("onnx", "openvino", "tflite")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _study(arguments), BenchError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.coco_mini",
        description="Score a checkpoint, its six bundles and others' INT8 exports on the same images.",
    )
    parser.add_argument("--data", type=Path, required=True, help="data.yaml: train calibrates, val is scored")
    parser.add_argument("--weights", type=Path, required=True, help="the .pt checkpoint")
    parser.add_argument("--peer", type=Path, help="an INT8 .tflite with one decoded output, boxes in 0..1")
    parser.add_argument("--imgsz", type=int, default=640, help="side of the input in pixels (default: %(default)s)")
    parser.add_argument("--calibration-images", type=int, default=48, help="at most (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace) -> int:
    refuse_existing(arguments.out)
    student = find_student(arguments.weights)
    dataset = load_dataset(arguments.data, "val")
    images = [read_image(image.path) for image in dataset.images]
    truths = image_truths(dataset, [(image.shape[1], image.shape[0]) for image in images])
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(arguments, student, images, Path(folder))
        upstream = _ultralytics_val(arguments, Path(folder))
    text = _document(arguments, dataset, rows, truths, upstream)
    write_page(text, arguments.out)
    return 0


def _rows(arguments: argparse.Namespace, student: Student, images: list[Image], work: Path) -> list[Row]:
    graph = load_graph(student.checkpoint)
    rows = [_checkpoint_row(student, graph, arguments.imgsz, images)]
    for engine in ENGINES:
        for precision in ("fp32", "int8"):
            rows.append(_bundle_row(arguments, student, engine, precision, images, work))
    calibration_yaml = calibration_as_val(arguments.data, arguments.calibration_images, work)
    for export_format in EXPORT_FORMATS:
        rows.append(_export_row(arguments, export_format, calibration_yaml, images, work))
    if arguments.peer:
        rows.append(_decoded_row(f"peer `{arguments.peer.name}`", arguments.peer, arguments.imgsz, images))
    return rows


def _checkpoint_row(student: Student, graph: Graph, imgsz: int, images: list[Image]) -> Row:
    found = detect_all("PyTorch", checkpoint_detector(graph, imgsz), images)
    return Row("PyTorch checkpoint", student.checkpoint.stat().st_size, found)


def _bundle_row(
    arguments: argparse.Namespace, student: Student, engine: str, precision: str, images: list[Image], work: Path
) -> Row:
    bundle = build_bundle(
        import_module(f"deploy.{engine}").TARGET,
        student,
        work / f"{engine}-{precision}",
        precision=precision,
        imgsz=arguments.imgsz,
        calibration=arguments.data,
        calibration_images=arguments.calibration_images,
        verify=False,
    )
    detector = scoring_detector(load_engine(bundle, default_threads()), bundle.manifest)
    found = detect_all(f"{engine} {precision}", detector, images)
    detector.close()
    against = "PyTorch checkpoint" if precision == "fp32" else f"bundle {engine} FP32"
    return Row(f"bundle {engine} {precision.upper()}", bundle.size_bytes, found, against)


def _export_row(
    arguments: argparse.Namespace, export_format: str, calibration_yaml: Path, images: list[Image], work: Path
) -> Row:
    name = f"ultralytics {export_format} INT8"
    try:
        with step(f"exporting {export_format} INT8 by ultralytics"):
            path = export_by_ultralytics(arguments.weights, export_format, calibration_yaml, arguments.imgsz, work)
    except BenchError as error:
        return Row(name, 0, (), failure=str(error))
    return _decoded_row(name, path, arguments.imgsz, images)


def _decoded_row(name: str, path: Path, imgsz: int, images: list[Image]) -> Row:
    return Row(name, model_bytes(path), decoded_detections(name, path, imgsz, images), "PyTorch checkpoint")


def _ultralytics_val(arguments: argparse.Namespace, work: Path) -> dict[str, tuple[float, float]]:
    """(mAP50-95, mAP50) of the checkpoint by ultralytics' own `val`: as it comes, and with square input."""
    from ultralytics import YOLO

    dataset = load_dataset(arguments.data, "val")
    copy_images(dataset.images, work / "validation")
    data_yaml = write_yaml(work / "validation.yaml", work / "validation", dataset.class_names)
    figures = {}
    for name, rect in (("as it comes (`rect=True`)", True), ("square input (`rect=False`)", False)):
        with step(f"ultralytics val, {name}"):
            metrics = YOLO(str(arguments.weights)).val(
                data=str(data_yaml), imgsz=arguments.imgsz, batch=1, rect=rect, device="cpu", workers=0, plots=False,
                project=str(work), name=f"val-{rect}", verbose=False,
            )  # fmt: skip
        figures[name] = (float(metrics.box.map), float(metrics.box.map50))
    return figures


def _document(
    arguments: argparse.Namespace,
    dataset: DetectionDataset,
    rows: Sequence[Row],
    truths: Sequence[ImageTruth],
    upstream: dict[str, tuple[float, float]],
) -> str:
    machine = machine_facts()
    typed = f"python -m bench.studies.coco_mini --data {arguments.data} --weights {arguments.weights}"
    lines = [
        f"# What deploying costs: {dataset.name}",
        "",
        f"{len(dataset)} images at {arguments.imgsz} px. Every row is scored by the same letterbox (square), NMS (IoU "
        "0.7, at most 300 boxes, score above 0.001, several classes per cell) and mAP code (the COCO definition): "
        "only the network differs.",
        "",
        "| network | MB | mAP50-95 | mAP50 | against | difference, points [95 %] |",
        "| --- | ---: | ---: | ---: | --- | --- |",
        *table(rows, truths, len(dataset.class_names), arguments.resamples),
        "",
        "The difference is in mAP50-95; its interval is a paired bootstrap over the images "
        f"({arguments.resamples} resamples). All INT8 models that are made here are calibrated on the same "
        f"{arguments.calibration_images} training images; how the peer was calibrated is not known.",
        "",
        "## ultralytics' own figure",
        "",
        "| `val` of the checkpoint | mAP50-95 | mAP50 |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {100 * both:.2f} | {100 * at50:.2f} |" for name, (both, at50) in upstream.items()),
        "",
        "It differs from the first row for two reasons. As it comes it pads an image to a rectangle, not to the square "
        "that a compiled model takes: compare its two rows. And it interpolates between the points of the "
        "precision-recall curve, where the COCO evaluation takes the best precision at or beyond each recall: compare "
        "its square row with the first one above.",
        "",
        "## How it was measured",
        "",
        "```",
        typed + (f" --peer {arguments.peer}" if arguments.peer else ""),
        "```",
        "",
        f"- Weights: `{arguments.weights.name}`, SHA-256 `{sha256_file(arguments.weights)}`.",
        f"- Images and labels: SHA-256 `{dataset.sha256}`.",
        f"- Machine: {machine['model']}, {machine['cores']} cores, {machine['architecture']}, {machine['system']}, "
        f"{' '.join(machine['cpu_flags'])}.",
        f"- Tools: Python {platform.python_version()}, " + ", ".join(f"{tool} {version(tool)}" for tool in TOOLS) + ".",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
