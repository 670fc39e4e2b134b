"""`python -m deploy.repair` and `--repair`: whole folders, the original as reference, one line for bad input."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy import onnx
from deploy.build import build_bundle
from deploy.bundle import Bundle, sha256_file
from deploy.errors import StudentError
from deploy.graph import load_graph
from deploy.repair.__main__ import main
from deploy.repair.student_folder import original_checkpoint, write_repaired_student
from deploy.student import find_student


@pytest.fixture(scope="module")
def repaired(deployed_student: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student folder made by the command line."""
    out = tmp_path_factory.mktemp("repaired") / "student"
    assert main(["--student", str(deployed_student.run), "--out", str(out), "--steps", "4"]) == 0
    return out


def test_the_new_folder_holds_the_student_its_original_and_the_record(repaired: Path, deployed_student: Any) -> None:
    assert sorted(path.name for path in repaired.iterdir()) == ["original.pt", "student.json", "student.pt"]
    student = find_student(repaired)
    record = student.record["repair"]
    assert record["methods"] == ["qat", "bias"]
    assert record["original"]["sha256"] == sha256_file(deployed_student.checkpoint)
    assert student.record["data"] == {"yaml": str(deployed_student.data_yaml)}
    assert original_checkpoint(student) == repaired / "original.pt"
    assert original_checkpoint(find_student(deployed_student.run)) is None


def test_the_checkpoint_gives_the_changed_weights_back_to_the_last_bit(deployed_student: Any, tmp_path: Path) -> None:
    graph = load_graph(deployed_student.checkpoint)
    generator = torch.Generator().manual_seed(0)
    for parameter in graph.network.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    write_repaired_student(find_student(deployed_student.run), graph, {"methods": []}, tmp_path)
    read = dict(load_graph(tmp_path / "student.pt").network.named_parameters())
    assert all(torch.equal(read[name], parameter) for name, parameter in graph.network.named_parameters())


def test_ultralytics_opens_the_checkpoint(repaired: Path) -> None:
    from ultralytics import YOLO

    assert YOLO(str(repaired / "student.pt")).names == {0: "red", 1: "green", 2: "blue"}


def test_a_bundle_of_it_is_verified_against_the_original(
    repaired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy import verify

    seen = []
    verify_bundle = verify.verify_bundle

    def spy(bundle: Bundle, graph: Any, *rest: Any) -> dict[str, Any]:
        seen.append(graph)
        return verify_bundle(bundle, graph, *rest)

    monkeypatch.setattr(verify, "verify_bundle", spy)
    out = tmp_path / "bundle"
    assert onnx.main(["--student", str(repaired), "--int8", "--max-drop", "100", "--out", str(out)]) == 0
    original = dict(load_graph(repaired / "original.pt").network.named_parameters())
    assert all(torch.equal(original[name], one) for name, one in seen[0].network.named_parameters())
    manifest = Bundle.open(out).manifest
    assert manifest.records["repair"] == find_student(repaired).record["repair"]
    assert manifest.student["sha256"] == sha256_file(repaired / "student.pt")


def test_the_flag_of_a_target_repairs_and_records_it(deployed_student: Any, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    flags = ["--int8", "--repair", "bias", "--max-drop", "100", "--out", str(out)]
    assert onnx.main(["--student", str(deployed_student.run), *flags]) == 0
    record = Bundle.open(out).manifest.records["repair"]
    assert record["methods"] == ["bias"]
    assert record["distance_after"] <= record["distance_before"]


def test_a_repaired_student_is_not_repaired_again(repaired: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--student", str(repaired)]) == 1
    assert "is repaired already" in capsys.readouterr().err
    assert onnx.main(["--student", str(repaired), "--int8", "--repair", "bias", "--no-verify"]) == 1
    assert "is repaired already" in capsys.readouterr().err


def test_a_changed_or_missing_original_is_refused(repaired: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(repaired, tmp_path / "copy"))
    (folder / "original.pt").write_bytes(b"another")
    with pytest.raises(StudentError, match=r"original\.pt is not the student that student\.json names"):
        original_checkpoint(find_student(folder))
    (folder / "original.pt").unlink()
    with pytest.raises(StudentError, match="which is not beside it"):
        original_checkpoint(find_student(folder))


def test_an_unknown_method_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "magic"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: no weight repair by 'magic': give some of equalise, qat, adaround, bias, or none"
    ]


def test_too_few_images_and_no_method_at_all_end_in_one_line(
    deployed_student: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--student", str(deployed_student.run), "--out", str(tmp_path / "student")]
    for added, words in (
        (["--calibration-images", "3"], "3 calibration images, weight repair needs at least 4: give more, or deploy"),
        (["--methods", "none"], "--methods none repairs nothing: give some of equalise, qat, adaround, bias"),
        (["--calibration", "nothing.yaml"], "no --calibration nothing.yaml: check the path"),
    ):
        assert main([*arguments, *added]) == 1
        (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("error: "))
        assert words in line
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_helps_the_student_is_as_it_was_and_that_is_said(
    deployed_student: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.repair.methods.is_better", lambda distance, before: False)
    out = tmp_path / "student"
    assert main(["--student", str(deployed_student.run), "--out", str(out), "--methods", "bias"]) == 0
    assert "nothing helped" in capsys.readouterr().err
    before, after = (load_graph(path).network for path in (deployed_student.checkpoint, out / "student.pt"))
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_one_repaired_student_serves_every_target(repaired: Path, tmp_path: Path) -> None:
    hashes = set()
    for engine in ("onnx", "openvino", "tflite"):
        bundle = tmp_path / engine
        arguments = ["--student", str(repaired), "--int8", "--max-drop", "100", "--out", str(bundle)]
        assert import_module(f"deploy.{engine}").main(arguments) == 0
        manifest = Bundle.open(bundle).manifest
        hashes.add(manifest.student["sha256"])
        assert manifest.records["repair"]["methods"] == ["qat", "bias"]
        assert max(one["mean_abs"] for one in manifest.verified["drift"].values()) < 0.5
    assert hashes == {sha256_file(repaired / "student.pt")}


def test_a_float_precision_refuses_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        onnx.main(["--repair", "bias"])
    assert stop.value.code == 2
    assert "--repair is of use with int8 or w8a16 alone" in capsys.readouterr().err


def test_nothing_is_left_where_the_repair_fails(
    deployed_student: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("deploy.repair.student_folder.write_repaired_student", fail)
    out = tmp_path / "student"
    assert main(["--student", str(deployed_student.run), "--out", str(out), "--steps", "1"]) == 1
    assert json.dumps([str(path) for path in tmp_path.iterdir()]) == "[]"


def test_a_bundle_of_it_has_the_ranges_that_its_weights_were_trained_for(
    repaired: Path, deployed_student: Any, tmp_path: Path
) -> None:
    """However it is calibrated later: on other images, and on the same by the original student."""
    graph = load_graph(repaired / "student.pt", find_student(repaired).record)
    assert graph.ranges is not None
    images = deployed_student.data_yaml
    scales = []
    for name, count in (("few", 5), ("all", 8)):
        bundle = build_bundle(
            onnx.TARGET, find_student(repaired), tmp_path / name, precision="int8", calibration=images,
            calibration_images=count, verify=False,
        )  # fmt: skip
        assert bundle.manifest.quantization["ranges"] == "fisher"
        scales.append(_activation_scales(bundle))
    silu_outputs = {high - low for low, high in graph.ranges}
    met = [scale * 255 for scale in scales[0] if any(abs(scale * 255 / span - 1) < 0.01 for span in silu_outputs)]
    assert len(met) > 100
    assert len(set(scales[0]) & set(scales[1])) > 100


def _activation_scales(bundle: Bundle) -> list[float]:
    import onnx as onnx_format
    from onnx import numpy_helper

    model = onnx_format.load(bundle.path / bundle.manifest.model_file)
    constants = {one.name: one for one in model.graph.initializer}
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return [float(numpy_helper.to_array(constants[name])) for name in sorted(scales)]
