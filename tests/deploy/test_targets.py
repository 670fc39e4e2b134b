"""The three targets from the command line: what a bundle says, what is refused, and that nothing half-made is left."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

import deploy.onnx
import deploy.tflite
from deploy import build
from deploy.bundle import ENGINES, Bundle, sha256_file
from deploy.cli import run_command, whole_folder
from deploy.command import run_target
from deploy.runtime import Detector
from deploy.runtime.options import OPTIONS
from deploy.target import Compiled, Job, Target

Main = Callable[[list[str]], int]

PRECISIONS = ("fp32", "fp16", "int8")  # what every target has
CHANNELS_FIRST = ("ncnn", "mnn")  # engines that know no other layout


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def _main(engine: str) -> Main:
    return import_module(f"deploy.{engine}").main


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


# What a bundle says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_manifest_is_complete(engine: str, precision: str, bundles, deployed_student) -> None:
    manifest = Bundle.open(bundles(engine, precision)).manifest
    assert (manifest.engine, manifest.precision, manifest.task) == (engine, precision, "detect")
    layout = "NCHW" if engine in CHANNELS_FIRST else "NHWC"
    assert (manifest.input.height, manifest.input.width, manifest.input.layout) == (96, 96, layout)
    assert manifest.class_names == ("red", "green", "blue")
    assert manifest.engine_options == {
        name: option.default for name, option in OPTIONS[engine].items() if name != "model_cache"
    }
    assert manifest.student["name"] == "tiny"
    assert manifest.student["sha256"] == sha256_file(deployed_student.checkpoint)
    assert manifest.student["teacher"] == {"file": "teacher.pt", "sha256": "0" * 64}
    assert 2_500_000 < manifest.student["parameters"] < 3_500_000
    assert manifest.data_yaml == str(deployed_student.data_yaml)
    assert {"python", "torch", "ultralytics"} < set(manifest.tools)
    assert all(version[0].isdigit() for version in manifest.tools.values())
    if precision == "int8":
        assert manifest.calibration["source"] == "drawn/train"
        assert (manifest.calibration["count"], manifest.calibration["in_validation"]) == (8, 0)
    else:
        assert manifest.calibration is None


def test_all_targets_are_calibrated_on_the_same_list(bundles) -> None:
    lists = [Bundle.open(bundles(engine, "int8")).manifest.calibration for engine in ENGINES]
    assert all(one == lists[0] for one in lists)


@pytest.mark.parametrize(
    ("precision", "most_points", "most_drift"), [("fp32", 0.01, 1e-4), ("fp16", 5.0, 0.1), ("int8", 30.0, 0.6)]
)
def test_a_manifest_says_how_near_the_bundle_is_to_its_student(
    engine: str, precision: str, most_points: float, most_drift: float, bundles
) -> None:
    verified = Bundle.open(bundles(engine, precision)).manifest.verified
    assert (verified["images"], verified["dataset"]) == (6, "drawn/val")
    assert verified["student_map50_95"] > 0.95  # the labels are its own detections
    drop_points = 100 * (verified["student_map50_95"] - verified["bundle_map50_95"])
    assert verified["drop_points"] == pytest.approx(drop_points)
    assert abs(drop_points) < most_points
    assert list(verified["drift"]) == sorted(["box_p3", "box_p4", "box_p5", "class_p3", "class_p4", "class_p5"])
    assert max(one["mean_abs"] for one in verified["drift"].values()) < most_drift
    assert all(one["max_abs"] >= one["mean_abs"] for one in verified["drift"].values())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "uint8"), ("fp16", "uint8"), ("int8", "uint8")])
def test_onnx_and_openvino_take_pixels_as_they_are(precision: str, dtype: str, bundles) -> None:
    for engine in ("onnx", "openvino"):
        assert Bundle.open(bundles(engine, precision)).manifest.input.dtype == dtype


def test_tflite_takes_float_or_int8_as_its_precision(bundles) -> None:
    dtypes = [Bundle.open(bundles("tflite", precision)).manifest.input.dtype for precision in PRECISIONS]
    assert dtypes == ["float32", "float32", "int8"]


def test_int8_is_a_quarter_and_fp16_half_the_size(engine: str, bundles) -> None:
    fp32, fp16, int8 = (Bundle.open(bundles(engine, precision)).size_bytes for precision in PRECISIONS)
    assert 0.48 < fp16 / fp32 < 0.6
    assert 0.24 < int8 / fp32 < 0.4


def test_every_convolution_runs_on_int8_in_onnx_the_last_six_as_products_with_float_outputs(bundles) -> None:
    import onnx

    graph = onnx.load(bundles("onnx", "int8") / "model.onnx").graph
    dequantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert all(set(node.input[:2]) <= dequantized for node in layers)
    products = {node.output[0] for node in layers if node.op_type == "Gemm"}
    assert (len(layers), len(products)) == (63, 6)
    outputs = {output.name for output in graph.output}
    assert {node.output[0] for node in graph.node if products & set(node.input)} == outputs


def test_every_convolution_runs_on_int8_in_tflite(bundles) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(
        schema.Model.GetRootAs((bundles("tflite", "int8") / "model.tflite").read_bytes())
    )
    graph = content.subgraphs[0]
    codes = [code.builtinCode for code in content.operatorCodes]
    convolutions = [one for one in graph.operators if codes[one.opcodeIndex] == schema.BuiltinOperator.CONV_2D]
    kinds = {tuple(graph.tensors[index].type for index in (*one.inputs[:2], *one.outputs)) for one in convolutions}
    assert len(convolutions) == 63
    assert kinds == {(schema.TensorType.INT8,) * 3}


def test_every_convolution_runs_on_int8_in_openvino(bundles) -> None:
    import openvino

    def quantized(output) -> bool:
        node = output.get_node()
        if node.get_type_name() in ("Concat", "MaxPool"):  # these hand int8 on as it is
            return all(quantized(source) for source in node.input_values())
        if node.get_type_name() == "Slice":
            return quantized(node.input_value(0))
        return node.get_type_name() == "FakeQuantize"

    model = openvino.Core().read_model(bundles("openvino", "int8") / "model.xml")
    convolutions = [op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    assert len(convolutions) == 63
    assert all(quantized(op.input_value(0)) for op in convolutions)


def test_nothing_is_quantized_between_a_convolution_and_its_silu_in_openvino(bundles) -> None:
    import openvino

    model = openvino.Core().read_model(bundles("openvino", "int8") / "model.xml")
    swishes = [op for op in model.get_ordered_ops() if op.get_type_name() == "Swish"]
    assert len(swishes) == 57
    assert not [op for op in model.get_ops() if op.get_type_name() == "Sigmoid"]
    for swish in swishes:
        before = swish.input_value(0).get_node()
        if before.get_type_name() == "Add":  # the bias, where it is not zero
            before = before.input_value(0).get_node()
        assert before.get_type_name() == "Convolution"


@pytest.mark.parametrize("name", ENGINES)
def test_the_same_student_gives_the_same_bundle_byte_for_byte(name: str, bundles, deployed_student, tmp_path) -> None:
    arguments = [
        "--student",
        str(deployed_student.run),
        "--int8",
        "--max-drop",
        "100",
        "--out",
        str(tmp_path / "again"),
    ]
    assert _main(name)(arguments) == 0
    first, second = bundles(name, "int8"), tmp_path / "again"
    assert _left(first) == _left(second)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_a_bundle_finds_what_its_student_finds(bundles, deployed_student) -> None:
    image = deployed_student.data_yaml.parent / "images/val/1.png"
    reference, *others = (Detector(bundles(engine, "fp32"), conf=0.05, threads=1)(image) for engine in ENGINES)
    assert len(reference) > 3
    for found in others:
        assert found.class_ids.tolist() == reference.class_ids.tolist()
        assert abs(found.boxes_xyxy - reference.boxes_xyxy).max() < 0.01


# The command line ---------------------------------------------------------------------------------------------------


def test_the_newest_student_is_deployed_to_a_named_folder_and_the_next_command_told(
    deployed_student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(deployed_student.run, tmp_path / "runs/distill/cells")
    monkeypatch.chdir(tmp_path)
    assert deploy.onnx.main([]) == 0
    assert deploy.onnx.main([]) == 0
    printed = capfd.readouterr()
    folders = ["runs/deploy/cells-onnx-fp32", "runs/deploy/cells-onnx-fp32-2"]
    assert printed.out.splitlines() == folders
    assert printed.err.splitlines()[-1] == "next: python bench/run.py"
    assert "verifying on 6 images of drawn/val" in printed.err
    assert all(Bundle.open(folder).manifest.student["name"] == "cells" for folder in folders)


def test_json_prints_the_manifest_and_nothing_else(deployed_student, tmp_path: Path, capfd) -> None:
    out = tmp_path / "my bundle"
    assert deploy.onnx.main(["--student", str(deployed_student.run), "--out", str(out), "--json", "--no-verify"]) == 0
    streams = capfd.readouterr()
    printed = json.loads(streams.out)
    assert printed["bundle"] == str(out)
    assert streams.err.splitlines()[-1] == f"next: python bench/run.py --bundle '{out}'"
    assert printed["size_bytes"] == (out / "model.onnx").stat().st_size
    assert printed["manifest"] == json.loads((out / "manifest.json").read_text())
    assert printed["manifest"]["verified"] is None


def test_another_input_size_can_be_asked_for(deployed_student, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["--student", str(deployed_student.run), "--out", str(out), "--imgsz", "64", "--no-verify"]
    assert deploy.onnx.main(arguments) == 0
    assert Bundle.open(out).manifest.input.height == 64


def test_a_bare_checkpoint_is_verified_on_the_data_set_it_is_calibrated_with(deployed_student, tmp_path: Path) -> None:
    shutil.copyfile(deployed_student.checkpoint, tmp_path / "mine.pt")
    out = tmp_path / "bundle"
    arguments = ["--student", str(tmp_path / "mine.pt"), "--calibration", str(deployed_student.data_yaml)]
    assert (
        deploy.onnx.main([*arguments, "--calibration-images", "3", "--int8", "--max-drop", "100", "--out", str(out)])
        == 0
    )
    manifest = Bundle.open(out).manifest
    assert (manifest.student["name"], manifest.student["teacher"]) == ("mine", None)
    assert manifest.calibration["count"] == 3
    assert manifest.verified["dataset"] == "drawn/val"
    assert manifest.data_yaml == str(deployed_student.data_yaml)


def test_without_a_validation_set_a_bundle_is_told_to_be_unverified(deployed_student, tmp_path: Path, capfd) -> None:
    shutil.copyfile(deployed_student.checkpoint, tmp_path / "mine.pt")
    assert deploy.onnx.main(["--student", str(tmp_path / "mine.pt"), "--out", str(tmp_path / "bundle")]) == 0
    assert "not verified: no validation set is known" in capfd.readouterr().err
    assert Bundle.open(tmp_path / "bundle").manifest.verified is None


def test_help_names_every_flag(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _main(engine)(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        "student",
        "int8",
        "fp16",
        "precision",
        "ranges",
        "float-layers",
        "calibration",
        "calibration-images",
        "imgsz",
        "out",
        "max-drop",
        "no-verify",
    ):
        assert f"--{flag}" in text


def test_help_needs_no_exporter(engine: str, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'ultralytics', 'onnx', 'openvino', 'yaml')));"
    code = f"{blocked} from deploy.{engine} import main; main(['--help'])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--int8", "--fp16"], "not allowed with"),
        (["--imgsz", "large"], "'large': expected a whole number, at least 1"),
        (["--imgsz", "0"], "'0': expected a whole number, at least 1"),
        (["--max-drop", "much"], "'much': expected a number from 0 to 100"),
        (["--max-drop", "-1"], "'-1': expected a number from 0 to 100"),
        (["--max-drop", "nan"], "'nan': expected a number from 0 to 100"),
        (["--calibration-images", "0", "--int8"], "'0': expected a whole number, at least 1"),
        (["--calibration", "some/folder"], "of use with int8 or w8a16 alone"),
        (["--quantize"], "--quantize"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_the_usage(arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        deploy.onnx.main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "usage: python -m deploy.onnx" in told
    assert words in told


def _refusal(main: Main, arguments: list[str], out: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with; checks that nothing was left and nothing printed as a result."""
    capfd.readouterr()  # a bundle made just now for this test has been told of
    assert main([*arguments, "--out", str(out)]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in printed.err
    assert not out.exists()
    assert [name for name in _left(out.parent) if "partial" in name] == []
    return lines[0]


def test_an_existing_output_is_refused_and_left_alone(engine: str, deployed_student, tmp_path: Path, capfd) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert _main(engine)(["--student", str(deployed_student.run), "--out", str(tmp_path / "mine")]) == 1
    assert "already exists: choose another --out" in capfd.readouterr().err
    assert _left(tmp_path) == ["mine", "notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--student", "nothing.pt"], "no student nothing.pt"),
        (["--student", "STUDENT", "--imgsz", "100"], "image size 100 is not a multiple of 32: give --imgsz 96"),
        (
            ["--student", "STUDENT", "--int8", "--calibration", "nothing.yaml"],
            "no --calibration nothing.yaml: check the path",
        ),
        (["--student", "STUDENT", "--int8", "--calibration", "VAL"], "6 of 6 calibration images are validation images"),
        (["--student", "STUDENT", "--int8", "--calibration", "EMPTY"], "holds no images"),
        (["--student", "BARE", "--int8"], "has no student.json that names its training images"),
        (["--student", "BARE", "--calibration", "OTHER"], "has the 2 classes cat, dog, the student the 3 classes"),
        (["--student", "BARE", "--calibration", "UNLABELLED"], "has no labelled object"),
        (["--student", "CUT"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], reason: str, deployed_student, tmp_path: Path, capfd
) -> None:
    data = deployed_student.data_yaml.parent
    places = {
        "STUDENT": deployed_student.run,
        "BARE": tmp_path / "bare.pt",
        "CUT": tmp_path / "cut.pt",
        "VAL": data / "images/val",
        "EMPTY": tmp_path / "empty",
        "OTHER": tmp_path / "other.yaml",
        "UNLABELLED": tmp_path / "unlabelled.yaml",
    }
    content = deployed_student.checkpoint.read_bytes()
    places["BARE"].write_bytes(content)
    places["CUT"].write_bytes(content[: len(content) // 2])
    places["EMPTY"].mkdir()
    (tmp_path / "plain").mkdir()
    shutil.copyfile(data / "images/val/0.png", tmp_path / "plain/0.png")
    places["OTHER"].write_text(f"train: {data}/images/train\nval: plain\nnames: [cat, dog]\n")
    places["UNLABELLED"].write_text(f"train: {data}/images/train\nval: plain\nnames: [red, green, blue]\n")
    filled = [str(places.get(word, word)) for word in arguments]
    assert reason in _refusal(deploy.onnx.main, filled, tmp_path / "out/bundle", capfd)


# What the tool chain cannot compile ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "operation", "words"),
    [
        ("openvino", "det", "the student has an operation that OpenVINO has not (No conversion rule found for operat"),
        ("onnx", "matrix_exp", "the student has an operation without a form in ONNX opset 17 (Exporting the operator"),
    ],
)
def test_an_operation_that_a_tool_chain_has_not_is_one_line_and_leaves_nothing(
    name: str, operation: str, words: str, deployed_student, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    unknown = getattr(torch.linalg, operation)

    def odd(_module: torch.nn.SiLU, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x) + unknown(x[..., :2, :2]).sum()

    monkeypatch.setattr(torch.nn.SiLU, "forward", odd)
    arguments = ["--student", str(deployed_student.checkpoint), "--imgsz", "64", "--no-verify"]
    assert _main(name)([*arguments, "--out", str(tmp_path / "out")]) == 1
    error = capfd.readouterr().err.rstrip().splitlines()
    assert error[-1].startswith(f"error: {words}")
    assert not any("Traceback" in line for line in error)
    assert _left(tmp_path) == []


def test_a_student_whose_data_set_is_gone_asks_for_another(deployed_student, tmp_path: Path, capfd) -> None:
    run = tmp_path / "moved"
    shutil.copytree(deployed_student.run, run)
    record = json.loads((run / "student/student.json").read_text())
    record["data"]["yaml"] = "/gone/cells.yaml"
    (run / "student/student.json").write_text(json.dumps(record))
    line = _refusal(deploy.onnx.main, ["--student", str(run), "--int8"], tmp_path / "out/bundle", capfd)
    assert "data set /gone/cells.yaml does not exist: give --calibration" in line


def _shifted(job: Job, shift: float) -> Compiled:
    """Compile, then shift the class outputs: far down, the bundle runs and finds nothing."""
    import onnx
    from onnx import numpy_helper

    compiled = deploy.onnx.compile_onnx(job)
    model = onnx.load(job.folder / compiled.model_file)
    made_by = {output: node for node in model.graph.node for output in node.output}
    # A transposition turns what the last convolution makes.
    biases = {made_by[made_by[f"class_p{level}"].input[0]].input[2] for level in (3, 4, 5)}
    for tensor in model.graph.initializer:
        if tensor.name in biases:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(shift), tensor.name))
    onnx.save(model, job.folder / compiled.model_file)
    return compiled


def test_a_bundle_that_lost_its_accuracy_is_refused_with_both_figures(deployed_student, tmp_path: Path, capfd) -> None:
    target = replace(deploy.onnx.TARGET, compile=lambda job: _shifted(job, -50))
    arguments = ["--student", str(deployed_student.run)]
    line = _refusal(lambda argv: run_target(target, argv), arguments, tmp_path / "out/bundle", capfd)
    assert "points of mAP50-95 on drawn/val" in line
    assert "to 0.0000), 1 are allowed" in line
    assert run_target(target, [*arguments, "--out", str(tmp_path / "kept"), "--no-verify"]) == 0


def test_a_bundle_whose_outputs_are_not_finite_is_refused_by_their_names(deployed_student, tmp_path, capfd) -> None:
    target = replace(deploy.onnx.TARGET, compile=lambda job: _shifted(job, np.nan))
    arguments = ["--student", str(deployed_student.run), "--max-drop", "100"]
    line = _refusal(lambda argv: run_target(target, argv), arguments, tmp_path / "out/bundle", capfd)
    assert "the bundle's class_p3, class_p4, class_p5 is not finite" in line


def test_a_small_loss_is_refused_where_less_is_allowed(bundles, deployed_student, tmp_path: Path, capfd) -> None:
    lost = Bundle.open(bundles("onnx", "int8")).manifest.verified["drop_points"]
    assert lost > 0.1
    arguments = ["--student", str(deployed_student.run), "--int8", "--max-drop", f"{lost - 0.05:.3f}"]
    assert f"loses {lost:.2f} points" in _refusal(deploy.onnx.main, arguments, tmp_path / "out/bundle", capfd)


def _failing(error: BaseException) -> Target:
    def compile_until_it_fails(job: Job) -> Compiled:
        (job.folder / "model.onnx").write_bytes(b"half of it")
        os.write(1, b"chatter on stdout\n")
        raise error

    return replace(deploy.onnx.TARGET, compile=compile_until_it_fails)


def test_a_full_disk_is_one_line_and_leaves_nothing(deployed_student, tmp_path: Path, capfd) -> None:
    target = _failing(OSError(errno.ENOSPC, "No space left on device", "model.onnx"))
    arguments = ["--student", str(deployed_student.run)]
    line = _refusal(lambda argv: run_target(target, argv), arguments, tmp_path / "out/bundle", capfd)
    assert "No space left on device" in line


def test_parent_folders_made_for_an_output_go_with_it_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    def fail(beside: Path | None) -> None:
        with whole_folder(tmp_path / "mine/a/b/bundle"):
            if beside is not None:
                beside.touch()
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail(None)
    assert _left(tmp_path) == ["mine"]
    with pytest.raises(OSError, match="no space"):
        fail(tmp_path / "mine/a/others")
    assert _left(tmp_path / "mine") == ["a", "others"]
    with whole_folder(tmp_path / "c/bundle"):
        pass
    assert (tmp_path / "c/bundle").is_dir()


def test_a_fault_of_the_tools_shows_what_they_wrote_and_leaves_nothing(deployed_student, tmp_path, capfd) -> None:
    with pytest.raises(ZeroDivisionError):
        run_target(
            _failing(ZeroDivisionError()), ["--student", str(deployed_student.run), "--out", str(tmp_path / "b")]
        )
    printed = capfd.readouterr()
    assert (printed.out, "chatter on stdout" in printed.err) == ("", True)
    assert _left(tmp_path) == []


def test_a_missing_tool_is_named(engine: str, deployed_student, tmp_path: Path, monkeypatch, capfd) -> None:
    known = build.find_spec
    monkeypatch.setattr(build, "find_spec", lambda name: None if name in ("torch", "onnxslim") else known(name))
    line = _refusal(_main(engine), ["--student", str(deployed_student.run)], tmp_path / "out/bundle", capfd)
    assert f"compiling for {engine} needs torch" in line
    assert "pip install -e '.[train]' in the checkout of edge-distill" in line


def test_ctrl_c_while_an_engine_is_imported_is_an_interruption_and_a_broken_engine_is_not(capsys) -> None:
    def importing(cause: BaseException) -> int:
        raise ImportError("initialization failed") from cause

    assert run_command(lambda: importing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("interrupted")
    with pytest.raises(ImportError, match="initialization failed"):
        run_command(lambda: importing(ValueError()))


def test_ctrl_c_ends_with_130_and_leaves_nothing(deployed_student, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deploy.openvino", "--int8", "--student", str(deployed_student.run)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out/bundle")], cwd=root, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "interrupted: nothing half-written was left"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# Real data ----------------------------------------------------------------------------------------------------------


def test_a_real_network_keeps_its_accuracy_in_int8(coco_mini: Path, coco_weights: Path, tmp_path: Path) -> None:
    arguments = ["--student", str(coco_weights), "--calibration", str(coco_mini / "coco-mini.yaml"), "--imgsz", "320"]
    arguments += ["--calibration-images", "24", "--int8", "--max-drop", "3", "--out", str(tmp_path / "bundle")]
    assert deploy.onnx.main(arguments) == 0
    verified = Bundle.open(tmp_path / "bundle").manifest.verified
    assert verified["images"] == 64
    assert 0.37 < verified["student_map50_95"] < 0.40
    assert verified["drop_points"] < 3
    assert verified["drift"]["box_p3"]["mean_abs"] < 0.3
