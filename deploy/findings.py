"""What a model found in one image, as JSON, as a line of text, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.runtime import Classification, Detections, Segmentation
from deploy.runtime.draw import draw_classification, draw_detections, draw_segmentation

Finding = Detections | Classification  # a Segmentation is Detections with masks


def as_record(found: Finding, class_names: Sequence[str]) -> dict[str, Any]:
    """A JSON object.

    Returns:
        `detections`: class, score 0..1, box_xyxy in source pixels, best first, and of a segmentation the mask as COCO's
        uncompressed run lengths (`mask_rle`: size as height and width, counts down the columns, unset ones first). Or
        `classes`: class, score, best first.
    """
    if isinstance(found, Classification):
        return {"classes": _scored(found, class_names)}
    records = _scored(found, class_names)
    for record, box in zip(records, found.boxes_xyxy, strict=True):
        record["box_xyxy"] = [round(float(side), 1) for side in box]
    if isinstance(found, Segmentation):
        for record, mask in zip(records, found.masks, strict=True):
            record["mask_rle"] = _run_lengths(mask)
    return {"detections": records}


def as_text(record: dict[str, Any]) -> str:
    """What `as_record` gave, for people: names and scores."""
    items = record.get("detections", record.get("classes", []))
    return ", ".join(f"{item['class']} {item['score']:.2f}" for item in items) or "nothing"


def draw(image: NDArray[np.uint8], found: Finding, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of `image` (height, width, 3) uint8 RGB with what was found."""
    if isinstance(found, Classification):
        return draw_classification(image, found, class_names)
    if isinstance(found, Segmentation):
        return draw_segmentation(image, found, class_names)
    return draw_detections(image, found, class_names)


def _scored(found: Finding, class_names: Sequence[str]) -> list[dict[str, Any]]:
    pairs = zip(found.class_ids, found.scores, strict=True)
    return [{"class": class_names[class_id], "score": round(float(score), 4)} for class_id, score in pairs]


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run-length encoding of a mask (height, width)."""
    pixels = mask.ravel(order="F")
    turns = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = [0] if len(pixels) and pixels[0] else []  # the first count is of unset pixels, here none
    return {"size": list(mask.shape), "counts": starts + np.diff([0, *turns, len(pixels)]).tolist()}
