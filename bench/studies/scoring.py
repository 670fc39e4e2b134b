"""Networks scored alike: the same images, letterbox, NMS and mAP code; and the table of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.accuracy import ImageTruth, PairedDifference, paired_bootstrap, score
from bench.studies.decoded import DecodedModel, Image, decoded_boxes, open_decoded
from deploy.cli import log
from deploy.runtime import Detections, Detector, default_threads, letterbox
from deploy.steps import step
from deploy.verify import SCORING_CONF, SCORING_IOU, SCORING_MAX_DET

# Whose versions a page names.
TOOLS = (
    "torch", "ultralytics", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "litert-torch",
    "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One scored network.

    Attributes:
        name: what it is.
        size_bytes: of its model files.
        detections: one entry per image; empty where it could not be made.
        against: name of the row it is compared with; "" for none.
        failure: why it could not be made.
    """

    name: str
    size_bytes: int
    detections: tuple[Detections, ...]
    against: str = ""
    failure: str = ""


def detect_all(
    name: str, detect: Callable[[Image], Detections] | Detector, images: Sequence[Image]
) -> tuple[Detections, ...]:
    """What a network finds in every image."""
    with step(f"scoring {name}"):
        return tuple(detect(image) for image in images)


def decoded_detections(name: str, model: Path, imgsz: int, images: Sequence[Image]) -> tuple[Detections, ...]:
    """What a model with the decode inside finds; see `bench.studies.decoded.open_decoded` for `model`."""
    opened = open_decoded(model, default_threads())
    return detect_all(name, lambda image: detect_decoded(opened, image, imgsz), images)


def detect_decoded(model: DecodedModel, image: Image, imgsz: int) -> Detections:
    """What a model with the decode inside finds in one image, at the thresholds that accuracy is scored at."""
    pixels, geometry = letterbox(image, imgsz, imgsz)
    return decoded_boxes(model(pixels), geometry, SCORING_CONF, SCORING_IOU, SCORING_MAX_DET)


def model_bytes(model: Path) -> int:
    """Bytes of a model that is a file, or a folder with OpenVINO's two."""
    files = [model] if model.is_file() else [*model.glob("*.xml"), *model.glob("*.bin")]
    return sum(file.stat().st_size for file in files)


def table(rows: Sequence[Row], truths: Sequence[ImageTruth], class_count: int, resamples: int) -> list[str]:
    """Markdown lines, one per row: scores, and the difference from another row with its bootstrap interval."""
    by_name = {row.name: row for row in rows}
    lines = []
    for row in rows:
        if row.failure:
            lines.append(f"| {row.name} | | not made: {row.failure} | | | |")
            continue
        scores = score(row.detections, truths, class_count)
        cells: list[Any] = [row.name, f"{row.size_bytes / 1e6:.1f}"]
        cells += [f"{100 * scores.map50_95:.2f}", f"{100 * scores.map50:.2f}", row.against]
        if row.against:
            other = by_name[row.against].detections
            cells.append(points(paired_bootstrap(row.detections, other, truths, class_count, samples=resamples)))
        else:
            cells.append("")
        log(" | ".join(cells))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def points(change: PairedDifference) -> str:
    """A difference in points with its interval: "-0.26 [-1.76, +1.21]"."""
    return f"{100 * change.difference:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
