"""A folder of images in class folders: found, checked before an hour is spent on it, and identified by hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.images import IMAGE_SUFFIXES, image_files

__all__ = ["ImageFolder", "Split", "open_image_folder"]

_LAYOUT: Final = "expected ROOT/train/CLASS/*.png and ROOT/val/CLASS/*.png (or test/ for val/)"


@dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        name: folder below the root: ``train``, ``val`` or ``test``.
        files: absolute paths, class by class, sorted within each.
        labels: class of each file, shape (files,), int64.
        sha256: over relative paths and bytes.
    """

    name: str
    files: tuple[Path, ...]
    labels: Tensor
    sha256: str

    def part(self, chosen: Tensor) -> Split:
        """The images at these positions, in that order, as a split of its own."""
        positions = [int(i) for i in chosen]
        return Split(self.name, tuple(self.files[i] for i in positions), self.labels[chosen], self.sha256)

    def divided(self, share: float) -> tuple[Split, Split | None]:
        """The split without a share of each class, the same one every time, and that share; None for none.

        Raises:
            DistillError: when nothing is left.
        """
        if not share:
            return self, None
        held = torch.zeros(len(self.labels), dtype=torch.bool)
        for label in range(int(self.labels.max()) + 1):
            members = (self.labels == label).nonzero()[:, 0]
            order = torch.randperm(len(members), generator=torch.Generator().manual_seed(label))
            held[members[order[: max(1, round(share * len(members)))]]] = True
        if bool(held.all()):
            raise DistillError(f"holding out {share:g} leaves no image to learn from: add images, or hold out less")
        return self.part((~held).nonzero()[:, 0]), self.part(held.nonzero()[:, 0])


@dataclass(frozen=True)
class ImageFolder:
    """A classification data set on disk.

    Attributes:
        root: absolute path of the folder that holds the splits.
        names: class names, which are the names of the class folders in sorted order.
        train: what is learned from.
        val: what the result is scored on; ``val/`` where there is one, else ``test/``.
    """

    root: Path
    names: tuple[str, ...]
    train: Split
    val: Split


def open_image_folder(root: Path) -> ImageFolder:
    """List the images of a data set.

    Raises:
        DistillError: when a split or class folder is missing or empty, the classes of the splits differ, or there
            are fewer than two.
    """
    if not root.is_dir():
        raise DistillError(f"data folder {root} does not exist: {_LAYOUT}")
    train = root / "train"
    val = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not train.is_dir() or val is None:
        missing = "train/" if not train.is_dir() else "val/ (or test/)"
        raise DistillError(f"data folder {root} has no {missing}: {_LAYOUT}")
    names, judged = _class_names(train), _class_names(val)
    if len(names) < 2:
        raise DistillError(f"{train} has {len(names)} class folders, expected 2 or more: {_LAYOUT}")
    if names != judged:
        odd = sorted(set(names) ^ set(judged))[0]
        raise DistillError(
            f"train/ and {val.name}/ of {root} differ in class {odd!r}: both need the same class folders"
        )
    return ImageFolder(root.resolve(), names, _open_split(train, names), _open_split(val, names))


def _class_names(split: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _open_split(folder: Path, names: tuple[str, ...]) -> Split:
    files: list[Path] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for label, name in enumerate(names):
        found = image_files(folder / name)
        if not found:
            raise DistillError(
                f"class folder {folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)}): add some, or remove it"
            )
        for path in found:
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        files += [path.resolve() for path in found]
        labels += [label] * len(found)
    return Split(folder.name, tuple(files), torch.tensor(labels), digest.hexdigest())
