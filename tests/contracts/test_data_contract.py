"""What `distill` and `deploy` make of one data set on disk: the same images, and the same class of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from ultralytics.data.utils import IMG_FORMATS

from deploy.dataset import load_dataset
from deploy.image_folder import load_image_folder
from deploy.runtime import image as deployed
from deploy.runtime import read_image
from distill import images as distilled
from distill.classification.folders import open_image_folder
from distill.classification.pixels import Frame
from distill.data import open_data_set
from distill.errors import DistillError

SIDE = 16
COUNTED = len(distilled.IMAGE_SUFFIXES) + 2


def _fill(folder: Path, seed: int) -> None:
    """An image of every kind, one in capitals, one in a folder of its own; and what is to be passed over."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    names = [f"x{suffix[1:]}{suffix}" for suffix in distilled.IMAGE_SUFFIXES]
    names += ["CAPITALS.PNG", "deeper/y.png", ".hidden.png", ".ipynb_checkpoints/z.png"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.md").write_text("no image")
    (folder / "folder.png").mkdir()


def test_both_know_the_same_kinds_and_ultralytics_trains_on_all() -> None:
    assert distilled.IMAGE_SUFFIXES == deployed.IMAGE_SUFFIXES
    assert {suffix[1:] for suffix in distilled.IMAGE_SUFFIXES} <= IMG_FORMATS


def test_both_list_the_same_images_of_an_image_folder_in_the_same_order(tmp_path: Path) -> None:
    for seed, part in enumerate(("train/a", "train/b", "val/a", "val/b")):
        _fill(tmp_path / part, seed)
    learned = open_image_folder(tmp_path)
    for split in (learned.train, learned.val):
        measured = load_image_folder(tmp_path, split.name)
        assert measured.class_names == learned.names
        assert [path.resolve() for path in measured.paths] == list(split.files)
        assert measured.class_ids.tolist() == split.labels.tolist()
        assert len(split.files) == 2 * COUNTED


def test_both_read_the_same_pixels_of_every_kind(tmp_path: Path) -> None:
    _fill(tmp_path, 0)
    for path in distilled.image_files(tmp_path):
        np.testing.assert_array_equal(Frame(SIDE, SIDE).read(path), read_image(path), err_msg=path.name)


def _detection_data(root: Path) -> Path:
    for seed, split in enumerate(("train", "val")):
        _fill(root / "images" / split, seed)
        (root / "images" / split / "folder.png").rmdir()  # ultralytics would take it for an image: distill refuses it
        for image in distilled.image_files(root / "images" / split):
            label = root / "labels" / split / image.relative_to(root / "images" / split).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.2 0.2\n")
    path = root / "data.yaml"
    path.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    return path


def test_both_count_the_same_images_of_a_detection_data_set(tmp_path: Path) -> None:
    data_yaml = _detection_data(tmp_path)
    assert open_data_set(str(data_yaml)).train_images == COUNTED
    measured = load_dataset(data_yaml, "train")
    assert len(measured) == COUNTED
    assert all(len(image.class_ids) == 1 for image in measured.images)


def test_a_kind_that_only_training_could_read_is_refused_before_training(tmp_path: Path) -> None:
    data_yaml = _detection_data(tmp_path)
    image = tmp_path / "images" / "val" / "phone.jp2"
    image.write_bytes(b"")
    with pytest.raises(DistillError, match=r"phone\.jp2 is of a kind that deploying does not read, expected \.bmp"):
        open_data_set(str(data_yaml))
