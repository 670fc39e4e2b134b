"""A bundle against the student it was made from: accuracy by the one mAP code, and drift of the raw tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.accuracy import ImageTruth, Scores, score
from deploy.bundle import Bundle, InputSpec, Manifest, OutputSpec
from deploy.calibration import evenly_spaced
from deploy.cli import log
from deploy.dataset import DetectionDataset, load_dataset
from deploy.errors import VerificationError
from deploy.graph import CLASS_LOGIT_FLOOR, Graph
from deploy.runtime import Detections, Detector, Engine, default_threads, load_engine, read_image
from deploy.runtime.engine import check_pixels
from deploy.steps import step

# What ultralytics' `val` uses: every candidate counts towards the precision-recall curve.
SCORING_CONF, SCORING_IOU, SCORING_MAX_DET = 0.001, 0.7, 300


class TorchEngine:
    """The float student itself as an engine: the reference that bundles are held against."""

    def __init__(self, graph: Graph, input_spec: InputSpec) -> None:
        """Run `graph` on pixels of `input_spec`'s size; its layout and dtype are the bundle's own affair."""
        self._graph = graph
        self._input = input_spec

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`."""
        check_pixels(pixels, self._input)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            outputs = self._graph.network(images)
        return tuple(output[0].permute(1, 2, 0).reshape(-1, output.shape[1]).numpy() for output in outputs)

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked."""
        return {
            "library": "torch",
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "precision_asked": "fp32",
        }

    def close(self) -> None:
        """Nothing to free: the graph belongs to the caller."""


@dataclass(frozen=True)
class Drift:
    """How far one raw output of a bundle lies from the student's, in logits, over all images and cells."""

    mean_abs: float
    max_abs: float


def verify_bundle(
    bundle: Bundle, graph: Graph, data_yaml: Path, image_count: int, max_drop_points: float
) -> dict[str, Any]:
    """Score a bundle and its student on the same validation images, with the same code but for the network.

    Args:
        bundle: the compiled student.
        graph: the student.
        data_yaml: data set whose validation split is used.
        image_count: images at most, chosen evenly.
        max_drop_points: largest loss of mAP50-95 in points (0..100) that is accepted.

    Returns:
        The manifest's `verified`: metrics in 0..1, `drop_points` in points (0..100, negative for a gain), drift in
        logits per output of the graph.

    Raises:
        VerificationError: the bundle loses more than `max_drop_points`, its outputs are not finite, or the data set
            does not fit.
        DatasetError: the data set cannot be read.
    """
    dataset = _validation_set(data_yaml, graph, image_count)
    with step(f"verifying on {len(dataset)} images of {dataset.name}"):
        scores, drift = _compare(bundle, graph, dataset)
    student, compiled = scores
    drop_points = 100 * (student.map50_95 - compiled.map50_95)
    log(f"mAP50-95 {compiled.map50_95:.4f}, the student's is {student.map50_95:.4f} ({-drop_points:+.2f} points)")
    broken = [name for name, one in drift.items() if not math.isfinite(one.mean_abs)]
    if broken:
        raise VerificationError(f"the bundle's {', '.join(broken)} is not finite: try another precision")
    if drop_points > max_drop_points:
        raise VerificationError(
            f"the bundle loses {drop_points:.2f} points of mAP50-95 on {dataset.name} ({student.map50_95:.4f} to "
            f"{compiled.map50_95:.4f}), {max_drop_points:g} are allowed: give more --calibration-images, a larger "
            "--max-drop, or --no-verify"
        )
    return {
        "images": len(dataset),
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        "student_map50_95": student.map50_95,
        "student_map50": student.map50,
        "bundle_map50_95": compiled.map50_95,
        "bundle_map50": compiled.map50,
        "drop_points": drop_points,
        "drift": {name: {"mean_abs": one.mean_abs, "max_abs": one.max_abs} for name, one in drift.items()},
    }


def checkpoint_detector(graph: Graph, imgsz: int) -> Detector:
    """The float student with the thresholds that accuracy is scored at, on square input of `imgsz` pixels."""
    manifest = Manifest(
        engine="torch",
        precision="fp32",
        files={},
        model_file="",
        input=InputSpec("images", imgsz, imgsz),
        outputs=graph.outputs,
        reg_max=graph.reg_max,
        class_names=graph.class_names,
        student={},
        tools={},
    )
    return scoring_detector(TorchEngine(graph, manifest.input), manifest)


def scoring_detector(engine: Engine, manifest: Manifest) -> Detector:
    """A detector with the thresholds that accuracy is scored at."""
    return Detector.with_engine(engine, manifest, SCORING_CONF, SCORING_IOU, SCORING_MAX_DET, multi_label=True)


def image_truths(dataset: DetectionDataset, sizes: Sequence[tuple[int, int]]) -> list[ImageTruth]:
    """The labels in source pixels; `sizes` are (width, height) of the images, in order."""
    return [
        ImageTruth(image.boxes_xyxy(width, height), image.class_ids)
        for image, (width, height) in zip(dataset.images, sizes, strict=True)
    ]


def _validation_set(data_yaml: Path, graph: Graph, image_count: int) -> DetectionDataset:
    whole = load_dataset(data_yaml, "val")
    if whole.class_names != graph.class_names:
        raise VerificationError(
            f"{data_yaml} has the {len(whole.class_names)} classes {_few(whole.class_names)}, the student the "
            f"{len(graph.class_names)} classes {_few(graph.class_names)}: use a data set of the student's classes, "
            "or --no-verify"
        )
    images = tuple(evenly_spaced(whole.images, image_count))
    dataset = DetectionDataset(whole.name, whole.class_names, images)
    if not any(len(image.class_ids) for image in images):
        raise VerificationError(f"{dataset.name} of {data_yaml} has no labelled object: label it, or use --no-verify")
    return dataset


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _compare(bundle: Bundle, graph: Graph, dataset: DetectionDataset) -> tuple[tuple[Scores, Scores], dict[str, Drift]]:
    manifest = bundle.manifest
    reference = checkpoint_detector(graph, manifest.input.height)
    images = [reference.preprocess(read_image(labelled.path)) for labelled in dataset.images]
    # One network after the other: two thread pools that wait by spinning slow each other down many times over.
    expected = [reference.engine.infer(pixels) for pixels, _ in images]
    compiled = scoring_detector(load_engine(bundle, default_threads()), manifest)
    found: tuple[list[Detections], list[Detections]] = ([], [])
    drifts: list[list[tuple[float, float]]] = []
    for (pixels, geometry), tensors in zip(images, expected, strict=True):
        raw = compiled.engine.infer(pixels)
        drifts.append([_distance(*one) for one in zip(graph.outputs, tensors, raw, strict=True)])
        found[0].append(reference.postprocess(tensors, geometry))
        found[1].append(compiled.postprocess(raw, geometry))
    compiled.close()
    truths = image_truths(dataset, [(geometry.source_width, geometry.source_height) for _, geometry in images])
    student, bundled = (score(detections, truths, len(dataset.class_names)) for detections in found)
    names = [output.name for output in graph.outputs]
    return (student, bundled), dict(zip(names, map(_overall, zip(*drifts, strict=True)), strict=True))


def _overall(distances: Iterable[tuple[float, float]]) -> Drift:
    means, greatest = zip(*distances, strict=True)
    return Drift(float(np.mean(means)), float(np.max(greatest)))


def _distance(output: OutputSpec, expected: NDArray[np.float32], met: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and greatest absolute difference; class logits so low that no evaluation looks at them count as equal."""
    if output.meaning == "class":
        expected, met = np.maximum(expected, CLASS_LOGIT_FLOOR), np.maximum(met, CLASS_LOGIT_FLOOR)
    difference = np.abs(met - expected)
    return float(difference.mean()), float(difference.max())
