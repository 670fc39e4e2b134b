"""Recipes of quantization: what is asked, what each target makes of it, and what its manifest says."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

from deploy.build import build_bundle
from deploy.bundle import Bundle
from deploy.errors import CalibrationError, DeployError, ExportError
from deploy.quantization import RANGE_METHODS, Quantization, parse_layers, parse_ranges
from deploy.student import find_student

QUANTIZING = ("onnx", "openvino", "tflite")


@pytest.fixture(params=QUANTIZING)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def _build(engine: str, student, out: Path, precision: str = "int8", **options: object) -> Bundle:
    target = import_module(f"deploy.{engine}").TARGET
    return build_bundle(target, find_student(student.run), out, precision=precision, max_drop_points=100, **options)


# What is asked ------------------------------------------------------------------------------------------------------


def test_ranges_are_read_with_their_percentile() -> None:
    assert parse_ranges("mse") == ("mse", 99.99)
    assert parse_ranges("percentile") == ("percentile", 99.99)
    assert parse_ranges("percentile:99.9") == ("percentile", 99.9)
    for text in ("percentile:40", "percentile:101", "percentile:x", "median"):
        with pytest.raises(ExportError, match=r"percentile (40|101): expected|give one of mean-minmax, minmax"):
            parse_ranges(text)


def test_float_layers_are_read_as_a_list_and_none_is_not_the_default() -> None:
    assert parse_layers("model.0, model.22.cv2.0,") == ("model.0", "model.22.cv2.0")
    assert parse_layers("none") == ()
    assert Quantization().float_layers is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ranges", "mse"], "--ranges is of use with int8 or w8a16 alone"),
        (["--fp16", "--float-layers", "model.0"], "--float-layers is of no use with fp16"),
        (["--int8", "--precision", "fp16"], "not allowed with"),
        (["--precision", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_wrong_usage(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module("deploy.onnx").main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_precision_that_a_target_has_not_is_refused_with_those_that_it_has(deployed_student, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnx has no w8a16: give --precision fp32, fp16, int8"):
        _build("onnx", deployed_student, tmp_path / "b", "w8a16")


# What the targets make of it ----------------------------------------------------------------------------------------


def test_a_manifest_records_the_recipe_with_the_targets_own_choices(engine: str, bundles) -> None:
    assert Bundle.open(bundles(engine, "fp32")).manifest.quantization is None
    recipe = Bundle.open(bundles(engine, "int8")).manifest.quantization
    assert recipe["ranges"] == "fisher"
    assert recipe["float_layers"] == []


def _float_convolutions(bundle: Bundle) -> int:
    """How many convolutions have float weights."""
    model = bundle.model_path
    if bundle.manifest.engine == "onnx":
        import onnx

        graph = onnx.load(model).graph
        made = {output: node.op_type for node in graph.node for output in node.output}
        return sum(made.get(node.input[1]) != "DequantizeLinear" for node in graph.node if node.op_type == "Conv")
    if bundle.manifest.engine == "openvino":
        import openvino

        kinds = [
            op.input_value(1).get_node().get_type_name()
            for op in openvino.Core().read_model(model).get_ordered_ops()
            if op.get_type_name() == "Convolution"
        ]
        return sum(kind in ("Constant", "Convert") for kind in kinds)
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.read_bytes()))
    (graph,) = content.subgraphs
    kind = schema.BuiltinOperator.CONV_2D
    found = [one for one in graph.operators if content.operatorCodes[one.opcodeIndex].builtinCode == kind]
    return sum(graph.tensors[one.inputs[1]].type == schema.TensorType.FLOAT32 for one in found)


def test_named_layers_and_no_others_stay_in_float(engine: str, bundles, deployed_student, tmp_path: Path) -> None:
    """The stem, the branch of one level with its output, and a whole C2f with what lies between its layers."""
    recipe = Quantization(float_layers=("model.0", "model.22.cv2.0", "model.2"))
    bundle = _build(engine, deployed_student, tmp_path / "mixed", quantization=recipe)
    assert len(bundle.manifest.quantization["float_layers"]) == 1 + 3 + 4
    assert _float_convolutions(bundle) == 8
    assert _float_convolutions(Bundle.open(bundles(engine, "int8"))) == 0


def test_an_unknown_float_layer_is_refused_with_the_known_blocks(engine: str, deployed_student, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no layer 'model\.99': give some of model\.0, model\.1"):
        _build(engine, deployed_student, tmp_path / "b", quantization=Quantization(float_layers=("model.99",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [method for method in RANGE_METHODS if method != "fisher"])
def test_every_method_of_ranges_reaches_the_bundle(
    engine: str, method: str, bundles, deployed_student, tmp_path: Path
) -> None:
    bundle = _build(engine, deployed_student, tmp_path / "b", quantization=Quantization(ranges=method, percentile=99.0))
    assert bundle.manifest.quantization["ranges"] == method
    assert bundle.manifest.quantization.get("percentile") == (99.0 if method == "percentile" else None)
    default = Bundle.open(bundles(engine, "int8")).manifest
    assert bundle.manifest.files != default.files
    assert max(one["mean_abs"] for one in bundle.manifest.verified["drift"].values()) < 1.0


@pytest.mark.parametrize(
    ("target", "precision", "most_size", "most_drift"),
    [
        ("openvino", "bf16", 0.6, 0.2),
        ("openvino", "w8", 0.4, 0.2),
        ("tflite", "w8", 0.4, 0.2),
        ("tflite", "dynamic", 0.4, 0.5),
        ("tflite", "w8a16", 0.4, 0.2),
    ],
)
def test_further_precisions_are_near_their_student_and_small(
    target: str, precision: str, most_size: float, most_drift: float, bundles
) -> None:
    bundle = Bundle.open(bundles(target, precision))
    assert bundle.manifest.precision == precision
    assert (bundle.manifest.calibration is not None) == (precision == "w8a16")
    assert bundle.size_bytes < most_size * Bundle.open(bundles(target, "fp32")).size_bytes
    assert max(one["mean_abs"] for one in bundle.manifest.verified["drift"].values()) < most_drift


def test_one_changed_calibration_image_changes_the_list_and_the_model(
    engine: str, bundles, deployed_student, tmp_path: Path
) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    shutil.copytree(deployed_student.data_yaml.parent / "images/train", folder)
    with Image.open(folder / "3.png") as opened:
        changed = opened.point(lambda value: 255 - value)
    changed.save(folder / "3.png")
    bundle = _build(engine, deployed_student, tmp_path / "b", calibration=folder, verify=False)
    first = Bundle.open(bundles(engine, "int8")).manifest
    differing = [
        index
        for index, pair in enumerate(
            zip(first.calibration["images"], bundle.manifest.calibration["images"], strict=True)
        )
        if pair[0] != pair[1]
    ]
    assert differing == [3]
    assert bundle.manifest.calibration["list_sha256"] != first.calibration["list_sha256"]
    assert bundle.manifest.files != first.files


# What is refused or warned of ---------------------------------------------------------------------------------------


def test_a_single_calibration_image_is_warned_of(deployed_student, tmp_path: Path, capfd) -> None:
    _build("onnx", deployed_student, tmp_path / "b", calibration_images=1, verify=False)
    assert "warning: the ranges of 1 calibration image fit few others: give 8" in capfd.readouterr().err


def test_a_training_image_that_is_a_validation_image_too_is_named_with_its_twin(
    deployed_student, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(deployed_student.data_yaml.parent, data)
    shutil.copyfile(data / "images/val/2.png", data / "images/train/5.png")
    yaml = data / deployed_student.data_yaml.name
    with pytest.raises(CalibrationError) as caught:
        _build("onnx", deployed_student, tmp_path / "b", calibration=yaml)
    text = str(caught.value)
    assert f"1 of 8 calibration images are validation images too (first: {data}/images/train/5.png is " in text
    assert "/images/val/2.png, byte for byte): remove one of each pair from the data set, or give --calibration" in text


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_an_operation_that_the_target_has_not_is_one_line(
    target: str, deployed_student, tmp_path: Path, monkeypatch
) -> None:
    import torch

    from deploy.graph_detect import RawHeads

    forward = RawHeads.forward
    monkeypatch.setattr(
        RawHeads, "forward", lambda self, images: forward(self, torch.special.bessel_j0(images) + images)
    )
    with pytest.raises(DeployError, match=r"bessel_j0") as caught:
        _build(target, deployed_student, tmp_path / "b", "fp32", verify=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_bundle_names_the_layers_to_blame(deployed_student, tmp_path: Path) -> None:
    target = import_module("deploy.onnx").TARGET
    with pytest.raises(DeployError, match=r"cost most: give --float-layers model\.\d+") as caught:
        build_bundle(target, find_student(deployed_student.run), tmp_path / "b", precision="int8", max_drop_points=0.0)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_the_command_line_has_the_recipe_that_was_asked_for(
    deployed_student, tmp_path: Path, capfd
) -> None:
    arguments = ["--student", str(deployed_student.run), "--out", str(tmp_path / "b"), "--no-verify", "--json"]
    recipe = ["--precision", "int8", "--ranges", "percentile:99.5", "--float-layers", "model.0"]
    assert import_module("deploy.onnx").main([*arguments, *recipe]) == 0
    manifest = json.loads(capfd.readouterr().out)["manifest"]
    assert manifest["precision"] == "int8"
    assert manifest["quantization"] == {"ranges": "percentile", "percentile": 99.5, "float_layers": ["model.0.conv"]}
