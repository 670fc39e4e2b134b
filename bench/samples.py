"""A handful of images that show where bundles agree with the truth and where they do not."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import ImageDetections, ImageTruth
from bench.classes_file import ClassesFile
from bench.detections_file import DetectionsFile
from bench.matching import true_positives
from deploy.errors import DatasetError
from deploy.runtime import Detections, draw_detections, read_image
from deploy.runtime.draw import class_colour

SHOWN_SCORE = 0.25
SHOWN_IOU = 0.5
_TILE = 560  # px of the longer side
_QUALITY = 72

_File = TypeVar("_File", DetectionsFile, ClassesFile)


@dataclass(frozen=True)
class Outcome:
    """How one bundle did on one image at `SHOWN_SCORE` and `SHOWN_IOU`.

    Attributes:
        right: detections that found an object of their class.
        wrong: detections that found none.
        missed: objects that no detection found.
    """

    right: int
    wrong: int
    missed: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1; 1 for an empty image left empty."""
        total = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / total if total else 1.0


@dataclass(frozen=True)
class Tile:
    """One drawn image.

    Attributes:
        title: "truth" or the name of a bundle.
        outcome: None for the truth.
        objects: boxes drawn.
        data_uri: a small JPEG.
        width: px.
        height: px.
    """

    title: str
    outcome: Outcome | None
    objects: int
    data_uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image, its truth and what each bundle detected.

    Attributes:
        name: file name.
        why: what it was chosen for.
        tiles: the truth first where it is known, then the bundles.
    """

    name: str
    why: str
    tiles: tuple[Tile, ...]


def draw_samples(files: Sequence[tuple[str, DetectionsFile]], count: int = 5) -> tuple[list[Sample], list[str]]:
    """Choose images and draw them.

    Args:
        files: name of each bundle and its detections; only those over the same images as the first are drawn.
        count: most images.

    Returns:
        The samples, and one line for each thing that could not be shown.
    """
    if not files:
        return [], []
    images = files[0][1].images
    alike, notes = over_the_first_images(files, "sample images")
    samples: list[Sample] = []
    unreadable = 0
    for index, why in _ranking(alike):
        if len(samples) == count:
            break
        try:
            pixels = read_image(images[index])
        except DatasetError:
            unreadable += 1  # the data set was moved or changed since
            continue
        samples.append(_draw(index, why, pixels, alike))
    if unreadable:
        notes.append(
            f"{unreadable} images chosen as samples can no longer be read, e.g. below {Path(images[0]).parent}"
        )
    return samples, notes


def outcome(detections: ImageDetections, truth: ImageTruth) -> Outcome:
    """Count what is right, wrong and missed among the detections that would be shown."""
    shown = _shown(detections)
    right = int(true_positives(shown, truth, SHOWN_IOU).sum())
    return Outcome(right, len(shown.scores) - right, len(truth.class_ids) - right)


def over_the_first_images(files: Sequence[tuple[str, _File]], shown: str) -> tuple[list[tuple[str, _File]], list[str]]:
    """The files over the same images as the first, and one line for each other: nothing `shown` of it."""
    images = files[0][1].images
    alike = [(name, file) for name, file in files if file.images == images]
    others = [name for name, file in files if file.images != images]
    return alike, [f"no {shown} of {name}: it was scored on other images than {files[0][0]}" for name in others]


def small_jpeg(image: NDArray[np.uint8]) -> tuple[str, int, int]:
    """A small JPEG of an image as a data URI, its width and its height in pixels."""
    return _jpeg(_shrink(image)[0])


def _ranking(files: Sequence[tuple[str, DetectionsFile]]) -> list[tuple[int, str]]:
    """Every image once, the most telling first: worst, most disagreed on, typical, best, worst again and so on."""
    truths = files[0][1].truths
    if truths is None:
        counts = np.array([[len(_shown(d).scores) for d in file.detections] for _, file in files])
        return [(int(index), "most detections") for index in np.argsort(-counts.sum(axis=0), kind="stable")]
    f1 = np.array([[outcome(d, t).f1 for d, t in zip(file.detections, truths, strict=True)] for _, file in files])
    objects = np.array([len(truth.class_ids) for truth in truths])
    mean, spread = f1.mean(axis=0), f1.max(axis=0) - f1.min(axis=0)
    worst = np.lexsort((-objects, mean))
    orders = {
        "worst": worst,
        "bundles disagree": np.lexsort((-objects, -spread)),
        "typical": worst[np.argsort(np.abs(np.arange(len(worst)) - len(worst) // 2), kind="stable")],
        "best": np.lexsort((-objects, -mean)),
    }
    if len(files) == 1 or not spread.any():
        del orders["bundles disagree"]
    return _take_turns(orders, len(truths))


def _take_turns(orders: dict[str, NDArray[np.int64]], images: int) -> list[tuple[int, str]]:
    chosen: dict[int, str] = {}
    queues = {why: iter(order.tolist()) for why, order in orders.items()}
    while len(chosen) < images:
        for why, queue in queues.items():
            index = next((index for index in queue if index not in chosen), None)
            if index is not None:
                chosen[index] = why
    return list(chosen.items())


def _draw(index: int, why: str, pixels: NDArray[np.uint8], files: Sequence[tuple[str, DetectionsFile]]) -> Sample:
    small, scale = _shrink(pixels)
    first = files[0][1]
    tiles = []
    truth = None if first.truths is None else first.truths[index]
    if truth is not None:
        drawn = _outline(small, truth, scale, first.class_names)
        tiles.append(Tile("truth", None, len(truth.class_ids), *_jpeg(drawn)))
    for name, file in files:
        detections = file.detections[index]
        shown = _shown(detections, scale)
        drawn = draw_detections(small, shown, file.class_names)
        judged = None if truth is None else outcome(detections, truth)
        tiles.append(Tile(name, judged, len(shown), *_jpeg(drawn)))
    return Sample(Path(first.images[index]).name, why, tuple(tiles))


def _shown(detections: ImageDetections, scale: float = 1.0) -> Detections:
    """The detections that a detector would show, best first, boxes scaled."""
    order = np.argsort(-detections.scores, kind="stable")
    kept = order[detections.scores[order] >= SHOWN_SCORE]
    boxes: NDArray[Any] = detections.boxes_xyxy[kept] * scale
    return Detections(
        boxes.astype(np.float32),
        detections.scores[kept].astype(np.float32),
        detections.class_ids[kept].astype(np.int64),
    )


def _shrink(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """The image with its longer side at most `_TILE` px, and the factor; text drawn afterwards stays sharp."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = min(1.0, _TILE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX if scale < 0.5 else None)), scale


def _outline(
    image: NDArray[np.uint8], truth: ImageTruth, scale: float, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Truth boxes with their class names, in the colours that detections have."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=10)
    for box, class_id in zip(np.asarray(truth.boxes_xyxy) * scale, truth.class_ids.tolist(), strict=True):
        left, top, right, bottom = box.tolist()
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=class_colour(class_id), width=2)
        name = class_names[class_id] if class_id < len(class_names) else str(class_id)
        edges = draw.textbbox((left + 2, max(0.0, top - 12)), name, font=font)
        draw.rectangle((edges[0] - 2, edges[1] - 1, edges[2] + 2, edges[3] + 1), fill=class_colour(class_id))
        draw.text((left + 2, max(0.0, top - 12)), name, fill=(255, 255, 255), font=font)
    return np.asarray(canvas)


def _jpeg(image: NDArray[np.uint8]) -> tuple[str, int, int]:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=_QUALITY, optimize=True)
    height, width = image.shape[:2]
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"), width, height
