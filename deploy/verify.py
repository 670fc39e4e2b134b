"""A bundle against the student it was made from: accuracy by the bench's own code, and drift of the raw tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import ImageTruth, Scores, score, top_scores
from deploy.bundle import Bundle, Manifest, OutputSpec
from deploy.cli import log
from deploy.dataset import DetectionDataset, evenly_spaced, load_dataset
from deploy.errors import VerificationError
from deploy.graph import CLASS_LOGIT_FLOOR, Graph
from deploy.image_folder import ClassificationDataset, few, load_image_folder
from deploy.reference import TorchEngine, reference_manifest
from deploy.runtime import (
    Classifier,
    Detections,
    Detector,
    Engine,
    Segmentation,
    Segmenter,
    default_threads,
    load_engine,
    read_image,
)
from deploy.runtime.options import OPTIONS
from deploy.steps import step

__all__ = [
    "Drift",
    "TorchEngine",
    "checkpoint_detector",
    "image_truths",
    "mask_agreement",
    "scoring_detector",
    "verify_bundle",
]

# What ultralytics' `val` uses: every candidate counts towards the precision-recall curve.
SCORING_CONF, SCORING_IOU, SCORING_MAX_DET = 0.001, 0.7, 300


@dataclass(frozen=True)
class Drift:
    """How far one raw output of a bundle lies from the student's, in logits, over all images and cells."""

    mean_abs: float
    max_abs: float


def verify_bundle(
    bundle: Bundle,
    graph: Graph,
    data: Path,
    image_count: int,
    max_drop_points: float,
    split: str | None = None,
    blame: Callable[[], Sequence[str]] = tuple,
) -> dict[str, Any]:
    """Score a bundle and its student on the same validation images, with the same code but for the network.

    Args:
        bundle: the compiled student.
        graph: the student.
        data: a data.yaml, whose validation split is used, or for a classifier the root of an image-folder data set.
        image_count: images at most, chosen evenly.
        max_drop_points: largest loss of mAP50-95, or of a classifier's top-1, in points (0..100) that is accepted.
        split: of an image-folder data set; default its held-out one.
        blame: names the layers that cost most; asked only where the bundle is refused.

    Returns:
        The manifest's `verified`: metrics in 0..1, `drop_points` in points (0..100, negative for a gain), drift in
        logits per output of the graph; for a segmenter also `mask_iou` in 0..1, see `mask_agreement`.

    Raises:
        VerificationError: the bundle loses more than `max_drop_points`, its outputs are not finite, or the data set
            does not fit.
        DatasetError: the data set cannot be read.
    """
    dataset: DetectionDataset | ClassificationDataset
    if graph.task == "classify":
        agreement = None
        dataset = load_image_folder(data, split).with_classes(graph.class_names).subset(image_count)
        with step(f"verifying on {len(dataset)} images of {dataset.name}"):
            figures, drift = _compare_classes(bundle, graph, dataset)
        metric, other = "top1", "top5"
    else:
        dataset = _validation_set(data, graph, image_count)
        with step(f"verifying on {len(dataset)} images of {dataset.name}"):
            scores, drift, agreement = _compare(bundle, graph, dataset)
        figures = tuple({"map50_95": one.map50_95, "map50": one.map50} for one in scores)
        metric, other = "map50_95", "map50"
    student, compiled = figures
    drop_points = 100 * (student[metric] - compiled[metric])
    _check_drop(metric, student[metric], compiled[metric], max_drop_points, dataset.name, drift, blame)
    return {
        "images": len(dataset),
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        **{f"student_{name}": student[name] for name in (metric, other)},
        **{f"bundle_{name}": compiled[name] for name in (metric, other)},
        "drop_points": drop_points,
        **({} if agreement is None else {"mask_iou": agreement}),
        "drift": {name: {"mean_abs": one.mean_abs, "max_abs": one.max_abs} for name, one in drift.items()},
    }


def _check_drop(
    metric: str,
    student: float,
    compiled: float,
    allowed_points: float,
    dataset: str,
    drift: Mapping[str, Drift],
    blame: Callable[[], Sequence[str]],
) -> None:
    named = {"top1": "top-1", "map50_95": "mAP50-95"}[metric]
    drop_points = 100 * (student - compiled)
    log(f"{named} {compiled:.4f}, the student's is {student:.4f} ({0.0 - drop_points:+.2f} points)")
    broken = [name for name, one in drift.items() if not math.isfinite(one.mean_abs)]
    if broken:
        raise VerificationError(f"the bundle's {', '.join(broken)} is not finite: try another precision")
    if drop_points > allowed_points:
        layers = blame()
        costly = f"; {', '.join(layers)} cost most" if layers else ""
        remedy = f"--float-layers {','.join(layers)}, " if layers else ""
        raise VerificationError(
            f"the bundle loses {drop_points:.2f} points of {named} on {dataset} ({student:.4f} to "
            f"{compiled:.4f}), {allowed_points:g} are allowed{costly}: give {remedy}more --calibration-images, a "
            "larger --max-drop, or --no-verify"
        )


def checkpoint_detector(graph: Graph, imgsz: int) -> Detector:
    """The float student with the thresholds that accuracy is scored at, on square input of `imgsz` pixels."""
    manifest = reference_manifest(graph, imgsz)
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
            f"{data_yaml} has the {len(whole.class_names)} classes {few(whole.class_names)}, the student the "
            f"{len(graph.class_names)} classes {few(graph.class_names)}: use a data set of the student's classes, "
            "or --no-verify"
        )
    images = tuple(evenly_spaced(whole.images, image_count))
    dataset = DetectionDataset(whole.name, whole.class_names, images)
    if not any(len(image.class_ids) for image in images):
        raise VerificationError(f"{dataset.name} of {data_yaml} has no labelled object: label it, or use --no-verify")
    return dataset


def _uncached(bundle: Bundle) -> dict[str, bool]:
    """Opened once and, by a process that has computed with the engine before, not as others will open it."""
    return {"model_cache": False} if "model_cache" in OPTIONS[bundle.manifest.engine] else {}


def mask_agreement(student: Segmentation, bundle: Segmentation) -> list[float]:
    """For each of a student's detections the best mask IoU, 0..1, with one of a bundle's of its class; 0 without."""
    best = []
    for mask, class_id in zip(student.masks, student.class_ids, strict=True):
        alike = bundle.masks[bundle.class_ids == class_id]
        shared = (alike & mask).sum(axis=(1, 2))
        best.append(float((shared / np.maximum((alike | mask).sum(axis=(1, 2)), 1)).max(initial=0.0)))
    return best


def _compare(
    bundle: Bundle, graph: Graph, dataset: DetectionDataset
) -> tuple[tuple[Scores, Scores], dict[str, Drift], float | None]:
    """Scores of the student and of the bundle, drift per output and, of a segmenter, the agreement of the masks."""
    manifest = bundle.manifest
    reference = checkpoint_detector(graph, manifest.input.height)
    images = [reference.preprocess(read_image(labelled.path)) for labelled in dataset.images]
    # One network after the other: two thread pools that wait by spinning slow each other down many times over.
    expected = [reference.engine.infer(pixels) for pixels, _ in images]
    compiled = scoring_detector(load_engine(bundle, default_threads(), _uncached(bundle)), manifest)
    segmenters = _segmenters(reference, compiled) if graph.task == "segment" else None
    agreements: list[float] = []
    found: tuple[list[Detections], list[Detections]] = ([], [])
    drifts: list[list[tuple[float, float]]] = []
    for (pixels, geometry), tensors in zip(images, expected, strict=True):
        raw = compiled.engine.infer(pixels)
        drifts.append([_distance(*one) for one in zip(graph.outputs, tensors, raw, strict=True)])
        found[0].append(reference.postprocess(tensors, geometry))
        found[1].append(compiled.postprocess(raw, geometry))
        if segmenters is not None:
            masked = segmenters[0].postprocess(tensors, geometry), segmenters[1].postprocess(raw, geometry)
            agreements += mask_agreement(*masked)
    compiled.close()
    truths = image_truths(dataset, [(geometry.source_width, geometry.source_height) for _, geometry in images])
    student, bundled = (score(detections, truths, len(dataset.class_names)) for detections in found)
    names = [output.name for output in graph.outputs]
    drift = dict(zip(names, map(_overall, zip(*drifts, strict=True)), strict=True))
    return (student, bundled), drift, float(np.mean(agreements)) if agreements else None


def _segmenters(reference: Detector, compiled: Detector) -> tuple[Segmenter, Segmenter]:
    """Both networks with the thresholds that a user gets: a mask is looked at, not ranked."""
    first, second = (Segmenter.with_engine(one.engine, one.manifest) for one in (reference, compiled))
    return first, second


def _compare_classes(
    bundle: Bundle, graph: Graph, dataset: ClassificationDataset
) -> tuple[tuple[dict[str, float], ...], dict[str, Drift]]:
    """Top-1 and top-5 of the student and of the bundle, and the drift of the logits."""
    manifest = bundle.manifest
    reference_engine = TorchEngine(graph, manifest.input)
    reference = Classifier.with_engine(reference_engine, reference_manifest(graph, manifest.input.height))
    images = [reference.preprocess(read_image(path)) for path in dataset.paths]
    # One network after the other, as in `_compare`.
    expected = [reference_engine.infer(pixels) for pixels in images]
    compiled = Classifier.with_engine(load_engine(bundle, default_threads(), _uncached(bundle)), manifest)
    met = [tuple(np.array(tensor) for tensor in compiled.engine.infer(pixels)) for pixels in images]
    compiled.close()
    scores = tuple(
        top_scores(
            [reference.postprocess(outputs).class_ids for outputs in found], dataset.class_ids, len(graph.class_names)
        )
        for found in (expected, met)
    )
    distances = [_distance(graph.outputs[0], one[0], two[0]) for one, two in zip(expected, met, strict=True)]
    figures = tuple({"top1": one.top1, "top5": one.top5} for one in scores)
    return figures, {graph.outputs[0].name: _overall(distances)}


def _overall(distances: Iterable[tuple[float, float]]) -> Drift:
    means, greatest = zip(*distances, strict=True)
    return Drift(float(np.mean(means)), float(np.max(greatest)))


def _distance(output: OutputSpec, expected: NDArray[np.float32], met: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and greatest absolute difference; class logits so low that no evaluation looks at them count as equal."""
    if output.meaning == "class":
        expected, met = np.maximum(expected, CLASS_LOGIT_FLOOR), np.maximum(met, CLASS_LOGIT_FLOOR)
    difference = np.abs(met - expected)
    return float(difference.mean()), float(difference.max())
