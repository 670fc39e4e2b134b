"""What detect prints and draws for each task, by bundles whose networks are made by hand to find what is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="models made by hand need onnx")

import onnx

from deploy import detect, findings
from deploy.bundle import MANIFEST_NAME, Bundle, InputSpec, Manifest, OutputSpec, sha256_file
from deploy.runtime import Classification, Classifier, Detections, Segmentation, Segmenter, read_image
from deploy.runtime.draw import class_colour
from deploy.runtime.stream import Stream

CLASSES = ("red", "green", "blue")


def _bundle(
    folder: Path, task: str, model: Any, spec: InputSpec, outputs: tuple[OutputSpec, ...], reg_max: int
) -> Path:
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    files = {"model.onnx": sha256_file(folder / "model.onnx")}
    manifest = Manifest("onnx", "fp32", files, "model.onnx", spec, outputs, reg_max, CLASSES, {}, {}, task=task)
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    Bundle.open(folder)
    return folder


def _model(nodes: list[Any], outputs: dict[str, list[int]], constants: dict[str, np.ndarray]) -> Any:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("pixels", floats, [1, 32, 32, 3])],
        [helper.make_tensor_value_info(name, floats, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value.astype(np.float32), f"{name}_value") for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its logits are the image's mean red, green and blue, 0..10."""
    nodes = [
        onnx.helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "ten_value"], ["logits"]),
    ]
    model = _model(nodes, {"logits": [1, 3]}, {"ten": np.array(10.0)})
    spec = InputSpec("pixels", 32, 32, fit="stretch")
    outputs = (OutputSpec("logits", "logits", 0, 3, "NC"),)
    return _bundle(tmp_path_factory.mktemp("by-hand") / "classifier", "classify", model, spec, outputs, 0)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever the image, a green object in the 16 x 16 pixels around (12, 12) of the input, set where x < 12."""
    class_logits = np.full((1, 4, 4, 3), -9.0)
    class_logits[0, 1, 1, 1] = 3.0
    box_logits = np.tile([-20.0, 20.0], (1, 4, 4, 4))  # one cell to every side
    prototypes = np.where(np.arange(8) < 3, 5.0, -5.0).reshape(1, 1, 8, 1) * np.ones((1, 8, 8, 1))
    values = {"boxes": box_logits, "classes": class_logits, "masks": np.ones((1, 4, 4, 1)), "prototypes": prototypes}
    nodes = [onnx.helper.make_node("Identity", [f"{name}_value"], [name]) for name in values]
    model = _model(nodes, {name: list(value.shape) for name, value in values.items()}, values)
    outputs = (
        OutputSpec("boxes", "box", 8, 8, "NHWC"),
        OutputSpec("classes", "class", 8, 3, "NHWC"),
        OutputSpec("masks", "mask", 8, 1, "NHWC"),
        OutputSpec("prototypes", "prototype", 4, 1, "NHWC"),
    )
    spec = InputSpec("pixels", 32, 32)
    return _bundle(tmp_path_factory.mktemp("by-hand") / "segmenter", "segment", model, spec, outputs, 2)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), (10, 200, 60)).save(tmp_path / "green.png")
    return tmp_path / "green.png"


def test_a_classifiers_classes_are_printed_and_drawn(classifier: Path, image: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert detect.main(["--bundle", str(classifier), "--out", str(out), "--json", "--max-det", "2", str(image)]) == 0
    record = json.loads(capsys.readouterr().out)
    logits = np.array([10, 200, 60]) / 25.5
    scores = np.exp(logits) / np.exp(logits).sum()
    assert [found["class"] for found in record["classes"]] == ["green", "blue"]
    assert [found["score"] for found in record["classes"]] == pytest.approx([scores[1], scores[2]], abs=1e-3)
    drawn = read_image(out / "green.jpg").astype(int)
    assert np.abs(drawn[:12, :30] - (10, 200, 60)).max() > 60
    assert np.abs(drawn[40:] - (10, 200, 60)).max() < 12
    capsys.readouterr()
    assert detect.main(["--bundle", str(classifier), "--conf", "0.3", str(image)]) == 1
    assert "--conf and --iou are for detections" in capsys.readouterr().err


def test_a_segmenters_masks_are_printed_and_drawn(segmenter: Path, image: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert detect.main(["--bundle", str(segmenter), "--out", str(out), "--json", str(image)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [found["class"] for found in record["detections"]] == ["green"]
    found = record["detections"][0]
    assert found["box_xyxy"] == pytest.approx([8, 8, 40, 40])
    mask = _decoded(found["mask_rle"])
    expected = Segmenter(segmenter)(image).masks[0]
    np.testing.assert_array_equal(mask, expected)
    assert 0 < mask[:, 8:24].mean() <= 0.5
    assert not mask[:, 26:].any()
    drawn, colour = read_image(out / "green.jpg").astype(int), np.array(class_colour(1))
    inside = 0.55 * np.array([10, 200, 60]) + 0.45 * colour
    assert np.abs(drawn[28:36, 13:19] - inside).max() < 25
    assert np.abs(drawn[44:, 44:] - (10, 200, 60)).max() < 12


def test_both_run_in_a_stream_as_when_called(classifier: Path, segmenter: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (20 + side, 30, 3), dtype=np.uint8) for side in range(12)]
    one = Classifier(classifier)
    logits = [one(image).logits for image in images]
    two = Segmenter(segmenter)
    masks = [two(image).masks for image in images]
    for depth in (0, 2):
        met = [found.logits for _, found in Stream(one, images, depth=depth)]
        np.testing.assert_array_equal(met, logits)
        met_masks = [found.masks for _, found in Stream(two, images, depth=depth)]
        for mask, expected in zip(met_masks, masks, strict=True):
            np.testing.assert_array_equal(mask, expected)
            assert mask.any()


def _decoded(run_lengths: dict[str, list[int]]) -> np.ndarray:
    coco = pytest.importorskip("pycocotools.mask")
    height, width = run_lengths["size"]
    return np.asarray(coco.decode(coco.frPyObjects(run_lengths, height, width)), bool)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_run_lengths_are_those_that_pycocotools_reads(share: float) -> None:
    masks = np.random.default_rng(1).random((6, 9, 13)) < share
    found = Segmentation(np.zeros((6, 4), np.float32), np.ones(6, np.float32), np.zeros(6, np.int64), masks)
    records = findings.as_record(found, CLASSES)["detections"]
    for record, mask in zip(records, masks, strict=True):
        assert sum(record["mask_rle"]["counts"]) == 9 * 13
        np.testing.assert_array_equal(_decoded(record["mask_rle"]), mask)


def test_nothing_found_says_so() -> None:
    assert findings.as_text(findings.as_record(Detections.empty(), CLASSES)) == "nothing"
    nothing = Classification(np.zeros(0, np.int64), np.zeros(0, np.float32), np.full(3, np.nan, np.float32))
    assert findings.as_record(nothing, CLASSES) == {"classes": []}
