"""The detector against ultralytics' own predict, on real images, and the command line around it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from deploy import detect
from deploy import onnx as onnx_target
from deploy.runtime import Detector, read_image

REPOSITORY = Path(__file__).resolve().parents[2]
IMGSZ = 320


@pytest.fixture(scope="module")
def coco_bundle(coco_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The COCO checkpoint as an ONNX float bundle at 320 px."""
    out = tmp_path_factory.mktemp("coco") / "coco-onnx-fp32"
    arguments = ["--student", str(coco_weights), "--imgsz", str(IMGSZ), "--out", str(out), "--no-verify"]
    assert onnx_target.main(arguments) == 0
    return out


def test_the_same_detections_as_ultralytics_predict(coco_bundle: Path, coco_weights: Path, coco_mini: Path) -> None:
    from ultralytics import YOLO

    images = sorted((coco_mini / "images/val").glob("*.jpg"))[::4]
    detector = Detector(coco_bundle, threads=1)
    model = YOLO(coco_weights)
    compared = 0
    for image in images:
        expected = model.predict(image, imgsz=IMGSZ, rect=False, conf=0.25, iou=0.7, verbose=False)[0].boxes
        met = detector(image)
        assert met.class_ids.tolist() == expected.cls.int().tolist(), image.name
        np.testing.assert_allclose(met.scores, expected.conf.numpy(), atol=1e-3)
        np.testing.assert_allclose(met.boxes_xyxy, expected.xyxy.numpy(), atol=0.5)
        compared += len(met)
    assert compared > 50


def test_grey_and_rgba_arrays_are_taken_as_rgb(bundles: Callable[[str, str], Path]) -> None:
    detector = Detector(bundles("onnx", "fp32"), conf=0.01)
    grey = np.random.default_rng(0).integers(0, 256, (50, 70), dtype=np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    rgba = np.concatenate([rgb, np.full((50, 70, 1), 9, np.uint8)], axis=2)
    expected = detector(rgb)
    assert len(expected) > 0
    for image in (grey, rgba):
        np.testing.assert_array_equal(detector(image).boxes_xyxy, expected.boxes_xyxy)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (2000, 1500)])
def test_boxes_stay_inside_an_image_of_any_size(bundles: Callable[[str, str], Path], size: tuple[int, int]) -> None:
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = Detector(bundles("onnx", "fp32"), conf=0.0, max_det=20)(image)
    assert len(found) <= 20
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy[:, [0, 2]] <= width).all()
    assert (found.boxes_xyxy[:, [1, 3]] <= height).all()


@pytest.mark.parametrize("engine", ["onnx", "openvino", "tflite"])
def test_detections_stay_as_they_are_when_the_next_image_is_detected(
    bundles: Callable[[str, str], Path], engine: str
) -> None:
    detector = Detector(bundles(engine, "int8"), conf=0.01, threads=1)
    images = [np.random.default_rng(seed).integers(0, 256, (80, 120, 3), dtype=np.uint8) for seed in range(4)]
    found = list(detector.detect_batch(images))
    for image, one in zip(images, found, strict=True):
        again = detector(image)
        assert len(one) > 0
        np.testing.assert_array_equal(one.boxes_xyxy, again.boxes_xyxy)
        np.testing.assert_array_equal(one.scores, again.scores)


@pytest.mark.parametrize("engine", ["onnx", "openvino", "tflite"])
def test_a_detector_called_from_several_threads_gives_each_its_own(
    bundles: Callable[[str, str], Path], engine: str
) -> None:
    detector = Detector(bundles(engine, "int8"), conf=0.01, threads=1)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (60 + 7 * n, 150 - 9 * n, 3), dtype=np.uint8) for n in range(6)]
    expected = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for met, one in zip(pool.map(detector, images), expected, strict=True):
                np.testing.assert_array_equal(met.boxes_xyxy, one.boxes_xyxy)
                np.testing.assert_array_equal(met.class_ids, one.class_ids)


def test_the_stages_one_by_one_give_what_a_call_gives(bundles: Callable[[str, str], Path]) -> None:
    detector = Detector(bundles("tflite", "int8"), conf=0.01, threads=1, options={"xnnpack": True})
    buffer = detector.new_buffer()
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (90, 50 + 30 * seed, 3), dtype=np.uint8)
        pixels, geometry = detector.preprocess(image, buffer)
        assert pixels is buffer.pixels
        staged = detector.postprocess(detector.run(pixels), geometry)
        slow = detector.postprocess(detector.engine.infer(detector.preprocess(image)[0]), geometry)
        for met in (staged, slow):
            np.testing.assert_array_equal(met.boxes_xyxy, detector(image).boxes_xyxy)


@pytest.mark.parametrize("changed", [{"conf": 1.5}, {"iou": -0.1}, {"max_det": 0}])
def test_thresholds_outside_their_range_are_refused(
    bundles: Callable[[str, str], Path], changed: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        Detector(bundles("onnx", "fp32"), **changed)


def test_importing_the_runtime_brings_neither_an_engine_nor_an_image_library() -> None:
    program = (
        "import sys, deploy.runtime; heavy = {'torch', 'ultralytics', 'cv2', 'PIL', 'onnxruntime', 'openvino', "
        "'ai_edge_litert', 'yaml'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_detect_draws_every_image_and_prints_what_it_found(
    bundles: Callable[[str, str], Path], deployed_student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((deployed_student.data_yaml.parent / "images/val").iterdir())
    bundle, out = bundles("onnx", "fp32"), tmp_path / "drawn"
    arguments = ["--bundle", str(bundle), "--out", str(out), "--json", "--conf", "0.1", str(images[0].parent)]
    assert detect.main(arguments) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [str(image) for image in images]
    assert sorted(path.stem for path in out.iterdir()) == [image.stem for image in images]
    expected = Detector(bundle, conf=0.1)(images[0])
    assert len(records[0]["detections"]) == len(expected) > 0
    np.testing.assert_allclose([d["score"] for d in records[0]["detections"]], expected.scores, atol=1e-4)
    drawn = read_image(out / f"{images[0].stem}.jpg").astype(int)
    assert np.abs(drawn - read_image(images[0]).astype(int)).max() > 60


def test_two_images_of_one_name_are_both_kept(bundles: Callable[[str, str], Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / folder / "x.png")
    images = [str(tmp_path / folder / "x.png") for folder in ("a", "b")]
    assert detect.main(["--bundle", str(bundles("onnx", "fp32")), "--out", str(tmp_path / "out"), *images]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x-2.jpg", "x.jpg"]


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert detect.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_bad_input_to_detect_is_one_line_and_leaves_nothing(
    bundles: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = bundles("onnx", "fp32")
    capsys.readouterr()
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 not really")
    (tmp_path / "empty").mkdir()
    common = ["--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert "no image missing.jpg" in _refused([*common, "missing.jpg"], capsys)
    assert "bad.jpg" in _refused([*common, "bad.jpg"], capsys)
    assert "empty holds no images" in _refused([*common, "empty"], capsys)
    assert "no bundle below runs/" in _refused(["bad.jpg"], capsys)
    assert "is no bundle" in _refused(["--bundle", "empty", "bad.jpg"], capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jpg", "empty"]
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    (tmp_path / "out").mkdir()
    assert "already exists" in _refused([*common, "good.png"], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "images"),
        (["--conf", "2", "x.jpg"], "'2': expected a number from 0 to 1"),
        (["--iou", "abc", "x.jpg"], "'abc': expected a number from 0 to 1"),
        (["--threads", "0", "x.jpg"], "'0': expected a whole number, at least 1"),
        (["--max-det", "few", "x.jpg"], "'few': expected a whole number, at least 1"),
        (["--nms", "x.jpg"], "--nms"),
    ],
)
def test_wrong_usage_of_detect_exits_2_and_says_what_is_expected(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        detect.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
