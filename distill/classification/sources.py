"""Data sets by name: fetched by the library that offers them, written once as a folder of plain images."""

from __future__ import annotations

import csv
import urllib.error
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from torchvision import datasets

from distill.classification.folders import ImageFolder, open_image_folder
from distill.errors import DistillError
from distill.whole import whole_folder

__all__ = ["SOURCES", "open_data"]

#: Where named sets are kept, below the folder the command runs in.
DATA_FOLDER: Final = Path("runs") / "data"
Sample = tuple[str, str, Image.Image]  # split, class name, image


def open_data(name: str) -> ImageFolder:
    """Open a named data set, or the image folder at a path.

    A named set is written to ``runs/data/NAME`` the first time, whole or not at all.

    Raises:
        DistillError: when it is neither known nor a folder, cannot be downloaded, or must be asked for.
    """
    if name not in SOURCES:
        if not Path(name).is_dir():
            raise DistillError(
                f"data {name!r} is neither a folder nor a known set: give ROOT with ROOT/train/CLASS/*.png and "
                f"ROOT/val/CLASS/*.png, or one of {', '.join(SOURCES)}"
            )
        return open_image_folder(Path(name))
    folder = DATA_FOLDER / name
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            _write_images(SOURCES[name](), partial)
    return open_image_folder(folder)


def _cifar10() -> Iterator[Sample]:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32 px, 10 classes."""
    advice = f"put cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into {_downloads()}"
    for split, train in (("train", True), ("test", False)):
        found = _download("cifar10", datasets.CIFAR10, advice, train=train)
        yield from ((split, found.classes[label], image) for image, label in found)


def _mnist() -> Iterator[Sample]:
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 grey images of 28 px, 10 digits."""
    advice = f"put the four .gz files of MNIST into {_downloads() / 'MNIST' / 'raw'}"
    for split, train in (("train", True), ("test", False)):
        found = _download("mnist", datasets.MNIST, advice, train=train)
        yield from ((split, str(label), image) for image, label in found)


def _mhist() -> Iterator[Sample]:
    """MHIST (Wei et al. 2021): 3,152 colon polyps, 224 px, HP or SSA, with the official partition.

    Its licence asks every user to fill in a form, so nothing is downloaded here.
    """
    folder = DATA_FOLDER / "mhist-original"
    table, images = folder / "annotations.csv", folder / "images"
    if not table.is_file() or not images.is_dir():
        raise DistillError(
            "MHIST must be asked for at https://bmirds.github.io/MHIST (a form; a link comes by mail): "
            f"unpack images/ and annotations.csv into {folder}, then run this again"
        )
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {"name": "Image Name", "label": "Majority Vote Label", "split": "Partition"}
    if not rows or not set(columns.values()) <= rows[0].keys():
        raise DistillError(f"{table} is not MHIST's: expected the columns {', '.join(columns.values())}")
    for row in rows:
        path = images / Path(row[columns["name"]]).name
        if row[columns["split"]] not in {"train", "test"} or not path.is_file():
            raise DistillError(
                f"{table}: {row[columns['name']]!r} with partition {row[columns['split']]!r}: expected a file of "
                f"{images} and train or test; unpack MHIST again"
            )
        with Image.open(path) as image:
            yield row[columns["split"]], row[columns["label"]], image.convert("RGB")


def _digits() -> Iterator[Sample]:
    """Handwritten digits of scikit-learn (Alpaydin and Kaynak 1998): 1,797 grey images of 8 px, 10 classes.

    The first 1,347 are the training set: scikit-learn keeps the writers of the original test set in order.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise DistillError(
            "data digits comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    found = load_digits()
    for index, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        grey = np.round(image * (255 / 16)).astype(np.uint8)
        yield "train" if index < 1347 else "test", str(label), Image.fromarray(grey)


def _shapes() -> Iterator[Sample]:
    """Four drawn classes on noise, 64 training and 16 test images each, 32 px: for a demonstration in seconds."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:32, 0:32]
    for split, count in (("train", 64), ("test", 16)):
        for name in ("bar", "cross", "disc", "ring"):
            for _ in range(count):
                y, x, radius = random.uniform(11, 21), random.uniform(11, 21), random.uniform(6, 10)
                distance = np.hypot(rows - y, columns - x)
                inside = {
                    "bar": (abs(rows - y) < radius / 3) & (abs(columns - x) < radius),
                    "cross": (np.minimum(abs(rows - y), abs(columns - x)) < radius / 4) & (distance < radius),
                    "disc": distance < radius,
                    "ring": abs(distance - radius) < radius / 4,
                }[name]
                ground, colour = random.uniform(0, 130, 3), random.uniform(150, 255, 3)
                image = np.where(inside[..., None], colour, ground) + random.normal(0, 25, (32, 32, 3))
                yield split, name, Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


SOURCES: Final[Mapping[str, Callable[[], Iterable[Sample]]]] = {
    "cifar10": _cifar10,
    "mnist": _mnist,
    "mhist": _mhist,
    "digits": _digits,
    "shapes": _shapes,
}


def _downloads() -> Path:
    return (DATA_FOLDER / "downloads").resolve()


def _download(name: str, data_set: Callable[..., Any], advice: str, **split: bool) -> Any:
    """A torchvision data set, downloaded where its files are not here yet."""
    try:
        return data_set(_downloads(), download=True, **split)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        # RuntimeError: torchvision's word for "every mirror failed" and for a wrong checksum.
        reason = " ".join(str(error).split())[:160]
        raise DistillError(
            f"data set {name} is not here and could not be downloaded ({reason}): {advice}, then run this again"
        ) from error


def _write_images(samples: Iterable[Sample], folder: Path) -> None:
    counts: dict[Path, int] = {}
    for split, name, image in samples:
        target = folder / split / name
        if target not in counts:
            target.mkdir(parents=True)
            counts[target] = 0
        image.save(target / f"{counts[target]:05d}.png")
        counts[target] += 1
