"""The records of single images that a worker writes and its host reads: arrays as base64 of little-endian numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from deploy.runtime import Classification, Detections


@dataclass(frozen=True, eq=False)
class TopClasses:
    """The likeliest classes of one image, best first.

    Attributes:
        class_ids: (k,) int64.
        scores: (k,) float32 in 0..1.
    """

    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


def encode_detections(index: int, detections: Detections) -> dict[str, Any]:
    """The record of one image with its detections."""
    return {
        "kind": "detections",
        "image": index,
        "boxes_xyxy": _base64(detections.boxes_xyxy, "<f4"),
        "scores": _base64(detections.scores, "<f4"),
        "class_ids": _base64(detections.class_ids, "<i4"),
    }


def decode_detections(record: Mapping[str, Any]) -> Detections:
    """The inverse of `encode_detections`.

    Raises:
        BenchError: an array is missing, is no base64, or is not as long as the others.
    """
    try:
        boxes, scores, class_ids = (
            _array(record, name, dtype)
            for name, dtype in (("boxes_xyxy", "<f4"), ("scores", "<f4"), ("class_ids", "<i4"))
        )
        if not boxes.size == 4 * scores.size == 4 * class_ids.size:
            raise ValueError(f"{boxes.size} sides of boxes, {scores.size} scores, {class_ids.size} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(record, "detections", error) from error
    return Detections(boxes.reshape(-1, 4).astype(np.float32), scores.astype(np.float32), class_ids.astype(np.int64))


def encode_classes(index: int, found: Classification) -> dict[str, Any]:
    """The record of one image with its likeliest classes."""
    return {
        "kind": "classes",
        "image": index,
        "scores": _base64(found.scores, "<f4"),
        "class_ids": _base64(found.class_ids, "<i4"),
    }


def decode_classes(record: Mapping[str, Any]) -> TopClasses:
    """The inverse of `encode_classes`.

    Raises:
        BenchError: an array is missing, is no base64, or is not as long as the other.
    """
    try:
        scores, class_ids = _array(record, "scores", "<f4"), _array(record, "class_ids", "<i4")
        if scores.size != class_ids.size:
            raise ValueError(f"{scores.size} scores, {class_ids.size} classes")
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(record, "classes", error) from error
    return TopClasses(class_ids.astype(np.int64), scores.astype(np.float32))


def _array(record: Mapping[str, Any], name: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(record[name], validate=True), dtype)


def _unreadable(record: Mapping[str, Any], what: str, error: Exception) -> BenchError:
    return BenchError(
        f"the worker's {what} of image {record.get('image')!r:.20} cannot be read "
        f"({type(error).__name__}: {error}): run the bench again"
    )


def _base64(array: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode("ascii")
