"""How far a student agrees with its teacher on validation images: classes, boxes and neck features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.utils.patches import imread

from distill.data import DataSet, validation_images
from distill.errors import DistillError
from distill.losses import Activations
from distill.losses.boxes import edge_iou
from distill.losses.maps import same_size
from distill.losses.regions import edge_distances, object_score
from distill.losses.response import bernoulli_kl
from distill.recipe import Recipe
from distill.teacher import Teacher, file_sha256, load_teacher, load_weights
from distill.whole import write_whole

__all__ = [
    "AGREEMENT_FILE",
    "Agreement",
    "compare_run",
    "evenly",
    "measure_agreement",
    "read_agreement",
]

AGREEMENT_FILE: Final = "agreement.json"
_SCHEMA: Final = 1
#: Where a teacher is sure of an object: what ultralytics' ``predict`` would show.
_SURE: Final = 0.25
#: Enough for means over thousands of anchors, and bounded where a heavy teacher runs on a CPU.
_MOST_IMAGES: Final = 256

Network = Callable[[Tensor], Activations]


class Agreement:
    """Sums over batches of what a student and its teacher make of the same images.

    At the anchors where the teacher is sure of an object (highest class probability 0.25 or more):

    - ``class_kl``: mean KL( teacher || student ) of the class probabilities, one Bernoulli per class, in nats (the
      ``response`` loss without weights, Hinton et al. 2015 in the sigmoid form of Yang et al. 2023); 0 is equal.
    - ``same_class``: share of anchors where both have the same class in front; 1 is equal.
    - ``box_iou``: mean IoU of the two decoded boxes; 1 is equal.

    And on each neck level ``feature_cka``: linear CKA (Kornblith et al. 2019, "Similarity of Neural Network
    Representations Revisited", section 3), positions as examples and channels as features, X and Y centred:

        CKA = || Y' X ||_F^2 / ( || X' X ||_F * || Y' Y ||_F )

    It needs no projector and no equal widths, and does not change when features are rotated or scaled; 1 is equal.
    With fewer positions than channels it is flattered, hence ``positions`` beside it.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self._anchors = 0
        self._sums = torch.zeros(3, dtype=torch.float64)  # class KL, same class, box IoU
        self._levels: list[_Moments] = []

    def add(self, student: Activations, teacher: Activations) -> None:
        """Take one batch; both have seen the same images at the same size."""
        sure = object_score(teacher) >= _SURE
        reg_max = teacher.boxes.shape[1] // 4
        kl = bernoulli_kl(student.scores.float(), teacher.scores.float()).sum(dim=1)[sure]
        same = (student.scores.argmax(dim=1) == teacher.scores.argmax(dim=1))[sure]
        iou = edge_iou(edge_distances(student.boxes, reg_max), edge_distances(teacher.boxes, reg_max))[sure]
        self._anchors += int(sure.sum())
        self._sums += torch.stack([v.double().sum() for v in (kl, same, iou)]).cpu()
        self._levels = self._levels or [_Moments() for _ in student.feats]
        for level, s, t in zip(self._levels, student.feats, teacher.feats, strict=True):
            level.add(*same_size(s, t))

    def result(self) -> dict[str, Any]:
        """The means as plain numbers; None where the teacher was sure of nothing."""
        means = [round(float(v) / self._anchors, 6) if self._anchors else None for v in self._sums]
        return {
            "sure_anchors": self._anchors,
            **dict(zip(("class_kl", "same_class", "box_iou"), means, strict=True)),
            "feature_cka": [round(level.cka(), 6) for level in self._levels],
            "positions": [level.positions for level in self._levels],
        }


class _Moments:
    """First and second moments of two feature maps over positions, enough for linear CKA."""

    def __init__(self) -> None:
        self.positions = 0
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Take maps (batch, channels, height, width) of equal height and width."""
        x, y = (f.permute(0, 2, 3, 1).flatten(0, 2).double() for f in (student, teacher))
        new_sums = [x.sum(dim=0).cpu(), y.sum(dim=0).cpu()]
        new_products = [(x.T @ x).cpu(), (y.T @ y).cpu(), (x.T @ y).cpu()]
        self._sums = [a + b for a, b in zip(self._sums, new_sums, strict=True)] if self._sums else new_sums
        self._products = (
            [a + b for a, b in zip(self._products, new_products, strict=True)] if self._products else new_products
        )
        self.positions += len(x)

    def cka(self) -> float:
        """Linear CKA, 0 to 1; 0 where a side is constant."""
        mx, my = (s / self.positions for s in self._sums)
        xx, yy, xy = self._products
        xx = xx - self.positions * torch.outer(mx, mx)
        yy = yy - self.positions * torch.outer(my, my)
        xy = xy - self.positions * torch.outer(mx, my)
        size = float(xx.norm() * yy.norm())
        return float(xy.square().sum()) / size if size > 0 else 0.0


def measure_agreement(
    student: Network, teacher: Network, images: Sequence[Path], *, imgsz: int, device: torch.device, batch: int = 8
) -> dict[str, Any]:
    """Run both on letterboxed images and compare their raw outputs.

    Args:
        student: takes images (batch, 3, imgsz, imgsz), RGB, 0 to 1, and returns raw outputs: a frozen
            :class:`distill.teacher.Teacher`.
        teacher: the same.
        images: files; of more than 256, as many are taken evenly.
        imgsz: side of the square both see, in pixels.
        device: where both are.
        batch: images at a time.

    Raises:
        DistillError: when there is no image, or one cannot be read.
    """
    if not images:
        raise DistillError("no validation images to compare teacher and student on: give a data set that has some")
    chosen = evenly(images, _MOST_IMAGES)
    sums = Agreement()
    with torch.no_grad():
        for start in range(0, len(chosen), batch):
            pixels = torch.stack([_letterboxed(path, imgsz) for path in chosen[start : start + batch]]).to(device)
            sums.add(student(pixels), teacher(pixels))
    return {"images": len(chosen), "of_images": len(images), "imgsz": imgsz, **sums.result()}


def compare_run(student: Path, recipe: Recipe, data: DataSet, device: str, to: Path) -> dict[str, Any]:
    """Measure a student's agreement with each of its recipe's teachers, and write it to ``to``.

    Args:
        student: checkpoint.
        recipe: of the run, for its teachers and image size.
        data: its data set.
        device: as ultralytics understands it; of several GPUs the first is used.
        to: the JSON file to write.

    Returns:
        What was written.

    Raises:
        DistillError: as :func:`measure_agreement`, and for a checkpoint that cannot be loaded.
    """
    place = torch.device("cuda:0" if device != "cpu" and torch.cuda.is_available() else "cpu")
    network = Teacher(load_weights(student, "student"), device=place)  # frozen and raw, as a comparison needs it
    images = validation_images(data)
    measured = [
        {
            "file": Path(teacher.path).name,
            "sha256": teacher.sha256,
            **measure_agreement(
                network, load_teacher(Path(teacher.path), device=place), images, imgsz=recipe.imgsz, device=place
            ),
        }
        for teacher in recipe.teachers
    ]
    content = {"student": {"file": student.name, "sha256": file_sha256(student)}, "teachers": measured}
    _write(content, to)
    return content


def evenly(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of the items, evenly apart, in order."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count).round()]


def _write(measured: dict[str, Any], path: Path) -> None:
    """Write the JSON, whole or not at all."""
    write_whole(path, json.dumps({"schema": _SCHEMA, **measured}, indent=2) + "\n")


def read_agreement(path: Path) -> dict[str, Any] | None:
    """Read what :func:`compare_run` wrote; None where it is missing, damaged or of another version."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("schema") == _SCHEMA else None


def _letterboxed(path: Path, imgsz: int) -> Tensor:
    """An image as ultralytics' validation sees it, but always square: RGB, 0 to 1, (3, imgsz, imgsz)."""
    pixels = imread(str(path))
    if pixels is None:
        raise DistillError(f"{path} cannot be read as an image: replace or remove it")
    square = LetterBox((imgsz, imgsz), auto=False)(image=pixels)
    square = square[..., ::-1] if square.shape[-1] == 3 else square
    return torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1))).float() / 255
