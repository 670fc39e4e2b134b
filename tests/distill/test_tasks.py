"""Segmentation and pose students: distilled in what their heads share with a detector's, else refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics import YOLO
from ultralytics.nn.tasks import PoseModel, SegmentationModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import v8PoseLoss, v8SegmentationLoss

from distill import yolo
from distill.callbacks import Distillation
from distill.teacher import load_teacher, load_weights

KPT_SHAPE = (2, 3)


def write_data(root: Path, task: str) -> Path:
    """Four training and two validation images of 64 px with a coloured square; returns the yaml."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            x, y = (int(v) for v in rng.integers(4, 30, 2))
            class_id = index % 2
            pixels[y : y + 28, x : x + 28, 2 * class_id] = 240
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
            left, top, right, bottom = (v / 64 for v in (x, y, x + 28, y + 28))
            outline = f"{left} {top} {right} {top} {right} {bottom} {left} {bottom}"
            box = f"{(left + right) / 2} {(top + bottom) / 2} {28 / 64} {28 / 64}"
            line = outline if task == "segment" else f"{box} {left} {top} 2 {right} {bottom} 1"
            (root / "labels" / split / f"{index}.txt").write_text(f"{class_id} {line}\n")
    keypoints = f"kpt_shape: {list(KPT_SHAPE)}\n" if task == "pose" else ""
    path = root / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: {{0: red, 1: blue}}\n{keypoints}")
    return path


def build(task: str, size: str) -> Any:
    if task == "segment":
        return SegmentationModel(f"yolov8{size}-seg.yaml", nc=2, verbose=False)
    return PoseModel(f"yolov8{size}-pose.yaml", nc=2, data_kpt_shape=KPT_SHAPE, verbose=False)


@pytest.fixture(scope="module", params=["segment", "pose"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp(task), task)


@pytest.fixture(scope="module")
def teacher(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    model = build(task, "s")
    model.names = {0: "red", 1: "blue"}
    for branch in [*model.model[-1].cv2, *model.model[-1].cv3]:
        torch.nn.init.normal_(branch[-1].bias, std=2.0)  # untrained, it would have nothing to teach
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    torch.save({"model": model.half(), "train_args": {}, "epoch": -1}, path)
    return path


@pytest.fixture(scope="module")
def run(task: str, data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation of one epoch."""
    out = tmp_path_factory.mktemp("runs") / task
    assert yolo.main(arguments(task, data, teacher, out)) == 0
    return out


def arguments(task: str, data: Path, teacher: Path, out: Path) -> list[str]:
    student = {"segment": "yolov8n-seg.yaml", "pose": "yolov8n-pose.yaml", "detect": "yolov8n.yaml"}[task]
    common = ["--epochs", "1", "--imgsz", "64", "--batch", "4", "--device", "cpu", "--teacher", str(teacher)]
    return [*common, "--student", student, "--data", str(data), "--out", str(out)]


def test_the_student_learns_from_teacher_and_labels_and_is_what_its_record_says(task: str, run: Path) -> None:
    with (run / "train" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert all(float(row[f"train/kd_{name}"]) > 0 for name in ("response", "ld", "feature"))
    assert float(row["train/seg_loss" if task == "segment" else "train/pose_loss"]) > 0
    student = json.loads((run / "student" / "student.json").read_text())
    assert student["task"] == task
    own = "mask" if task == "segment" else "pose"
    assert student["metrics"].keys() == {"map50_95", "map50", f"{own}_map50_95", f"{own}_map50"}
    model = YOLO(run / "student" / "student.pt")
    assert model.task == task
    assert (run / "agreement.json").exists()
    found = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False, device="cpu")[0]
    assert (found.masks if task == "segment" else found.keypoints) is not None or not len(found.boxes)


def test_the_teacher_answers_as_its_whole_model_without_masks_or_keypoints(teacher: Path) -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, expected = load_weights(teacher, "teacher")(images)
    frozen = load_teacher(teacher, device=torch.device("cpu"))
    raw = frozen(images)
    torch.testing.assert_close(raw.scores, expected["scores"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(raw.boxes, expected["boxes"], rtol=1e-3, atol=1e-3)
    assert frozen.model.model[-1].cv4 is None


def test_the_label_losses_are_those_of_plain_training(
    task: str, teacher: Path, trainer_of: Callable[[Any], SimpleNamespace]
) -> None:
    torch.manual_seed(0)
    model = build(task, "n")
    model.args = DEFAULT_CFG
    batch: dict[str, Any] = {
        "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.6, 0.5, 0.3]]),
        "masks": torch.zeros(2, 16, 16),
        "keypoints": torch.tensor([[[0.4, 0.4, 2.0], [0.6, 0.6, 2.0]], [[0.3, 0.5, 2.0], [0.5, 0.7, 1.0]]]),
    }
    batch["masks"][:, 5:11, 5:11] = 1
    model.train()
    plain, plain_parts = model(batch)
    Distillation(str(teacher), {"bounded": 1.0}, 1.0)(trainer_of(model))
    total, parts = model(batch)
    assert type(model.criterion.plain) is (v8SegmentationLoss if task == "segment" else v8PoseLoss)
    torch.testing.assert_close(total[: len(plain)], plain)
    assert list(parts) == [*plain_parts, "kd_bounded"]
    assert float(parts["kd_bounded"]) > 0  # the assignment came through, in pixels of the image
    assert "get_assigned_targets_and_loss" not in vars(model.criterion.plain)


def test_a_teacher_student_or_data_of_another_task_is_refused(
    task: str,
    data: Path,
    teacher: Path,
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    other = "finds poses, but" if task == "pose" else "the labels of"
    cases = [
        (arguments(task, data, toy_teacher, out), f"teacher and student differ in task: detect and {task}"),
        (arguments(task, toy_data, teacher, out), other),
        ([*arguments(task, data, teacher, out), "--student", "yolov8n-cls.yaml"], "has a Classify head"),
        ([*arguments(task, data, teacher, out), "--student", "yolov8n-obb.yaml"], "has a OBB head"),
    ]
    if task == "pose":
        cases.append((arguments("detect", data, toy_teacher, out), "labels keypoints"))
    for given, words in cases:
        assert yolo.main(given) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert words in error
        assert not out.exists()


def test_a_pose_label_must_have_the_keypoints_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], toy_teacher: Path
) -> None:
    path = write_data(tmp_path / "data", "pose")
    (tmp_path / "data" / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 2\n")
    assert yolo.main(arguments("pose", path, toy_teacher, tmp_path / "run")) == 1
    assert "8 numbers, expected 11: class x y w h and the keypoints" in capsys.readouterr().err
