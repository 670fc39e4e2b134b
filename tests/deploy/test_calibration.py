"""The calibration list: the same one every time, letterboxed as at inference, and never of validation images."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.bundle import InputSpec, Manifest, OutputSpec
from deploy.calibration import choose_calibration, evenly_spaced, network_input
from deploy.errors import CalibrationError, DatasetError
from deploy.runtime import Detector


def _images(folder: Path, names: list[str], shade: int = 0) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        Image.new("RGB", (20 + index, 30), (shade, index, 7)).save(folder / name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of 10 training and 3 validation images."""
    _images(tmp_path / "images/train", [f"{index}.png" for index in range(10)])
    _images(tmp_path / "images/val", [f"v{index}.png" for index in range(3)], shade=200)
    path = tmp_path / "cells.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [cell]\n")
    return path


def test_items_are_chosen_at_even_distances() -> None:
    assert evenly_spaced(range(10), 4) == [0, 2, 5, 7]
    assert evenly_spaced(range(3), 4) == [0, 1, 2]
    assert evenly_spaced(range(1000), 128) == sorted(set(evenly_spaced(range(1000), 128)))
    assert len(evenly_spaced(range(1000), 128)) == 128


def test_the_training_split_gives_the_same_hashed_list_every_time(data: Path) -> None:
    first, second = (choose_calibration(data, 4) for _ in range(2))
    assert first == second
    assert [image.name for image in first.images] == ["0.png", "2.png", "5.png", "7.png"]
    hashes = [hashlib.sha256(image.read_bytes()).hexdigest() for image in first.images]
    assert first.record() == {
        "source": "cells/train",
        "count": 4,
        "images": hashes,
        "list_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "in_validation": 0,
    }


def test_a_folder_of_images_can_calibrate(data: Path, tmp_path: Path) -> None:
    chosen = choose_calibration(tmp_path / "images/train", 100, [data])
    assert len(chosen) == 10


def test_a_validation_image_under_another_name_is_refused_with_the_name(data: Path, tmp_path: Path) -> None:
    shutil.copyfile(tmp_path / "images/val/v1.png", tmp_path / "images/train/9.png")
    with pytest.raises(CalibrationError, match=r"1 of 10 calibration images are validation images.*9\.png"):
        choose_calibration(data, 10)
    with pytest.raises(CalibrationError, match="validation images"):
        choose_calibration(tmp_path / "images/train", 10, [data])
    assert len(choose_calibration(data, 4)) == 4  # it is not among these


def test_the_validation_split_itself_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="3 of 3"):
        choose_calibration(tmp_path / "images/val", 10, [data])


def test_another_students_training_images_are_held_against_this_ones_validation(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("train: images/val\nval: images/train\nnames: [cell]\n")
    with pytest.raises(CalibrationError, match="3 of 3"):
        choose_calibration(other, 10, [data])


def test_a_data_set_that_validates_on_its_training_images_is_told_not_refused(data: Path) -> None:
    same = data.with_name("same.yaml")
    same.write_text("train: images/train\nval: images/train\nnames: [cell]\n")
    chosen = choose_calibration(same, 4)
    assert chosen.record()["in_validation"] == 4


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="holds no images"):
        choose_calibration(tmp_path, 4)


def test_a_source_that_is_neither_data_set_nor_folder_is_refused(tmp_path: Path) -> None:
    for name in ("nothing", "image.jpg"):
        with pytest.raises(CalibrationError, match=r"neither a data\.yaml nor a folder"):
            choose_calibration(tmp_path / name, 4)


def test_a_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no data set file"):
        choose_calibration(tmp_path / "nothing.yaml", 4)


def test_a_corrupt_image_is_refused_with_its_name(data: Path, tmp_path: Path) -> None:
    (tmp_path / "images/train/0.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"0\.png cannot be read as an image"):
        list(choose_calibration(data, 4).inputs(InputSpec("images", 32, 32)))


def test_images_are_letterboxed_exactly_as_at_inference(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 31, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    outputs = (OutputSpec("box", "box", 8, 64, "NCHW"), OutputSpec("class", "class", 8, 1, "NCHW"))
    manifest = Manifest(
        engine="onnx", precision="fp32", files={}, model_file="", input=InputSpec("pixels", 64, 64), outputs=outputs,
        reg_max=16, class_names=("cell",), student={}, tools={},
    )  # fmt: skip
    met_at_inference, _ = Detector.with_engine(None, manifest).preprocess(pixels)  # type: ignore[arg-type]
    met_here = network_input(tmp_path / "image.png", 64)
    assert met_here.shape == (1, 3, 64, 64)
    np.testing.assert_array_equal(np.round(met_here * 255).transpose(0, 2, 3, 1), met_at_inference)
