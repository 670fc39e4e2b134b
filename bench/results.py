"""A result from what a worker reported and what the truth is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import score, top_scores
from bench.classes_file import write_classes
from bench.detections_file import write_detections
from bench.inputs import MeasuredImages
from bench.records import CLASSES_NAME, DETECTIONS_NAME, Accuracy, Latency, Result, TopAccuracy
from bench.reported import Measured
from deploy.bundle import Bundle

_OPENCV_NOTE = "OpenCV was loaded: it resized for detectors, and counts in the memory."


def make_result(device: str, bundle: Bundle, images: MeasuredImages, measured: Measured, command: str) -> Result:
    """The result of one bundle on one device, from what its worker reported."""
    record, manifest = measured.measurement, bundle.manifest
    return Result(
        bundle={
            "name": bundle.path.resolve().name,
            "path": str(bundle.path.resolve()),
            "sha256": bundle.sha256,
            "task": manifest.task,
            "engine": manifest.engine,
            "precision": manifest.precision,
            "imgsz": [manifest.input.height, manifest.input.width],
            "size_bytes": bundle.size_bytes,
            "student": dict(manifest.student),
        },
        device=device,
        machine=record["machine"],
        protocol={
            **record["protocol"],
            "data": {"name": images.name, "sha256": images.sha256, "images": len(images.paths)},
            "command": command,
            "notes": [_OPENCV_NOTE] if "opencv" in record["tools"] else [],
        },
        load_s=record["load_s"],
        first_inference_s=record["first_inference_s"],
        latency=Latency(**{name: tuple(samples) for name, samples in record["latency"].items()}),
        peak_rss_bytes=record["peak_rss_bytes"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        accuracy=_accuracy(bundle, images, measured),
        executed={**record["executed"], **({"audit": dict(measured.audit)} if measured.audit else {})},
        tools=record["tools"],
        memory=record["memory"],
        cpu=record["cpu"],
        energy=record["energy"],
        throughput=record["throughput"],
    )


def _accuracy(bundle: Bundle, images: MeasuredImages, measured: Measured) -> Accuracy | TopAccuracy | None:
    names = bundle.manifest.class_names
    if measured.classes:
        ranked = [found.class_ids for found in measured.classes]
        top = top_scores(ranked, images.class_ids(bundle), len(names))
        return TopAccuracy(
            top1=top.top1,
            top5=top.top5,
            per_class=_by_name(names, top.per_class_top1),
            images=top.images,
            dataset=images.name,
            dataset_sha256=images.sha256,
        )
    if not measured.detections:
        return None
    assert images.truths is not None
    scores = score(measured.detections, images.truths, len(names))
    return Accuracy(
        map50_95=scores.map50_95,
        map50=scores.map50,
        per_class=_by_name(names, scores.per_class_ap),
        images=scores.images,
        dataset=images.name,
        dataset_sha256=images.sha256,
    )


def _by_name(names: Sequence[str], figures: NDArray[np.float64]) -> dict[str, float]:
    """Class name to figure, classes without one (nan) left out."""
    return {name: float(figure) for name, figure in zip(names, figures, strict=True) if figure == figure}


def write_findings(folder: Path, bundle: Bundle, images: MeasuredImages, measured: Measured) -> None:
    """What was found in each image of the accuracy pass, for the report."""
    if measured.classes:
        names = bundle.manifest.class_names
        write_classes(folder / CLASSES_NAME, images.paths, measured.classes, images.class_ids(bundle), names)
    if measured.detections:
        names = images.class_names
        write_detections(folder / DETECTIONS_NAME, images.paths, measured.detections, images.truths, names)


def in_short(result: Result) -> str:
    """A result's main figures in one line."""
    p50_ms = result.summary()["total_s"]["p50"] * 1e3
    parts = [f"p50 {p50_ms:.1f} ms", f"{result.latency.fps:.1f} FPS", f"{result.peak_rss_bytes / 1e6:.0f} MB"]
    if result.throughput is not None:
        parts.append(f"{result.throughput['fps']:.1f} FPS of {result.throughput['streams']} streams")
    if result.joules_per_image is not None:
        parts.append(f"{result.joules_per_image:.3g} J per image")
    if isinstance(result.accuracy, TopAccuracy):
        parts.append(f"top-1 {100 * result.accuracy.top1:.1f}")
    elif result.accuracy is not None:
        parts.append(f"mAP50-95 {100 * result.accuracy.map50_95:.1f}")
    return ", ".join(parts)
