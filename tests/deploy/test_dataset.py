from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.dataset import load_dataset
from deploy.errors import DatasetError
from deploy.runtime import image_size, read_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A two-image data set; returns its yaml."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        for index in range(2):
            pixels = np.full((40, 60, 3), 50 * index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / split / f"{index}.jpg")
            (tmp_path / "labels" / split / f"{index}.txt").write_text("1 0.5 0.5 0.2 0.4\n")
    yaml = tmp_path / "data.yaml"
    yaml.write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    return yaml


def test_images_come_with_their_labels_in_pixels(data: Path) -> None:
    dataset = load_dataset(data)
    assert dataset.name == "data/val"
    assert dataset.class_names == ("a", "b")
    assert [image.path.name for image in dataset.images] == ["0.jpg", "1.jpg"]
    np.testing.assert_allclose(dataset.images[0].boxes_xyxy(60, 40), [[24, 12, 36, 28]])
    assert dataset.images[0].class_ids.tolist() == [1]


def test_an_image_without_a_label_file_is_background(data: Path) -> None:
    (data.parent / "labels/val/0.txt").unlink()
    assert load_dataset(data).images[0].boxes_xyxy(60, 40).shape == (0, 4)


def test_a_polygon_becomes_its_bounding_box(data: Path) -> None:
    (data.parent / "labels/val/0.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    np.testing.assert_allclose(load_dataset(data).images[0].boxes_xywhn, [[0.3, 0.4, 0.4, 0.4]])


def test_an_object_listed_twice_counts_once(data: Path) -> None:
    (data.parent / "labels/val/0.txt").write_text("1 0.5 0.5 0.2 0.4\n" * 2)
    assert len(load_dataset(data).images[0].class_ids) == 1


def test_the_hash_follows_content_not_names(data: Path) -> None:
    before = load_dataset(data).sha256
    for folder, suffix in (("images", "jpg"), ("labels", "txt")):
        (data.parent / folder / "val" / f"1.{suffix}").rename(data.parent / folder / "val" / f"9.{suffix}")
    assert load_dataset(data).sha256 == before
    (data.parent / "labels/val/0.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    assert load_dataset(data).sha256 != before


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2 0.5 0.5 0.2 0.2", r"0\.txt:1 has class 2, expected 0\.\.1"),
        ("-1 0.5 0.5 0.2 0.2", "has class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "has class 0.5"),
        ("0 1.5 0.5 0.2 0.2", "box outside the image"),
        ("0 nan 0.5 0.2 0.2", "box outside the image"),
        ("0 -0.02 0.5 0.2 0.2", "box outside the image"),
        ("0 0.5 0.5 -0.005 0.2", "has the size -0.005"),
        ("nan 0.5 0.5 0.2 0.2", "has class nan"),
        ("inf 0.5 0.5 0.2 0.2", "has class inf"),
        ("0 0.5 0.5 0.2", "has 4 numbers, expected 5"),
        ("cat 0.5 0.5 0.2 0.2", "reads 'cat 0.5 0.5 0.2 0.2', expected: class x y width height"),
    ],
)
def test_a_bad_label_is_refused_with_file_and_line(data: Path, label: str, message: str) -> None:
    (data.parent / "labels/val/0.txt").write_text(label + "\n")
    with pytest.raises(DatasetError, match=message):
        load_dataset(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val: images/val\n", "no class names"),
        ("val: images/val\nnames: {0: a, 2: b}\n", r"class ids in 'names' are 0, 2, expected 0..1"),
        ("train: images/train\nnames: [a, b]\n", "no 'val' split, it has train"),
        ("val: images/none\nnames: [a, b]\n", "neither a folder nor a .txt list"),
        ("val: labels/val\nnames: [a, b]\n", "holds no images"),
        ("val: [", "not valid YAML"),
        ("val: images/val\nnames: [a, b]\nnc: 3\n", "has nc: 3 and 2 names"),
        ("val: images/val\nnames: [a, b]\nnc: many\n", "has nc: many, expected a whole number"),
        ("val: images/val\nnames: {0: a, x: b}\n", "class ids in 'names' are 0, x"),
        ("just words", "expected keys like train, val, names"),
    ],
)
def test_a_bad_data_file_is_refused(data: Path, text: str, message: str) -> None:
    data.write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_dataset(data)


def test_a_list_file_names_the_images(data: Path) -> None:
    (data.parent / "few.txt").write_text("./images/val/1.jpg\n")
    data.write_text("val: few.txt\nnames: [a, b]\n")
    assert [image.path.name for image in load_dataset(data).images] == ["1.jpg"]
    (data.parent / "few.txt").write_text("./images/val/7.jpg\n")
    with pytest.raises(DatasetError, match=r"lists .*7\.jpg, which does not exist"):
        load_dataset(data)


def test_a_list_file_is_read_relative_to_itself_only_where_it_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/few.txt").write_bytes(b"\xef\xbb\xbfimages/val/0.jpg\n")
    data.write_text("val: lists/few.txt\nnames: [a, b]\n")
    monkeypatch.chdir(tmp_path)
    assert [image.path for image in load_dataset(data).images] == [Path("images/val/0.jpg")]
    monkeypatch.chdir(tmp_path / "lists")
    with pytest.raises(DatasetError, match=r"begin the line with \./"):
        load_dataset(data)


def test_a_list_file_that_is_no_text_is_refused(data: Path) -> None:
    (data.parent / "few.txt").write_bytes(b"\xff\xfe\x00")
    data.write_text("val: few.txt\nnames: [a, b]\n")
    with pytest.raises(DatasetError, match=r"few\.txt is not a text file"):
        load_dataset(data)


def test_labels_are_read_as_leniently_as_in_training(data: Path) -> None:
    (data.parent / "labels/val/0.txt").write_bytes(b"\xef\xbb\xbf0 -0.005 1.005 0.2 0.2\n")
    np.testing.assert_allclose(load_dataset(data).images[0].boxes_xywhn, [[-0.005, 1.005, 0.2, 0.2]])


def test_a_relative_root_is_looked_for_where_training_looks_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "datasets", "beside"):
        shutil.copytree(data.parent / "images", tmp_path / place / "cells/images")
    monkeypatch.setattr("deploy.dataset._ultralytics_datasets_folder", lambda otherwise: tmp_path / "datasets")
    (tmp_path / "beside/data.yaml").write_text("path: cells\nval: images/val\nnames: [a, b]\n")
    monkeypatch.chdir(tmp_path / "here")
    for place in ("here", "datasets", "beside"):
        images = load_dataset(tmp_path / "beside/data.yaml").images
        assert images[0].path == tmp_path / place / "cells/images/val/0.jpg"
        shutil.rmtree(tmp_path / place / "cells")


def test_without_names_the_classes_are_numbered_as_in_training(data: Path) -> None:
    data.write_text("val: images/val\nnc: 2\n")
    assert load_dataset(data).class_names == ("class_0", "class_1")


def test_the_real_data_sets_load_whole(bccd: Path, coco_mini: Path) -> None:
    blood = load_dataset(bccd / "bccd.yaml", "train")
    assert (len(blood), blood.class_names) == (205, ("RBC", "WBC", "Platelets"))
    coco = load_dataset(coco_mini / "coco-mini.yaml", "val")
    assert (len(coco), len(coco.class_names)) == (64, 80)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "I;16"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
    (Image.new("I;16", (7, 5), 40_000) if mode == "I;16" else Image.new(mode, (7, 5))).save(file)
    image = read_image(file)
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)
    if mode == "I;16":
        assert image[0, 0].tolist() == [155, 155, 155]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_as_opencv_does(tmp_path: Path, orientation: int) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32, 0], pixels[16:, 32:, 1] = 255, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif, quality=95)
    expected = cv2.imread(str(tmp_path / "x.jpg"))[..., ::-1]
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_from_the_header_is_that_of_the_pixels(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 32)).save(tmp_path / "x.jpg", exif=exif)
    height, width = read_image(tmp_path / "x.jpg").shape[:2]
    assert image_size(tmp_path / "x.jpg") == (width, height)


def test_a_corrupt_image_is_refused_where_ultralytics_has_changed_pillow_too(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics.utils.patches")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for reader in (read_image, image_size):
        with pytest.raises(DatasetError, match=r"bad\.jpg cannot be read as an image"):
            reader(tmp_path / "bad.jpg")


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 truncated"])
def test_a_corrupt_image_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match=r"bad\.jpg"):
        read_image(tmp_path / "bad.jpg")


def test_a_jpeg_cut_in_half_is_refused(tmp_path: Path, data: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"half\.jpg cannot be decoded"):
        read_image(tmp_path / "half.jpg")
