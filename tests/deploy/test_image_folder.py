from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.calibration import choose_calibration
from deploy.errors import CalibrationError, DatasetError
from deploy.image_folder import held_out_splits, is_image_folder, load_image_folder


def _write(root: Path, counts: dict[str, int], start: int = 0) -> Path:
    """One distinct image of 4 x 4 px per count, `split/class`."""
    number = start
    for place, count in counts.items():
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            number += 1
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    counts = {"train/cat": 6, "train/dog": 6, "test/cat": 3, "test/dog": 2, "test/.hidden": 1}
    return _write(tmp_path / "pets", counts)


def test_classes_are_the_sorted_folder_names_and_images_are_in_order(pets: Path) -> None:
    dataset = load_image_folder(pets)
    assert (dataset.name, dataset.class_names) == ("pets/test", ("cat", "dog"))
    assert dataset.class_ids.tolist() == [0, 0, 0, 1, 1]
    assert [path.relative_to(pets).as_posix() for path in dataset.paths][:4] == [
        "test/cat/0.png", "test/cat/1.png", "test/cat/2.png", "test/dog/0.png",
    ]  # fmt: skip
    assert len(load_image_folder(pets, "train")) == 12


def test_the_validation_split_goes_before_the_test_split(pets: Path) -> None:
    assert held_out_splits(pets) == ("test",)
    _write(pets, {"val/dog": 1}, 100)
    assert held_out_splits(pets) == ("val", "test")
    dataset = load_image_folder(pets)
    assert (dataset.name, dataset.class_ids.tolist()) == ("pets/val", [1])  # dog, though there is no cat in val


def test_a_class_that_a_split_lacks_keeps_its_place(pets: Path) -> None:
    _write(pets, {"train/ant": 1}, 200)
    assert load_image_folder(pets).class_ids.tolist() == [1, 1, 1, 2, 2]


def test_a_subset_holds_images_of_every_class(pets: Path) -> None:
    subset = load_image_folder(pets, "train").subset(4)
    assert subset.class_ids.tolist() == [0, 0, 1, 1]
    assert (len(subset), subset.name) == (4, "pets/train[4]")
    assert len(load_image_folder(pets).subset(99)) == 5


def test_the_hash_is_of_images_and_classes_not_of_file_names(pets: Path) -> None:
    before = load_image_folder(pets).sha256
    (pets / "test/cat/2.png").rename(pets / "test/cat/20.png")
    assert load_image_folder(pets).sha256 == before
    (pets / "test/cat/20.png").rename(pets / "test/dog/00.png")
    assert load_image_folder(pets).sha256 != before


def test_class_ids_follow_the_order_of_the_student(pets: Path) -> None:
    dataset = load_image_folder(pets)
    assert dataset.with_classes(("dog", "cat")).class_ids.tolist() == [1, 1, 1, 0, 0]
    message = "pets/test has the 2 classes cat, dog, the student the 2 classes cat, cow: use a data set"
    with pytest.raises(DatasetError, match=message):
        dataset.with_classes(("cat", "cow"))
    with pytest.raises(DatasetError, match="the student the 4 classes a, b, c, …"):
        dataset.with_classes(("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("split", "message"),
    [("val", "has no 'val' split, it has train, test"), ("x", "has no 'x' split")],
)
def test_a_split_that_is_not_there_is_answered_with_those_that_are(pets: Path, split: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_image_folder(pets, split)


def test_other_folders_are_no_image_folder(tmp_path: Path) -> None:
    assert not is_image_folder(tmp_path)
    with pytest.raises(DatasetError, match="is no image-folder data set: expected train/CLASS"):
        load_image_folder(tmp_path)
    _write(tmp_path / "only", {"train/cat": 1})
    with pytest.raises(DatasetError, match="has no 'val or test' split, it has train"):
        load_image_folder(tmp_path / "only")
    (tmp_path / "empty/val/cat").mkdir(parents=True)
    with pytest.raises(DatasetError, match="holds no images"):
        load_image_folder(tmp_path / "empty")


def test_calibration_images_are_training_images_of_every_class(pets: Path) -> None:
    chosen = choose_calibration(pets, 4)
    assert [path.relative_to(pets).as_posix() for path in chosen.images] == [
        "train/cat/0.png", "train/cat/3.png", "train/dog/0.png", "train/dog/3.png",
    ]  # fmt: skip
    assert (chosen.source, chosen.in_validation) == ("pets/train", 0)


def test_calibration_images_that_are_held_out_images_too_are_refused(pets: Path, tmp_path: Path) -> None:
    (pets / "train/dog/9.png").write_bytes((pets / "test/cat/1.png").read_bytes())
    with pytest.raises(CalibrationError, match=r"1 of 13 calibration images are validation images too .*9\.png"):
        choose_calibration(pets, 100)
    with pytest.raises(CalibrationError, match="5 of 5 calibration images are validation images"):
        choose_calibration(pets / "test", 100, [pets])
