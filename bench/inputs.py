"""What to measure and on what: the newest bundles, and images with or without truth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.accuracy import ImageTruth
from bench.errors import BenchError
from deploy.bundle import MANIFEST_NAME, Bundle, Manifest, find_bundles, sha256_file
from deploy.cli import log, one_line
from deploy.dataset import LabelledImage, load_dataset
from deploy.errors import BundleError, DatasetError
from deploy.image_folder import ClassificationDataset, held_out_splits, load_image_folder
from deploy.runtime.image import image_files, image_size

RUNS = Path("runs")


@dataclass(frozen=True)
class MeasuredImages:
    """The images of a run.

    Attributes:
        name: of the data set.
        sha256: of the images' content, and of their labels where there are any.
        paths: image files, in order.
        truths: one entry per image, boxes in pixels; None without labels.
        class_names: index is the class id; empty without labels.
        classified: the images with their classes, of an image-folder data set; None of others.
    """

    name: str
    sha256: str
    paths: tuple[Path, ...]
    truths: tuple[ImageTruth, ...] | None
    class_names: tuple[str, ...]
    classified: ClassificationDataset | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is anything to score by."""
        return self.truths is not None or self.classified is not None

    def class_ids(self, bundle: Bundle) -> NDArray[np.int64]:
        """(n,) the true classes of the images, by the ids of a classifier's bundle.

        Raises:
            DatasetError: the bundle has other classes.
        """
        assert self.classified is not None
        return self.classified.with_classes(bundle.manifest.class_names).class_ids

    def check_truth(self, bundle: Bundle) -> None:
        """See that `bundle` can be scored by the truth; warns where only the names of a detector's classes differ.

        Raises:
            BenchError: there is no label at all, the labels are for another task, or the number of classes differs.
            DatasetError: a classifier's bundle has other classes.
        """
        trained = bundle.manifest.class_names
        self._check_task(bundle)
        if self.classified is not None:
            self.class_ids(bundle)
            return
        if self.truths is not None and not any(len(truth.class_ids) for truth in self.truths):
            raise BenchError(
                f"{self.name} has {len(self.truths)} images and not one label: "
                "put a .txt per image into the labels folder, or measure with --no-accuracy"
            )
        if self.truths is None or self.class_names == trained:
            return
        if len(self.class_names) != len(trained):
            raise BenchError(
                f"{self.name} has {len(self.class_names)} classes, the bundle {len(trained)}: "
                "give --data the data set that the student was trained on"
            )
        differing = next(pair for pair in zip(self.class_names, trained, strict=True) if pair[0] != pair[1])
        log(f"warning: {self.name} calls a class {differing[0]!r} that {bundle.path.name} calls {differing[1]!r}")

    def _check_task(self, bundle: Bundle) -> None:
        classifies = bundle.manifest.task == "classify"
        if classifies and self.truths is not None:
            raise BenchError(
                f"{self.name} has boxes, {bundle.path} is a classifier: give --data an image-folder data set, "
                "or measure with --no-accuracy"
            )
        if not classifies and self.classified is not None:
            raise BenchError(
                f"{self.name} has classes of whole images, {bundle.path} is no classifier: give --data a data.yaml, "
                "or measure with --no-accuracy"
            )


def newest_bundles(root: Path = RUNS) -> list[Path]:
    """The bundles of the newest bundle's student: the newest of each engine and precision.

    Raises:
        BenchError: there is none.
    """
    chosen: dict[tuple[str, str], Path] = {}
    student: object = None
    for folder in find_bundles(root) if root.is_dir() else []:
        try:
            manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"), str(folder))
        except (BundleError, UnicodeDecodeError) as error:
            log(f"warning: left out {folder}: {one_line(error)}")
            continue
        made_from = manifest.student.get("sha256")
        if not chosen:
            student = made_from
        if made_from == student:
            chosen.setdefault((manifest.engine, manifest.precision), folder)
    if not chosen:
        raise BenchError(f"no bundle below {root.absolute()}: make one with python -m deploy.tflite, or give --bundle")
    return [chosen[key] for key in sorted(chosen)]


def bundle_data(bundle: Bundle) -> Path:
    """The data.yaml, or the root of an image-folder data set, that a bundle's student was trained with.

    Raises:
        BenchError: the manifest does not say.
    """
    known = bundle.manifest.data_root or bundle.manifest.data_yaml
    if known is None:
        raise BenchError(f"{bundle.path} does not say which data set it is for: give --data, a data.yaml or a folder")
    return Path(known)


def load_images(data: Path, limit: int | None = None) -> MeasuredImages:
    """Read what `--data` names.

    Args:
        data: a data.yaml, of which the validation set is used, the root of an image-folder data set, of which the
            held-out split is used, or a folder of images without truth.
        limit: only the first so many images; of an image-folder data set so many, evenly from all of them.

    Raises:
        DatasetError: no such thing, no images, or a malformed label or image.
    """
    if data.is_dir() and held_out_splits(data):
        folders = load_image_folder(data)
        folders = folders if limit is None else folders.subset(limit)
        return MeasuredImages(folders.name, folders.sha256, folders.paths, None, folders.class_names, folders)
    if data.is_dir():
        paths = image_files(data)[:limit]
        if not paths:
            raise DatasetError(f"{data} holds no images: give --data a data.yaml or a folder of images")
        return MeasuredImages(data.resolve().name, _content_sha256(paths), tuple(paths), None, ())
    dataset = load_dataset(data, "val")
    if limit is not None and limit < len(dataset):
        dataset = dataset.first(limit)
    truths = tuple(_truth(image) for image in dataset.images)
    paths = [image.path for image in dataset.images]
    return MeasuredImages(dataset.name, dataset.sha256, tuple(paths), truths, dataset.class_names)


def _truth(image: LabelledImage) -> ImageTruth:
    width, height = image_size(image.path)
    return ImageTruth(image.boxes_xyxy(width, height), image.class_ids)


def _content_sha256(paths: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256_file(path) for path in paths).encode()).hexdigest()
