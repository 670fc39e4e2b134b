"""What engines executed by their own account, and models that were built to fall back to float."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.audit import main
from deploy.bundle import MANIFEST_NAME, Bundle, Manifest, sha256_file
from deploy.errors import EngineError
from deploy.runtime.audit import Operator, audit_record, executed, judge
from deploy.runtime.audit.onnx_file import read_graph

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

CONVOLUTIONS = 63  # of YOLOv8-n without the one that its decode is made of
AUDITED = ("onnx", "openvino", "tflite", "mnn")


@pytest.fixture
def forged(tmp_path: Path) -> Callable[..., Bundle]:
    """A copy of a bundle with another manifest and perhaps another model file, whose hash is made to fit."""

    def forge(source: Path, model: Callable[[Path], None] = lambda path: None, **fields: object) -> Bundle:
        folder = tmp_path / f"forged-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        manifest = Bundle.open(folder).manifest
        model(folder / manifest.model_file)
        hashes = {name: sha256_file(folder / name) for name in manifest.files}
        changed = replace(manifest, files=hashes, **fields)
        (folder / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
        return Bundle.open(folder)

    return forge


def _audit(bundle: Bundle) -> dict[str, object]:
    return audit_record(bundle, 1, executed(bundle, 1, runs=1), every_operator=True)


# What is executed as claimed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", AUDITED)
def test_a_float_bundle_is_executed_in_fp32_by_every_convolution(engine: str, bundles) -> None:
    record = _audit(Bundle.open(bundles(engine, "fp32")))
    assert record["passed"]
    assert record["convolutions"] == {"FP32": CONVOLUTIONS}
    counted = f"{CONVOLUTIONS} of {CONVOLUTIONS} convolutions"
    assert record["verdict"] == f"executed as FP32: {counted}, 100.0 % of the multiplications"


@pytest.mark.parametrize("engine", AUDITED)
def test_an_int8_bundle_is_executed_in_int8_but_for_the_layers_of_its_recipe(engine: str, bundles) -> None:
    bundle = Bundle.open(bundles(engine, "int8"))
    record = _audit(bundle)
    kept = len((bundle.manifest.quantization or {"float_layers": ()})["float_layers"])
    assert record["passed"]
    assert record["convolutions"]["INT8"] == CONVOLUTIONS - kept
    assert record["convolutions"].get("FP32", 0) == kept
    assert record["share"] > 0.9


@pytest.mark.parametrize("engine", AUDITED)
def test_the_multiplications_are_those_of_the_network(engine: str, bundles, deployed_student) -> None:
    import torch

    from deploy.graph import load_graph

    graph = load_graph(deployed_student.checkpoint)
    expected = 0

    def count(module: torch.nn.Conv2d, _inputs: object, output: torch.Tensor) -> None:
        nonlocal expected
        expected += output.numel() * module.weight[0].numel()

    for module in graph.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        graph.network(torch.zeros(1, 3, 96, 96))
    for precision in ("fp32", "int8"):
        record = _audit(Bundle.open(bundles(engine, precision)))
        found = sum(one["macs"] for one in record["operators"])
        # ONNX Runtime fills the few class outputs up to the width of its vectors and multiplies those, too. For it the
        # stem of INT8 makes four outputs at once by a kernel of three times the width.
        most = {"fp32": 1.002, "int8": 1.03}[precision] if engine == "onnx" else 1
        assert expected <= found <= expected * most


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_that_tell_times_tell_them_of_every_convolution(engine: str, bundles) -> None:
    record = _audit(Bundle.open(bundles(engine, "fp32")))
    times = [one["seconds"] for one in record["operators"] if one["role"] == "convolution"]
    assert len(times) == CONVOLUTIONS
    assert all(0 <= time < 10 for time in times)
    assert sum(times) > 0


# Built to fall back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", AUDITED)
def test_a_float_model_that_is_labelled_int8_is_caught(engine: str, bundles, forged) -> None:
    record = _audit(forged(bundles(engine, "fp32"), precision="int8"))
    assert not record["passed"]
    assert record["convolutions"] == {"FP32": CONVOLUTIONS}
    assert record["verdict"].startswith("FALLS BACK, int8 is claimed; executed as INT8: 0 of 63 convolutions, 0.0 %")


@pytest.mark.parametrize("engine", AUDITED)
def test_an_int8_model_that_is_labelled_fp32_is_caught(engine: str, bundles, forged) -> None:
    record = _audit(forged(bundles(engine, "int8"), precision="fp32", quantization=None))
    assert not record["passed"]
    assert record["convolutions"]["INT8"] > 50


def test_onnx_with_quantized_weights_alone_is_caught(bundles, forged) -> None:
    record = _audit(forged(bundles("onnx", "int8"), lambda path: _without_pairs(path, after=None)))
    assert not record["passed"]
    # Nothing can be fused but the stem, whose input and output are bytes; the six last products are left with weights
    # of 8 bits alone, which is no convolution of any precision.
    assert record["convolutions"] == {"FP32": CONVOLUTIONS - 7, "INT8": 1}


def test_onnx_whose_convolutions_lack_the_pair_at_their_output_is_caught_and_explained(bundles, forged) -> None:
    record = _audit(forged(bundles("onnx", "int8"), lambda path: _without_pairs(path, after="Conv")))
    assert not record["passed"]
    assert record["convolutions"] == {"FP32": CONVOLUTIONS - 7, "INT8": 7}  # stem and products need none there
    reads = "float convolutions or products read what DequantizeLinear made of 8-bit values"
    assert f"{CONVOLUTIONS - 7} {reads}" in record["notes"]


def test_onnx_unoptimised_executes_int8_as_float(bundles, forged) -> None:
    bundle = forged(bundles("onnx", "int8"), engine_options={"graph_optimization": "disable"})
    record = _audit(bundle)
    assert (record["passed"], record["convolutions"]) == (False, {"FP32": CONVOLUTIONS})


def test_openvino_without_quantizers_of_the_activations_is_caught(bundles, forged) -> None:
    record = _audit(forged(bundles("openvino", "int8"), _without_quantizers))
    assert not record["passed"]
    assert record["convolutions"] == {"FP32": CONVOLUTIONS}


def test_openvino_that_is_let_run_float_in_bf16_is_caught(bundles, forged) -> None:
    bundle = forged(bundles("openvino", "fp32"), engine_options={"inference_precision": "bf16"})
    record = _audit(bundle)
    if "BF16" not in record["convolutions"]:
        pytest.skip("this processor has no instructions for bf16")
    assert (record["passed"], record["convolutions"]) == (False, {"BF16": CONVOLUTIONS})
    assert record["verdict"].startswith("FALLS BACK, fp32 is claimed; executed as FP32: 0 of 63")
    assert judge(replace(bundle.manifest, precision="bf16"), executed(bundle, 1, runs=1).operators).passed


def test_tflite_with_quantized_weights_alone_is_caught(bundles, forged) -> None:
    def quantize_weights(path: Path) -> None:
        from ai_edge_quantizer import quantizer, recipe

        made = quantizer.Quantizer(path.read_bytes(), recipe.dynamic_wi8_afp32()).quantize()
        path.write_bytes(bytes(made.quantized_model))

    record = _audit(forged(bundles("tflite", "fp32"), quantize_weights, precision="int8"))
    assert not record["passed"]
    assert record["convolutions"].get("INT8", 0) == 0
    assert record["convolutions"]["INT8 dynamic"] > 50


def test_tflite_without_xnnpack_is_caught_though_it_executes_int8(bundles, forged) -> None:
    record = _audit(forged(bundles("tflite", "int8"), engine_options={"xnnpack": False}))
    assert not record["passed"]
    assert record["convolutions"]["INT8"] == CONVOLUTIONS
    assert sum(one["accelerated"] for one in record["kinds"]) == 0
    assert "INT8: 63 of 63 convolutions, 63 of them by kernels that are not accelerated, 0.0 %" in record["verdict"]
    assert "XNNPACK took no operator: all ran by LiteRT's own kernels" in record["notes"]


def test_onnx_with_signed_activations_is_int8(forged, bundles) -> None:
    bundle = forged(bundles("onnx", "int8"), _signed_convolution)
    found = executed(bundle, 1, runs=1)
    assert [one.precision for one in found.operators if one.counts] == ["INT8"]


# The verdict ---------------------------------------------------------------------------------------------------------


def _operators(*counts: tuple[int, str, int]) -> list[Operator]:
    """`count` convolutions of a precision with so many multiplications each."""
    return [Operator("c", "Conv", "convolution", name, "k", macs) for count, name, macs in counts for _ in range(count)]


def _manifest(bundles: Callable[[str, str], Path], **fields: object) -> Manifest:
    return replace(Bundle.open(bundles("onnx", "fp32")).manifest, **fields)


def test_multiplications_count_not_layers(bundles) -> None:
    manifest = _manifest(bundles, precision="int8")
    most_layers = judge(manifest, _operators((9, "INT8", 10), (1, "FP32", 11)))
    assert (most_layers.passed, round(most_layers.share, 4)) == (False, round(90 / 101, 4))
    exactly = judge(manifest, _operators((9, "INT8", 10), (1, "FP32", 10)))
    assert (exactly.passed, exactly.share) == (True, 0.9)


def test_what_the_recipe_keeps_in_float_is_excused_and_no_more(bundles) -> None:
    manifest = _manifest(bundles, precision="int8", quantization={"float_layers": ["model.0.conv", "model.1.conv"]})
    kept = judge(manifest, _operators((4, "INT8", 10), (2, "FP32", 50)))
    assert kept.passed
    assert (
        kept.text
        == "executed as INT8: 4 of 6 convolutions, 28.6 % of the multiplications; 2 in FP32, 2 of them by recipe"
    )
    assert not judge(manifest, _operators((4, "INT8", 10), (3, "FP32", 50))).passed


def test_a_bundle_without_convolutions_has_no_verdict_to_pass(bundles) -> None:
    verdict = judge(_manifest(bundles), [Operator("a", "Add", "other", "FP32", "k")])
    assert (verdict.passed, verdict.text) == (False, "no convolution was executed: nothing to judge")


def test_an_engine_that_does_not_tell_is_refused_in_one_line(bundles) -> None:
    bundle = Bundle.open(bundles("onnx", "fp32"))
    with pytest.raises(EngineError, match=r"^abacus does not tell what it executes; those that do are onnx, "):
        executed(replace(bundle, manifest=replace(bundle.manifest, engine="abacus")), 1)


# The command line ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_ends_with_0(bundles, capsys) -> None:
    assert main([str(bundles("onnx", "int8")), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("onnx-int8: onnxruntime ")
    assert lines[1].split()[:3] == ["operator", "count", "INT8"]
    assert lines[2].split()[:3] == ["QLinearConv", "57", "57"]
    assert lines[-1].startswith("executed as INT8: 63 of 63 convolutions")


def test_the_command_ends_with_1_and_names_the_bundles_that_fall_back(bundles, forged, capsys) -> None:
    bundle = forged(bundles("onnx", "fp32"), precision="int8")
    assert main([str(bundles("onnx", "fp32")), str(bundle.path), "--json", "--threads", "1"]) == 1
    printed = capsys.readouterr()
    first, second = (json.loads(line) for line in printed.out.splitlines())
    assert (first["passed"], second["passed"]) == (True, False)
    assert len([one for one in second["operators"] if one["role"] == "convolution"]) == CONVOLUTIONS
    assert printed.err.splitlines()[-1] == f"error: 1 of 2 bundles do not run as they claim: {bundle.path.name}"


def test_what_is_no_bundle_is_one_line(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 1
    assert "is no bundle" in capsys.readouterr().err


# The reader of ONNX files --------------------------------------------------------------------------------------------


def test_the_reader_agrees_with_the_onnx_package(bundles) -> None:
    import onnx

    for precision in ("fp32", "int8"):
        path = bundles("onnx", precision) / "model.onnx"
        graph = onnx.load(path).graph
        read = read_graph(path.read_bytes())
        assert {name: (one.op_type, one.inputs, one.outputs) for name, one in read.nodes.items()} == {
            node.name: (node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node
        }
        assert read.constants == {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def test_the_reader_refuses_what_is_cut_off_or_is_no_onnx_file(bundles) -> None:
    data = (bundles("onnx", "fp32") / "model.onnx").read_bytes()
    for broken in (data[: len(data) // 2], b"<xml/>", b"\xff" * 64, data[:-1]):
        with pytest.raises(ValueError, match="no ONNX file"):
            read_graph(broken)


# Models that cannot be executed in int8 ------------------------------------------------------------------------------


def _without_pairs(path: Path, after: str | None) -> None:
    """Take QuantizeLinear with its DequantizeLinear out of the graph: behind nodes of one kind, or everywhere."""
    import onnx

    model = onnx.load(path)
    nodes = list(model.graph.node)
    makers = {output: node for node in nodes for output in node.output}
    replaced = {}
    for node in nodes:
        quantize = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            made_by = makers.get(quantize.input[0])
            if after is None or (made_by is not None and made_by.op_type == after):
                replaced[node.output[0]] = quantize.input[0]
    assert replaced
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = replaced.get(name, name)
    onnx.save(model, path)


def _without_quantizers(path: Path) -> None:
    """Take every FakeQuantize out of an OpenVINO model."""
    import openvino

    model = openvino.Core().read_model(path)
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "FakeQuantize":
            operation.output(0).replace(operation.input_value(0))
    changed = path.with_name("changed.xml")
    openvino.save_model(model, changed, compress_to_fp16=False)
    del model
    changed.replace(path)
    changed.with_suffix(".bin").replace(path.with_suffix(".bin"))


def _signed_convolution(path: Path) -> None:
    """One convolution between int8 pairs, on uint8 pixels (1, 96, 96, 3)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    constants = {
        "step": np.float32(0.1),
        "zero": np.int8(0),
        "weight_steps": np.full(16, 0.01, np.float32),
        "weight_zeros": np.zeros(16, np.int8),
        "weights": random.integers(-99, 99, (16, 3, 3, 3)).astype(np.int8),
    }
    make = helper.make_node
    nodes = [
        make("Transpose", ["pixels"], ["nchw"], "t", perm=[0, 3, 1, 2]),
        make("Cast", ["nchw"], ["x"], "c", to=TensorProto.FLOAT),
        make("QuantizeLinear", ["x", "step", "zero"], ["xq"], "q"),
        make("DequantizeLinear", ["xq", "step", "zero"], ["xd"], "d"),
        make("DequantizeLinear", ["weights", "weight_steps", "weight_zeros"], ["wd"], "w", axis=0),
        make("Conv", ["xd", "wd"], ["y"], "conv", kernel_shape=[3, 3]),
        make("QuantizeLinear", ["y", "step", "zero"], ["yq"], "yq"),
        make("DequantizeLinear", ["yq", "step", "zero"], ["out"], "yd"),
    ]
    graph = helper.make_graph(
        nodes,
        "signed",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 96, 96, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 16, 94, 94])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
