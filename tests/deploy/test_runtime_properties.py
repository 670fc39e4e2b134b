"""Properties of letterbox, decode and NMS that hold for any input, against plain slow references written here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy.bundle import InputSpec, Manifest, OutputSpec
from deploy.errors import DatasetError
from deploy.runtime import Detector, read_image
from deploy.runtime.decode import decode
from deploy.runtime.letterbox import InputBuffer, as_rgb, letterbox
from deploy.runtime.nms import nms
from deploy.runtime.tensors import RawTensor

HEIGHT, WIDTH, CLASSES, REG_MAX = 64, 96, 5, 8
STRIDES = (8, 16, 32)

repeatable = settings(max_examples=60, deadline=None, derandomize=True)


def _manifest(layout: str = "NCHW") -> Manifest:
    kinds = (("box", 4 * REG_MAX), ("class", CLASSES))
    return Manifest(
        engine="onnx",
        precision="fp32",
        files={},
        model_file="m",
        input=InputSpec("pixels", HEIGHT, WIDTH),
        outputs=tuple(OutputSpec(f"{k}{s}", k, s, channels, layout) for k, channels in kinds for s in STRIDES),
        reg_max=REG_MAX,
        class_names=tuple("abcde"),
        student={},
        tools={},
    )


# --- letterbox -------------------------------------------------------------------------------------------------------


@repeatable
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 255))
def test_any_image_lies_whole_and_centred_on_the_border(height: int, width: int, level: int) -> None:
    pixels, geometry = letterbox(np.full((height, width, 3), level, np.uint8), 64, 96)
    inner_height, inner_width = round(height * geometry.gain_y), round(width * geometry.gain_x)
    top, left = geometry.pad_top, geometry.pad_left
    expected = np.full((64, 96, 3), 114, np.uint8)
    expected[top : top + inner_height, left : left + inner_width] = level
    np.testing.assert_array_equal(pixels[0], expected)
    assert inner_height == 64 or inner_width == 96
    assert abs((64 - inner_height - top) - top) <= 1
    assert abs((96 - inner_width - left) - left) <= 1


@repeatable
@given(st.integers(1, 8000), st.integers(1, 6000), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_survive_the_way_to_the_input_and_back(height: int, width: int, fractions: list[float]) -> None:
    buffer = InputBuffer(HEIGHT, WIDTH)
    # One pixel seen from everywhere: an image of any size without its memory.
    geometry = buffer.fill(np.broadcast_to(np.uint8(7), (height, width, 3)))
    source = np.array([[*np.array(fractions) * [width, height, width, height]]], np.float32)
    gain = np.array([geometry.gain_x, geometry.gain_y] * 2)
    there = source * gain + [geometry.pad_left, geometry.pad_top] * 2
    tolerance = 1e-4 * max(height, width)  # float32
    np.testing.assert_allclose(geometry.to_source(there.astype(np.float32)), source, atol=tolerance)


@pytest.mark.parametrize("size", [(8000, 6000), (6000, 8000), (8000, 1), (1, 6000), (1, 1), (2, 4001)])
def test_the_largest_and_the_thinnest_images_fit(size: tuple[int, int]) -> None:
    pixels, geometry = letterbox(np.broadcast_to(np.uint8(7), (*size, 3)), HEIGHT, WIDTH)
    assert set(np.unique(pixels)) <= {7, 114}
    assert (pixels == 7).any()
    whole = np.array([[-1e6, -1e6, 1e6, 1e6]], np.float32)
    np.testing.assert_array_equal(geometry.to_source(whole), [[0, 0, size[1], size[0]]])


@repeatable
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000))
def test_every_kind_of_image_is_the_rgb_image_it_stands_for(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    grey = random.integers(0, 256, (height, width), dtype=np.uint8)
    colour = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    triple = np.stack([grey] * 3, axis=2)
    kinds = [
        (grey, triple),
        (grey[..., None], triple),
        (colour, colour[..., :3].copy()),
        (colour[::-1, ::-1, 2::-1], colour[::-1, ::-1, 2::-1].copy()),
        (colour.transpose(1, 0, 2), colour.transpose(1, 0, 2)[..., :3].copy()),
        (np.asfortranarray(triple), triple),
    ]
    for image, rgb in kinds:
        before = image.copy()
        np.testing.assert_array_equal(letterbox(image, 32, 64)[0], letterbox(rgb, 32, 64)[0])
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        np.zeros((0, 0), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 3), np.float64),
        np.zeros((5, 5, 3), np.int8),
        np.zeros((5, 5, 3), np.uint16),
        np.zeros((5, 5), np.bool_),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_what_is_no_image_is_refused_in_one_line_that_names_it(image: np.ndarray) -> None:
    detector = Detector.with_engine(None, _manifest())  # type: ignore[arg-type]
    for take in (as_rgb, lambda given: letterbox(given, 32, 32), detector.preprocess, detector):
        with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\)") as caught:
            take(image)
        assert str(image.shape) in str(caught.value)
        assert str(image.dtype) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_as_its_exif_orientation_says(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255  # white at the upper left
    inverse = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = Image.fromarray(upright)
    if inverse in methods:
        stored = stored.transpose(methods[inverse])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"empty\.jpg"):
        read_image(tmp_path / "empty.jpg")


# --- decode ----------------------------------------------------------------------------------------------------------


def _slow_decode(
    tensors: list[np.ndarray], conf: float, multi_label: bool
) -> list[tuple[float, float, float, float, float, int]]:
    """Boxes, score and class by the definition, in float64, from (H, W, C) arrays of each level."""
    found = []
    for level, stride in enumerate(STRIDES):
        boxes, classes = tensors[level].astype(np.float64), tensors[level + 3].astype(np.float64)
        for row in range(boxes.shape[0]):
            for column in range(boxes.shape[1]):
                scores = [1 / (1 + math.exp(-value)) for value in classes[row, column]]
                best = max(range(CLASSES), key=lambda c: scores[c])
                for class_id in range(CLASSES) if multi_label else [best]:
                    if scores[class_id] > conf:
                        sides = []
                        for side in boxes[row, column].reshape(4, REG_MAX):
                            weights = [math.exp(value - max(side)) for value in side]
                            sides.append(sum(n * w for n, w in enumerate(weights)) / sum(weights))
                        x, y = column + 0.5, row + 0.5
                        corners = (x - sides[0], y - sides[1], x + sides[2], y + sides[3])
                        found.append((*(stride * corner for corner in corners), scores[class_id], class_id))
    return found


def _raw(values: np.ndarray, layout: str, quantized: bool) -> tuple[RawTensor, np.ndarray]:
    """(H, W, C) values as a model's own tensor, and what it then really says."""
    laid_out = values if layout == "NHWC" else values.transpose(2, 0, 1)
    if not quantized:
        return RawTensor(np.ascontiguousarray(laid_out)[None], layout), values
    scale, zero_point = 0.11, -17
    stored = np.clip(np.rint(laid_out / scale) + zero_point, -128, 127).astype(np.int8)
    real = (stored.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return RawTensor(np.ascontiguousarray(stored)[None], layout, scale, zero_point), (
        real if layout == "NHWC" else real.transpose(1, 2, 0)
    )


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["NHWC", "NCHW"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.001, 0.2, 0.5, 0.9]),
)
def test_decoding_equals_the_definition_in_every_layout_and_type(
    seed: int, layout: str, quantized: bool, multi_label: bool, conf: float
) -> None:
    random = np.random.default_rng(seed)
    raws, reals = [], []
    for channels in (4 * REG_MAX, CLASSES):
        for stride in STRIDES:
            values = random.normal(0, 2, (HEIGHT // stride, WIDTH // stride, channels)).astype(np.float32)
            raw, real = _raw(values, layout, quantized)
            raws.append(raw)
            reals.append(real)
    expected = np.array(_slow_decode(reals, conf, multi_label), np.float64).reshape(-1, 6)
    met = decode(raws, _manifest(layout), conf, multi_label)
    assert met.class_ids.tolist() == expected[:, 5].astype(int).tolist()
    np.testing.assert_allclose(met.scores, expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(met.boxes_xyxy, expected[:, :4], atol=2e-3)
    again = decode([raw.cells() for raw in raws], _manifest(layout), conf, multi_label)
    np.testing.assert_array_equal(met.boxes_xyxy, again.boxes_xyxy)
    np.testing.assert_array_equal(met.scores, again.scores)


def test_what_is_selected_outlives_the_engines_memory() -> None:
    detector = Detector.with_engine(None, _manifest())  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    outputs = [
        RawTensor(random.normal(0, 2, (1, c, HEIGHT // s, WIDTH // s)).astype(np.float32), "NCHW")
        for c in (4 * REG_MAX, CLASSES)
        for s in STRIDES
    ]
    _, geometry = letterbox(np.zeros((50, 70, 3), np.uint8), HEIGHT, WIDTH)
    survivors = detector.select(outputs)
    expected = detector.finish(survivors, geometry)
    for output in outputs:
        output.values[...] = np.nan
    met = detector.finish(survivors, geometry)
    assert len(met) > 0
    np.testing.assert_array_equal(met.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(met.scores, expected.scores)


# --- NMS -------------------------------------------------------------------------------------------------------------


def _slow_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float, max_det: int) -> list[int]:
    """By the definition: best first, each against all kept ones of its class; Python's sort is stable."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(classes[index] != classes[k] or _overlap(boxes[index], boxes[k], iou) is False for k in kept):
            kept.append(index)
    return kept[:max_det]


def _overlap(a: np.ndarray, b: np.ndarray, iou: float) -> bool:
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return bool(intersection > np.float32(iou) * union)


@repeatable
@given(
    st.integers(0, 90),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]),
    st.integers(1, 60),
    st.sampled_from([1, 3]),
)
def test_nms_keeps_what_the_definition_keeps(count: int, seed: int, iou: float, max_det: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    # Whole numbers on a small field: many equal scores, equal boxes and overlaps that are exactly the threshold.
    corner = random.integers(0, 12, (count, 2))
    boxes = np.concatenate([corner, corner + random.integers(0, 8, (count, 2))], axis=1).astype(np.float32)
    scores = (random.integers(1, 9, count) / 8).astype(np.float32)
    class_ids = random.integers(0, classes, count)
    met = nms(boxes, scores, class_ids, iou, max_det)
    assert met.tolist() == _slow_nms(boxes, scores, class_ids, iou, max_det)


def test_more_boxes_than_a_block_are_kept_as_by_the_definition() -> None:
    random = np.random.default_rng(2)
    corner = random.integers(0, 300, (700, 2))
    boxes = np.concatenate([corner, corner + random.integers(1, 40, (700, 2))], axis=1).astype(np.float32)
    scores = (random.integers(1, 200, 700) / 200).astype(np.float32)
    class_ids = random.integers(0, 2, 700)
    assert nms(boxes, scores, class_ids, 0.5, 700).tolist() == _slow_nms(boxes, scores, class_ids, 0.5, 700)
