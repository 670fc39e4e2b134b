"""Ten thousand outputs that no network should give: never a crash, always valid detections."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from deploy.bundle import InputSpec, Manifest, OutputSpec
from deploy.runtime import Detector, Segmenter
from deploy.runtime.letterbox import InputBuffer, Letterbox
from deploy.runtime.tensors import RawTensor

STRIDES = (8, 16, 32)
SIDE, CLASSES, REG_MAX = 64, 4, 4
BATCHES, PER_BATCH = 50, 200
SPECIAL = np.array([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 88.8, -103.9, 0.5], np.float32)


def _manifest() -> Manifest:
    kinds = (("box", 4 * REG_MAX), ("class", CLASSES))
    return Manifest(
        engine="onnx",
        precision="fp32",
        files={},
        model_file="m",
        input=InputSpec("pixels", SIDE, SIDE),
        outputs=tuple(OutputSpec(f"{k}{s}", k, s, channels, "NCHW") for k, channels in kinds for s in STRIDES),
        reg_max=REG_MAX,
        class_names=tuple("abcd"),
        student={},
        tools={},
    )


def _float_values(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    kind = random.integers(7)
    if kind == 0:
        return random.normal(0, 10 ** random.uniform(-3, 3), shape).astype(np.float32)
    if kind == 1:
        return np.full(shape, random.choice(SPECIAL), np.float32)
    if kind == 2:  # any 32 bits whatever
        return random.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
    values = random.normal(0, 3, shape).astype(np.float32)
    if kind == 3:
        values[random.random(shape) < random.random()] = random.choice(SPECIAL)
    elif kind == 4:
        values = np.where(random.random(shape) < 0.3, random.choice(SPECIAL, shape), values)
    elif kind == 5:
        values[:, random.integers(shape[1])] = random.choice(SPECIAL)
    return values.astype(np.float32)


def _tensor(random: np.random.Generator, channels: int, stride: int) -> RawTensor | np.ndarray:
    cells = SIDE // stride
    layout = str(random.choice(["NHWC", "NCHW"]))
    shape = (1, cells, cells, channels) if layout == "NHWC" else (1, channels, cells, cells)
    kind = random.integers(4)
    if kind == 0:  # what `Engine.infer` gives
        return _float_values(random, (cells * cells, channels))
    if kind == 1:
        dtype = random.choice([np.int8, np.uint8])
        info = np.iinfo(dtype)
        extremes = random.choice([info.min, info.max], shape)
        levels = random.integers(info.min, info.max + 1, shape)
        values = (extremes if random.random() < 0.3 else levels).astype(dtype)
        zero_point = int(random.integers(info.min, info.max + 1))
        return RawTensor(values, layout, float(10 ** random.uniform(-6, 3)), zero_point)
    if kind == 2:
        with np.errstate(over="ignore"):
            return RawTensor(_float_values(random, shape).astype(np.float16), layout)
    return RawTensor(_float_values(random, shape), layout)


def _geometry(random: np.random.Generator) -> Letterbox:
    height, width = (int(10 ** random.uniform(0, 3.5)) for _ in range(2))
    return InputBuffer(SIDE, SIDE).fill(np.broadcast_to(np.uint8(0), (height, width, 3)))


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.with_engine(None, _manifest())  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_fuzzed_outputs_give_valid_detections(detector: Detector, batch: int) -> None:
    random = np.random.default_rng(batch)
    geometry = _geometry(random)
    sides = np.array([geometry.source_width, geometry.source_height] * 2)
    found = 0
    for case in range(PER_BATCH):
        detector.conf = float(random.choice([0.0, 0.001, 0.25, 0.5, 0.999, 1.0, random.random()]))
        detector.iou = float(random.choice([0.0, 0.7, 1.0, random.random()]))
        detector.max_det = int(random.choice([1, 5, 300]))
        detector.multi_label = bool(random.integers(2))
        outputs = [_tensor(random, channels, stride) for channels in (4 * REG_MAX, CLASSES) for stride in STRIDES]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a device's log is no place for numpy's remarks
            met = detector.postprocess(outputs, geometry)  # type: ignore[arg-type]
        assert len(met) <= detector.max_det, case
        assert met.boxes_xyxy.shape == (len(met), 4), case
        assert np.isfinite(met.boxes_xyxy).all(), case
        assert (met.boxes_xyxy >= 0).all(), case
        assert (met.boxes_xyxy <= sides).all(), case
        assert (met.boxes_xyxy[:, :2] <= met.boxes_xyxy[:, 2:]).all(), case
        assert (met.scores > detector.conf).all(), case
        assert (met.scores <= 1).all(), case
        assert (np.diff(met.scores) <= 0).all(), case
        assert ((met.class_ids >= 0) & (met.class_ids < CLASSES)).all(), case
        assert met.boxes_xyxy.dtype == met.scores.dtype == np.float32, case
        found += len(met)
    assert found > 0, "a run that finds nothing would pass whatever the code does"


PROTOTYPES = 6


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    found = tuple(OutputSpec(f"mask{s}", "mask", s, PROTOTYPES, "NCHW") for s in STRIDES)
    outputs = (*_manifest().outputs, *found, OutputSpec("prototype", "prototype", 4, PROTOTYPES, "NCHW"))
    return Segmenter.with_engine(None, replace(_manifest(), task="segment", outputs=outputs))  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", range(5))
def test_fuzzed_outputs_give_valid_masks(segmenter: Segmenter, batch: int) -> None:
    random = np.random.default_rng(1000 + batch)
    shapes = [(4 * REG_MAX, s) for s in STRIDES] + [(CLASSES, s) for s in STRIDES] + [(PROTOTYPES, s) for s in STRIDES]
    found = drawn = 0
    for case in range(60):
        height, width = (int(10 ** random.uniform(0, 2.3)) for _ in range(2))
        geometry = InputBuffer(SIDE, SIDE).fill(np.broadcast_to(np.uint8(0), (height, width, 3)))
        outputs = [_tensor(random, channels, stride) for channels, stride in (*shapes, (PROTOTYPES, 4))]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            met = segmenter.postprocess(outputs, geometry)  # type: ignore[arg-type]
        assert met.masks.shape == (len(met), height, width), case
        assert met.masks.dtype == np.bool_, case
        assert np.isfinite(met.boxes_xyxy).all(), case
        for mask, (left, top, right, bottom) in zip(met.masks, met.boxes_xyxy.tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            assert left <= columns.min() <= columns.max() < right, case
            assert top <= rows.min() <= rows.max() < bottom, case
            drawn += 1
        found += len(met)
    assert found == drawn > 0
