"""The INT8 study: its kept figures, its verdicts on made-up ones, and the whole command on a tiny real student."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="the studies need the [train] extra")

from bench.errors import BenchError
from bench.studies import int8, int8_parts
from bench.studies.decoded import DecodedContender, decoded_boxes
from bench.studies.figures_folder import FiguresFolder
from bench.studies.int8_networks import BUNDLE, CHECKPOINT, PEER, REPAIRED, ULTRALYTICS, Network, entrants
from bench.studies.int8_page import Figures, Setting, document, verdicts
from bench.studies.runtime_contenders import open_contender
from deploy.dataset import DetectionDataset
from deploy.repair.__main__ import main as repair
from deploy.runtime import letterbox, read_image
from deploy.student import Student

CHANGE = {"difference": -0.003, "low": -0.02, "high": 0.01, "samples": 10}
BEHIND = {"difference": -0.001, "low": -0.02, "high": 0.01, "samples": 10}


def _setting(**arguments: Any) -> Setting:
    given = {"imgsz": 640, "engines": ["openvino"], "threads": [1], "calibration_images": 48, "resamples": 10}
    given |= {"rounds": 2, "images": 1, **arguments}
    machine = {"model": "M", "cores": 2, "architecture": "a", "system": "s", "cpu_flags": ["avx2"]}
    student = Student("s", Path("s.pt"), "ab" * 32)
    return Setting("COMMAND", Namespace(**given), student, None, DetectionDataset("set/val", ("x",), ()), machine)


def _timed(*rounds_ms: float, hint: str = "f32") -> dict[str, Any]:
    return {"rounds_s": [[one / 1e3] for one in rounds_ms], "facts": {"precision_hint_executed": hint}}


def test_a_part_is_measured_once_and_its_file_is_whole(tmp_path: Path) -> None:
    asked = []

    def measure() -> dict[str, int]:
        asked.append(1)
        return {"figure": 3}

    inputs = {"student": "ab"}
    for _ in range(2):
        kept = FiguresFolder(tmp_path / "figures", inputs)
        assert kept.measured("latency", measure) == {"figure": 3}
    assert len(asked) == 1
    assert kept.part("memory") is None
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["inputs.json", "latency.json"]


def test_figures_of_other_inputs_and_torn_files_are_refused(tmp_path: Path) -> None:
    kept = FiguresFolder(tmp_path, {"student": "ab", "repaired": None})
    with pytest.raises(BenchError, match="holds figures of student ab, asked for is cd: remove it or choose"):
        FiguresFolder(tmp_path, {"student": "cd", "repaired": None})
    with pytest.raises(BenchError, match="holds figures of repaired None, asked for is ef"):
        FiguresFolder(tmp_path, {"student": "ab", "repaired": "ef"})
    (tmp_path / "audit.json").write_text('{"torn": ')
    with pytest.raises(BenchError, match=r"audit.json cannot be read .*remove it, and it is measured again"):
        kept.part("audit")


def test_targets_are_judged_by_the_unrounded_figures() -> None:
    int8, whole = Network("openvino", BUNDLE, "int8", Path("a")), Network("openvino", BUNDLE, "fp32", Path("b"))
    figures = Figures(
        accuracy={int8.name: {"from_checkpoint": {**CHANGE, "difference": -0.004001}, "from_ultralytics": BEHIND}},
        latency={("openvino", 1): {"networks": {int8.name: _timed(10, 10, 10), whole.name: _timed(23.99, 23.9, 25)}}},
    )
    lost, more, speed = verdicts(_setting(), [int8, whole], figures)
    assert (lost.target, lost.met, lost.holds) == ("≤ 0.4", "0.40", False)
    assert (more.met, more.holds) == ("-0.10 [-2.00, +1.00]", False)
    assert (speed.target, speed.met, speed.holds, speed.narrow) == ("≥ 2.4", "2.39 [2.39, 2.50]", False, True)
    assert [one.what for one in verdicts(_setting(imgsz=320), [int8, whole], figures)] == [lost.what, more.what]


def test_a_bundle_that_was_not_made_misses_its_targets() -> None:
    (missed,) = verdicts(_setting(), [Network("onnx", REPAIRED, "int8", failure="no room")], Figures())
    assert not missed.holds
    assert "ONNX Runtime INT8 bundle, repaired was not made (no room)" in missed.what


def test_the_page_holds_every_part_and_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(b"12")
    networks = [
        Network("openvino", ULTRALYTICS, "int8", tmp_path),
        Network("openvino", ULTRALYTICS, "fp32", failure="it broke"),
    ]
    name = networks[0].name
    figures = Figures(
        accuracy={
            CHECKPOINT: {"map50_95": 0.4322, "map50": 0.6},
            name: {"map50_95": 0.4, "map50": 0.55, "from_checkpoint": CHANGE},
        },
        latency={
            ("openvino", 1): {
                "networks": {name: _timed(10, 20, hint="bf16"), f"{name}, executed in f32": _timed(30.001)},
                "load_before": [0.25, 0, 0],
            }
        },
        memory={name: {"peak_rss_bytes": 500_000_001, "failure": ""}},
    )
    text = document(_setting(), networks, figures)
    accuracy = "| INT8 ultralytics | 40.00 | 55.00 | -0.30 [-2.00, +1.00] |  |"
    assert f"{accuracy} 15.00 / 19.90 (bf16) | 0.1 | 500.1 | not asked |" in text
    assert "| INT8 ultralytics, executed in f32 | | | | | 30.01 / 30.01 (f32) | | | |" in text
    assert "| FP32 ultralytics | not made: it broke " in text
    assert "before the latency of each runtime: 0.25." in text
    assert "COMMAND" in text
    assert "## INT8 over FP32" not in text
    columns = {line.count("|") for line in text.split("## OpenVINO")[1].split("The interval")[0].splitlines() if line}
    assert columns == {10}


def test_ultralytics_float_openvino_is_also_timed_in_true_float_where_bf16_would_run() -> None:
    networks = [Network("openvino", ULTRALYTICS, "fp32", Path("e")), Network("openvino", BUNDLE, "fp32", Path("b"))]
    names = [one.name for one in entrants(networks, 640, 1, bf16=True)]
    assert names == [networks[0].name, f"{networks[0].name}, executed in f32", networks[1].name]
    assert len(list(entrants(networks, 640, 1, bf16=False))) == 2


def test_a_decoded_model_as_a_contender_finds_what_scoring_finds(deployed_student: Any, tmp_path: Path) -> None:
    from bench.studies.decoded import open_decoded
    from bench.studies.peers import export_by_ultralytics

    path = export_by_ultralytics(deployed_student.checkpoint, "onnx", deployed_student.data_yaml, 96, tmp_path, "fp32")
    request = {"kind": "decoded", "model": str(path), "imgsz": 96, "threads": 1, "conf": 0.3, "iou": 0.7, "max_det": 9}
    contender = open_contender(request)
    assert isinstance(contender, DecodedContender)
    image = read_image(deployed_student.data_yaml.parent / "images/val/2.png")
    pixels, geometry = letterbox(image, 96, 96)
    expected = decoded_boxes(open_decoded(path, 1)(pixels), geometry, 0.3, 0.7, 9)
    assert len(expected) == 9
    np.testing.assert_array_equal(contender.detect(image).boxes_xyxy, expected.boxes_xyxy)
    assert contender.count(contender.detections(image, 0.999)) < 9
    assert all(stage > 0 for stage in contender.stages_s(image))
    with pytest.raises(BenchError, match="for bundles alone"):
        contender.total_and_call_s(image)


def test_the_command_measures_in_parts_and_goes_on_where_it_stopped(
    deployed_student: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired = tmp_path / "repaired"
    assert repair(["--student", str(deployed_student.run), "--out", str(repaired), "--steps", "2"]) == 0
    arguments = ["--data", str(deployed_student.data_yaml), "--student", str(deployed_student.run)]
    arguments += ["--repaired", str(repaired), "--imgsz", "96", "--engines", "onnx", "--threads", "1", "--rounds", "2"]
    arguments += ["--images", "2", "--resamples", "20", "--work", str(tmp_path / "work")]
    capsys.readouterr()
    assert int8.main([*arguments, "--only", "accuracy", "audit"]) == 0
    page = capsys.readouterr().out
    rows = {
        line.split(" | ")[0]: line.split(" | ") for line in page.splitlines() if line.startswith(("| FP32", "| INT8"))
    }
    assert list(rows) == [
        f"| {precision} {maker}"
        for precision, maker in [("FP32", BUNDLE), ("INT8", BUNDLE), ("INT8", REPAIRED), *_of_ultralytics()]
    ]
    whole, plain = rows[f"| FP32 {BUNDLE}"], rows[f"| INT8 {BUNDLE}"]
    assert whole[3] == "+0.00 [+0.00, +0.00]"
    assert float(whole[4]) < 0.1 < float(plain[4])  # damage in percent
    assert plain[5] == ""  # latency comes later
    assert plain[-1].startswith("63 INT8")
    figures = tmp_path / "work/figures/drawn-96"
    names = sorted(path.name.split("-")[0] for path in figures.iterdir())
    assert names == ["accuracy", "audit", "audit", "audit", "inputs.json"]
    kept = json.loads(next(figures.glob("accuracy-*.json")).read_text())
    assert kept[f"ONNX Runtime INT8 {REPAIRED}"]["from_ultralytics"]["samples"] == 20

    def again(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(int8_parts, "accuracy", again)
    out = tmp_path / "page.md"
    assert int8.main([*arguments, "--only", "accuracy", "latency", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    timed = next(line for line in out.read_text().splitlines() if line.startswith(f"| INT8 {BUNDLE} |")).split(" | ")
    p50, p99 = (float(one) for one in timed[5].split(" / "))
    assert 0 < p50 <= p99
    assert timed[1:5] == plain[1:5]
    samples = json.loads(next(figures.glob("latency-onnx-1-*.json")).read_text())["networks"]
    assert {len(one["rounds_s"]) for one in samples.values()} == {2}
    assert len(samples) == 5
    assert {one["facts"]["threads"] for one in samples.values()} == {1}
    assert int8.main([*arguments, "--out", str(out)]) == 1
    assert "already exists" in capsys.readouterr().err


def _of_ultralytics() -> list[tuple[str, str]]:
    return [("FP32", ULTRALYTICS), ("INT8", ULTRALYTICS)]


def test_what_was_not_repaired_from_the_student_is_refused(
    deployed_student: Any, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--data", str(deployed_student.data_yaml), "--student", str(deployed_student.run)]
    assert int8.main([*arguments, "--repaired", str(deployed_student.run)]) == 1
    assert "was not repaired from" in capsys.readouterr().err
    assert int8.main([*arguments, "--peer", "nothing.tflite"]) == 1
    assert "no --peer nothing.tflite: check the path" in capsys.readouterr().err
    assert Network("tflite", PEER, "int8").name == "LiteRT INT8 peer"
