"""The calibration list: a fixed, hashed choice of training images, the same for every target.

Calibrating on validation images makes the measured accuracy look better than it is, so any image whose content is
also in the validation split is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import sha256_file
from deploy.dataset import IMAGE_SUFFIXES, image_files, load_dataset
from deploy.errors import CalibrationError
from deploy.runtime import letterbox, read_image

YAML_SUFFIXES = (".yaml", ".yml")

# SiLU(x) = x * sigmoid(x) lies within 0.015 of 0 below this, so int8 steps spent there are lost. On COCO images the
# raw tensors of a YOLOv8-n come a quarter closer to the float network's.
SILU_INPUT_FLOOR = -6.0

T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationList:
    """The images whose activations fix the int8 ranges.

    Attributes:
        source: what they were chosen from.
        images: the files, in order.
        image_sha256: hash of each file's bytes.
        in_validation: how many of them are validation images too; above 0 only for a data set that has no
            validation images of its own.
    """

    source: str
    images: tuple[Path, ...]
    image_sha256: tuple[str, ...]
    in_validation: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, imgsz: int) -> Iterator[NDArray[np.float32]]:
        """Every image in order, as `network_input` gives it."""
        for image in self.images:
            yield network_input(image, imgsz)

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "source": self.source,
            "count": len(self.images),
            "images": list(self.image_sha256),
            "list_sha256": hashlib.sha256("\n".join(self.image_sha256).encode()).hexdigest(),
            "in_validation": self.in_validation,
        }


def choose_calibration(source: Path, count: int, validation: Sequence[Path] = ()) -> CalibrationList:
    """Choose images evenly from all of a source, the same ones every time.

    Args:
        source: a data.yaml, whose training split is used, or a folder of images.
        count: how many at most.
        validation: the data.yaml files whose validation splits must not be among them; that of `source` itself
            is always checked.

    Raises:
        CalibrationError: no images, or one that is a validation image too.
        DatasetError: a data set cannot be read.
    """
    if source.suffix in YAML_SUFFIXES:
        dataset = load_dataset(source, "train")
        name, files = dataset.name, [image.path for image in dataset.images]
        validation = [*validation, source]
    elif source.is_dir():
        name, files = str(source), image_files(source)
    else:
        raise CalibrationError(f"calibration source {source} is neither a data.yaml nor a folder of images")
    if not files:
        raise CalibrationError(f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}): give training images")
    chosen = evenly_spaced(files, count)
    hashes = tuple(sha256_file(image) for image in chosen)
    overlaps = [_overlap(source, chosen, hashes, one) for one in dict.fromkeys(path.resolve() for path in validation)]
    return CalibrationList(name, tuple(chosen), hashes, max(overlaps, default=0))


def network_input(image: Path, imgsz: int) -> NDArray[np.float32]:
    """An image as the network meets it at inference: (1, 3, imgsz, imgsz) float32 RGB in 0..1, letterboxed.

    Raises:
        DatasetError: the image cannot be decoded.
    """
    pixels, _ = letterbox(read_image(image), imgsz, imgsz)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances, in order; all of them where there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _overlap(source: Path, chosen: Sequence[Path], hashes: Sequence[str], validation_yaml: Path) -> int:
    """How many chosen images are validation images; refused unless the data set validates on its training images."""
    validation = {sha256_file(image.path) for image in load_dataset(validation_yaml, "val").images}
    shared = [image for image, digest in zip(chosen, hashes, strict=True) if digest in validation]
    if not shared:
        return 0
    if source.resolve() == validation_yaml:
        training = {sha256_file(image.path) for image in load_dataset(source, "train").images}
        if validation <= training:  # as in coco128: there is nothing held out that could be kept apart
            return len(shared)
    raise CalibrationError(
        f"{len(shared)} of {len(chosen)} calibration images are validation images too (first: {shared[0]}): "
        "give --calibration a folder of training images alone"
    )
