"""The soak: what it counts, what it calls a fault, and what it writes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from bench.studies import soak, soak_run
from bench.studies.soak_page import soak_plot
from bench.studies.soak_run import MEGABYTE, Soak, SoakJob, resident_bytes, run_soak
from deploy.runtime import Detections, Detector
from deploy.runtime.stream_stats import STAGES, StreamStats

FRAMES = 10_000


def _soak(growth_bytes_per_frame: float = 0.0, **changed: int) -> Soak:
    """A made-up soak of 10 000 frames that starts with a jump of 50 MB."""
    frames = np.arange(1, FRAMES + 1, 20, dtype=np.int64)
    noise = np.random.default_rng(0).normal(0, 20_000, len(frames))
    memory = 100 * MEGABYTE + growth_bytes_per_frame * frames + noise
    memory[frames < FRAMES // 10] -= 50 * MEGABYTE
    counts = {"read": FRAMES, "processed": FRAMES, "dropped": 0, "failed": 0, "abandoned": 0, **changed}
    changed_results = counts.pop("changed_results", 0)
    stats = StreamStats(
        **counts, elapsed_s=100.0, busy_s=dict.fromkeys(STAGES, 1.0), latency_p50_s=0.01, latency_p90_s=0.02,
        latency_p99_s=0.03, latency_max_s=0.04,
    )  # fmt: skip
    job = SoakJob(Path("b"), (Path("a.jpg"),), FRAMES, 1)
    latencies_s = np.linspace(0.010, 0.020, FRAMES)
    facts = {"library": "l", "version": "1"}
    return Soak(job, "onnx INT8", (160, 160), facts, stats, latencies_s, frames, memory, changed_results, 5)


def test_flat_memory_is_no_fault_whatever_happens_in_the_first_tenth() -> None:
    assert soak.faults(_soak(), 0.5 * MEGABYTE) == []
    assert abs(_soak().growth_bytes_per_frame) < 5


def test_growth_is_measured_and_told() -> None:
    growing = _soak(growth_bytes_per_frame=300.0)
    assert growing.growth_bytes_per_frame == pytest.approx(300, rel=0.02)
    faults = soak.faults(growing, 0.5 * MEGABYTE)
    assert len(faults) == 1
    assert faults[0].startswith("memory grows by 2.8")
    assert soak.faults(growing, 3.5 * MEGABYTE) == []
    # 0.9 MB in all cannot be told from noise, however little is allowed.
    assert soak.faults(_soak(growth_bytes_per_frame=100.0), 0.1 * MEGABYTE) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"processed": FRAMES - 1}, "frames were to be read, their fates are"),
        ({"read": FRAMES - 1, "processed": FRAMES - 1}, "frames were to be read"),
        ({"processed": FRAMES - 2, "failed": 2}, "2 of 10000 frames have no result"),
        ({"changed_results": 3}, "3 results differ from their image's first"),
    ],
)
def test_lost_frames_and_changed_results_are_faults(changed: dict[str, int], words: str) -> None:
    assert any(words in fault for fault in soak.faults(_soak(**changed), MEGABYTE))


def test_drift_is_the_last_tenths_median_over_the_firsts() -> None:
    assert _soak().drift == pytest.approx(0.0195 / 0.0105, rel=1e-3)
    assert [len(window) for window in _soak().windows_s()] == [1000] * 10


def test_the_plot_is_svg_with_a_line_for_each_bundle_in_both_panels() -> None:
    root = ElementTree.fromstring(soak_plot([_soak(), replace(_soak(), name="tflite <INT8>")]))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    ys = [[float(point.split(",")[1]) for point in (line.get("points") or "").split()] for line in lines]
    assert ys[2][0] > ys[2][-1]  # the latency rises, and y points down
    assert "tflite <INT8>" in "".join(root.itertext())


def test_resident_memory_follows_what_is_held() -> None:
    before = resident_bytes()
    held = np.ones(40 * MEGABYTE, np.uint8)
    assert resident_bytes() - before > 30 * MEGABYTE
    assert held[-1] == 1


def test_a_soak_counts_every_frame_and_sees_a_result_that_changes(
    bundles: Callable[[str, str], Path], deployed_student, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tuple(sorted((deployed_student.data_yaml.parent / "images/val").iterdir()))
    job = SoakJob(bundles("onnx", "fp32"), images, 50, 1)
    found = run_soak(job)
    assert (found.stats.read, found.stats.processed, found.changed_results) == (50, 50, 0)
    assert found.detections > 0
    assert len(found.latencies_s) == 50
    assert (found.latencies_s > 0).all()
    assert found.memory_frames.tolist() == list(range(1, 51))
    assert (found.memory_bytes > 30 * MEGABYTE).all()
    monkeypatch.setattr(soak_run, "_MEMORY_SAMPLES", 7)
    assert run_soak(job).memory_frames.tolist() == [1, 8, 16, 24, 32, 40, 48]
    finish, calls = Detector.finish, []

    def unsteady(self: Detector, survivors: object, geometry: object) -> Detections:
        calls.append(1)
        detections = finish(self, survivors, geometry)
        return replace(detections, scores=detections.scores + np.float32(len(calls) == 20))

    monkeypatch.setattr(Detector, "finish", unsteady)
    assert run_soak(job).changed_results == 1


def test_the_command_writes_its_section_and_plot_and_overwrites_nothing(
    bundles: Callable[[str, str], Path], deployed_student, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = deployed_student.data_yaml.parent / "images/val", tmp_path / "soak.md"
    bundle = bundles("onnx", "fp32")
    common = ["--bundle", str(bundle), "--images", str(images), "--threads", "1", "--imgsz-source", "64"]
    capsys.readouterr()
    assert soak.main([*common, "--frames", "40", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n{tmp_path / 'soak.svg'}\n"
    text = out.read_text(encoding="utf-8")
    assert text.startswith("## Soak\n")
    assert "| onnx FP32 | 96 | 40 | 40 | 0 | 0 | 0 |" in text
    assert "| too short to tell |" in text
    assert "- onnx FP32: **met**, but for growth, which so few frames do not tell." in text
    assert "![Resident memory and latency over the frames](soak.svg)" in text
    assert "--frames 40" in text
    ElementTree.parse(tmp_path / "soak.svg")
    assert soak.main([*common, "--out", str(out)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert soak.main([*common[:2], "--images", str(tmp_path / "none")]) == 1
    assert "is no folder of images" in capsys.readouterr().err


def test_a_corrupt_image_fails_the_soak(
    bundles: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    monkeypatch.setattr(soak, "_in_fresh_process", lambda bundle, images, arguments: run_soak(
        soak_run.SoakJob(bundle.path, tuple(images), 3, 1)
    ))  # fmt: skip
    arguments = ["--bundle", str(bundles("onnx", "fp32")), "--images", str(tmp_path), "--frames", "3"]
    assert soak.main(arguments) == 1
    captured = capsys.readouterr()
    assert "failed: onnx FP32: 3 of 3 frames have no result" in captured.err
    assert "- onnx FP32: **missed**: 3 of 3 frames have no result." in captured.out
