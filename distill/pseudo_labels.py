"""Pseudo-labels: an unlabelled folder becomes a data set, labelled by a teacher.

Data distillation (Radosavovic et al. 2018, "Data Distillation: Towards Omni-Supervised Learning"): a teacher labels
unlabelled images, its predictions over views of an image are merged, only what it is sure of is kept, and a student
trains on the labelled and the newly labelled images together.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import ultralytics
import yaml
from ultralytics.data.utils import img2label_paths
from ultralytics.nn.modules.head import Detect

from distill.data import DataSet, check_image, list_images, open_data_set
from distill.errors import DistillError
from distill.images import image_files
from distill.pseudo_boxes import Boxes, find_boxes
from distill.teacher import file_sha256, find_weights, load_weights
from distill.whole import whole_folder

__all__ = ["RECORD_FILE", "PseudoLabels", "label_folder"]

log = logging.getLogger(__name__)

RECORD_FILE: Final = "pseudo.json"
_YAML: Final = "data.yaml"
_SCHEMA: Final = 1
#: Below it nothing is an object, whatever the threshold.
_FLOOR: Final = 0.01
#: Of a data set without labelled images, every tenth image validates.
_VALIDATES: Final = 10


@dataclass(frozen=True)
class PseudoLabels:
    """What is asked for.

    Attributes:
        teacher: a detector's checkpoint.
        images: folder of unlabelled images.
        out: new folder of the data set.
        data: yaml of the labelled data to join; None for none.
        conf: lowest score that becomes a label; None chooses it so that an unlabelled image gets as many boxes as a
            labelled one has on average (Radosavovic et al. 2018, section 4), which needs ``data``.
        imgsz: side of the teacher's input in pixels.
        flip: merge what it finds in the image and in its mirror image.
        limit: how many images at most, the first by name; None for all.
        device: as ultralytics understands it; empty chooses.
    """

    teacher: str
    images: Path
    out: Path
    data: str | None
    conf: float | None
    imgsz: int
    flip: bool
    limit: int | None
    device: str


def label_folder(asked: PseudoLabels) -> Path:
    """Label a folder and write the data set, whole or not at all.

    Returns:
        Path of ``pseudo.json``, the record; ``data.yaml`` beside it is what a training takes.

    Raises:
        DistillError: when teacher, images and data do not go together, an image is one of those that validate, or
            nothing is found.
    """
    if asked.out.exists():
        raise DistillError(f"--out {asked.out} exists and is never overwritten: give another folder")
    teacher = find_weights(asked.teacher, "teacher")
    names = _class_names(teacher)
    data = None if asked.data is None else open_data_set(asked.data)
    if data is None and asked.conf is None:
        raise DistillError("--conf match compares with labelled images: give --data, or a number from 0 to 1")
    if data is not None:
        _check_same_classes(names, data.names)
    found = _images(asked)
    images, left_out = _new_ones(found, data)
    log.info("%d images to label, %d left out", len(images), len(found) - len(images))
    boxes = _label(asked, teacher, list(images))
    threshold = asked.conf if asked.conf is not None else _matching_threshold(boxes, _boxes_per_image(data))
    above = {path: one.above(threshold) for path, one in zip(images, boxes, strict=True)}
    kept = {path: one for path, one in above.items() if len(one)}
    if not kept or (data is None and len(kept) < 2):
        raise DistillError(
            f"{len(kept)} of {len(images)} images have a box with a score of at least {threshold:.3g}, expected more: "
            "lower --conf, or give a teacher that knows what is in them"
        )
    with whole_folder(asked.out) as partial:
        files = _write_images(partial, kept, images, validates=data is None)
        _write_yaml(partial / _YAML, names, data)
        record = {
            "schema": _SCHEMA,
            "teacher": {"file": teacher.name, "sha256": file_sha256(teacher)},
            "images": {
                "folder": str(asked.images.resolve()),
                "found": len(found),
                "labelled": len(kept),
                **left_out,
                "without_boxes": [_relative(p, asked.images) for p in images if p not in kept],
            },
            "conf": threshold,
            "conf_rule": "given" if asked.conf is not None else "match",
            **{name: getattr(asked, name) for name in ("imgsz", "flip", "limit")},
            "class_names": list(names),
            "boxes": _count(kept.values(), names),
            "data": None
            if data is None
            else {"yaml": str(data.yaml), "train_sha256": data.train_sha256, "val_sha256": data.val_sha256},
            "files": {
                name: {**fact, "source": _relative(fact["source"], asked.images)} for name, fact in files.items()
            },
            "tools": {"ultralytics": ultralytics.__version__},
            "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        (partial / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return asked.out / RECORD_FILE


def _class_names(teacher: Path) -> tuple[str, ...]:
    model = load_weights(teacher, "teacher")
    head = model.model[-1]  # type: ignore[index]
    if type(head) is not Detect:
        raise DistillError(
            f"teacher {teacher} has a {type(head).__name__} head, expected Detect: give a detector such as yolov8x.pt"
        )
    names: Any = model.names
    return tuple(str(names[k]) for k in sorted(names)) if isinstance(names, Mapping) else tuple(map(str, names))


def _check_same_classes(teacher: Sequence[str], data: Sequence[str]) -> None:
    theirs, ours = ([name.strip().lower() for name in names] for names in (teacher, data))
    if theirs != ours:
        raise DistillError(
            f"teacher knows the classes {', '.join(teacher)[:80]}, the data has {', '.join(data)[:80]}: "
            "give a teacher that was trained on this data"
        )


def _images(asked: PseudoLabels) -> list[Path]:
    if not asked.images.is_dir():
        raise DistillError(f"--images {asked.images} is no folder: give the one that holds the unlabelled images")
    found = image_files(asked.images)[: asked.limit]
    if not found:
        raise DistillError(f"--images {asked.images} holds no images: expected .jpg, .png and the like in it or below")
    return found


def _new_ones(found: Sequence[Path], data: DataSet | None) -> tuple[dict[Path, str], dict[str, int]]:
    """The images that are to be labelled, with the hash of their bytes, and counts of those left out.

    Raises:
        DistillError: when one of them validates: a student that trained on it would be praised for remembering.
    """
    held_out = {} if data is None else _hashes(data, [s for s in ("val", "test") if data.description.get(s)])
    labelled = {} if data is None else _hashes(data, ["train"])
    new: dict[Path, str] = {}
    seen: set[str] = set()
    left_out = {"already_labelled": 0, "duplicates": 0}
    leaked: list[tuple[Path, Path]] = []
    for path in found:
        check_image(path)
        sha256 = file_sha256(path)
        if sha256 in held_out:
            leaked.append((path, held_out[sha256]))
        elif sha256 in labelled or sha256 in seen:
            left_out["already_labelled" if sha256 in labelled else "duplicates"] += 1
        else:
            new[path] = sha256
            seen.add(sha256)
    if leaked and data is not None:
        path, theirs = leaked[0]
        raise DistillError(
            f"{len(leaked)} of {len(found)} images validate in {data.yaml}, the first is {path} ({theirs.name} there): "
            "take them out of --images"
        )
    return new, left_out


def _hashes(data: DataSet, splits: Sequence[str]) -> dict[str, Path]:
    return {file_sha256(path): path for split in splits for path in list_images(data, split)}


def _label(asked: PseudoLabels, teacher: Path, images: Sequence[Path]) -> list[Boxes]:
    """Run the teacher, with a line on the log for every tenth of the way."""
    floor = _FLOOR if asked.flip or asked.conf is None else max(asked.conf, _FLOOR)
    every = max(100, len(images) // 10)
    labelled = []
    for one in find_boxes(teacher, images, imgsz=asked.imgsz, floor=floor, flip=asked.flip, device=asked.device):
        labelled.append(one)
        if len(labelled) % every == 0:
            log.info("labelled %d of %d images", len(labelled), len(images))
    return labelled


def _boxes_per_image(data: DataSet | None) -> float:
    images = [] if data is None else list_images(data, "train")
    labels = [Path(label) for label in img2label_paths([str(path) for path in images])]
    lines = sum(bool(line.strip()) for label in labels if label.is_file() for line in label.read_text().splitlines())
    return lines / max(1, len(images))


def _matching_threshold(boxes: Sequence[Boxes], per_image: float) -> float:
    """The score at which images have that many boxes on average; the lowest score where there are fewer."""
    scores = np.sort(np.concatenate([one.scores for one in boxes]))[::-1] if boxes else np.zeros(0)
    wanted = round(per_image * len(boxes))
    if not len(scores) or not wanted:
        return 1.0
    return float(scores[min(wanted, len(scores)) - 1])


def _write_images(
    folder: Path, kept: Mapping[Path, Boxes], images: Mapping[Path, str], *, validates: bool
) -> dict[str, dict[str, Any]]:
    """Link or copy the images, write their labels; return facts by file name."""
    files: dict[str, dict[str, Any]] = {}
    last = len(kept) - 1
    for index, (path, boxes) in enumerate(kept.items()):
        own = validates and (index % _VALIDATES == _VALIDATES - 1 or (last < _VALIDATES and index == last))
        split = "val" if own else "train"
        name = f"{path.stem}-{images[path][:12]}{path.suffix.lower()}"  # names of several folders may be equal
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        _link_or_copy(path, folder / "images" / split / name)
        label = (folder / "labels" / split / name).with_suffix(".txt")
        label.write_text("".join(map(_line, boxes.classes, boxes.xywh)), encoding="utf-8")
        files[f"images/{split}/{name}"] = {"source": path, "sha256": images[path], "boxes": len(boxes)}
    return files


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _line(class_id: int, xywh: np.ndarray[Any, Any]) -> str:
    low, high = np.clip(xywh[:2] - xywh[2:] / 2, 0, 1), np.clip(xywh[:2] + xywh[2:] / 2, 0, 1)
    return f"{class_id} " + " ".join(f"{v:.6f}" for v in (*(low + high) / 2, *(high - low))) + "\n"


def _write_yaml(path: Path, names: Sequence[str], data: DataSet | None) -> None:
    """The data set as ultralytics reads it: paths beside the yaml, and absolute ones of the labelled data."""
    train: list[str] = ["images/train"]
    if data is not None:
        given = data.description["train"]
        train += [given] if isinstance(given, str) else list(given)
    content = {
        "train": train,
        "val": "images/val" if data is None else data.description["val"],
        "names": dict(enumerate(names)),
    }
    header = f"# Labelled by a teacher: see {RECORD_FILE}.\n"
    path.write_text(header + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _count(boxes: Any, names: Sequence[str]) -> dict[str, int]:
    counts = Counter(int(c) for one in boxes for c in one.classes)
    return {name: counts[index] for index, name in enumerate(names)}


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
