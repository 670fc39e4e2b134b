"""Students that cannot be deployed and images that cannot be calibrated on: one line, exit code 1, and nothing left."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

import torch

from deploy.bundle import ENGINES, Bundle


def _refusal(engine: str, arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    before = sorted(tmp_path.iterdir())
    assert import_module(f"deploy.{engine}").main([*arguments, "--out", str(tmp_path / "out/bundle")]) == 1
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in printed.err
    assert sorted(tmp_path.iterdir()) == before
    return lines[0]


# An operation that each tool chain lacks, beside the joining of two tensors.
ODD = {
    "tflite": (
        torch.special.digamma,
        "LiteRT cannot convert the student (Lowering not found: aten.digamma.default): re",
    ),
    "ncnn": (torch.special.digamma, "ncnn has no aten::digamma: deploy this student to onnx, openvino or tflite"),
    "mnn": (torch.isnan, "MNN has no ONNX::IsNaN: deploy this student to onnx, openvino or tflite"),
}


@pytest.mark.parametrize("engine", ODD)
def test_an_operation_that_a_tool_chain_lacks_is_named(
    engine: str, deployed_student, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.nn.modules.conv import Concat

    operation, words = ODD[engine]
    join = Concat.forward
    monkeypatch.setattr(Concat, "forward", lambda self, x: join(self, x) + operation(x[0].abs() + 1).float().sum())
    arguments = ["--student", str(deployed_student.checkpoint), "--imgsz", "32", "--no-verify"]
    assert _refusal(engine, arguments, tmp_path, capfd).startswith(f"error: {words}")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_data_set_of_other_classes_is_refused_before_anything_is_calibrated(
    engine: str, deployed_student, tmp_path: Path, capfd
) -> None:
    train = deployed_student.data_yaml.parent / "images/train"
    other = tmp_path / "other.yaml"
    other.write_text(f"train: {train}\nval: {train}\nnames: [cat, dog, bird]\n")
    arguments = ["--student", str(deployed_student.run), "--int8", "--calibration", str(other)]
    line = _refusal(engine, arguments, tmp_path, capfd)
    assert "has the 3 classes cat, dog, bird, the student the 3 classes red, green, blue: give --calibration" in line


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_folder_and_validation_images_are_refused(engine: str, deployed_student, tmp_path, capfd) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["--student", str(deployed_student.run), "--int8", "--calibration"]
    assert "holds no images" in _refusal(engine, [*arguments, str(tmp_path / "empty")], tmp_path, capfd)
    held_out = deployed_student.data_yaml.parent / "images/val"
    assert "6 of 6 calibration images are validation images too" in _refusal(
        engine, [*arguments, str(held_out)], tmp_path, capfd
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_a_student_of_other_than_colour_images_is_refused(channels: int, tmp_path: Path, capfd) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=channels, nc=3, verbose=False)
    torch.save({"model": model, "ema": None, "train_args": {}}, tmp_path / "other.pt")
    for engine in ENGINES:
        line = _refusal(engine, ["--student", str(tmp_path / "other.pt")], tmp_path, capfd)
        assert f"takes images of {channels} channels, expected 3 (RGB): train the student on colour images" in line


def test_one_image_of_any_mode_calibrates_with_a_warning(deployed_student, tmp_path: Path, capfd) -> None:
    (tmp_path / "images").mkdir()
    source = deployed_student.data_yaml.parent / "images/train/0.png"
    for mode in ("RGBA", "I;16"):
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        with Image.open(source) as image:
            image.convert("L" if mode == "I;16" else mode).convert(mode).save(tmp_path / "images/0.png")
        arguments = ["--student", str(deployed_student.run), "--int8", "--calibration", str(tmp_path / "images")]
        arguments += ["--no-verify", "--imgsz", "32", "--out", str(tmp_path / "bundle")]
        assert import_module("deploy.mnn").main(arguments) == 0
        assert "warning: the ranges of 1 calibration image fit few others: give 8" in capfd.readouterr().err


@pytest.mark.parametrize("engine", ["ncnn", "mnn"])  # the others: tests/deploy/test_quantization.py
def test_one_changed_calibration_image_changes_the_bundle(engine: str, bundles, deployed_student, tmp_path) -> None:
    shutil.copytree(deployed_student.data_yaml.parent / "images/train", tmp_path / "images")
    with Image.open(tmp_path / "images/3.png") as image:
        image.point(lambda value: 255 - value).save(tmp_path / "images/3.png")
    arguments = ["--student", str(deployed_student.run), "--int8", "--calibration", str(tmp_path / "images")]
    assert import_module(f"deploy.{engine}").main([*arguments, "--no-verify", "--out", str(tmp_path / "bundle")]) == 0
    first, second = (Bundle.open(path).manifest for path in (bundles(engine, "int8"), tmp_path / "bundle"))
    assert first.calibration["list_sha256"] != second.calibration["list_sha256"]
    same = [one == other for one, other in zip(*(m.calibration["images"] for m in (first, second)), strict=True)]
    assert same == [True] * 3 + [False] + [True] * 4
    assert first.files != second.files
