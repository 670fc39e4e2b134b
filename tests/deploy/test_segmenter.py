"""Masks from prototypes: against ultralytics' own drawing, and through a compiled segmentation model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.measure import Job, measure
from deploy.build import build_bundle
from deploy.bundle import Bundle, InputSpec, Manifest, OutputSpec
from deploy.errors import BundleError
from deploy.graph import load_graph
from deploy.onnx import TARGET
from deploy.runtime import Detector, Segmentation, Segmenter, read_image
from deploy.runtime.letterbox import InputBuffer
from deploy.runtime.segmenter import draw_masks
from deploy.student import find_student
from deploy.verify import mask_agreement

SIDE = 96


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 260), st.integers(1, 260), st.sampled_from([(96, 96), (64, 128)]), st.integers(0, 9))
def test_masks_are_those_of_ultralytics_for_any_image_size(
    height: int, width: int, sides: tuple[int, int], seed: int
) -> None:
    from ultralytics.utils.ops import process_mask_native

    random = np.random.default_rng(seed)
    geometry = InputBuffer(*sides).fill(np.zeros((height, width, 3), np.uint8))
    prototypes = random.normal(size=(sides[0] // 4, sides[1] // 4, 8)).astype(np.float32)
    coefficients = random.normal(size=(5, 8)).astype(np.float32)
    corners = random.uniform(-0.1, 1.1, (5, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).clip(0, [width, height] * 2)
    met = draw_masks(prototypes, coefficients, boxes.astype(np.float32), geometry)
    expected = process_mask_native(
        torch.from_numpy(prototypes).permute(2, 0, 1),
        torch.from_numpy(coefficients),
        torch.from_numpy(boxes.astype(np.float32)),
        (height, width),
    ).numpy()
    assert met.shape == expected.shape == (5, height, width)
    # A pixel may fall on either side of 0 where the sum is within rounding of it.
    assert np.count_nonzero(met != expected.astype(bool)) <= max(2, 2e-3 * met.size)


def test_a_mask_covers_half_of_its_box_where_the_product_is_positive() -> None:
    geometry = InputBuffer(32, 32).fill(np.zeros((32, 32, 3), np.uint8))
    prototypes = np.zeros((8, 8, 1), np.float32)
    prototypes[:, :4], prototypes[:, 4:] = 1, -1
    boxes = np.array([[4, 6.5, 28, 20], [40, 40, 40, 40], [4, 4, 8, 8]], np.float32)
    masks = draw_masks(prototypes, np.array([[1], [1], [np.nan]], np.float32), boxes, geometry)
    rows, columns = np.nonzero(masks[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 19, 4, 15)
    assert masks[0].sum() == 13 * 12
    assert not masks[1:].any(), "an empty box and a coefficient that is no number have no pixel"


def _segmentation(masks: list[NDArray[np.bool_]], class_ids: list[int]) -> Segmentation:
    count = len(masks)
    stacked = np.array(masks, np.bool_).reshape(count, 4, 4)
    return Segmentation(np.zeros((count, 4), np.float32), np.ones(count, np.float32), np.array(class_ids), stacked)


def test_the_agreement_of_masks_is_the_best_iou_within_a_class() -> None:
    whole, half, none = np.ones((4, 4), bool), np.tri(4, dtype=bool), np.zeros((4, 4), bool)
    student = _segmentation([whole, whole, half], [0, 1, 2])
    bundle = _segmentation([half, whole, none], [0, 0, 1])
    assert mask_agreement(student, bundle) == [1.0, 0.0, 0.0]
    assert mask_agreement(student, _segmentation([half], [0])) == [10 / 16, 0.0, 0.0]
    assert mask_agreement(_segmentation([], []), bundle) == []


@pytest.fixture(scope="module")
def checkpoint(deployed_student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter with the backbone and boxes of the lively detector; its masks are random but tell pixels apart."""
    from ultralytics.nn.tasks import SegmentationModel

    torch.manual_seed(0)
    detector = torch.load(deployed_student.checkpoint, weights_only=False)["model"].float()
    model = SegmentationModel("yolov8n-seg.yaml", nc=3, verbose=False)
    weights = model.state_dict()
    known = detector.state_dict()
    weights.update(
        {name: known[name] for name in weights if name in known and known[name].shape == weights[name].shape}
    )
    model.load_state_dict(weights)
    model.names = detector.names
    model.args = {}
    with torch.no_grad():
        for module in (*model.model[-1].proto.modules(), *model.model[-1].cv4.modules()):
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(3.0)
    file = tmp_path_factory.mktemp("segmenter") / "seg.pt"
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": SIDE, "task": "segment"}}, file)
    return file


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, deployed_student: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder, student = tmp_path_factory.mktemp("bundles"), find_student(checkpoint)
    return {
        precision: build_bundle(
            TARGET,
            student,
            folder / precision,
            precision=precision,
            calibration=deployed_student.data_yaml,
            max_drop_points=100,
        )
        for precision in ("fp32", "int8")
    }


def test_a_segmentation_bundle_says_what_its_tensors_are(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        manifest = bundle.manifest
        assert (manifest.task, manifest.reg_max, manifest.input.height) == ("segment", 16, SIDE)
        met = [(output.name, output.stride, output.channels) for output in manifest.outputs]
        levels = [("3", 8), ("4", 16), ("5", 32)]
        meanings = (("box", 64), ("class", 3), ("mask", 32))
        expected = [(f"{name}_p{level}", stride, count) for name, count in meanings for level, stride in levels]
        assert met == [*expected, ("prototype", 4, 32)]


def test_a_bundle_segments_as_its_student_does(bundles: dict[str, Bundle]) -> None:
    exact, quantized = (bundles[precision].manifest.verified for precision in ("fp32", "int8"))
    assert exact is not None
    assert quantized is not None
    assert exact["drop_points"] == pytest.approx(0, abs=1e-6)
    assert exact["mask_iou"] > 0.999
    assert exact["drift"]["prototype"]["max_abs"] < 1e-3
    # Random masks are fringe through and through, so that 8 bits move much of it; a trained network's are solid.
    assert 0.3 < quantized["mask_iou"] < 0.999
    assert quantized["drift"]["prototype"]["mean_abs"] < 0.1


def test_masks_are_those_that_ultralytics_predicts(
    bundles: dict[str, Bundle], checkpoint: Path, deployed_student: Any
) -> None:
    from ultralytics import YOLO

    paths = sorted((deployed_student.data_yaml.parent / "images" / "val").iterdir())
    model, segmenter = YOLO(checkpoint), Segmenter(bundles["fp32"], conf=0.3, threads=1)
    seen = 0
    for path in paths:
        (expected,) = model.predict(path, imgsz=SIDE, rect=False, retina_masks=True, conf=0.3, iou=0.7, verbose=False)
        found = segmenter(path)
        assert len(found) == len(expected.boxes)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes.xyxy.numpy(), atol=0.05)
        masks = [] if expected.masks is None else expected.masks.data.numpy().astype(bool)
        for mask, theirs in zip(found.masks, masks, strict=True):
            assert (mask & theirs).sum() >= 0.99 * (mask | theirs).sum()
            seen += 1
    assert seen > 5


def test_the_stages_give_what_a_call_gives_and_boxes_are_the_detectors(
    bundles: dict[str, Bundle], deployed_student: Any
) -> None:
    image = read_image(sorted((deployed_student.data_yaml.parent / "images" / "val").iterdir())[0])
    segmenter, detector = (opener(bundles["int8"], conf=0.3, threads=1) for opener in (Segmenter, Detector))
    whole = segmenter(image)
    pixels, geometry = segmenter.preprocess(image, segmenter.new_buffer())
    parts = segmenter.postprocess(segmenter.engine.infer(pixels), geometry)
    np.testing.assert_array_equal(whole.masks, parts.masks)
    boxes = {tuple(box) for box in detector(image).boxes_xyxy.tolist()}
    assert {tuple(box) for box in whole.boxes_xyxy.tolist()} <= boxes
    assert whole.masks.shape == (len(whole), *image.shape[:2])
    for mask, (left, top, right, bottom) in zip(whole.masks, whole.boxes_xyxy.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        assert left <= columns.min() <= columns.max() < right
        assert top <= rows.min() <= rows.max() < bottom


def test_an_image_without_objects_has_no_masks(bundles: dict[str, Bundle]) -> None:
    found = Segmenter(bundles["fp32"], conf=1.0, threads=1)(np.zeros((30, 50, 3), np.uint8))
    assert found.masks.shape == (0, 30, 50)
    assert len(found) == 0


def test_a_segmenter_is_timed_with_its_masks_and_scored_by_its_boxes(
    bundles: dict[str, Bundle], deployed_student: Any
) -> None:
    images = tuple(map(str, sorted((deployed_student.data_yaml.parent / "images" / "val").iterdir())[:2]))
    records: list[dict[str, Any]] = []
    job = Job(str(bundles["fp32"].path), images, threads=1, warmup=0, samples=2, min_seconds=0)
    measure(job, lambda record: records.append(dict(record)))
    assert [record["kind"] for record in records] == ["measurement", "detections", "detections", "audit", "end"]


def test_a_detectors_bundle_is_refused_by_the_segmenter() -> None:
    outputs = (OutputSpec("b", "box", 8, 64, "NHWC"), OutputSpec("c", "class", 8, 1, "NHWC"))
    manifest = Manifest("onnx", "fp32", {}, "m", InputSpec("p", 32, 32), outputs, 16, ("cell",), {}, {})
    engine: Any = None
    with pytest.raises(BundleError, match=r"task 'detect', expected 'segment': open it with deploy\.runtime\.Detector"):
        Segmenter.with_engine(engine, manifest)


def test_the_graph_of_a_segmenter_is_that_of_ultralytics(checkpoint: Path) -> None:
    graph = load_graph(checkpoint)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = torch.load(checkpoint, weights_only=False)["model"].float().eval()
    with torch.inference_mode():
        outputs = dict(zip([one.name for one in graph.outputs], graph.network(image), strict=True))
        (_, prototypes), raw = model(image)
    torch.testing.assert_close(outputs["prototype"], prototypes, atol=1e-4, rtol=1e-4)
    masks = torch.cat([outputs[f"mask_p{level}"].flatten(2) for level in (3, 4, 5)], 2)
    torch.testing.assert_close(masks, raw["mask_coefficient"], atol=1e-4, rtol=1e-4)
