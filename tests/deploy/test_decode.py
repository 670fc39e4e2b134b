from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.bundle import InputSpec, Manifest, OutputSpec
from deploy.runtime.decode import decode
from deploy.runtime.tensors import RawTensor

STRIDES = (8, 16, 32)
CLASSES = 3
REG_MAX = 16


def _manifest(height: int = 64, width: int = 96) -> Manifest:
    outputs = [OutputSpec(f"box_{s}", "box", s, 4 * REG_MAX, "NCHW") for s in STRIDES]
    outputs += [OutputSpec(f"class_{s}", "class", s, CLASSES, "NCHW") for s in STRIDES]
    return Manifest(
        engine="onnx",
        precision="fp32",
        files={"m": "0"},
        model_file="m",
        input=InputSpec("pixels", height, width),
        outputs=tuple(outputs),
        reg_max=REG_MAX,
        class_names=("a", "b", "c"),
        student={},
        tools={},
    )


def _outputs(manifest: Manifest, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = [(manifest.input.height // o.stride) * (manifest.input.width // o.stride) for o in manifest.outputs]
    return [
        rng.normal(0, 2, (n, spec.channels)).astype(np.float32) for n, spec in zip(cells, manifest.outputs, strict=True)
    ]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("conf", [0.001, 0.25, 0.9])
def test_every_candidate_equals_that_of_the_ultralytics_head(multi_label: bool, conf: float) -> None:
    torch = pytest.importorskip("torch")
    head = pytest.importorskip("ultralytics.nn.modules.head")
    manifest = _manifest()
    outputs = _outputs(manifest)
    detect = head.Detect(nc=CLASSES, ch=(8, 8, 8)).eval()
    detect.stride = torch.tensor([8.0, 16.0, 32.0])
    detect.xyxy = True
    grids = [torch.zeros(1, 8, 64 // s, 96 // s) for s in STRIDES]
    predictions = {
        "boxes": torch.from_numpy(np.concatenate(outputs[:3]).T.copy())[None],
        "scores": torch.from_numpy(np.concatenate(outputs[3:]).T.copy())[None],
        "feats": grids,
    }
    reference = detect._inference(predictions)[0].detach().numpy().T
    if multi_label:
        rows, classes = np.nonzero(reference[:, 4:] > conf)
    else:
        rows = np.flatnonzero(reference[:, 4:].max(1) > conf)
        classes = reference[rows, 4:].argmax(1)
    found = decode(outputs, manifest, conf, multi_label)
    boxes, scores, class_ids = found.boxes_xyxy, found.scores, found.class_ids
    assert class_ids.tolist() == classes.tolist()
    np.testing.assert_allclose(scores, reference[rows, 4 + classes], atol=1e-6)
    np.testing.assert_allclose(boxes, reference[rows, :4], atol=1e-3)


def test_a_distribution_on_one_bin_gives_that_distance_times_the_stride() -> None:
    manifest = _manifest()
    outputs = [np.full_like(o, -50.0) for o in _outputs(manifest)]
    cell = 1 * 12 + 2  # row 1, column 2 of the stride-8 level
    for side, distance in enumerate((1, 0, 3, 5)):
        outputs[0][cell, side * REG_MAX + distance] = 50.0
    outputs[3][cell, 2] = 3.0
    found = decode(outputs, manifest, 0.25, False)
    boxes, scores, class_ids = found.boxes_xyxy, found.scores, found.class_ids
    np.testing.assert_allclose(boxes, [[(2.5 - 1) * 8, 1.5 * 8, (2.5 + 3) * 8, (1.5 + 5) * 8]], atol=1e-4)
    assert scores[0] == pytest.approx(1 / (1 + math.exp(-3)))
    assert class_ids.tolist() == [2]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_cells_with_nan_or_infinity_make_no_candidate(poison: float) -> None:
    manifest = _manifest()
    outputs = _outputs(manifest)
    for output in outputs:
        output[::3] = poison
    found = decode(outputs, manifest, 0.001, True)
    assert np.isfinite(found.boxes_xyxy).all()
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_threshold_between_two_numbers_of_a_tensors_type_loses_neither(dtype: type) -> None:
    values = np.array([-6.91015625, -6.90625, -6.90234375, np.nan], dtype).reshape(1, 1, 2, 2)
    tensor = RawTensor(values, "NCHW")
    assert tensor.above(-6.9077).tolist() == [1, 2]  # the nearest number of 16 bits is -6.90625, a score of 0.001
    assert tensor.above(-6.90625).tolist() == [2]
    assert tensor.above(-math.inf).tolist() == [0, 1, 2]
    assert tensor.above(math.inf).tolist() == []


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_tensor_looked_through_again_shows_nothing_of_the_time_before(layout: str) -> None:
    shape = (1, 8, 9, 7) if layout == "NCHW" else (1, 9, 7, 8)
    values = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    tensor = RawTensor(values, layout, 0.05, 3)
    cells = tensor.cells().max(axis=1)
    # Few and many cells are found in two ways, in the same memory; the engine then overwrites the values.
    for least in (6.12, 4.02, 6.12, -9.0, 9.0, 5.92):
        assert tensor.above(least).tolist() == np.flatnonzero(cells > least).tolist()
    values[...] = -128
    assert tensor.above(-6.5).tolist() == []


@pytest.mark.parametrize(("conf", "expected"), [(0.0, "all"), (1.0, "none")])
def test_the_ends_of_the_threshold_range_work(conf: float, expected: str) -> None:
    manifest = _manifest()
    outputs = _outputs(manifest)
    found = decode(outputs, manifest, conf, False)
    assert len(found.scores) == (sum(len(o) for o in outputs[:3]) if expected == "all" else 0)
