"""FP32 bundles against ultralytics' `predict` of the checkpoint: the same detections, and the same mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy import score
from bench.errors import BenchError
from bench.matching import pairwise_iou
from bench.measure import decode_detections
from bench.studies.runtime_models import ENGINES, Workshop
from bench.studies.runtime_process import WorkerProcess
from deploy.cli import log
from deploy.dataset import load_dataset
from deploy.errors import DeployError
from deploy.runtime import Detections, image_size
from deploy.verify import image_truths

CONF, SCORING_CONF = 0.25, 0.001
IOU, MAX_DET = 0.7, 300

BOX_TARGET_PX, SCORE_TARGET, MAP_TARGET_POINTS = 0.5, 1e-3, 0.1

_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Unmatched:
    """A detection that the other side lacks.

    Attributes:
        image: index of the image.
        side: "ours" or "theirs": who has it.
        class_id: of the detection.
        score: of the detection.
    """

    image: int
    side: str
    class_id: int
    score: float

    @property
    def at_threshold(self) -> bool:
        """Its score is as near to the threshold as scores are allowed to differ, so either answer is right."""
        return abs(self.score - CONF) <= SCORE_TARGET


@dataclass(frozen=True)
class Equality:
    """One bundle against the checkpoint on one data set.

    Attributes:
        dataset: name of the data set.
        imgsz: side of the input in pixels.
        engine: of the bundle.
        images: how many were compared.
        ours: detections of the bundle at `CONF`, all images.
        theirs: detections of the checkpoint at `CONF`, all images.
        unmatched: what only one side has.
        box_px: largest difference of a box side among matched ones, in source pixels.
        score: largest difference of a score among matched ones.
        map_ours: mAP50-95 in 0..1 of the bundle's detections at `SCORING_CONF`.
        map_theirs: the same of the checkpoint's.
        failure: why it could not be compared; everything else is empty then.
    """

    dataset: str
    imgsz: int
    engine: str
    images: int = 0
    ours: int = 0
    theirs: int = 0
    unmatched: tuple[Unmatched, ...] = ()
    box_px: float = 0.0
    score: float = 0.0
    map_ours: float = 0.0
    map_theirs: float = 0.0
    failure: str = ""

    @property
    def ties(self) -> tuple[Unmatched, ...]:
        """Unmatched ones whose score lies at the threshold."""
        return tuple(one for one in self.unmatched if one.at_threshold)

    @property
    def different(self) -> tuple[Unmatched, ...]:
        """Unmatched ones that the threshold does not explain."""
        return tuple(one for one in self.unmatched if not one.at_threshold)

    @property
    def map_points(self) -> float:
        """Ours minus theirs, in points (0..100)."""
        return 100 * (self.map_ours - self.map_theirs)


def match(ours: Detections, theirs: Detections) -> list[tuple[int, int]]:
    """Pair detections of two sides one to one.

    Two are a pair if they are of one class and overlap by an IoU of at least 0.5; of several, those whose box sides
    lie nearest to each other are paired first.

    Returns:
        (index of ours, index of theirs).
    """
    if not len(ours) or not len(theirs):
        return []
    distances = np.abs(ours.boxes_xyxy[:, None] - theirs.boxes_xyxy[None]).max(axis=2).astype(np.float64)
    same = ours.class_ids[:, None] == theirs.class_ids[None]
    overlaps = pairwise_iou(ours.boxes_xyxy.astype(np.float64), theirs.boxes_xyxy.astype(np.float64))
    distances[~same | (overlaps < _SAME_OBJECT_IOU)] = np.inf
    pairs = []
    for flat in np.argsort(distances, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(theirs))
        if not np.isfinite(distances[row, column]):
            continue  # infinite from the start, or taken since
        pairs.append((row, column))
        distances[row, :] = np.inf
        distances[:, column] = np.inf
    return pairs


def compare(name: str, imgsz: int, engine: str, ours: Sequence[Detections], theirs: Sequence[Detections]) -> Equality:
    """Compare two sides' detections at `CONF`, image by image; mAP is not filled in."""
    unmatched: list[Unmatched] = []
    box_px = score_difference = 0.0
    for image, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        pairs = match(own, other)
        for row, column in pairs:
            box_px = max(box_px, float(np.abs(own.boxes_xyxy[row] - other.boxes_xyxy[column]).max()))
            score_difference = max(score_difference, abs(float(own.scores[row]) - float(other.scores[column])))
        for side, found, taken in (("ours", own, {row for row, _ in pairs}), ("theirs", other, {c for _, c in pairs})):
            alone = [index for index in range(len(found)) if index not in taken]
            unmatched += [Unmatched(image, side, int(found.class_ids[i]), float(found.scores[i])) for i in alone]
    counts = sum(map(len, ours)), sum(map(len, theirs))
    return Equality(name, imgsz, engine, len(ours), *counts, tuple(unmatched), box_px, score_difference)


def measure_equality(workshop: Workshop, imgsz: int, threads: int, log_file: Path) -> list[Equality]:
    """Compare the FP32 bundles of all three runtimes with the checkpoint on the validation images.

    Raises:
        BenchError: the checkpoint's own detections cannot be had.
        DeployError: the data set cannot be read.
    """
    dataset = load_dataset(workshop.data_yaml, "val")
    paths = [str(image.path) for image in dataset.images]
    truths = image_truths(dataset, [image_size(path) for path in paths])
    common = {"imgsz": imgsz, "threads": threads, "cpus": threads, "iou": IOU, "max_det": MAX_DET, "conf": CONF}
    reference = {
        **common,
        "kind": "ultralytics",
        "engine": "torch",
        "model": str(workshop.student.checkpoint),
        "predict": {"rect": False},
    }
    log(f"{dataset.name} {imgsz} px: detecting by ultralytics' predict")
    theirs = _detect("ultralytics predict", reference, paths, log_file)
    results = []
    for engine in ENGINES:
        log(f"{dataset.name} {imgsz} px: detecting by {engine}")
        try:
            bundle = workshop.bundle(imgsz, engine, "fp32")
            own = {**common, "kind": "bundle", "engine": engine, "model": str(bundle.path.resolve())}
            ours = _detect(f"bundle {engine}", own, paths, log_file)
        except (BenchError, DeployError) as error:
            results.append(Equality(dataset.name, imgsz, engine, failure=str(error)))
            continue
        found = compare(dataset.name, imgsz, engine, ours[CONF], theirs[CONF])
        maps = [score(side[SCORING_CONF], truths, len(dataset.class_names)).map50_95 for side in (ours, theirs)]
        results.append(replace(found, map_ours=maps[0], map_theirs=maps[1]))
    return results


def _detect(
    name: str, request: Mapping[str, Any], paths: Sequence[str], log_file: Path
) -> dict[float, list[Detections]]:
    with WorkerProcess(name, {**request, "images": list(paths)}, log_file) as worker:
        return {
            conf: [
                decode_detections(worker.ask({"do": "detect", "image": index, "conf": conf}))
                for index in range(len(paths))
            ]
            for conf in (CONF, SCORING_CONF)
        }
