"""The calibration list: a fixed, hashed choice of training images, the same for every target.

Calibrating on validation images makes the measured accuracy look better than it is, so any image whose content is
also in the validation split is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import InputSpec, sha256_file
from deploy.dataset import evenly_spaced, load_dataset
from deploy.errors import CalibrationError
from deploy.image_folder import TRAIN, held_out_splits, is_image_folder, load_image_folder
from deploy.runtime import read_image
from deploy.runtime.fit import fit_image
from deploy.runtime.image import IMAGE_SUFFIXES, image_files

__all__ = [
    "SILU_INPUT_FLOOR",
    "YAML_SUFFIXES",
    "CalibrationList",
    "choose_calibration",
    "evenly_spaced",
    "fitted_input",
    "network_input",
]

YAML_SUFFIXES = (".yaml", ".yml")

# SiLU(x) = x * sigmoid(x) lies within 0.015 of 0 below this, so int8 steps spent there are lost. On COCO images the
# raw tensors of a YOLOv8-n come a quarter closer to the float network's.
SILU_INPUT_FLOOR = -6.0


@dataclass(frozen=True)
class CalibrationList:
    """The images whose activations fix the int8 ranges.

    A detector's ranges are the mean of the images' extremes: most cells of most images lie well within, and gain from
    the finer steps. A classifier's ranges reach to the extremes over all images: whatever is cut off moves the logits
    of the whole image. Against the mean, the logits of a MobileNetV2 on CIFAR-10 came 4 times closer to the float
    network's, those of a small CNN 1.7 times.

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

    def inputs(self, spec: InputSpec) -> Iterator[NDArray[np.float32]]:
        """Every image in order, as `fitted_input` gives it."""
        for image in self.images:
            yield fitted_input(image, spec)

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
        source: a data.yaml or the root of an image-folder data set, whose training split is used, or a folder of
            images.
        count: how many at most.
        validation: the data sets (data.yaml, or root) whose held-out splits must not be among them; that of `source`
            itself is always checked.

    Raises:
        CalibrationError: no images, or one that is a validation image too.
        DatasetError: a data set cannot be read.
    """
    if source.suffix in YAML_SUFFIXES or (source.is_dir() and is_image_folder(source)):
        name, files = _training_split(source)
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
    """An image as a detector meets it at inference; see `fitted_input`."""
    return fitted_input(image, InputSpec("images", imgsz, imgsz))


def fitted_input(image: Path, spec: InputSpec) -> NDArray[np.float32]:
    """An image as the network meets it at inference: (1, 3, height, width) float32 RGB in 0..1, fitted as `spec` says.

    Raises:
        DatasetError: the image cannot be decoded.
    """
    pixels = fit_image(read_image(image), spec)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _training_split(source: Path) -> tuple[str, list[Path]]:
    if source.is_dir():
        folders = load_image_folder(source, TRAIN)
        return folders.name, list(folders.paths)
    dataset = load_dataset(source, TRAIN)
    return dataset.name, [image.path for image in dataset.images]


def _held_out(source: Path) -> list[Path]:
    """All images of a data set that nothing may be calibrated on."""
    if source.is_dir():
        return [path for split in held_out_splits(source) for path in load_image_folder(source, split).paths]
    return [image.path for image in load_dataset(source, "val").images]


def _overlap(source: Path, chosen: Sequence[Path], hashes: Sequence[str], dataset: Path) -> int:
    """How many chosen images are validation images; refused unless the data set validates on its training images."""
    validation = {sha256_file(path): path for path in _held_out(dataset)}
    shared = [(image, validation[digest]) for image, digest in zip(chosen, hashes, strict=True) if digest in validation]
    if not shared:
        return 0
    if source.resolve() == dataset:
        training = {sha256_file(path) for path in _training_split(source)[1]}
        if validation.keys() <= training:  # as in coco128: there is nothing held out that could be kept apart
            return len(shared)
    raise CalibrationError(
        f"{len(shared)} of {len(chosen)} calibration images are validation images too (first: {shared[0][0]} is "
        f"{shared[0][1]}, byte for byte): remove one of each pair from the data set, or give --calibration a folder of "
        "training images alone"
    )
