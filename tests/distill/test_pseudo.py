"""Pseudo-labels: an unlabelled folder becomes a data set that trains a student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from distill import pseudo, yolo
from distill.data import open_data_set
from distill.pseudo_boxes import Boxes, find_boxes, merge_views
from distill.teacher import file_sha256

Label = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of noise and a square, one of them twice, in two folders."""
    folder = tmp_path_factory.mktemp("unlabelled") / "images"
    rng = np.random.default_rng(5)
    for index in range(12):
        below = folder / ("a" if index % 2 else "b")
        below.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
        pixels[8:24, 4 * index : 4 * index + 16] = (230, 40, 40)
        Image.fromarray(pixels).save(below / "image.png" if index < 2 else below / f"{index}.png")
    shutil.copyfile(folder / "a" / "3.png", folder / "b" / "3-again.png")
    return folder


@pytest.fixture
def unlabelled(images: Path, tmp_path: Path) -> Path:
    """A copy that a test may add to."""
    return Path(shutil.copytree(images, tmp_path / "unlabelled"))


@pytest.fixture(scope="module")
def teacher(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector whose scores depend on the image: its batch norms have seen such images."""
    torch.manual_seed(7)
    model = DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    model.names = {0: "red", 1: "blue"}
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean over what it sees
    pixels = [torch.from_numpy(np.array(Image.open(path))) for path in sorted(images.rglob("*.png"))]
    batch = torch.nn.functional.pad(torch.stack(pixels).permute(0, 3, 1, 2) / 255, (0, 0, 8, 8), value=114 / 255)
    with torch.no_grad():
        for _ in range(3):
            model.train()(batch)
    for branch in model.model[-1].cv3:
        torch.nn.init.normal_(branch[-1].weight, std=0.5)
        torch.nn.init.constant_(branch[-1].bias, -2.0)
    path = tmp_path_factory.mktemp("seeing") / "teacher.pt"
    torch.save({"model": model.eval().half(), "train_args": {}, "epoch": -1}, path)
    return path


@pytest.fixture
def label(teacher: Path, unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Label:
    """Runs the command and returns the record that it prints."""

    def run(*more: str) -> dict[str, Any]:
        assert pseudo.main([*command(teacher, unlabelled, tmp_path / "new"), "--json", *more]) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert printed == json.loads((tmp_path / "new" / "pseudo.json").read_text())
        return printed

    return run


def command(teacher: Path, images: Path, out: Path) -> list[str]:
    given = ["--teacher", str(teacher), "--images", str(images), "--out", str(out)]
    return [*given, "--imgsz", "64", "--device", "cpu", "--conf", "0.8"]


def test_labels_are_what_ultralytics_predicts_and_images_are_linked(
    label: Label, toy_data: Path, teacher: Path, unlabelled: Path, tmp_path: Path
) -> None:
    record = label("--data", str(toy_data))
    new = tmp_path / "new"
    boxes = 0
    for name, fact in record["files"].items():
        source = unlabelled / fact["source"]
        assert (new / name).samefile(source)
        assert fact["sha256"] == file_sha256(source)
        (result,) = YOLO(teacher).predict(
            cv2.imread(str(source)), imgsz=64, conf=0.8, rect=False, verbose=False, device="cpu"
        )
        lines = (new / name.replace("images", "labels")).with_suffix(".txt").read_text().splitlines()
        assert [int(line.split()[0]) for line in lines] == result.boxes.cls.int().tolist()
        written = np.array([line.split()[1:] for line in lines], dtype=float)
        assert written == pytest.approx(result.boxes.xywhn.numpy(), abs=1e-5)
        boxes += len(lines)
    images = record["images"]
    assert (images["found"], images["duplicates"], images["already_labelled"]) == (13, 1, 0)
    assert images["labelled"] + len(images["without_boxes"]) == 12
    assert 12 > images["labelled"] == len(record["files"]) > 1
    assert sum(record["boxes"].values()) == boxes == sum(fact["boxes"] for fact in record["files"].values())
    assert record["teacher"] == {"file": teacher.name, "sha256": file_sha256(teacher)}
    assert (record["conf"], record["conf_rule"]) == (0.8, "given")


def test_the_data_set_trains_a_student_on_both_and_validates_on_the_labelled_one(
    label: Label, toy_data: Path, tmp_path: Path
) -> None:
    record = label("--data", str(toy_data))
    joined, own = open_data_set(str(tmp_path / "new" / "data.yaml")), open_data_set(str(toy_data))
    assert joined.train_images == own.train_images + record["images"]["labelled"]
    assert joined.description["val"] == own.description["val"]
    assert record["data"]["val_sha256"] == own.val_sha256
    begin = ["--student", "yolov8n.yaml", "--losses", "none", "--epochs", "1", "--imgsz", "64", "--batch", "8"]
    out = tmp_path / "run"
    assert yolo.main([*begin, "--data", str(joined.yaml), "--device", "cpu", "--out", str(out)]) == 0
    assert json.loads((out / "student" / "student.json").read_text())["data"]["yaml"] == str(joined.yaml)


def test_alone_a_tenth_of_the_images_validates(label: Label, tmp_path: Path) -> None:
    record = label("--conf", "0.5")
    assert record["images"]["labelled"] == 12
    assert [name.split("/")[1] for name in record["files"]].count("val") == 1
    assert yaml.safe_load((tmp_path / "new" / "data.yaml").read_text())["val"] == "images/val"
    assert open_data_set(str(tmp_path / "new" / "data.yaml")).train_images == 11


def test_match_gives_an_unlabelled_image_as_many_boxes_as_a_labelled_one(label: Label, toy_data: Path) -> None:
    record = label("--data", str(toy_data), "--conf", "match")
    assert sum(record["boxes"].values()) == 2 * 12  # each labelled image has two, twelve are new
    assert record["conf_rule"] == "match"
    assert 0 < record["conf"] < 1


def test_images_that_validate_are_refused_and_labelled_ones_left_out(
    label: Label,
    toy_data: Path,
    teacher: Path,
    unlabelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copyfile(toy_data.parent / "images" / "train" / "0.png", unlabelled / "known.png")
    assert label("--data", str(toy_data))["images"]["already_labelled"] == 1
    shutil.copyfile(toy_data.parent / "images" / "val" / "2.png", unlabelled / "leak.png")
    given = [*command(teacher, unlabelled, tmp_path / "other"), "--data", str(toy_data)]
    assert pseudo.main(given) == 1
    assert f"1 of 15 images validate in {toy_data}, the first is {unlabelled}/leak.png (2.png there)" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()


def test_flip_sees_each_image_mirrored_too(teacher: Path, unlabelled: Path, tmp_path: Path) -> None:
    image = unlabelled / "a" / "3.png"
    mirror = tmp_path / "mirror.png"
    Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirror)
    settings: dict[str, Any] = {"imgsz": 64, "floor": 0.05, "device": "cpu"}
    plain, turned = find_boxes(teacher, [image, mirror], flip=False, **settings)
    (both,) = find_boxes(teacher, [image], flip=True, **settings)
    expected = merge_views(plain, turned.mirrored())
    assert both.xywh == pytest.approx(expected.xywh, abs=1e-4)
    assert both.scores == pytest.approx(expected.scores, abs=1e-5)


def test_two_views_of_an_object_are_one_box_between_them() -> None:
    one = Boxes(np.array([[0.50, 0.5, 0.20, 0.4], [0.2, 0.2, 0.1, 0.1]]), np.array([0.9, 0.8]), np.array([1, 0]))
    other = Boxes(np.array([[0.52, 0.5, 0.24, 0.4], [0.2, 0.2, 0.1, 0.1]]), np.array([0.6, 0.7]), np.array([1, 1]))
    merged = merge_views(one, other)
    assert merged.classes.tolist() == [1, 0, 1]
    assert merged.scores.tolist() == pytest.approx([0.75, 0.4, 0.35])
    low = (0.9 * (0.50 - 0.10) + 0.6 * (0.52 - 0.12)) / 1.5  # the left edges, weighted by the scores
    assert merged.xywh[0, 0] - merged.xywh[0, 2] / 2 == pytest.approx(low)
    assert merged.xywh[1:].tolist() == [[0.2, 0.2, 0.1, 0.1]] * 2
    assert len(merged.above(0.4)) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--images", "nowhere"], "nowhere is no folder"),
        (["--images", "EMPTY"], "holds no images"),
        (["--teacher", "nowhere.pt"], "teacher 'nowhere.pt' not found"),
        (["--teacher", "THREE", "--data", "TOY"], "teacher knows the classes red, blue, green, the data has red, blue"),
        (["--conf", "0.99999"], "lower --conf"),
        (["--conf", "match"], "give --data, or a number"),
        (["--out", "EMPTY"], "never overwritten"),
        (["--images", "BROKEN"], "cannot be read as an image"),
    ],
)
def test_what_cannot_be_labelled_is_one_line_and_leaves_nothing(
    changed: list[str],
    words: str,
    toy_data: Path,
    teacher: Path,
    unlabelled: Path,
    save_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"no image")
    places = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken", "TOY": toy_data}
    if "THREE" in changed:
        places["THREE"] = save_model(tmp_path / "three.pt", "yolov8n.yaml", ("red", "blue", "green"))
    given = [str(places.get(text, text)) for text in changed]
    assert pseudo.main([*command(teacher, unlabelled, tmp_path / "new"), *given]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".new", "new"))]
