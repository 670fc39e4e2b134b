"""The YOLO data set format: a data.yaml, image folders, one label text file per image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


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
            that lists images, or a list of those, relative to `path`, which is relative to the file.
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
        paths += _image_paths(root / str(entry), yaml_path)
    if not paths:
        raise DatasetError(f"{yaml_path}: the {split!r} split holds no images ({', '.join(IMAGE_SUFFIXES)})")
    images = tuple(_labelled(path, len(class_names)) for path in sorted(set(paths)))
    return DetectionDataset(f"{yaml_path.stem}/{split}", class_names, images)


def image_files(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


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
    names = fields.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DatasetError(f"{source}: class ids in 'names' are {sorted(names)}, expected 0..{len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{source} has no class names: add names: [first, second, …]")
    return tuple(str(name) for name in names)


def _root(fields: dict[str, Any], yaml_path: Path) -> Path:
    root = Path(str(fields.get("path") or ""))
    if root.is_absolute():
        return root
    beside = (yaml_path.parent / root).resolve()
    # ultralytics' own data files name a root below its data sets folder; it is asked only where it is installed.
    return beside if beside.exists() or not fields.get("path") else _ultralytics_datasets_folder(beside) / root


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
        lines = [line.strip() for line in entry.read_text(encoding="utf-8").splitlines() if line.strip()]
        paths = [entry.parent / line for line in lines]
        for path in paths:
            if not path.is_file():
                raise DatasetError(f"{entry} lists {path}, which does not exist")
        return paths
    raise DatasetError(f"{source} names {entry}, which is neither a folder nor a .txt list of images")


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
        text = label.read_text(encoding="utf-8", errors="replace")
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
        raise DatasetError(f"{where} reads {line.strip()!r}, expected: class x y width height") from None
    if len(values) < 5 or (len(values) > 5 and len(values) % 2 == 0):
        raise DatasetError(f"{where} has {len(values)} numbers, expected 5 (class x y width height)")
    class_id = int(values[0])
    if class_id != values[0] or not 0 <= class_id < class_count:
        raise DatasetError(f"{where} has class {values[0]:g}, expected 0..{class_count - 1}: fix the label or names")
    box = values[1:] if len(values) == 5 else _polygon_box(values[1:])
    if not all(np.isfinite(box)) or min(box) < 0 or max(box) > 1.01:
        raise DatasetError(f"{where} has a box outside the image ({line.strip()[:60]}), expected fractions 0..1")
    return class_id, box


def _polygon_box(points: list[float]) -> list[float]:
    xs, ys = points[0::2], points[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
