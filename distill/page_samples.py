"""What teacher, student and plain student find on a few validation images, drawn side by side with the truth."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from ultralytics import YOLO
from ultralytics.data.utils import img2label_paths
from ultralytics.utils.metrics import box_iou

from distill.agreement import evenly

__all__ = ["Found", "Sample", "Tile", "draw_samples", "match"]

_SHOWN_SCORE: Final = 0.25
_SHOWN_IOU: Final = 0.5
_TILE_PX: Final = 480
_QUALITY: Final = 75
#: Images looked at before the most telling are chosen.
_LOOKED_AT: Final = 32


@dataclass(frozen=True)
class Found:
    """Objects on one image, labelled or detected.

    Attributes:
        boxes: x1 y1 x2 y2 in pixels of the image, float32 (n, 4).
        class_ids: int64 (n,).
        scores: 0 to 1, float32 (n,); None of labels.
        outlines: polygons or points of each object, float32 (m, 2) in pixels each; empty where the task has none.
    """

    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32] | None = None
    outlines: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class Tile:
    """One drawn image.

    Attributes:
        title: whose detections, or ``truth``.
        right: detections that found an object of their class; None of the truth.
        wrong: detections that found none.
        missed: objects that no detection found.
        objects: boxes drawn.
        data_uri: a small JPEG.
        width: px.
        height: px.
    """

    title: str
    right: int | None
    wrong: int
    missed: int
    objects: int
    data_uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image, its file name and the tiles, truth first."""

    name: str
    why: str
    tiles: tuple[Tile, ...]


def draw_samples(
    images: Sequence[Path],
    models: Mapping[str, Path],
    *,
    imgsz: int,
    device: str,
    class_names: Sequence[str],
    keypoint_shape: Sequence[int] | None = None,
    count: int,
) -> list[Sample]:
    """Detect on up to 32 images and draw the most telling ones.

    Args:
        images: validation images.
        models: checkpoints by the title of their tile; the first two are teacher and student, where there are two.
        imgsz: as trained.
        device: as ultralytics understands it.
        class_names: by class id.
        keypoint_shape: of a pose data set.
        count: images to draw.

    Returns:
        Alternating those where the models differ most and those that lie evenly over the set.
    """
    looked_at = evenly(images, max(_LOOKED_AT, count)) if count else []
    networks = {title: YOLO(path) for title, path in models.items()}
    truths = {path: read_truth(path, keypoint_shape) for path in looked_at}
    found = {
        path: {title: _detect(network, path, imgsz, device) for title, network in networks.items()}
        for path in looked_at
    }
    return [
        _draw(path, why, truths[path], found[path], class_names)
        for path, why in _most_telling(looked_at, truths, found)[:count]
    ]


def match(found: Found, truth: Found) -> tuple[int, int, int]:
    """Detections that are right, detections that are wrong, and objects missed, at IoU 0.5, best scores first."""
    if not len(found.boxes) or not len(truth.boxes):
        return 0, len(found.boxes), len(truth.boxes)
    overlaps = box_iou(torch.from_numpy(truth.boxes), torch.from_numpy(found.boxes)).numpy()
    overlaps[truth.class_ids[:, None] != found.class_ids[None, :]] = 0
    scores = np.ones(len(found.boxes)) if found.scores is None else found.scores
    free = np.ones(len(truth.boxes), bool)
    right = 0
    for index in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlaps[:, index], 0)
        best = int(candidates.argmax())
        if candidates[best] >= _SHOWN_IOU:
            free[best] = False
            right += 1
    return right, len(found.boxes) - right, int(free.sum())


def read_truth(image: Path, keypoint_shape: Sequence[int] | None = None) -> Found:
    """The labels beside an image: boxes, polygons (their surrounding box) or keypoints."""
    scale = np.asarray(_open(image).size, np.float64)
    label = Path(img2label_paths([str(image)])[0])
    rows = [line.split() for line in label.read_text("utf-8-sig").splitlines()] if label.is_file() else []
    boxes, class_ids, outlines = [], [], []
    for row in filter(None, rows):
        values = np.asarray(row[1:], np.float64)
        if keypoint_shape is None and len(values) > 4:
            points = values.reshape(-1, 2) * scale
            boxes.append([*points.min(axis=0), *points.max(axis=0)])
            outlines.append(points.astype(np.float32))
        else:
            centre, size = values[:2] * scale, values[2:4] * scale
            boxes.append([*(centre - size / 2), *(centre + size / 2)])
            if keypoint_shape is not None:
                outlines.append(_visible(values[4:].reshape(tuple(keypoint_shape)), scale))
        class_ids.append(int(float(row[0])))
    return Found(
        np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(class_ids, np.int64), outlines=tuple(outlines)
    )


def _open(path: Path) -> Image.Image:
    """The image upright, as ultralytics reads it."""
    with Image.open(path) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def _visible(points: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float32]:
    seen = points[points[:, 2] > 0] if points.shape[1] == 3 else points
    return (seen[:, :2] * scale).astype(np.float32)


def _detect(network: Any, path: Path, imgsz: int, device: str) -> Found:
    result = network.predict(
        str(path), imgsz=imgsz, conf=_SHOWN_SCORE, device=device or None, verbose=False, save=False
    )[0].cpu()
    outlines: tuple[NDArray[np.float32], ...] = ()
    if result.masks is not None:
        outlines = tuple(np.asarray(points, np.float32) for points in result.masks.xy)
    elif result.keypoints is not None and result.keypoints.data.shape[1]:
        sure = result.keypoints.conf
        outlines = tuple(
            points[np.asarray(sure[i]) > 0.5] if sure is not None else points
            for i, points in enumerate(np.asarray(result.keypoints.xy, np.float32))
        )
    boxes = result.boxes
    return Found(
        np.asarray(boxes.xyxy, np.float32).reshape(-1, 4),
        np.asarray(boxes.cls).astype(np.int64),
        np.asarray(boxes.conf, np.float32),
        outlines,
    )


def _most_telling(
    images: Sequence[Path], truths: Mapping[Path, Found], found: Mapping[Path, Mapping[str, Found]]
) -> list[tuple[Path, str]]:
    """Every image once: by turns the one where the models differ most, and the next one evenly over the set."""

    def spread(path: Path) -> float:
        scores = [_f1(*match(detections, truths[path])) for detections in found[path].values()]
        return max(scores) - min(scores) if scores else 0.0

    differing = [path for path in sorted(images, key=spread, reverse=True) if spread(path) > 0]
    step = max(1, len(images) // 4)
    apart = [images[i] for start in range(step) for i in range(start, len(images), step)]
    chosen: dict[Path, str] = {}
    while len(chosen) < len(images):
        for queue, why in ((differing, "the models differ"), (apart, "evenly chosen")):
            if path := next((p for p in queue if p not in chosen), None):
                chosen[path] = why
    return list(chosen.items())


def _f1(right: int, wrong: int, missed: int) -> float:
    total = 2 * right + wrong + missed
    return 2 * right / total if total else 1.0


def _draw(path: Path, why: str, truth: Found, found: Mapping[str, Found], class_names: Sequence[str]) -> Sample:
    picture = _open(path)
    scale = min(1.0, _TILE_PX / max(picture.size))
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    tiles = [_tile("truth", truth, None, small, scale, class_names)]
    tiles += [_tile(title, objects, truth, small, scale, class_names) for title, objects in found.items()]
    return Sample(path.name, why, tuple(tiles))


def _tile(
    title: str, objects: Found, truth: Found | None, picture: Image.Image, scale: float, class_names: Sequence[str]
) -> Tile:
    # Tiny images are drawn larger, or a label would cover all of them.
    zoom = max(1, round(240 / max(picture.size)))
    canvas = picture.resize((picture.width * zoom, picture.height * zoom)) if zoom > 1 else picture.copy()
    pen, factor = ImageDraw.Draw(canvas), scale * zoom
    font = ImageFont.load_default(size=11)
    for outline, class_id in zip(objects.outlines, objects.class_ids, strict=False):
        for x, y in outline * factor:
            pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=_colour(int(class_id)))
    for index, (box, class_id) in enumerate(zip(objects.boxes * factor, objects.class_ids.tolist(), strict=True)):
        left, top, right, bottom = box.tolist()
        colour = _colour(class_id)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        name = class_names[class_id] if class_id < len(class_names) else str(class_id)
        text = name if objects.scores is None else f"{name} {objects.scores[index]:.2f}"
        place = (left + 2, max(0.0, top - 13))
        edges = pen.textbbox(place, text, font=font)
        pen.rectangle((edges[0] - 2, edges[1] - 1, edges[2] + 2, edges[3] + 1), fill=colour)
        pen.text(place, text, fill=(255, 255, 255), font=font)
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    right, wrong, missed = (None, 0, 0) if truth is None else match(objects, truth)
    return Tile(title, right, wrong, missed, len(objects.boxes), uri, canvas.width, canvas.height)


def _colour(class_id: int) -> tuple[int, int, int]:
    """One dark enough for white text, far from its neighbours' (steps of the golden ratio around the hues)."""
    red, green, blue = colorsys.hls_to_rgb((class_id * 0.61803) % 1.0, 0.38, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
