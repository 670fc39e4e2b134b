"""`detections.npz`: what a bundle detected on every image of the accuracy pass, and what was there to detect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import DetectionsLike, ImageDetections, ImageTruth
from bench.arrays_file import named_arrays, read_arrays, write_arrays
from bench.errors import BenchError


@dataclass(frozen=True)
class DetectionsFile:
    """Content of one `detections.npz`; image order is that of the data set.

    Attributes:
        images: absolute paths on the host.
        detections: one entry per image.
        truths: one entry per image; None where the writer gave none.
        class_names: index is the class id; empty where the writer gave none.
    """

    images: tuple[str, ...]
    detections: tuple[ImageDetections, ...]
    truths: tuple[ImageTruth, ...] | None
    class_names: tuple[str, ...]


def write_detections(
    path: Path,
    images: Sequence[str | Path],
    detections: Sequence[DetectionsLike],
    truths: Sequence[ImageTruth] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Write the detections of a data set; a failure leaves no file.

    Arrays of the file: `image_index` (n,) int32, `boxes_xyxy` (n, 4) float32, `scores` (n,) float32, `class_ids`
    (n,) int32, `image_paths` (images,) unicode, `class_names` unicode, and where truth is given `truth_image_index`
    (m,), `truth_boxes_xyxy` (m, 4) float64, `truth_class_ids` (m,).

    Args:
        path: the file to write, replaced if it exists.
        images: host path of every image, in data set order; recorded as absolute paths.
        detections: one entry per image, boxes in pixels of the source image.
        truths: one entry per image, so that a report can show what was missed without the labels at hand.
        class_names: index is the class id, so that a report can name what it draws.

    Raises:
        BenchError: the lists differ in length.
        OSError: the file cannot be written.
    """
    for what, entries in (("detections", detections), ("truth", truths)):
        if entries is not None and len(entries) != len(images):
            raise BenchError(f"{len(images)} images but {what} for {len(entries)}: give one entry per image")
    arrays: dict[str, NDArray[Any]] = {
        **named_arrays(images, class_names),
        "image_index": _index([len(entry.scores) for entry in detections]),
        "boxes_xyxy": _joined([entry.boxes_xyxy for entry in detections], np.float32, 4),
        "scores": _joined([entry.scores for entry in detections], np.float32),
        "class_ids": _joined([entry.class_ids for entry in detections], np.int32),
    }
    if truths is not None:
        arrays["truth_image_index"] = _index([len(entry.class_ids) for entry in truths])
        arrays["truth_boxes_xyxy"] = _joined([entry.boxes_xyxy for entry in truths], np.float64, 4)
        arrays["truth_class_ids"] = _joined([entry.class_ids for entry in truths], np.int32)
    write_arrays(path, arrays)


def read_detections(path: Path) -> DetectionsFile:
    """Read what `write_detections` wrote.

    Raises:
        BenchError: no such file, not an npz archive, an array missing or malformed.
    """
    arrays = read_arrays(path, "detections", "labelled")
    try:
        images = tuple(str(image) for image in arrays["image_paths"])
        found = _split(arrays, "image_index", ("boxes_xyxy", "scores", "class_ids"), len(images), path)
        detections = tuple(
            ImageDetections(
                arrays["boxes_xyxy"][rows], arrays["scores"][rows], arrays["class_ids"][rows].astype(np.int64)
            )
            for rows in found
        )
        truths = None
        if "truth_image_index" in arrays:
            truths = tuple(
                ImageTruth(arrays["truth_boxes_xyxy"][rows], arrays["truth_class_ids"][rows].astype(np.int64))
                for rows in _split(
                    arrays, "truth_image_index", ("truth_boxes_xyxy", "truth_class_ids"), len(images), path
                )
            )
    except (KeyError, IndexError) as error:
        raise BenchError(f"{path} is incomplete ({error}): run the bench again") from error
    return DetectionsFile(images, detections, truths, tuple(str(name) for name in arrays.get("class_names", ())))


def _index(counts: Sequence[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic], width: int | None = None) -> NDArray[Any]:
    shape = (-1,) if width is None else (-1, width)
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype).reshape(-1) for part in parts)]).reshape(shape)


def _split(
    arrays: Mapping[str, NDArray[Any]], index_name: str, names: Sequence[str], images: int, path: Path
) -> list[slice]:
    """Rows of each image; the index is in image order."""
    index = arrays[index_name]
    if len(index) and (np.any(np.diff(index) < 0) or index[0] < 0 or index[-1] >= images):
        raise BenchError(f"{path} has an image index out of order or beyond its {images} images: run the bench again")
    for name in names:
        expected = (len(index), 4) if name.endswith("boxes_xyxy") else (len(index),)
        if arrays[name].shape != expected:
            raise BenchError(
                f"{path} has {name} of shape {arrays[name].shape}, expected {expected}: run the bench again"
            )
    edges = np.searchsorted(index, np.arange(images + 1))
    return [slice(int(edges[i]), int(edges[i + 1])) for i in range(images)]
