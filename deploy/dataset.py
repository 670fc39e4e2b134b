"""The YOLO data set format: a data.yaml, image folders, one label text file per image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError
from deploy.runtime.image import IMAGE_SUFFIXES, image_files

# As much as ultralytics 8.4 lets a coordinate lie outside the image.
_TOLERANCE = 0.01

T = TypeVar("T")


@dataclass(frozen=True)
class LabelledImage:
    """One image file with its truth.

    Attributes:
        path: the image file.
        class_ids: (n,) int64.
        boxes_xywhn: (n, 4) float64, centre x, centre y, width, height as fractions 0..1 of the image.
    """

    path: Path
    class_ids: NDArray[np.int64]
    boxes_xywhn: NDArray[np.float64]

    def boxes_xyxy(self, width: int, height: int) -> NDArray[np.float64]:
        """Truth boxes (n, 4) as left, top, right, bottom in pixels of a `width` x `height` image."""
        centre, size = self.boxes_xywhn[:, :2], self.boxes_xywhn[:, 2:]
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        return corners * np.array([width, height, width, height], np.float64)


@dataclass(frozen=True)
class DetectionDataset:
    """One split of a data set, images in sorted order.

    Attributes:
        name: what to call it in results, e.g. "bccd/val".
        class_names: index is the class id.
        images: the labelled images.
    """

    name: str
    class_names: tuple[str, ...]
    images: tuple[LabelledImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Hash of the content: every image's bytes and every label, in order; file names do not matter."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(hashlib.sha256(image.path.read_bytes()).digest())
            digest.update(image.class_ids.astype("<i8").tobytes())
            digest.update(image.boxes_xywhn.astype("<f8").tobytes())
        return digest.hexdigest()

    def first(self, count: int) -> DetectionDataset:
        """The first `count` images as a data set of its own."""
        return DetectionDataset(f"{self.name}[:{count}]", self.class_names, self.images[:count])


def load_dataset(data_yaml: str | Path, split: str = "val") -> DetectionDataset:
    """Read one split of a YOLO data set.

    Args:
        data_yaml: file with `names`, optionally `path`, and `train` / `val` entries: a folder, a text file
            that lists images, or a list of those, relative to `path`. A relative `path` is looked for as
            ultralytics does, in the current folder and in its data sets folder, and last beside the file. Without
            one, the file's own folder is meant.
        split: "train", "val" or "test".

    Raises:
        DatasetError: no such file, not YAML, no names, no such split, no images, or a malformed label.
    """
    yaml_path = Path(data_yaml)
    fields = _read_yaml(yaml_path)
    class_names = _class_names(fields, yaml_path)
    entries = fields.get(split)
    if not entries:
        known = [name for name in ("train", "val", "test") if fields.get(name)]
        raise DatasetError(f"{yaml_path} has no {split!r} split, it has {', '.join(known) or 'none'}")
    root = _root(fields, yaml_path)
    paths: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        paths += _image_paths(_below(root, str(entry)), yaml_path)
    if not paths:
        raise DatasetError(f"{yaml_path}: the {split!r} split holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = tuple(_labelled(path, len(class_names)) for path in sorted(set(paths)))
    return DetectionDataset(f"{yaml_path.stem}/{split}", class_names, images)


def data_set_classes(data_yaml: Path) -> tuple[str, ...]:
    """The class names of a YOLO data set; index is the class id.

    Raises:
        DatasetError: no such file, not YAML, or no names.
    """
    return _class_names(_read_yaml(data_yaml), data_yaml)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances, in order; all of them where there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise DatasetError(f"reading {path} needs PyYAML, which is not installed: pip install pyyaml") from error
    if not path.is_file():
        raise DatasetError(f"no data set file {path}: give --data the path of a YOLO data.yaml")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise DatasetError(f"{path} holds {type(fields).__name__}, expected keys like train, val, names")
    return fields


def _class_names(fields: dict[str, Any], source: Path) -> tuple[str, ...]:
    names, count = fields.get("names"), _class_count(fields, source)
    if names is None and count:
        names = [f"class_{index}" for index in range(count)]
    if isinstance(names, dict):
        names = {int(key) if str(key).isdecimal() else str(key): name for key, name in names.items()}
        if set(names) != set(range(len(names))):
            given = ", ".join(str(key) for key in names)
            raise DatasetError(f"{source}: class ids in 'names' are {given}, expected 0..{len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{source} has no class names: add names: [first, second, …]")
    if count is not None and count != len(names):
        raise DatasetError(f"{source} has nc: {count} and {len(names)} names: correct either")
    return tuple(str(name) for name in names)


def _class_count(fields: dict[str, Any], source: Path) -> int | None:
    if "nc" not in fields:
        return None
    try:
        count = float(fields["nc"])
    except (TypeError, ValueError):
        count = 0.5
    if not count.is_integer():
        raise DatasetError(f"{source} has nc: {fields['nc']}, expected a whole number: correct or remove it")
    return int(count)


def _root(fields: dict[str, Any], yaml_path: Path) -> Path:
    """The folder that entries are relative to; the same one that distill trains on, wherever that finds one."""
    if not fields.get("path"):
        return yaml_path.parent.resolve()
    root = Path(str(fields["path"]))
    if root.is_absolute() or root.exists():
        return root.resolve()
    beside = (yaml_path.parent / root).resolve()
    # ultralytics' own data files name a root below its data sets folder; it is asked only where it is installed.
    known = (_ultralytics_datasets_folder(yaml_path.parent) / root).resolve()
    return known if known.exists() or not beside.exists() else beside


def _below(root: Path, entry: str) -> Path:
    path = root / entry
    # Exported data sets name ../train/images for a folder beside the file; ultralytics takes that as meant.
    return root / entry[3:] if entry.startswith("../") and not path.exists() else path


def _ultralytics_datasets_folder(otherwise: Path) -> Path:
    try:
        from ultralytics.utils import DATASETS_DIR
    except ModuleNotFoundError:
        return otherwise
    return Path(DATASETS_DIR)


def _image_paths(entry: Path, source: Path) -> list[Path]:
    if entry.is_dir():
        return image_files(entry)
    if entry.is_file() and entry.suffix == ".txt":
        return _listed(entry)
    raise DatasetError(f"{source} names {entry}, which is neither a folder nor a .txt list of images")


def _listed(source: Path) -> list[Path]:
    """Images of a list: a path that begins with ./ is relative to the list, as ultralytics reads it."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source} is not a text file: expected one path per line, in UTF-8") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paths = [source.parent / line if line.startswith("./") else Path(line) for line in lines]
    for path in paths:
        if not path.is_file():
            hint = "" if path.is_absolute() else " (begin the line with ./ where it is relative to the list)"
            raise DatasetError(f"{source} lists {path}, which does not exist{hint}")
    return paths


def _label_path(image: Path) -> Path:
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _labelled(image: Path, class_count: int) -> LabelledImage:
    label = _label_path(image)
    rows: list[tuple[int, list[float]]] = []
    if label.is_file():  # an image without a label file is background
        text = label.read_text(encoding="utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                rows.append(_label_row(line, f"{label}:{number}", class_count))
    # An object listed twice is one object, as ultralytics reads it.
    unique = sorted({(class_id, *box) for class_id, box in rows})
    return LabelledImage(
        image,
        np.array([row[0] for row in unique], np.int64),
        np.array([row[1:] for row in unique], np.float64).reshape(-1, 4),
    )


def _label_row(line: str, where: str, class_count: int) -> tuple[int, list[float]]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        raise DatasetError(f"{where} reads {line.strip()[:60]!r}, expected: class x y width height") from None
    if len(values) < 5 or (len(values) > 5 and len(values) % 2 == 0):
        raise DatasetError(f"{where} has {len(values)} numbers, expected 5 (class x y width height)")
    if not values[0].is_integer() or not 0 <= values[0] < class_count:
        raise DatasetError(f"{where} has class {values[0]:g}, expected 0..{class_count - 1}: fix the label or names")
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values[1:]):
        raise DatasetError(f"{where} has a box outside the image ({line.strip()[:60]}), expected fractions 0..1")
    box = values[1:] if len(values) == 5 else _polygon_box(values[1:])
    if min(box[2:]) < 0:
        raise DatasetError(f"{where} has the size {min(box[2:]):g}, expected a width and height of at least 0")
    return int(values[0]), box


def _polygon_box(points: list[float]) -> list[float]:
    xs, ys = points[0::2], points[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
