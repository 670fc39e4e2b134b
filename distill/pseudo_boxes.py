"""What a teacher finds in an unlabelled image, by itself or together with the mirrored image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics import YOLO

from distill.errors import DistillError

__all__ = ["Boxes", "find_boxes", "merge_views"]

#: Boxes of two views are one object from this overlap on; Solovyev et al. use 0.55 as well.
_SAME_OBJECT: Final = 0.55
_CHUNK: Final = 16


@dataclass(frozen=True)
class Boxes:
    """Detections in one image.

    Attributes:
        xywh: centre, width and height as fractions of the image, float64 (n, 4).
        scores: 0 to 1, float64 (n,), descending.
        classes: class ids, int64 (n,).
    """

    xywh: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        """How many."""
        return len(self.scores)

    def above(self, threshold: float) -> Boxes:
        """Those with at least that score."""
        kept = self.scores >= threshold
        return Boxes(self.xywh[kept], self.scores[kept], self.classes[kept])

    def mirrored(self) -> Boxes:
        """The same in the image flipped left to right."""
        return Boxes(self.xywh * (-1, 1, 1, 1) + (1, 0, 0, 0), self.scores, self.classes)


def find_boxes(
    teacher: Path, images: Sequence[Path], *, imgsz: int, floor: float, flip: bool, device: str
) -> Iterator[Boxes]:
    """Run the teacher over images, with ultralytics' own letterbox and NMS.

    Args:
        teacher: a detector's checkpoint.
        images: files.
        imgsz: side of the square input in pixels.
        floor: lowest score that counts in one view.
        flip: see each image mirrored too, and merge both.
        device: as ultralytics understands it; empty chooses.

    Yields:
        One result per image, in order.

    Raises:
        DistillError: for an image that OpenCV cannot decode.
    """
    model = YOLO(teacher)
    # rect would pad a batch by the shapes that happen to be in it: the same image must give the same boxes.
    settings = {"imgsz": imgsz, "conf": floor, "device": device or None, "rect": False, "verbose": False, "save": False}
    for start in range(0, len(images), _CHUNK):
        pixels = [_read(path) for path in images[start : start + _CHUNK]]
        found = [_boxes(result) for result in model.predict(pixels, **settings)]
        if flip:
            turned = model.predict([np.ascontiguousarray(image[:, ::-1]) for image in pixels], **settings)
            found = [merge_views(a, _boxes(b).mirrored()) for a, b in zip(found, turned, strict=True)]
        yield from found


def merge_views(one: Boxes, other: Boxes) -> Boxes:
    """Merge what was found in two views of an image, both in the coordinates of the first.

    Weighted boxes fusion (Solovyev et al. 2021) for two views: boxes of one class that overlap by at least 0.55 are
    one object, its edges the mean weighted by the scores. Its score is the mean over the views, with 0 where a view
    has not seen it: a threshold of 0.5 asks for both, or for one that is certain.
    """
    merged = []
    free = list(range(len(other)))
    for index in range(len(one)):
        box, score, class_id = one.xywh[index], one.scores[index], one.classes[index]
        overlaps = {k: _iou(box, other.xywh[k]) for k in free if other.classes[k] == class_id}
        best = max(overlaps, key=lambda k: overlaps[k], default=None)
        if best is None or overlaps[best] < _SAME_OBJECT:
            merged.append((box, score / 2, class_id))
            continue
        free.remove(best)
        theirs = other.scores[best]
        mean = (score * box + theirs * other.xywh[best]) / (score + theirs)  # of centres and sizes: of edges too
        merged.append((mean, (score + theirs) / 2, class_id))
    merged += [(other.xywh[k], other.scores[k] / 2, other.classes[k]) for k in free]
    merged.sort(key=lambda found: -found[1])
    return Boxes(
        np.array([m[0] for m in merged], dtype=np.float64).reshape(-1, 4),
        np.array([m[1] for m in merged], dtype=np.float64),
        np.array([m[2] for m in merged], dtype=np.int64),
    )


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    overlap = float(np.prod(np.clip(high - low, 0, None)))
    union = float(np.prod(a[2:]) + np.prod(b[2:])) - overlap
    return overlap / union if union > 0 else 0.0


def _boxes(result: Any) -> Boxes:
    boxes = result.boxes
    return Boxes(
        boxes.xywhn.cpu().numpy().astype(np.float64).reshape(-1, 4),
        boxes.conf.cpu().numpy().astype(np.float64),
        boxes.cls.cpu().numpy().astype(np.int64),
    )


def _read(path: Path) -> NDArray[np.uint8]:
    """BGR, as ultralytics takes arrays; turned as the EXIF says, as its training loader does."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DistillError(f"{path} cannot be decoded by OpenCV: replace or remove it")
    return np.asarray(pixels, dtype=np.uint8)
