"""MNN's converter and quantization: what MNN itself computes is the reference."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MNN", reason="pip install mnn")
pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from deploy.bundle import Bundle
from deploy.mnn import CONVERTER, convert
from deploy.mnn_format import EightBits, describe, read_described
from deploy.mnn_quantize import eight_bits
from deploy.runtime import load_engine
from deploy.runtime.audit import executed

ROOT = Path(__file__).parents[2]
INPUT = EightBits(0.02, -100.0)


def test_the_wrapper_that_reports_to_its_makers_is_imported_nowhere() -> None:
    for file in [*ROOT.glob("deploy/**/*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("devices/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [f"{node.module}.{one.name}" for one in node.names] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("MNN.") for name in names), file


def test_neither_the_converter_nor_the_runtime_brings_it_along() -> None:
    asked = "import sys, MNN; sys.stderr.write(repr([one for one in sys.modules if one.startswith('MNN.tools')]))"
    for code in (f"{CONVERTER}; {asked}", asked):
        argv = [sys.executable, "-I", "-c", code, "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stderr == "[]"


def test_nothing_of_what_mnn_prints_reaches_stdout(bundles: Callable[[str, str], Path]) -> None:
    code = (
        "import sys, pathlib; from deploy.bundle import Bundle; from deploy.runtime import load_engine\n"
        "load_engine(Bundle.open(pathlib.Path(sys.argv[1])), 1); print('result')"
    )
    argv = [sys.executable, "-c", code, str(bundles("mnn", "fp16"))]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "result\n"


def test_every_opening_of_an_int8_bundle_gives_the_same_numbers(bundles: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(bundles("mnn", "int8"))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
    engines = [load_engine(bundle, threads=1) for _ in range(4)]
    first, *others = [engine.infer(pixels) for engine in engines]
    for other in others:
        for met, expected in zip(other, first, strict=True):
            np.testing.assert_array_equal(met, expected)


def test_max_poolings_and_what_reads_them_stay_float(bundles: Callable[[str, str], Path]) -> None:
    bundle = Bundle.open(bundles("mnn", "int8"))
    assert "model.9.cv2.conv" in (bundle.manifest.quantization or {})["float_layers"]
    pools = [one for one in executed(bundle, 1, runs=1).operators if one.kind == "Pooling"]
    assert [one.precision for one in pools] == ["FP32"] * 3


def test_w8_has_the_size_of_int8_and_is_computed_in_float(bundles: Callable[[str, str], Path]) -> None:
    small, whole = Bundle.open(bundles("mnn", "w8")), Bundle.open(bundles("mnn", "fp32"))
    assert small.size_bytes < 0.35 * whole.size_bytes
    assert {one.precision for one in executed(small, 1, runs=1).operators} == {"FP32"}
    assert small.manifest.verified["drift"]["box_p3"]["mean_abs"] < 0.2


# One convolution -----------------------------------------------------------------------------------------------------


def _convolution(weights: np.ndarray, bias: np.ndarray) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["y"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Neg", ["y"], ["z"], "negative"),  # so that the output is float
    ]
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [value("images", kind, [1, 8, 12, 12])], [value("z", kind, [1, 16, 12, 12])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    import MNN

    net = MNN.Interpreter(str(path))
    session = net.createSession({"backend": "CPU", "numThread": 1, "precision": 1})
    given = MNN.Tensor(images.shape, MNN.Halide_Type_Float, images, MNN.Tensor_DimensionType_Caffe)
    net.getSessionInput(session).copyFrom(given)
    net.runSession(session)
    made = net.getSessionOutput(session)
    shape = made.getShape()
    host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe)
    made.copyToHostTensor(host)
    return np.array(host.getNumpyData())


def test_a_quantized_convolution_computes_what_its_scales_and_zero_points_say(tmp_path: Path) -> None:
    import torch

    import deploy.mnn_quantize as module

    random = np.random.default_rng(0)
    weights, bias = random.normal(size=(16, 8, 3, 3)).astype(np.float32), random.normal(size=16).astype(np.float32)
    model = _convolution(weights, bias)
    images = ((random.integers(-128, 128, (1, 8, 12, 12)) - INPUT.zero) * INPUT.scale).astype(np.float32)
    steps = np.abs(weights).reshape(16, -1).max(axis=1)[:, None, None, None] / 127
    rounded = (np.rint(weights / steps) * steps).astype(np.float32)
    exact = torch.nn.functional.conv2d(*map(torch.from_numpy, (images, rounded, bias)), padding=1).numpy()

    low, high = -128 - INPUT.zero, 127 - INPUT.zero
    known = {"images": (low * INPUT.scale, high * INPUT.scale), "y": (float(exact.min()), float(exact.max()))}
    (node, stored), *_ = module._convolutions(model)
    convert(model, tmp_path / "c.mnn", list(module._entries(node, stored, model, known)))

    bits = eight_bits(known["y"])
    expected = (np.clip(np.rint(exact / bits.scale) + bits.zero, -128, 127) - bits.zero) * bits.scale
    off = np.abs(-_run(tmp_path / "c.mnn", images) - expected) / bits.scale
    assert off.max() < 1.01
    assert (off > 0.01).mean() < 0.01  # halves that are rounded the other way


def test_described_tensors_are_read_back_and_none_is_changed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = _convolution(random.normal(size=(16, 8, 3, 3)).astype(np.float32), np.zeros(16, np.float32))
    import deploy.mnn_quantize as module

    known = {"images": (-1.0, 2.0), "y": (-3.0, 5.0)}
    (node, stored), *_ = module._convolutions(model)
    convert(model, tmp_path / "c.mnn", list(module._entries(node, stored, model, known)))
    before = (tmp_path / "c.mnn").read_bytes()
    found = read_described(before)
    assert found["y"] == eight_bits((-3.0, 5.0)) == EightBits(float(np.float32(8 / 255)), -32.0)
    after = describe(before, {"z": EightBits(0.0625, 3.0), "y": EightBits(9.0, 9.0), "nowhere": EightBits(1.0, 0.0)})
    assert read_described(after) == found | {"z": EightBits(0.0625, 3.0)}
    (tmp_path / "d.mnn").write_bytes(after)
    images = random.normal(size=(1, 8, 12, 12)).astype(np.float32)
    met, expected = _run(tmp_path / "d.mnn", images), _run(tmp_path / "c.mnn", images)
    assert np.abs(met - expected).max() < 0.0625
    np.testing.assert_array_equal(met % 0.0625, 0)  # the output is in the new steps


def test_without_anything_described_a_model_stays_as_it_is(tmp_path: Path) -> None:
    convert(_convolution(np.ones((16, 8, 3, 3), np.float32), np.zeros(16, np.float32)), tmp_path / "c.mnn")
    content = (tmp_path / "c.mnn").read_bytes()
    assert describe(content, {"y": INPUT}) == content
    assert read_described(content) == {}
    convert(_convolution(np.ones((16, 8, 3, 3), np.float32), np.zeros(16, np.float32)), tmp_path / "again.mnn")
    assert (tmp_path / "again.mnn").read_bytes() == content
