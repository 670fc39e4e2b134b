"""The data set: resolved, checked before an hour is spent on it, and identified by hash."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError
from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, img2label_paths
from ultralytics.utils import DATASETS_DIR
from ultralytics.utils.checks import check_file

from distill.errors import DistillError
from distill.images import IMAGE_SUFFIXES

__all__ = ["DataSet", "check_image", "list_images", "open_data_set", "validation_images"]

#: ultralytics 8.4 tolerates coordinates up to 1 % outside the image and drops the image beyond that.
_TOLERANCE = 0.01

#: ultralytics 8.4 drops images with a side below this.
_SMALLEST_PX = 10


@dataclass(frozen=True)
class DataSet:
    """A detection data set whose every label was read.

    Attributes:
        yaml: absolute path of its yaml file.
        description: what ultralytics makes of the yaml: ``nc``, ``names``, ``channels``, ``train``, ``val``.
        names: class names, by class id.
        train_images: number of training images.
        train_sha256: SHA-256 over the training images' relative paths, sizes in bytes and labels.
        val_sha256: the same of the validation images.
        polygons: how many labels outline their object, training and validation.
    """

    yaml: Path
    description: dict[str, Any]
    names: tuple[str, ...]
    train_images: int
    train_sha256: str
    val_sha256: str
    polygons: int = 0


def open_data_set(name: str) -> DataSet:
    """Resolve a data set by ultralytics' rules, downloading a published one where there is internet.

    Args:
        name: path of a yaml file, or the name of one that ultralytics ships, such as ``coco128.yaml``.

    Raises:
        DistillError: when it is missing, malformed, empty, or a label does not fit its classes or the image.
    """
    if Path(name).suffix not in {".yaml", ".yml"}:
        raise DistillError(f"data {name!r}: expected a .yaml file that names train, val and the classes")
    description = _resolve(name)
    names = description["names"]
    hashes, counts, polygons = {}, {}, 0
    for split in ("train", "val"):
        images = _list_images(description[split], name, split)
        kind = _Labels(len(names), tuple(description.get("kpt_shape") or ()))
        hashes[split] = _check_and_hash(images, Path(description["path"]).resolve(), kind)
        counts[split] = len(images)
        polygons += kind.polygons
    return DataSet(
        yaml=Path(description["yaml_file"]).resolve(),
        description=description,
        names=tuple(str(names[k]) for k in sorted(names)),
        train_images=counts["train"],
        train_sha256=hashes["train"],
        val_sha256=hashes["val"],
        polygons=polygons,
    )


def validation_images(data: DataSet) -> list[Path]:
    """The validation images, sorted."""
    return list_images(data, "val")


def list_images(data: DataSet, split: str) -> list[Path]:
    """The images of ``train``, ``val`` or, where the data set has one, ``test``; sorted."""
    return _list_images(data.description[split], str(data.yaml), split)


def _resolve(name: str) -> dict[str, Any]:
    try:
        if Path(name).is_file() and not isinstance(yaml.safe_load(Path(name).read_text("utf-8")), dict):
            raise DistillError(f"data {name!r} is not a mapping: expected keys train, val and names")
        description: dict[str, Any] = check_det_dataset(name, split="val")
    except yaml.YAMLError as error:
        raise DistillError(f"data {name!r} is not YAML ({_one_line(error)}): correct the file") from error
    except UnicodeDecodeError as error:
        raise DistillError(f"data {name!r} is not a text file: expected YAML in UTF-8") from error
    except ConnectionError as error:
        raise DistillError(
            f"data set {name!r} is not here and could not be downloaded: "
            f"put its images and labels into {_expected_folder(name)}, or give --data another yaml"
        ) from error
    except (OSError, SyntaxError, TypeError, KeyError, ValueError) as error:
        # What ultralytics 8.4.190 raises for a missing file, key or folder, a wrong type, or a failed download.
        raise DistillError(
            f"data set {name!r} cannot be used ({_one_line(error)}): put its images and labels where the yaml says, "
            "or give --data another yaml"
        ) from error
    return description


def _expected_folder(name: str) -> Path:
    """Where ultralytics looks for the images of a data set that it knows how to download."""
    described = yaml.safe_load(Path(check_file(name)).read_text("utf-8"))
    return Path(DATASETS_DIR / str(described.get("path", "")))


def _list_images(where: str | list[str], name: str, split: str) -> list[Path]:
    """Images under a folder, in a list file, or in several of either; sorted."""
    images: list[Path] = []
    for entry in [where] if isinstance(where, str) else where:
        path = Path(entry)
        if path.is_dir():
            images += [p for p in path.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS and not _hidden(p, path)]
        elif path.is_file():
            lines = (line.strip() for line in _read_list(path).splitlines())
            images += [path.parent / line if line.startswith("./") else Path(line) for line in lines if line]
        else:
            raise DistillError(f"data {name!r}: {split} is {path}, which does not exist: correct the yaml")
    if not images:
        raise DistillError(f"data {name!r}: no images for {split} in {where}: add some, or correct the yaml")
    if odd := next((p for p in images if p.suffix.lower() not in IMAGE_SUFFIXES), None):
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise DistillError(f"{odd} is of a kind that deploying does not read, expected {kinds}: convert or remove it")
    if missing := next((p for p in images if not p.is_file()), None):
        raise DistillError(f"data {name!r}: {split} lists {missing}, which does not exist: correct the list")
    return sorted(images)


def _hidden(path: Path, below: Path) -> bool:
    """Whether ultralytics passes over it: its own name or that of a folder on the way begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def _read_list(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DistillError(f"list of images {path} is not a text file: expected one path per line, in UTF-8") from error


class _Labels:
    """What a line of a label file may be, and how many were outlines.

    A line is a box (class x y w h), an outline (class and three points or more), or, where ``keypoints`` gives number
    and dimensions of keypoints, a box with those.
    """

    def __init__(self, classes: int, keypoints: tuple[int, ...]) -> None:
        self.classes, self.keypoints, self.polygons = classes, keypoints, 0

    def check(self, fields: list[float], where: str) -> None:
        """Refuse a line of the wrong length, class or coordinates."""
        class_id, *numbers = fields
        box = len(fields) == 5 or bool(self.keypoints)
        if self.keypoints:
            expected, words = 5 + math.prod(self.keypoints), "class x y w h and the keypoints of kpt_shape"
            if len(fields) != expected:
                raise DistillError(f"{where}: {len(fields)} numbers, expected {expected}: {words}")
            if self.keypoints[1] == 3:
                points = numbers[4:]
                numbers = [*numbers[:4], *(v for i, v in enumerate(points) if i % 3 < 2)]
        elif len(fields) < 5 or (len(fields) > 5 and len(fields) % 2 == 0):
            raise DistillError(f"{where}: {len(fields)} numbers, expected 5: class x y w h, as fractions of the image")
        if not (0 <= class_id < self.classes and class_id.is_integer()):
            raise DistillError(f"{where}: class {class_id:g}, expected 0 to {self.classes - 1} as the data's names say")
        if bad := next((c for c in numbers if not -_TOLERANCE <= c <= 1 + _TOLERANCE), None):
            raise DistillError(f"{where}: coordinate {bad:g}, expected fractions of the image from 0 to 1")
        if box and min(numbers[2:4]) < 0:
            raise DistillError(f"{where}: size {min(numbers[2:4]):g}, expected a width and height of at least 0")
        self.polygons += not box


def _check_and_hash(images: list[Path], root: Path, kind: _Labels) -> str:
    """Check every label of a split and return the split's hash."""
    digest = hashlib.sha256()
    labels = 0
    for image, label in zip(images, img2label_paths([str(p) for p in images]), strict=True):
        relative = image.relative_to(root) if image.is_relative_to(root) else image
        check_image(image)
        # Bytes that are no text are no numbers either: the check of the line refuses them.
        text = Path(label).read_text("utf-8-sig", "replace") if Path(label).is_file() else ""
        labels += _check_label(text.splitlines(), Path(label), kind)
        digest.update(f"{relative.as_posix()}\t{image.stat().st_size}\n{text}\n".encode())
    if not labels:
        raise DistillError(
            f"no labels beside the {len(images)} images of {images[0].parent}: "
            f"expected files such as {img2label_paths([str(images[0])])[0]}"
        )
    return digest.hexdigest()


def check_image(path: Path) -> None:
    """Refuse an image that ultralytics would drop from the training set, with no more than a warning."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_jpeg = image.format in {"JPEG", "MPO"}
            image.verify()
        if is_jpeg and not _ends_as_a_jpeg(path):
            with Image.open(path) as image:
                image.load()
    except (UnidentifiedImageError, ModuleNotFoundError) as error:
        # The open() that ultralytics puts into Pillow asks for pi-heif when it does not know a file.
        raise DistillError(f"{path} cannot be read as an image: replace or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DistillError(f"{path} cannot be decoded ({_one_line(error)}): replace or remove it") from error
    if min(width, height) < _SMALLEST_PX:
        raise DistillError(f"{path} has {width} x {height} pixels, expected {_SMALLEST_PX} or more: remove it")


def _ends_as_a_jpeg(path: Path) -> bool:
    """Whether the end-of-image marker is where it belongs; Pillow's verify() does not look for it."""
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _check_label(lines: Iterable[str], path: Path, kind: _Labels) -> int:
    """Check one label file and return its number of objects."""
    objects = 0
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"label {path}, line {number}"
        try:
            numbers = [float(field) for field in fields]
        except ValueError as error:
            raise DistillError(f"{where}: {line.strip()[:60]!r} is not numbers: expected class x y w h") from error
        kind.check(numbers, where)
        objects += 1
    return objects


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).replace("❌", "").split()) or type(error).__name__
