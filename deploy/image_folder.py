"""The image-folder data set format of classifiers: a folder per split, in it a folder of images per class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.dataset import evenly_spaced
from deploy.errors import DatasetError
from deploy.runtime.image import IMAGE_SUFFIXES, image_files

TRAIN = "train"
HELD_OUT = ("val", "test")  # the first that exists is the one to measure on


@dataclass(frozen=True)
class ClassificationDataset:
    """One split of a data set, images in sorted order of class and file name.

    Attributes:
        name: what to call it in results, e.g. "cifar10/test".
        class_names: index is the class id.
        paths: the image files.
        class_ids: (n,) int64, the truth of each.
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    class_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def sha256(self) -> str:
        """Hash of the content: every image's bytes and class, in order; file names do not matter."""
        digest = hashlib.sha256()
        for path, class_id in zip(self.paths, self.class_ids.tolist(), strict=True):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
            digest.update(self.class_names[class_id].encode() + b"\0")
        return digest.hexdigest()

    def subset(self, count: int) -> ClassificationDataset:
        """At most `count` images, evenly from all of them: the first ones would all be of the first class."""
        if len(self) <= count:
            return self
        chosen = evenly_spaced(range(len(self)), count)
        paths = tuple(self.paths[index] for index in chosen)
        return ClassificationDataset(f"{self.name}[{count}]", self.class_names, paths, self.class_ids[chosen])

    def with_classes(self, class_names: Sequence[str]) -> ClassificationDataset:
        """The same images with the class ids of a network.

        Raises:
            DatasetError: the network has other classes.
        """
        if set(class_names) != set(self.class_names) or len(class_names) != len(self.class_names):
            raise DatasetError(
                f"{self.name} has the {len(self.class_names)} classes {few(self.class_names)}, the student the "
                f"{len(class_names)} classes {few(class_names)}: use a data set of the student's classes"
            )
        ids = {name: index for index, name in enumerate(class_names)}
        ordered = np.array([ids[self.class_names[class_id]] for class_id in self.class_ids.tolist()], np.int64)
        return replace(self, class_names=tuple(class_names), class_ids=ordered)


def is_image_folder(root: Path) -> bool:
    """Whether `root` is a data set of this format: it has a split folder with class folders in it."""
    return any(_class_folders(root / split) for split in (TRAIN, *HELD_OUT))


def held_out_splits(root: Path) -> tuple[str, ...]:
    """The splits of `root` that nothing may be trained or calibrated on, the one to measure on first."""
    return tuple(split for split in HELD_OUT if _class_folders(root / split))


def load_image_folder(root: str | Path, split: str | None = None) -> ClassificationDataset:
    """Read one split.

    Args:
        root: holds `train`, and `val` or `test`; in them one folder per class, named as the class.
        split: which; default the held-out one, `val` where there is one, else `test`.

    Raises:
        DatasetError: no such folder or split, or no images.
    """
    folder = Path(root)
    known = [name for name in (TRAIN, *HELD_OUT) if _class_folders(folder / name)]
    if not known:
        raise DatasetError(
            f"{folder} is no image-folder data set: expected train/CLASS/*.jpg and val/CLASS/*.jpg or test/CLASS/*.jpg"
        )
    if split is None:
        split = next((name for name in HELD_OUT if name in known), None)
    if split is None or not _class_folders(folder / split):
        raise DatasetError(f"{folder} has no {split or ' or '.join(HELD_OUT)!r} split, it has {', '.join(known)}")
    # A class may have no image in a small split: the classes are those of all splits, as of the training.
    names = tuple(sorted({found.name for name in known for found in _class_folders(folder / name)}))
    paths: list[Path] = []
    class_ids: list[int] = []
    for class_id, name in enumerate(names):
        files = image_files(folder / split / name)
        paths += files
        class_ids += [class_id] * len(files)
    if not paths:
        raise DatasetError(f"{folder / split} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return ClassificationDataset(f"{folder.resolve().name}/{split}", names, tuple(paths), np.array(class_ids, np.int64))


def few(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _class_folders(split: Path) -> list[Path]:
    if not split.is_dir():
        return []
    return sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
