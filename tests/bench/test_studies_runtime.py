"""The runtime study: pairing, verdicts and rendering on made-up samples, and its worker on a tiny real bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ultralytics", reason="the studies need the [train] extra")

from bench.errors import BenchError
from bench.measure import decode_detections
from bench.studies.runtime_equality import Equality, Unmatched, compare, match
from bench.studies.runtime_latency import (
    OURS,
    THEIRS,
    Cell,
    Entrant,
    Timing,
    ceil_to,
    floor_to,
    overhead,
    round_indices,
    speedup,
)
from bench.studies.runtime_memory import Memory
from bench.studies.runtime_models import Workshop
from bench.studies.runtime_page import Setting, document
from bench.studies.runtime_process import WorkerProcess
from bench.studies.runtime_verdicts import Findings, pairs, verdicts
from deploy.dataset import DetectionDataset
from deploy.runtime import Detections, Detector, read_image
from deploy.student import Student


def _timing(name: str, side: str, rounds_ms: list[list[float]], hint: str = "", as_it_comes: bool = False) -> Timing:
    rounds = tuple(tuple(one / 1e3 for one in round_ms) for round_ms in rounds_ms)
    facts = {"precision_hint_executed": hint} if hint else {}
    return Timing(Entrant(name, side, {}, as_it_comes), rounds, ((0.001, 0.002, 0.003),), facts, 4)


def _found(*rows: tuple[float, float, int]) -> Detections:
    """Detections of 10 px squares: (left, score, class)."""
    boxes = np.array([[left, 0, left + 10, 10] for left, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([one for _, one, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([one for _, _, one in rows], np.int64))


def test_speedup_is_paired_round_by_round() -> None:
    ours = _timing("bundle", OURS, [[10, 10], [20, 20], [10, 30]])
    theirs = _timing("ultralytics", THEIRS, [[20, 20], [50, 30], [60, 60]])
    found = speedup(ours, theirs)
    assert (found.low, found.median, found.high) == pytest.approx((2.0, 2.0, 3.0))


def test_latency_figures_are_those_of_all_samples() -> None:
    timing = _timing("bundle", OURS, [[1, 2, 3], [4, 5, 6]])
    assert timing.percentile_s(50) == pytest.approx(0.0035)
    assert timing.images_per_s == pytest.approx(1000 / 3.5)
    assert timing.round_medians_s == pytest.approx((0.002, 0.005))


def test_figures_are_never_rounded_in_our_favour() -> None:
    assert (floor_to(1.2999, 2), floor_to(1.3, 2)) == ("1.29", "1.30")
    assert (ceil_to(1.2501, 3), ceil_to(1.25, 3)) == ("1.251", "1.250")


def test_rounds_go_on_where_the_one_before_ended() -> None:
    assert round_indices(0, 4, 6) == [0, 1, 2, 3]
    assert round_indices(1, 4, 6) == [4, 5, 0, 1]


def test_rows_are_held_against_those_of_the_same_precision_and_of_the_defaults() -> None:
    cell = Cell(
        320,
        "openvino",
        "int8",
        (
            _timing("bundle", OURS, [[1]], "f32", as_it_comes=True),
            _timing("ultralytics", THEIRS, [[1]], "bf16", as_it_comes=True),
            _timing("bundle, f32", OURS, [[1]], "f32"),
            _timing("bundle, bf16", OURS, [[1]], "bf16"),
            _timing("ultralytics, f32", THEIRS, [[1]], "f32"),
        ),
    )
    names = [(own.entrant.name, other.entrant.name) for own, other in pairs(cell)]
    assert names == [("bundle", "ultralytics"), ("bundle, bf16", "ultralytics"), ("bundle", "ultralytics, f32")]


def test_a_target_is_judged_by_the_unrounded_figure_and_a_narrow_one_is_named() -> None:
    cell = Cell(
        320,
        "onnx",
        "int8",
        (
            replace(
                _timing("bundle", OURS, [[10], [10], [10]], as_it_comes=True),
                overheads=((1.2, 1.2), (1.3, 1.3), (1.25, 1.25)),
                calls_s=(0.008,) * 6,
            ),
            _timing("ultralytics", THEIRS, [[29.99], [29.0], [31.0]], as_it_comes=True),
        ),
    )
    speed, total = verdicts(Findings(cells=(cell,)))
    assert (speed.target, speed.met, speed.holds) == ("≥ 3", "2.99 [2.90, 3.10]", False)
    assert speed.word == "**missed**, but not in every round alike"
    found = overhead(cell.timings[0])
    assert found is not None
    assert found.median == pytest.approx(1.25)
    assert (total.target, total.holds, total.narrow) == ("≤ 1.25", True, True)


def test_a_contender_that_did_not_run_is_a_missed_target() -> None:
    cell = Cell(640, "tflite", "fp32", (), failures={"ultralytics": "no such exporter"})
    (verdict,) = verdicts(Findings(cells=(cell,)))
    assert not verdict.holds
    assert "no such exporter" in verdict.what


def test_detections_are_paired_one_to_one_the_nearest_of_a_class_first() -> None:
    ours = _found((0, 0.9, 0), (1, 0.8, 0), (50, 0.7, 1))
    theirs = _found((1.25, 0.8, 0), (0.5, 0.9, 0), (50, 0.7, 0))
    assert sorted(match(ours, theirs)) == [(0, 1), (1, 0)]
    assert match(ours, Detections.empty()) == []


def test_a_detection_at_the_threshold_is_a_tie_and_any_other_a_difference() -> None:
    ours = [_found((0, 0.9, 0), (30, 0.2505, 0)), _found((0, 0.6, 1))]
    theirs = [_found((0.25, 0.9, 0)), _found((0, 0.6, 2))]
    found = compare("set", 64, "onnx", ours, theirs)
    assert (found.ours, found.theirs, found.images) == (3, 2, 2)
    assert found.box_px == pytest.approx(0.25)
    assert [one.side for one in found.ties] == ["ours"]
    assert sorted((one.image, one.side, one.class_id) for one in found.different) == [(1, "ours", 1), (1, "theirs", 2)]
    words = {verdict.what.split(": ")[1]: verdict.holds for verdict in verdicts(Findings(equalities=(found,)))}
    assert words["detections that one side alone has"] is False
    assert words["box difference, px"] is True


def test_the_page_holds_every_part_and_every_failure(tmp_path: Path) -> None:
    cell = Cell(
        320,
        "tflite",
        "fp32",
        (
            replace(_timing("bundle", OURS, [[10.0]], as_it_comes=True), overheads=((1.5,),), calls_s=(0.004,)),
            _timing("ultralytics", THEIRS, [[25.0]], as_it_comes=True),
        ),
        {"ultralytics, 2 threads": "it is gone"},
    )
    equality = Equality("set/val", 64, "onnx", 1, 1, 0, (Unmatched(0, "ours", 3, 0.25001),), 0.1, 0.0, 0.5, 0.5)
    memories = (
        Memory("bundle", 640, "tflite", 110_000_001),
        Memory("ultralytics", 640, "tflite", failure="no memory"),
    )
    weights = tmp_path / "weights.pt"
    setting = Setting(
        command="python -m bench.studies.runtime --data d",
        threads=2,
        rounds=1,
        per_round=1,
        sources=[(Student("s", weights, "ab" * 32), DetectionDataset("set/val", ("x",), ()))],
        calibration_images=48,
        machine={"model": "M", "cores": 2, "architecture": "a", "system": "s", "cpu_flags": ["avx2"]},
        load_before=None,
    )
    text = document(setting, Findings((cell,), (equality,), memories, (0.1, 0.2)))
    assert (
        "| 320 px LiteRT FP32 | bundle (4 in the process) | 10.00 | 10.00 | 10.00 | 10.00 [10.00, 10.00] | 100.0 |"
        in text
    )
    assert "throughput of bundle over ultralytics | ≥ 1 | 2.50 [2.50, 2.50] | met |" in text
    assert "did not run: it is gone" in text
    assert "| 320 px LiteRT FP32 | bundle | 4.00 | 1.500 [1.500, 1.500] |" in text
    assert "only ours, class 3, score 0.250010 (a tie at the threshold)" in text
    assert "peak memory of bundle, MB | ≤ 110 | 110.1 | **missed** |" in text
    assert "| 640 px LiteRT INT8 | ultralytics | no memory | no |" in text
    assert "`import deploy.runtime`, s | < 0.3 | 0.150 [0.100, 0.200] | met |" in text
    assert "python -m bench.studies.runtime --data d" in text


def test_a_bundle_kept_from_other_weights_is_refused(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    student = Student("s", tmp_path / "s.pt", "ab" * 32)
    make_bundle(tmp_path / "bundles" / "set-64-onnx-fp32", student={"sha256": "cd" * 32})
    workshop = Workshop(tmp_path, student, tmp_path / "data.yaml", "set", 8)
    with pytest.raises(BenchError, match="was made from weights cdcdcdcdcdcd, asked for are abababababab"):
        workshop.bundle(64, "onnx", "fp32")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    random = np.random.default_rng(0)
    paths = []
    for index in range(3):
        path = tmp_path / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (50 + index, 70, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def test_a_worker_times_detects_and_measures_the_engine_alone(
    make_bundle: Callable[..., Path], images: list[str], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    request: dict[str, Any] = {
        "kind": "bundle", "model": str(bundle), "engine": "onnx", "imgsz": 64, "threads": 1, "cpus": 1,
        "conf": 0.25, "iou": 0.7, "max_det": 300, "images": images,
    }  # fmt: skip
    expected = [Detector(bundle, threads=1)(read_image(path)) for path in images]
    with WorkerProcess("bundle", request, tmp_path / "log") as worker:
        assert worker.facts["library"] == "onnxruntime"
        timed = worker.ask({"do": "time", "images": [0, 1, 2, 0]})
        assert len(timed["totals_s"]) == 4
        assert min(timed["totals_s"]) > 0
        assert timed["found"] == sum(len(expected[index]) for index in (0, 1, 2, 0)) > 0
        engine = worker.ask({"do": "engine", "images": [0, 1]})
        assert 0 < min(engine["calls_s"]) < max(engine["totals_s"])
        assert np.shape(worker.ask({"do": "stages", "images": [0]})["stages_s"]) == (1, 3)
        met = decode_detections(worker.ask({"do": "detect", "image": 1, "conf": 0.25}))
        np.testing.assert_array_equal(met.boxes_xyxy, expected[1].boxes_xyxy)
        np.testing.assert_array_equal(met.class_ids, expected[1].class_ids)
        read = worker.ask({"do": "files", "count": 4})
        assert read["found"] == timed["found"]
        assert read["peak_rss_bytes"] > 10_000_000
        with pytest.raises(BenchError, match="bundle: KeyError"):
            worker.ask({"do": "nothing known"})


def test_a_worker_that_cannot_open_its_contender_says_why(tmp_path: Path) -> None:
    request = {"kind": "bundle", "model": str(tmp_path / "none"), "cpus": 1, "images": []}
    with pytest.raises(BenchError, match=r"ours: BundleError: .*none"):
        WorkerProcess("ours", request, tmp_path / "log")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by prctl(2)")
def test_a_stopped_worker_ends_with_its_host(
    make_bundle: Callable[..., Path], images: list[str], tmp_path: Path
) -> None:
    request = {
        "kind": "bundle", "model": str(make_bundle(tmp_path / "bundle")), "threads": 1, "cpus": 1,
        "conf": 0.25, "iou": 0.7, "max_det": 300, "images": images,
    }  # fmt: skip
    host = (
        "import os, sys, json; from pathlib import Path; from bench.studies.runtime_process import WorkerProcess\n"
        f"worker = WorkerProcess('w', json.loads({json.dumps(json.dumps(request))}), Path({str(tmp_path / 'log')!r}))\n"
        "print(worker._process.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", host], capture_output=True, text=True, check=True)
    worker = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + 20
    while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists() or (worker / "stat").read_text().split()[2] == "Z"
