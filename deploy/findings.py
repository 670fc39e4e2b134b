"""What a model found in one image, as JSON, as a line of text, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.runtime import Classification, Detections
from deploy.runtime.draw import draw_classification, draw_detections

Finding = Detections | Classification


def as_record(found: Finding, class_names: Sequence[str]) -> dict[str, Any]:
    """A JSON object.

    Returns:
        `detections`: class, score 0..1, box_xyxy in source pixels, best first; or `classes`: class, score, best first.
    """
    if isinstance(found, Classification):
        return {"classes": _scored(found, class_names)}
    records = _scored(found, class_names)
    for record, box in zip(records, found.boxes_xyxy, strict=True):
        record["box_xyxy"] = [round(float(side), 1) for side in box]
    return {"detections": records}


def as_text(record: dict[str, Any]) -> str:
    """What `as_record` gave, for people: names and scores."""
    items = record.get("detections", record.get("classes", []))
    return ", ".join(f"{item['class']} {item['score']:.2f}" for item in items) or "nothing"


def draw(image: NDArray[np.uint8], found: Finding, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of `image` (height, width, 3) uint8 RGB with what was found."""
    if isinstance(found, Classification):
        return draw_classification(image, found, class_names)
    return draw_detections(image, found, class_names)


def _scored(found: Finding, class_names: Sequence[str]) -> list[dict[str, Any]]:
    pairs = zip(found.class_ids, found.scores, strict=True)
    return [{"class": class_names[class_id], "score": round(float(score), 4)} for class_id, score in pairs]
